//! Envoy instead of our own proxy: its bootstrap, its process, and the Unix sockets that serve its
//! configuration.
//!
//! Envoy never connects to the control plane. [`AdsRelay`] forwards its discovery streams with the
//! agent's credentials, and [`SdsServer`] serves its certificates from memory, so that private keys
//! are never written to disk.

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
