//! Pods and WorkloadEntries to workloads.

use std::net::IpAddr;

use meltemi_api::core::{Pod, PodSpec};
use meltemi_api::{Object, Spec};
use meltemi_types::{Labels, Locality, Protocol, SpiffeId};

use super::{Context, Findings, origin, port};
use crate::{EndpointAddress, Health, TlsMode, Workload, WorkloadPort};

/// Set by the injector on what has a sidecar.
const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// A Pod as a workload; `None` once it has ended.
pub(crate) fn lower_pod(
    context: &Context<'_>,
    object: &Object,
    _: &mut Findings<'_>,
) -> Option<Workload> {
    let Spec::Pod(pod) = &object.spec else {
        return None;
    };
    if pod.is_terminal() {
        return None;
    }
    let meta = &object.meta;
    let labels = &meta.labels;
    let ips = pod_ips(pod);
    let account = pod.spec.account();
    let (workload_name, workload_kind) = controller(object);

    Some(Workload {
        origin: origin(object),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        address: ips.first().copied().map(EndpointAddress::Ip),
        ips,
        service_account: account.to_owned(),
        identity: SpiffeId::new(context.mesh.trust_domain.clone(), &meta.namespace, account).ok(),
        ports: container_ports(&pod.spec),
        health: pod_health(object, pod),
        // Kubernetes forbids '/' in label values, so Istio writes '.' there.
        locality: labels
            .value("topology.istio.io/locality")
            .or_else(|| labels.value("istio-locality"))
            .map(|text| {
                Locality::parse(&if text.contains('/') {
                    text.to_owned()
                } else {
                    text.replace('.', "/")
                })
            })
            .unwrap_or_default(),
        network: labels
            .value("topology.istio.io/network")
            .unwrap_or_default()
            .to_owned(),
        cluster: labels
            .value("topology.istio.io/cluster")
            .unwrap_or_default()
            .to_owned(),
        node: pod.spec.node_name.clone(),
        // The label alone decides: the annotation `sidecar.istio.io/status` is on injected gateways
        // as well, whose servers may be plaintext. Source: Istio `GetTLSModeFromEndpointLabels`.
        tls_mode: labels
            .value(TLS_MODE_LABEL)
            .map_or(TlsMode::Disabled, tls_mode),
        workload_name,
        workload_kind,
        weight: 0,
        pod_dns: (!pod.spec.subdomain.is_empty()).then(|| {
            let hostname = if pod.spec.hostname.is_empty() {
                &meta.name
            } else {
                &pod.spec.hostname
            };
            (hostname.clone(), pod.spec.subdomain.clone())
        }),
        labels: labels.clone(),
    })
}

/// A WorkloadEntry as a workload.
pub(crate) fn lower_workload_entry(
    context: &Context<'_>,
    object: &Object,
    _: &mut Findings<'_>,
) -> Option<Workload> {
    let Spec::WorkloadEntry(entry) = &object.spec else {
        return None;
    };
    let meta = &object.meta;

    // The entry's own labels are the workload's; those of its metadata fill up, as in Istio.
    let mut labels = meta.labels.clone();
    labels.extend(
        entry
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );

    let address = (!entry.address.is_empty()).then(|| EndpointAddress::parse(&entry.address));
    let account = if entry.service_account.is_empty() {
        "default"
    } else {
        entry.service_account.as_str()
    };

    Some(Workload {
        origin: origin(object),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        ips: address
            .as_ref()
            .and_then(EndpointAddress::ip)
            .into_iter()
            .collect(),
        address,
        service_account: account.to_owned(),
        identity: SpiffeId::new(context.mesh.trust_domain.clone(), &meta.namespace, account).ok(),
        ports: entry
            .ports
            .iter()
            .filter_map(|(name, number)| {
                let number = port(*number)?;
                Some(WorkloadPort {
                    name: name.clone(),
                    number,
                    protocol: Protocol::of_port(number, name, None, "TCP"),
                })
            })
            .collect(),
        health: entry_health(object),
        locality: Locality::parse(&entry.locality),
        network: entry.network.clone(),
        cluster: labels
            .value("topology.istio.io/cluster")
            .unwrap_or_default()
            .to_owned(),
        node: String::new(),
        tls_mode: tls_mode_of_entry(&labels, &entry.service_account),
        workload_name: labels
            .value("service.istio.io/workload-name")
            .unwrap_or(&meta.name)
            .to_owned(),
        workload_kind: "WorkloadEntry".to_owned(),
        weight: entry.weight,
        pod_dns: None,
        labels,
    })
}

/// The label decides; without a label, a workload with a service account counts as meshed.
/// Source: Istio `getTLSModeFromWorkloadEntry`.
pub(crate) fn tls_mode_of_entry(labels: &Labels, account: &str) -> TlsMode {
    match labels.value(TLS_MODE_LABEL) {
        Some(mode) => tls_mode(mode),
        None if account.is_empty() => TlsMode::Disabled,
        None => TlsMode::Istio,
    }
}

fn tls_mode(label: &str) -> TlsMode {
    if label == "istio" {
        TlsMode::Istio
    } else {
        TlsMode::Disabled
    }
}

fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for text in
        std::iter::once(&pod.status.pod_ip).chain(pod.status.pod_ips.iter().map(|ip| &ip.ip))
    {
        if let Ok(ip) = text.parse()
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }

    ips
}

fn container_ports(spec: &PodSpec) -> Vec<WorkloadPort> {
    let declared = spec
        .containers
        .iter()
        .chain(&spec.init_containers)
        .flat_map(|container| &container.ports);

    declared
        .filter_map(|spec| {
            let number = port(spec.container_port)?;
            Some(WorkloadPort {
                name: spec.name.clone(),
                number,
                protocol: Protocol::of_port(number, &spec.name, None, &spec.protocol),
            })
        })
        .collect()
}

fn pod_health(object: &Object, pod: &Pod) -> Health {
    if object
        .raw
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|time| !time.is_null())
    {
        return Health::Draining;
    }

    // A Pod written by hand has no conditions; it counts as ready unless its phase says that it has
    // not started.
    let is_started = matches!(pod.status.phase.as_str(), "" | "Running");
    if pod.is_ready() || (pod.status.conditions.is_empty() && is_started) {
        Health::Healthy
    } else {
        Health::Unhealthy
    }
}

/// Source: Istio's condition `Healthy` of WorkloadEntry.status, written by health checks.
fn entry_health(object: &Object) -> Health {
    let conditions = object
        .raw
        .pointer("/status/conditions")
        .and_then(|value| value.as_array());

    let healthy =
        conditions.and_then(|list| list.iter().find(|condition| condition["type"] == "Healthy"));
    if healthy.is_some_and(|condition| condition["status"] != "True") {
        Health::Unhealthy
    } else {
        Health::Healthy
    }
}

/// Name and kind of what made a Pod. A ReplicaSet stands for its Deployment, a Job with a number
/// for its CronJob. Source: Istio `pkg/kube/namespace`, `GetWorkloadNameFromPod`.
fn controller(object: &Object) -> (String, String) {
    let (name, kind) = owner(object);

    // The label names the workload where its name had to be cut; the kind is still the owner's.
    match object.meta.labels.value("service.istio.io/workload-name") {
        Some(label) => (
            label.to_owned(),
            if kind == "Pod" {
                "Deployment".to_owned()
            } else {
                kind
            },
        ),
        None => (name, kind),
    }
}

fn owner(object: &Object) -> (String, String) {
    let meta = &object.meta;
    let labels = &meta.labels;
    let owners = &meta.owner_references;
    let owner = owners
        .iter()
        .find(|owner| owner.controller)
        .or(owners.first());

    let (name, kind) = owner.map_or(("", ""), |owner| (owner.name.as_str(), owner.kind.as_str()));
    let hash = labels.value("pod-template-hash");
    let without_hash = |name: &str| {
        hash.and_then(|hash| {
            name.strip_suffix(hash)?
                .strip_suffix('-')
                .map(str::to_owned)
        })
    };

    match kind {
        "" => {
            // No owner is written: a template hash inside the name still tells the Deployment.
            let deployment = hash.and_then(|hash| {
                meta.name
                    .rsplit_once(&format!("-{hash}-"))
                    .map(|(name, _)| name.to_owned())
            });

            match deployment {
                Some(name) => (name, "Deployment".to_owned()),
                None => (meta.name.clone(), "Pod".to_owned()),
            }
        }
        "ReplicaSet" => match without_hash(name) {
            Some(deployment) => (deployment, "Deployment".to_owned()),
            None => (name.to_owned(), kind.to_owned()),
        },
        "Job" => {
            match name
                .rsplit_once('-')
                .filter(|(_, tail)| tail.len() >= 8 && tail.bytes().all(|b| b.is_ascii_digit()))
            {
                Some((cron, _)) => (cron.to_owned(), "CronJob".to_owned()),
                None => (name.to_owned(), kind.to_owned()),
            }
        }
        _ => (name.to_owned(), kind.to_owned()),
    }
}
