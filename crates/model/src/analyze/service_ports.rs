//! Services that lead nowhere, and port names that are most likely slips.

use meltemi_api::schema::closest;
use meltemi_types::{Diagnostic, Protocol};

use super::tell;
use crate::{Registry, Service, ServicePort, Snapshot, TargetPort, Workload};

/// The words that port names begin with.
const PROTOCOLS: &[&str] = &[
    "http", "http2", "https", "grpc", "tls", "tcp", "udp", "mongo", "mysql", "redis",
];

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    // Before the first workload starts, every selector selects nothing.
    let has_workloads = snapshot.workloads().next().is_some();
    for service in snapshot.services() {
        if service.registry != Registry::Kubernetes {
            continue;
        }
        for (index, port) in service.ports.iter().enumerate() {
            check_name(snapshot, service, index, port, found);
        }
        // The mesh brings the Services of its gateways, whether or not those run.
        if has_workloads && service.key.namespace != snapshot.root_namespace() {
            check_endpoints(snapshot, service, found);
        }
    }
}

/// The workloads behind a service; `None` if it has no selector.
pub(super) fn selected<'a>(
    snapshot: &'a Snapshot,
    service: &'a Service,
) -> Option<impl Iterator<Item = &'a Workload>> {
    let selector = service.selector.as_ref()?;
    let workloads = snapshot.workloads().map(|workload| &**workload);
    Some(workloads.filter(|workload| {
        workload.namespace == service.key.namespace && selector.selects(&workload.labels)
    }))
}

/// Warns of a selector that selects no workload, and of a target port that none of them names.
fn check_endpoints(snapshot: &Snapshot, service: &Service, found: &mut Vec<Diagnostic>) {
    let Some(workloads) = selected(snapshot, service) else {
        return;
    };
    let workloads: Vec<&Workload> = workloads.collect();
    if workloads.is_empty() {
        return tell(
            snapshot,
            &service.origin.object,
            "MEL0521",
            "spec.selector",
            "no workload has these labels, so every call fails".to_owned(),
            "correct the labels, or start the workload",
            found,
        );
    }

    for (index, port) in service.ports.iter().enumerate() {
        let TargetPort::Name(name) = &port.target else {
            continue;
        };
        let names = |workload: &&Workload| workload.ports.iter().any(|port| port.name == *name);
        if workloads.iter().any(names) {
            continue;
        }

        let mut declared: Vec<&str> = workloads
            .iter()
            .flat_map(|workload| &workload.ports)
            .map(|port| port.name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        declared.sort_unstable();
        declared.dedup();
        let remedy = match declared.is_empty() {
            true => "write the port's number".to_owned(),
            false => format!("write the port's number, or one of {}", declared.join(", ")),
        };
        tell(
            snapshot,
            &service.origin.object,
            "MEL0522",
            &format!("spec.ports[{index}].targetPort"),
            format!("no selected workload has a port named {name:?}, so every call fails"),
            &remedy,
            found,
        );
    }
}

/// Warns of a name that Kubernetes refuses, and of one whose protocol is misspelt.
fn check_name(
    snapshot: &Snapshot,
    service: &Service,
    index: usize,
    port: &ServicePort,
    found: &mut Vec<Diagnostic>,
) {
    let name = port.name.as_str();
    let field = format!("spec.ports[{index}].name");
    if !name.is_empty() && !is_label(name) {
        tell(
            snapshot,
            &service.origin.object,
            "MEL0523",
            &field,
            format!("Kubernetes refuses the port name {name:?}"),
            "use lower-case letters, digits and -, 63 at most",
            found,
        );
    }

    // A protocol that is declared, in the name or by appProtocol, is no slip.
    let word = name.split('-').next().unwrap_or_default();
    if port.protocol != Protocol::Unsupported || word.len() < 3 {
        return;
    }
    if let Some(meant) = closest(word, PROTOCOLS).filter(|meant| *meant != word) {
        let rest = &name[word.len()..];
        tell(
            snapshot,
            &service.origin.object,
            "IST0118",
            &field,
            format!(
                "Port name {name} (port: {}) doesn't follow the naming convention of Istio port",
                port.number
            ),
            &format!(
                "did you mean {meant}{rest}? As it is, the protocol is told from the first bytes"
            ),
            found,
        );
    }
}

/// RFC 1123: a DNS label.
fn is_label(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 63 && name.bytes().all(is_inner) && !name.starts_with('-') && !name.ends_with('-')
}
