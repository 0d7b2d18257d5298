//! Names of Gateways, as VirtualServices write them.

use crate::{GatewayRef, NamespacedName};

/// `mesh`, `name`, `ns/name`, and the older `name.ns.svc.cluster.local`. Source: Istio
/// `resolveGatewayName`.
pub(crate) fn gateway_ref(name: &str, namespace: &str) -> GatewayRef {
    if name == "mesh" {
        return GatewayRef::Mesh;
    }
    let (of, name) = match name.split_once('/') {
        Some((".", name)) => (namespace, name),
        Some((of, name)) => (of, name),
        None => match name.split_once('.') {
            Some((name, rest)) => (rest.split('.').next().unwrap_or(rest), name),
            None => (namespace, name),
        },
    };

    GatewayRef::Gateway(NamespacedName::new(of, name))
}
