//! Envoy's messages compiled into immutable values, and the decisions that are made by them.
//!
//! In: xDS resources and a bootstrap. Out: [`Listener`](listener::Listener),
//! [`Cluster`](cluster::Cluster), [`RouteTable`](route::RouteTable),
//! [`EndpointSet`](endpoint::EndpointSet), kept together in a [`ProxySnapshot`]. Which filter
//! chain, route, cluster and endpoint: decided here, by pure functions, for the proxy, the
//! simulator, `explain` and the tests alike. A decision allocates nothing and reads no clock.
//!
//! What this proxy does not honour is a [`Rejection`] (a NACK) where leaving it out would weaken
//! security or take requests that are not meant, else a [`Warning`], counted and shown.
//!
//! Must never import: `api`, `model`, tokio, anything that does IO.

pub mod access_log;
mod address;
mod any;
pub mod bootstrap;
mod chain_match;
pub mod cluster;
mod compiler;
mod convert;
pub mod endpoint;
mod fast_hash;
pub mod http;
mod http_filter;
mod keepalive;
pub mod listener;
mod memo;
pub mod normalize;
pub mod route;
mod snapshot;
pub mod tcp;
pub mod tls;
mod typed_struct;
mod upgrade;

pub use address::Address;
pub use compiler::{Compiler, compile_cluster, compile_endpoints, compile_listener, compile_route};
pub use meltemi_filters::{Rejection, Warning};
pub use memo::Compiled;
pub use snapshot::{ProxySnapshot, ServedCluster, SnapshotParts};
pub use upgrade::Upgrades;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
