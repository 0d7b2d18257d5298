//! Envoy in the place of our proxy: its bootstrap, its process, and the Unix sockets that feed it.
//!
//! Envoy never speaks to the control plane itself. Its discovery streams go through [`AdsRelay`]
//! with the agent's credentials, and its certificates come from [`SdsServer`], so that keys are
//! written nowhere.

mod ads;
mod bootstrap;
mod process;
mod sds;
mod sockets;

pub use ads::AdsRelay;
pub use bootstrap::{Bootstrap, StatsInclusion, render};
pub(crate) use process::write_bootstrap;
pub use process::{EnvoyOptions, EnvoyProcess};
pub use sds::{SdsServer, sds_resources};
pub use sockets::serve_sockets;
