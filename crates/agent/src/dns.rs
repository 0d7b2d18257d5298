//! The workload's resolver: names of the mesh are answered here, all others by the upstream
//! resolver.
//!
//! Source: Istio `pkg/dns/client`. Queries that this resolver does not answer are forwarded byte by
//! byte.

mod forward;
mod index;
mod server;

pub use forward::{Forwarder, UpstreamForwarder};
pub use index::{Answer, NameIndex, Names};
pub use server::{DnsOptions, DnsServer};
