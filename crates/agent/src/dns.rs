//! The workload's DNS server. It answers names of the mesh from the name table and forwards all
//! other queries, unchanged, to the upstream name servers. Source: Istio `pkg/dns/client`.

mod forward;
mod index;
mod server;

pub use forward::{Forwarder, UpstreamForwarder};
pub use index::{Answer, NameIndex, Names};
pub use server::{DnsOptions, DnsServer};
