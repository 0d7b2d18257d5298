//! Writes a `core/v1` Pod file for every running replica. The control plane derives its endpoints
//! from these Pods, as it does on Kubernetes.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::network::ROUTER;
use crate::spec::{Origin, WorkloadKey, WorkloadSpec};

/// Writes the pod's file under another name and renames it, so that a reader never sees half of it.
pub(crate) fn write(
    dir: &Path,
    spec: &WorkloadSpec,
    address: Ipv4Addr,
    ready: bool,
    created: &str,
) -> io::Result<()> {
    let path = file(dir, &spec.key);
    let new = path.with_extension("new");
    // The file is named .yaml but holds JSON, which is a subset of YAML.
    fs::write(
        &new,
        serde_json::to_vec_pretty(&pod(spec, address, ready, created))?,
    )?;
    fs::rename(new, path)
}

/// Removes the pod's file.
pub(crate) fn remove(dir: &Path, key: &WorkloadKey) {
    let _ = fs::remove_file(file(dir, key));
}

fn file(dir: &Path, key: &WorkloadKey) -> PathBuf {
    dir.join(format!("{}_{}.yaml", key.namespace, key.pod))
}

/// Labels of the pod: those of the template, and those that Istio's sidecar injector adds.
pub(crate) fn labels(spec: &WorkloadSpec) -> Map<String, Value> {
    let mut labels: Map<String, Value> = spec
        .labels
        .iter()
        .map(|(k, v)| (k.clone(), v.clone().into()))
        .collect();

    let first = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| spec.labels.value(name))
            .map(str::to_owned)
    };

    let canonical = first(&[
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ])
    .unwrap_or_else(|| spec.workload.clone());

    let revision = first(&[
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ]);

    labels.insert("service.istio.io/canonical-name".into(), canonical.into());
    labels.insert(
        "service.istio.io/canonical-revision".into(),
        revision.unwrap_or_else(|| "latest".into()).into(),
    );

    labels.insert(
        "service.istio.io/workload-name".into(),
        spec.workload.clone().into(),
    );

    // Each server of a gateway decides whether it accepts mutual TLS, so the gateway as a whole has
    // no mode. Source: Istio's injection template `gateway`.
    if has_sidecar(spec) {
        labels.insert("security.istio.io/tlsMode".into(), "istio".into());
    }

    labels
}

/// Whether a sidecar accepts mutual TLS on every port of the application.
fn has_sidecar(spec: &WorkloadSpec) -> bool {
    spec.is_meshed() && !spec.is_gateway()
}

fn pod(spec: &WorkloadSpec, address: Ipv4Addr, ready: bool, created: &str) -> Value {
    let WorkloadSpec {
        key,
        workload,
        origin,
        service_account,
        annotations,
        app,
        ports,
        container,
        image,
        labels: _,
        proxy: _,
    } = spec;

    let mut annotations = annotations.clone();
    if has_sidecar(spec) {
        annotations.insert(
            "sidecar.istio.io/status".into(),
            json!({ "containers": ["istio-proxy"] }).to_string(),
        );
    }

    let mut containers = Vec::new();
    if app.is_some() {
        let ports: Vec<Value> = ports
            .iter()
            .map(|p| match p.name.as_str() {
                "" => json!({ "containerPort": p.number, "protocol": p.protocol }),
                name => json!({ "name": name, "containerPort": p.number, "protocol": p.protocol }),
            })
            .collect();
        containers.push(json!({ "name": container, "image": image, "ports": ports }));
    }

    if spec.is_meshed() {
        let own_ports =
            json!([{ "name": "http-envoy-prom", "containerPort": 15090, "protocol": "TCP" }]);
        containers.push(json!({ "name": "istio-proxy", "image": "meltemi", "ports": own_ports }));
    }

    let (api_version, kind) = match origin {
        Origin::Deployment | Origin::Gateway => ("apps/v1", "Deployment"),
        Origin::Run => ("meltemi.io/v1", "Run"),
    };

    let status = if ready { "True" } else { "False" };

    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": key.pod,
            "namespace": key.namespace,
            "labels": labels(spec),
            "annotations": annotations,
            "creationTimestamp": created,
            "ownerReferences": [{ "apiVersion": api_version, "kind": kind, "name": workload, "controller": true }],
        },
        "spec": { "serviceAccountName": service_account, "nodeName": "meltemi", "containers": containers },
        "status": {
            "phase": "Running",
            "podIP": address.to_string(),
            "podIPs": [{ "ip": address.to_string() }],
            "hostIP": ROUTER.to_string(),
            "conditions": [{ "type": "Ready", "status": status }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateways;

    #[test]
    fn a_written_pod_parses_as_a_ready_pod() {
        let dir = tempfile::tempdir().unwrap();
        let spec = &gateways::workloads()[0];
        write(
            dir.path(),
            spec,
            Ipv4Addr::new(10, 44, 0, 9),
            true,
            "2026-01-01T00:00:00Z",
        )
        .unwrap();

        let path = file(dir.path(), &spec.key);
        let text = fs::read_to_string(&path).unwrap();
        let (objects, diagnostics) = meltemi_api::parse_documents("pod.yaml", &text);

        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        let meltemi_api::Spec::Pod(pod) = &objects[0].spec else {
            panic!("no pod")
        };
        assert!(pod.is_ready());
        assert_eq!(pod.status.pod_ip, "10.44.0.9");
        assert_eq!(
            objects[0].meta.labels.value("istio"),
            Some("ingressgateway")
        );

        remove(dir.path(), &spec.key);
        assert!(!path.exists());
    }

    #[test]
    fn a_gateway_gets_no_tls_mode_label() {
        let written = |spec: &WorkloadSpec| {
            pod(spec, Ipv4Addr::LOCALHOST, true, "2026-01-01T00:00:00Z")["metadata"].take()
        };
        let gateway = gateways::workload(gateways::INGRESS);
        let sidecar = WorkloadSpec {
            origin: Origin::Run,
            ..gateway.clone()
        };

        let of = |spec| {
            let meta = written(spec);
            let mode = meta["labels"]["security.istio.io/tlsMode"]
                .as_str()
                .map(str::to_owned);
            (
                mode,
                meta["annotations"].get("sidecar.istio.io/status").is_some(),
            )
        };

        assert_eq!(of(&gateway), (None, false));
        assert_eq!(of(&sidecar), (Some("istio".to_owned()), true));
    }
}
