//! Probes and scrapes: ports 15020 and 15021. Source: Istio `pilot/cmd/pilot-agent/status`.

mod metrics;
mod server;

pub use metrics::{AppMetrics, fetch};
pub use server::{Pages, Ready, StatusOptions, StatusServer, StatusSources};
