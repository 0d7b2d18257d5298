//! Rules that one object can break on its own. Source: Istio `pkg/config/validation` and the CEL
//! rules of its CRDs.
//!
//! Messages are Istio's where it has one. What is valid but surely not meant is a warning.

mod authorization;
mod destination_rule;
mod extensions;
mod gateway;
mod kubernetes;
mod metadata;
pub(crate) mod provider;
mod rules;
mod security;
mod service_entry;
mod sidecar;
mod telemetry;
pub(crate) mod virtual_service;
mod workload;

use meltemi_types::Diagnostic;

use crate::mesh::{MESH_CONFIG_KEY, MESH_CONFIG_NAME, MeshConfig};
use crate::object::{Meta, Object, Spec};
use crate::schema::{Report, UnknownFields};

/// Whether it is the ConfigMap that holds MeshConfig.
fn is_mesh_config(object: &Object) -> bool {
    object.meta.name == MESH_CONFIG_NAME && object.meta.namespace == "istio-system"
}

/// Applies Istio's rules to an object; every finding names its field and place.
pub fn validate(object: &Object) -> Vec<Diagnostic> {
    let mut report = Report::new("spec", UnknownFields::Refuse);
    let at = &mut report;
    let Meta {
        name, namespace, ..
    } = &object.meta;
    match &object.spec {
        Spec::VirtualService(spec) => virtual_service::check(spec, namespace, at),
        Spec::DestinationRule(spec) => destination_rule::check(spec, namespace, at),
        Spec::Gateway(spec) => gateway::check(spec, name, at),
        Spec::ServiceEntry(spec) => service_entry::check(spec, namespace, at),
        Spec::WorkloadEntry(spec) => workload::check_entry(spec, at),
        Spec::WorkloadGroup(spec) => workload::check_group(spec, at),
        Spec::Sidecar(spec) => sidecar::check(spec, at),
        Spec::EnvoyFilter(spec) => extensions::check_envoy_filter(spec, at),
        Spec::ProxyConfig(spec) => extensions::check_proxy_config(spec, at),
        Spec::PeerAuthentication(spec) => security::check_peer_authentication(spec, at),
        Spec::RequestAuthentication(spec) => security::check_request_authentication(spec, at),
        Spec::AuthorizationPolicy(spec) => authorization::check(spec, at),
        Spec::Telemetry(spec) => telemetry::check(spec, at),
        Spec::WasmPlugin(spec) => extensions::check_wasm_plugin(spec, at),
        Spec::TrafficExtension(spec) => extensions::check_traffic_extension(spec, at),
        Spec::Service(spec) => kubernetes::check_service(spec, at),
        Spec::Deployment(spec) => kubernetes::check_deployment(spec, at),
        Spec::ConfigMap(map) if is_mesh_config(object) => {
            let Some(text) = map.data.get(MESH_CONFIG_KEY) else {
                return Vec::new();
            };
            let position = object.source.position("data.mesh");
            return MeshConfig::from_yaml(text, &object.object_ref(), &position).1;
        }
        Spec::ConfigMap(map)
            if name == MESH_CONFIG_NAME && map.data.contains_key(MESH_CONFIG_KEY) =>
        {
            let mut data = Report::new("data", UnknownFields::Refuse);
            data.field(MESH_CONFIG_KEY, |at| {
                at.warn(
                    rules::DOUBTFUL,
                    format!("the mesh's configuration has no effect in namespace {namespace}"),
                    "write `namespace: istio-system` below metadata",
                )
            });
            return data
                .into_findings()
                .into_iter()
                .map(|finding| object.diagnostic(finding))
                .collect();
        }
        Spec::Namespace
        | Spec::ConfigMap(_)
        | Spec::Secret(_)
        | Spec::ServiceAccount
        | Spec::Pod(_)
        | Spec::Other { .. } => {}
    }

    metadata::check(object)
        .into_findings()
        .into_iter()
        .chain(report.into_findings())
        .map(|finding| object.diagnostic(finding))
        .collect()
}
