//! Translation: the normalised world and one proxy in, xDS resources out.
//!
//! In: a [`meltemi_model::Snapshot`] and a [`Proxy`]. Out: [`Translated`]: typed Envoy messages in
//! push order, each with a version that is the hash of the *input* it was built from, and
//! diagnostics for what was left out.
//!
//! Everything is pure: no IO, clock, randomness or runtime. [`plan`] looks at the whole snapshot
//! and yields small hashable inputs; each builder (`build_cluster(&ClusterInput)`, ...) sees its
//! input and nothing else. So the [`Memo`] that all proxies share cannot be wrong: same input, same
//! resource. Names, filter order, chain matrices and defaults are Istio's. A client gets what it
//! can do: nothing is emitted that `Node.extensions` does not name.
//!
//! This crate never imports tokio, IO or anything of the data plane.

mod accesslog;
mod authz;
mod chains;
mod cluster;
mod cluster_name;
mod endpoint;
mod envoy;
mod filters;
mod listener;
mod memo;
mod name_table;
mod plan;
mod proxy;
mod route;
mod secret;
mod tls;
mod traffic_policy;
mod translate;

pub use memo::{Memo, MemoStats, Resource};
pub use proxy::{NodeError, Proxy, ProxyKind};
pub use translate::{Translated, translate};
