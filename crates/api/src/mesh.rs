//! MeshConfig: settings of the whole mesh, in ConfigMap `istio`, key `mesh`, of the root namespace.

mod config;
mod merge;
mod provider;
mod proxy;

pub use config::*;
pub use merge::{FixedField, MESH_CONFIG_KEY, MESH_CONFIG_NAME, provider_field};
pub use provider::*;
pub use proxy::*;
