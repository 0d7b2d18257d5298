//! Rules that no traffic reaches: subsets without endpoints, routes behind others that take the
//! same requests, plaintext to workloads that refuse it.

use meltemi_api::networking::HttpMatchRequest;
use meltemi_api::{Object, Spec};
use meltemi_types::{Diagnostic, Severity};

use super::service_ports::selected;
use super::tell;
use crate::lower::finding;
use crate::{ClientTlsMode, DestinationRule, MtlsMode, Service, Snapshot, TlsMode};

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    for entry in snapshot.lowered.virtual_services.entries.values() {
        check_routes(&entry.object, found);
    }
    for rule in snapshot.destination_rules() {
        let namespace = &rule.origin.object.namespace;
        if let Some(service) = snapshot.service_for(namespace, &rule.host) {
            check_subsets(snapshot, rule, service, found);
            check_plaintext(snapshot, rule, service, found);
        }
    }
}

/// Warns of HTTP routes that no request reaches, since an earlier one takes all of theirs.
fn check_routes(object: &Object, found: &mut Vec<Diagnostic>) {
    let Spec::VirtualService(spec) = &object.spec else {
        return;
    };
    for (index, route) in spec.http.iter().enumerate() {
        let earlier = &spec.http[..index];
        let taken_by = earlier.iter().position(|earlier| {
            let is_taken = |wanted: &HttpMatchRequest| {
                let mut matches = earlier.r#match.iter();
                matches.any(|one| is_same(one, wanted))
            };
            earlier.r#match.is_empty()
                || (!route.r#match.is_empty() && route.r#match.iter().all(is_taken))
        });
        let Some(taken_by) = taken_by else { continue };

        let reason = match earlier[taken_by].r#match.is_empty() {
            true => "only the last rule can have no matches",
            false => "all of its matches are used by an earlier rule",
        };
        found.push(finding(
            object,
            Severity::Warning,
            "IST0130",
            &format!("spec.http[{index}]"),
            format!("VirtualService rule #{index} not used ({reason}, #{taken_by})."),
            "remove one of them, or put the narrower one first",
        ));
    }
}

/// Whether two matches take the same requests; names are for statistics.
fn is_same(one: &HttpMatchRequest, other: &HttpMatchRequest) -> bool {
    let unnamed = |request: &HttpMatchRequest| HttpMatchRequest {
        name: String::new(),
        stat_prefix: String::new(),
        ..request.clone()
    };
    unnamed(one) == unnamed(other)
}

/// Warns of subsets that select none of the service's workloads.
fn check_subsets(
    snapshot: &Snapshot,
    rule: &DestinationRule,
    service: &Service,
    found: &mut Vec<Diagnostic>,
) {
    let Some(workloads) = selected(snapshot, service) else {
        return;
    };
    let workloads: Vec<_> = workloads.collect();
    // Of a service without any workload something else is told.
    if workloads.is_empty() {
        return;
    }

    for (index, subset) in rule.subsets.iter().enumerate() {
        let is_of_subset = |labels| subset.labels.selects(labels);
        if workloads.iter().any(|one| is_of_subset(&one.labels)) {
            continue;
        }
        tell(
            snapshot,
            &rule.origin.object,
            "MEL0524",
            &format!("spec.subsets[{index}].labels"),
            format!(
                "no workload of {} has the labels of subset {:?}, so calls of the subset fail",
                service.host(),
                subset.name
            ),
            "correct the labels, or start the workload",
            found,
        );
    }
}

/// Warns of plaintext to workloads that take mutual TLS alone.
fn check_plaintext(
    snapshot: &Snapshot,
    rule: &DestinationRule,
    service: &Service,
    found: &mut Vec<Diagnostic>,
) {
    let tls = rule.policy.settings.tls.as_ref();
    if tls.is_none_or(|tls| tls.mode != ClientTlsMode::Disable) {
        return;
    }
    let mut policies = selected(snapshot, service)
        .into_iter()
        .flatten()
        .filter(|workload| workload.tls_mode == TlsMode::Istio)
        .map(|workload| snapshot.peer_authentication(&workload.namespace, &workload.labels));
    let strict = policies.find(|policy| policy.mode == MtlsMode::Strict);
    let Some(strict) = strict else { return };

    let policy = strict.sources.first();
    let policy = policy.map_or_else(|| "the mesh".to_owned(), ToString::to_string);
    tell(
        snapshot,
        &rule.origin.object,
        "IST0113",
        "spec.trafficPolicy.tls.mode",
        format!(
            "A DestinationRule and Policy are in conflict with regards to mTLS for host {}: mode DISABLE, but {policy} is STRICT, so every call fails",
            service.host()
        ),
        "remove tls, or write ISTIO_MUTUAL",
        found,
    );
}
