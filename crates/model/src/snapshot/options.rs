//! What a build needs besides objects.

use std::sync::Arc;

use meltemi_api::MeshConfig;
use meltemi_api::mesh::FixedField;

use crate::{Cidr, NamespacedName};

/// What a build needs besides objects.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildOptions {
    /// Domain of Kubernetes Services, `cluster.local`.
    pub domain: String,
    /// The ConfigMap that holds MeshConfig below `mesh`.
    pub mesh_config_map: NamespacedName,
    /// What holds where the ConfigMap says nothing.
    pub mesh_defaults: Arc<MeshConfig>,
    /// What the ConfigMap cannot change: it is built into what runs.
    pub mesh_fixed: Vec<FixedField>,
    /// Where Services without clusterIP get an address.
    pub service_cidr: Cidr,
    /// Where ServiceEntries without addresses get one.
    pub service_entry_cidr: Cidr,
    /// Name of this cluster.
    pub cluster_id: String,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            domain: "cluster.local".to_owned(),
            mesh_config_map: NamespacedName::new("istio-system", "istio"),
            mesh_defaults: Arc::new(MeshConfig::istio_default()),
            mesh_fixed: Vec::new(),
            service_cidr: "10.45.0.0/16".parse().expect("a network"),
            service_entry_cidr: "240.240.0.0/16".parse().expect("a network"),
            cluster_id: "Kubernetes".to_owned(),
        }
    }
}
