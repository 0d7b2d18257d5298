//! Beside a workload: identity, secrets, DNS and probes, with our proxy in the same process or
//! Envoy as a child.
//!
//! In: who the workload is, where the control plane is, a first token. Out: a certificate that
//! never runs out, a DNS server that knows the mesh, endpoints for probes and scrapes, and a proxy
//! that is fed.
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

/// A future that can be a trait object's.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
