//! Bookinfo: the four services of Istio's tutorial as small HTTP programs.
//!
//! In: a port, and the names of the services to call (`http://reviews:9080`). Out: pages and JSON.
//! The programs know nothing about the mesh and import no other crate of the workspace. They
//! forward trace headers, as every service in a mesh should.

mod call;
mod details;
mod metrics;
mod productpage;
mod ratings;
mod reviews;
mod serve;

use clap::{Parser, ValueEnum};

/// One of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// The web page; calls details and reviews.
    Productpage,
    /// Data of a book, such as pages and ISBN.
    Details,
    /// Reviews of a book; v2 and v3 call ratings.
    Reviews,
    /// Star ratings of the reviewers.
    Ratings,
}

/// Arguments of a sample: `meltemi sample reviews --version v2 --port 9080`.
#[derive(Debug, Clone, Parser)]
pub struct SampleOptions {
    #[arg(value_enum)]
    pub service: Service,
    /// Its version: v1, and for reviews v2 (black stars) or v3 (red stars).
    #[arg(long, default_value = "v1", env = "SERVICE_VERSION")]
    pub version: String,
    /// The port to listen on, all addresses.
    #[arg(long, default_value_t = 9080)]
    pub port: u16,
}

/// Serves until SIGTERM or SIGINT.
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
