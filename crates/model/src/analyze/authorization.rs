//! Rules of AuthorizationPolicies that cannot hold: HTTP conditions on TCP ports, principals that no
//! workload has.

use std::collections::BTreeSet;

use meltemi_types::Diagnostic;

use super::tell;
use crate::{AuthorizationPolicy, AuthzAction, AuthzRule, PolicyTarget, Snapshot, Workload};

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    // Before the first workload starts, nobody has any identity.
    if snapshot.workloads().next().is_none() {
        return;
    }
    let identities: BTreeSet<String> = snapshot
        .workloads()
        .filter_map(|workload| Some(principal(workload.identity.as_ref()?)))
        .collect();

    for policy in snapshot.lowered.authorization_policies.values() {
        for (index, rule) in policy.rules.iter().enumerate() {
            check_principals(snapshot, policy, index, rule, &identities, found);
            check_ports(snapshot, policy, index, rule, found);
        }
    }
}

/// An identity as policies write it.
fn principal(identity: &impl ToString) -> String {
    let identity = identity.to_string();
    identity
        .strip_prefix("spiffe://")
        .unwrap_or(&identity)
        .to_owned()
}

/// Warns of principals of this mesh that no workload has.
fn check_principals(
    snapshot: &Snapshot,
    policy: &AuthorizationPolicy,
    index: usize,
    rule: &AuthzRule,
    identities: &BTreeSet<String>,
    found: &mut Vec<Diagnostic>,
) {
    let domain = format!("{}/", snapshot.mesh_config.trust_domain);
    for (source, from) in rule.from.iter().enumerate() {
        for (at, wanted) in from.principals.any.iter().enumerate() {
            let is_ours = wanted.starts_with(&domain) && !wanted.contains('*');
            if !is_ours || identities.contains(wanted) {
                continue;
            }
            tell(
                snapshot,
                &policy.origin.object,
                "MEL0525",
                &format!("spec.rules[{index}].from[{source}].source.principals[{at}]"),
                format!("no workload runs as {wanted:?}"),
                "correct namespace and service account, or start the workload",
                found,
            );
        }
    }
}

/// Warns of HTTP conditions for a port on which bytes are passed on unread.
fn check_ports(
    snapshot: &Snapshot,
    policy: &AuthorizationPolicy,
    index: usize,
    rule: &AuthzRule,
    found: &mut Vec<Diagnostic>,
) {
    if !needs_http(rule) {
        return;
    }
    let workloads = snapshot.workloads().map(|workload| &**workload);
    let port = workloads
        .filter(|workload| is_selected(snapshot, policy, workload))
        .find_map(|workload| {
            let targets =
                snapshot.service_targets(&workload.namespace, &workload.labels, &workload.ips);
            targets.into_iter().find(|target| {
                !target.port.is_udp()
                    && target.port.protocol.is_tcp()
                    && names_port(rule, target.target_port)
            })
        });
    let Some(port) = port else { return };

    let effect = match policy.action {
        AuthzAction::Allow => "the rule never holds there",
        AuthzAction::Deny => "there the rule holds for every request that its other conditions fit",
        AuthzAction::Audit | AuthzAction::Custom { .. } => "the rule has no effect there",
    };
    tell(
        snapshot,
        &policy.origin.object,
        "MEL0526",
        &format!("spec.rules[{index}]"),
        format!(
            "port {} of {} is declared as {}, which has no methods, paths, hosts or headers: {effect}",
            port.port.number,
            port.service.host(),
            port.port.protocol
        ),
        "declare the port as HTTP by its name, or leave these conditions out",
        found,
    );
}

fn is_selected(snapshot: &Snapshot, policy: &AuthorizationPolicy, workload: &Workload) -> bool {
    let namespace = &policy.origin.object.namespace;
    let in_scope = workload.namespace == *namespace || namespace == snapshot.root_namespace();
    in_scope
        && match &policy.target {
            // A policy for all workloads is seldom meant for each of their ports.
            PolicyTarget::All | PolicyTarget::References(_) => false,
            PolicyTarget::Workloads(selector) => selector.selects(&workload.labels),
        }
}

/// Whether a rule asks for what only HTTP has.
fn needs_http(rule: &AuthzRule) -> bool {
    let of_source = rule
        .from
        .iter()
        .any(|from| !from.request_principals.is_empty());
    let of_operation = rule.to.iter().any(|to| {
        let [hosts, methods, paths] = [&to.hosts, &to.methods, &to.paths];
        [hosts, methods, paths]
            .iter()
            .any(|values| !values.is_empty())
    });
    let of_condition = rule
        .when
        .iter()
        .any(|when| when.key.starts_with("request."));

    of_source || of_operation || of_condition
}

/// Whether a rule may be about a port.
fn names_port(rule: &AuthzRule, port: u16) -> bool {
    let port = port.to_string();
    rule.to.is_empty()
        || rule.to.iter().any(|to| {
            let ports = &to.ports;
            (ports.any.is_empty() || ports.any.contains(&port)) && !ports.none.contains(&port)
        })
}
