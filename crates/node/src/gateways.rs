//! The ingress and egress gateway that the node provides: workloads without an application, and the
//! Services and service accounts that belong to them.

use std::collections::BTreeMap;

use meltemi_types::Labels;

use crate::spec::{Origin, ProxyKind, WorkloadKey, WorkloadSpec};

/// Kubernetes namespace of the gateways.
pub(crate) const NAMESPACE: &str = "istio-system";

/// Name of the ingress gateway, the only one whose ports are published on the machine.
pub(crate) const INGRESS: &str = "istio-ingressgateway";

/// The workloads of both gateways.
pub(crate) fn workloads() -> Vec<WorkloadSpec> {
    [INGRESS, "istio-egressgateway"].map(workload).to_vec()
}

/// The workload of the gateway with this name.
pub(crate) fn workload(name: &str) -> WorkloadSpec {
    let role = name.strip_prefix("istio-").unwrap_or(name);
    let labels = [
        ("app", name),
        ("istio", role),
        ("service.istio.io/canonical-name", name),
    ];

    WorkloadSpec {
        key: WorkloadKey {
            namespace: NAMESPACE.into(),
            pod: format!("{name}-0"),
        },
        workload: name.into(),
        origin: Origin::Gateway,
        service_account: format!("{name}-service-account"),
        labels: labels.into_iter().collect::<Labels>(),
        annotations: BTreeMap::new(),
        proxy: ProxyKind::Meltemi,
        app: None,
        ports: Vec::new(),
        container: "istio-proxy".into(),
        image: "meltemi".into(),
    }
}

/// Namespace, Services and service accounts of the gateways, written to a file that the control
/// plane reads.
pub(crate) const OBJECTS: &str = r#"apiVersion: v1
kind: Namespace
metadata:
  name: istio-system
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: istio-ingressgateway-service-account
  namespace: istio-system
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: istio-egressgateway-service-account
  namespace: istio-system
---
apiVersion: v1
kind: Service
metadata:
  name: istio-ingressgateway
  namespace: istio-system
  labels: {app: istio-ingressgateway, istio: ingressgateway}
spec:
  type: LoadBalancer
  selector: {app: istio-ingressgateway, istio: ingressgateway}
  ports:
  - {name: status-port, port: 15021, targetPort: 15021, protocol: TCP}
  - {name: http2, port: 80, targetPort: 8080, protocol: TCP}
  - {name: https, port: 443, targetPort: 8443, protocol: TCP}
  - {name: tcp, port: 31400, targetPort: 31400, protocol: TCP}
  - {name: tls, port: 15443, targetPort: 15443, protocol: TCP}
---
apiVersion: v1
kind: Service
metadata:
  name: istio-egressgateway
  namespace: istio-system
  labels: {app: istio-egressgateway, istio: egressgateway}
spec:
  selector: {app: istio-egressgateway, istio: egressgateway}
  ports:
  - {name: http2, port: 80, targetPort: 8080, protocol: TCP}
  - {name: https, port: 443, targetPort: 8443, protocol: TCP}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_select_the_workloads() {
        let (objects, diagnostics) = meltemi_api::parse_documents("gateways.yaml", OBJECTS);
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        for spec in workloads() {
            let selects = objects.iter().any(|o| match &o.spec {
                meltemi_api::Spec::Service(s) => {
                    o.meta.namespace == spec.key.namespace && s.selector.selects(&spec.labels)
                }
                _ => false,
            });
            assert!(selects, "{}", spec.key);
        }
    }
}
