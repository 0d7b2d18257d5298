//! The status servers: readiness probe, merged metrics and commands on port 15020, the readiness
//! probe alone on port 15021. Source: Istio `pilot/cmd/pilot-agent/status`.

mod metrics;
mod server;

pub use metrics::{AppMetrics, fetch};
pub use server::{Pages, Ready, StatusOptions, StatusServer, StatusSources};
