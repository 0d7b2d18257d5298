//! The effective MeshConfig: Istio's defaults with the ConfigMap's `mesh` over them.

use std::sync::Arc;

use meltemi_api::mesh::FixedField;
use meltemi_api::{MeshConfig, Object, Spec};
use meltemi_types::{Diagnostic, Severity};

use super::Findings;

/// Reads the ConfigMap; without it, or when it is wrong, the defaults hold.
pub(crate) fn lower_mesh_config(
    config_map: Option<&Arc<Object>>,
    defaults: &MeshConfig,
    fixed: &[FixedField],
) -> (MeshConfig, Vec<Diagnostic>) {
    let Some(object) = config_map else {
        return (defaults.clone(), Vec::new());
    };
    let Spec::ConfigMap(config) = &object.spec else {
        return (defaults.clone(), Vec::new());
    };
    match config.data.get("mesh") {
        Some(text) => defaults.overlay(
            text,
            fixed,
            &object.object_ref(),
            &object.source.position("data.mesh"),
        ),
        None => {
            let mut findings = Findings::new(object);
            findings.push(
                Severity::Warning,
                "MEL0301",
                "data",
                "the mesh's ConfigMap has no key \"mesh\"",
                "write MeshConfig below data.mesh",
            );
            (defaults.clone(), findings.list)
        }
    }
}
