//! Configuration as users write it: Istio's APIs, MeshConfig, and the core Kubernetes objects that
//! a mesh reads.
//!
//! In: the text of YAML or JSON files ([`parse`]), or JSON values of an API server
//! ([`object_from_value`]). Out: typed [`Object`]s that know where each field is written, and
//! [`Diagnostic`](meltemi_types::Diagnostic)s with object, field, line, column and remedy.
//! [`validate`] applies the rules that one object can break on its own; what needs a second object
//! (a route to a service that is not there) is the model's business.
//!
//! Pure: no IO, no clock. It imports `types` and nothing else of ours, and knows neither Envoy's
//! messages nor a Kubernetes client.

pub mod core;
mod document;
mod duration;
pub mod extensions;
mod kind;
pub mod mesh;
pub mod networking;
mod object;
mod positions;
pub mod schema;
pub mod security;
mod shared;
pub mod telemetry;
mod validate;
mod yaml;

pub use document::{
    Chunk, FOREIGN, Parsed, chunks, object_from_value, parse, parse_documents, parse_in, to_yaml,
    value_of,
};
pub use duration::Duration;
pub use kind::{Kind, ObjectKey, Recognised, not_found};
pub use mesh::{MeshConfig, ProxyConfig};
pub use object::{Meta, Object, OwnerReference, Source, Spec};
pub use positions::Positions;
pub use schema::{Finding, IntOrString};
pub use shared::{
    LabelSelector, Percent, PortSelector, StringMatch, StringMatches, TargetReference,
    WorkloadSelector,
};
pub use validate::validate;
