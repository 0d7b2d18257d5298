//! The normalised, immutable world: services, workloads, endpoints, routes and policies, as
//! translation wants them.
//!
//! In: [`Tables`] of typed objects (crate `api`) from any source, and the previous [`Snapshot`].
//! Out: a [`Build`]: the next snapshot, diagnostics, and what changed;
//! [`touches`] says whether a change concerns a proxy. A reference to
//! nothing is a finding, never a failure. Every API is lowered to this one model in one place
//! (`lower`); nothing downstream knows which API a route came from.
//!
//! Pure: no IO, no clock, no randomness; the same tables give the same snapshot. It imports `types`
//! and `api`, and knows nothing of xDS.

mod allocate;
mod analyze;
mod changes;
mod credential;
mod ext_authz;
mod gateway;
mod host;
mod lower;
mod mesh;
mod meta;
mod query;
mod route;
mod security;
mod service;
mod sidecar;
mod snapshot;
mod tables;
mod telemetry;
mod traffic_policy;
mod workload;

pub use changes::{ChangeSet, Changed, ServiceChange, Versions};
pub use credential::Credential;
pub use ext_authz::*;
pub use gateway::*;
pub use host::Hostname;
pub use meltemi_api::{Kind, Object, ObjectKey};
pub use meltemi_types::{Cidr, Diagnostic, Labels, Severity};
pub use mesh::*;
pub use meta::*;
pub use query::names::NameEntry;
pub use query::services::ServiceTarget;
pub use query::touches::{ProxyFacts, ProxyScope, touches};
pub use route::*;
pub use security::*;
pub use service::*;
pub use sidecar::*;
pub use snapshot::{Build, BuildOptions, Snapshot};
pub use tables::{Table, Tables};
pub use telemetry::*;
pub use traffic_policy::*;
pub use workload::*;
