//! Selectors that select no workload. They are reported only once the mesh has a workload: before,
//! no selector selects any.

use meltemi_api::Object;
use meltemi_types::{Diagnostic, Selector, Severity};

use crate::lower::finding;
use crate::{PolicyTarget, Snapshot};

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    if snapshot.workloads().next().is_none() {
        return;
    }
    let lowered = &snapshot.lowered;
    let mut check = |object: &Object, field: &str, selector: Option<&Selector>| {
        let Some(selector) = selector else { return };
        let namespace = object.meta.namespace.as_str();

        // Policies of the root namespace select across namespaces.
        let in_scope = |of: &str| of == namespace || namespace == snapshot.root_namespace();
        if !snapshot
            .workloads()
            .any(|workload| in_scope(&workload.namespace) && selector.selects(&workload.labels))
        {
            let pairs = selector
                .0
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(",");

            let message = format!(
                "No matching workloads for this resource with the following labels: {pairs}"
            );
            found.push(finding(
                object,
                Severity::Warning,
                "IST0127",
                field,
                message,
                "correct the labels, or start the workload",
            ));
        }
    };

    for entry in lowered.sidecars.entries.values() {
        check(
            &entry.object,
            "spec.workloadSelector",
            entry.value.selector.as_ref(),
        );
    }

    for entry in lowered.peer_authentications.entries.values() {
        check(
            &entry.object,
            "spec.selector",
            entry.value.selector.as_ref(),
        );
    }

    for entry in lowered.telemetries.entries.values() {
        check(
            &entry.object,
            "spec.selector",
            entry.value.selector.as_ref(),
        );
    }

    let mut empty = Vec::new();
    let of_target = |target: &PolicyTarget| {
        if let PolicyTarget::Workloads(selector) = target {
            Some(selector.clone())
        } else {
            None
        }
    };

    for entry in lowered.authorization_policies.entries.values() {
        let namespace = entry.object.meta.namespace.as_str();
        if entry.value.target == PolicyTarget::All
            && namespace != snapshot.root_namespace()
            && snapshot.workloads.in_namespace(namespace).is_empty()
        {
            let message =
                format!("No matching workloads for this resource: namespace {namespace} has none");
            empty.push(finding(
                &entry.object,
                Severity::Warning,
                "IST0127",
                "metadata.namespace",
                message,
                "correct the namespace, or start a workload",
            ));
        }

        check(
            &entry.object,
            "spec.selector",
            of_target(&entry.value.target).as_ref(),
        );
    }

    for entry in lowered.request_authentications.entries.values() {
        check(
            &entry.object,
            "spec.selector",
            of_target(&entry.value.target).as_ref(),
        );
    }

    found.append(&mut empty);

    // A Gateway is served by proxies of any namespace.
    for entry in lowered.gateways.entries.values() {
        let selector = &entry.value.selector;
        if !selector.is_empty()
            && !snapshot
                .workloads()
                .any(|workload| selector.selects(&workload.labels))
        {
            let pairs = selector
                .0
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(",");

            let message = format!("Referenced selector not found: {pairs:?}");
            found.push(finding(
                &entry.object,
                Severity::Warning,
                "IST0101",
                "spec.selector",
                message,
                "correct the labels, or start the gateway",
            ));
        }
    }
}
