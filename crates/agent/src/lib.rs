//! The agent that runs beside a workload: certificate, DNS server, probes and metrics, with our own
//! proxy in the same process or Envoy as a child.
//!
//! In: the workload's identity and labels, the address of the control plane, a first token. Out: a
//! certificate that is renewed in time, a DNS server with the mesh's names, endpoints for probes
//! and scrapes, and a configured proxy.
//!
//! Must never import: `api`, `model`, `translate`, `store`. Configuration reaches a workload over
//! xDS alone.

mod control_plane;
pub mod dns;
pub mod envoy;
pub mod identity;
mod metrics;
mod nds;
mod node;
pub mod sidecar;
pub mod status;

pub use control_plane::{ConnectError, ControlPlane, ControlPlaneOptions, Token};
pub use identity::{
    CertificateSource, Clock, FetchError, IdentityOptions, IdentityState, SystemClock,
};
pub use metrics::AgentMetrics;
pub use nds::follow_names;
pub use node::{NodeKind, Workload, node_of};

/// A boxed future, as methods of trait objects return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
