//! Bookinfo: the four services of Istio's tutorial as small ordinary HTTP programs.
//!
//! In: a port, and names of the services they call (`http://reviews:9080`). Out: pages and JSON.
//! They know nothing of a mesh and import nothing of ours; they pass on the headers of a trace, as
//! every well-behaved service does.

mod call;
mod details;
mod metrics;
mod productpage;
mod ratings;
mod reviews;
mod serve;

use clap::{Parser, ValueEnum};

/// Which service to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// The web page; calls details and reviews.
    Productpage,
    /// Facts about a book.
    Details,
    /// What readers say; v2 and v3 call ratings.
    Reviews,
    /// Stars.
    Ratings,
}

/// How a sample is started: `meltemi sample reviews --version v2 --port 9080`.
#[derive(Debug, Clone, Parser)]
pub struct SampleOptions {
    /// The service.
    #[arg(value_enum)]
    pub service: Service,
    /// Its version: v1, and for reviews v2 (black stars) or v3 (red stars).
    #[arg(long, default_value = "v1", env = "SERVICE_VERSION")]
    pub version: String,
    /// The port to listen on, all addresses.
    #[arg(long, default_value_t = 9080)]
    pub port: u16,
}

/// Serves until the process is told to end.
pub fn run(options: SampleOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let SampleOptions {
        service,
        version,
        port,
    } = options;

    runtime.block_on(async move {
        match service {
            Service::Productpage => serve::serve(port, productpage::answer).await,
            Service::Details => serve::serve(port, details::answer).await,
            Service::Ratings => serve::serve(port, ratings::answer).await,
            Service::Reviews => {
                let flavour = reviews::Flavour::of(&version)?;
                serve::serve(port, move |request| reviews::answer(flavour, request)).await
            }
        }
    })
}
