//! Selectors that select no workload. They are reported only once the mesh has a workload: before,
//! no selector selects any.

use meltemi_api::Object;
use meltemi_types::{Diagnostic, Selector, Severity};

use crate::lower::finding;
use crate::{PolicyTarget, Snapshot};

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    // Before the first workload starts, every selector selects nothing.
    if snapshot.workloads().next().is_none() {
        return;
    }

    let lowered = &snapshot.lowered;
    for entry in lowered.sidecars.entries.values() {
        let selector = entry.value.selector.as_ref();
        check(
            snapshot,
            &entry.object,
            "spec.workloadSelector",
            selector,
            found,
        );
    }
    for entry in lowered.peer_authentications.entries.values() {
        let selector = entry.value.selector.as_ref();
        check(snapshot, &entry.object, "spec.selector", selector, found);
    }
    for entry in lowered.telemetries.entries.values() {
        let selector = entry.value.selector.as_ref();
        check(snapshot, &entry.object, "spec.selector", selector, found);
    }
    for entry in lowered.authorization_policies.entries.values() {
        check_target(snapshot, &entry.object, &entry.value.target, found);
    }
    for entry in lowered.request_authentications.entries.values() {
        let selector = selector_of(&entry.value.target);
        check(snapshot, &entry.object, "spec.selector", selector, found);
    }

    for entry in lowered.gateways.entries.values() {
        check_gateway(snapshot, &entry.object, &entry.value.selector, found);
    }
}

/// Warns of a selector that selects no workload in its object's scope.
fn check(
    snapshot: &Snapshot,
    object: &Object,
    field: &str,
    selector: Option<&Selector>,
    found: &mut Vec<Diagnostic>,
) {
    let Some(selector) = selector else { return };
    let namespace = object.meta.namespace.as_str();

    // Policies of the root namespace select across namespaces.
    let in_scope = |of: &str| of == namespace || namespace == snapshot.root_namespace();
    let selects_any = snapshot
        .workloads()
        .any(|workload| in_scope(&workload.namespace) && selector.selects(&workload.labels));
    if selects_any {
        return;
    }

    let message = format!(
        "No matching workloads for this resource with the following labels: {}",
        pairs(selector)
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

/// Warns of an AuthorizationPolicy for a whole namespace without workloads, or for a selector that
/// selects none.
fn check_target(
    snapshot: &Snapshot,
    object: &Object,
    target: &PolicyTarget,
    found: &mut Vec<Diagnostic>,
) {
    let namespace = object.meta.namespace.as_str();
    if *target == PolicyTarget::All
        && namespace != snapshot.root_namespace()
        && snapshot.workloads.in_namespace(namespace).is_empty()
    {
        let message =
            format!("No matching workloads for this resource: namespace {namespace} has none");
        found.push(finding(
            object,
            Severity::Warning,
            "IST0127",
            "metadata.namespace",
            message,
            "correct the namespace, or start a workload",
        ));
    }

    check(
        snapshot,
        object,
        "spec.selector",
        selector_of(target),
        found,
    );
}

/// Warns of a Gateway that no proxy serves. Proxies of any namespace may serve it.
fn check_gateway(
    snapshot: &Snapshot,
    object: &Object,
    selector: &Selector,
    found: &mut Vec<Diagnostic>,
) {
    let is_served = snapshot
        .workloads()
        .any(|workload| selector.selects(&workload.labels));
    if selector.is_empty() || is_served {
        return;
    }

    let message = format!("Referenced selector not found: {:?}", pairs(selector));
    found.push(finding(
        object,
        Severity::Warning,
        "IST0101",
        "spec.selector",
        message,
        "correct the labels, or start the gateway",
    ));
}

fn selector_of(target: &PolicyTarget) -> Option<&Selector> {
    match target {
        PolicyTarget::Workloads(selector) => Some(selector),
        _ => None,
    }
}

/// `app=web,version=v1`.
fn pairs(selector: &Selector) -> String {
    let pairs: Vec<_> = selector
        .0
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}
