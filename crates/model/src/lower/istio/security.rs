//! PeerAuthentication, AuthorizationPolicy and RequestAuthentication to the model.

use meltemi_api::security::{self as api};
use meltemi_api::{Object, Spec, TargetReference, WorkloadSelector};

use crate::lower::{Findings, origin};
use crate::{
    AuthorizationPolicy, AuthzAction, AuthzCondition, AuthzOperation, AuthzRule, AuthzSource,
    MtlsMode, PeerAuthentication, PolicyTarget, RequestAuthentication, TargetRef, TokenRule,
    Values,
};
use meltemi_types::{Selector, parse_go_bool};

pub(crate) fn lower_peer_authentication(
    object: &Object,
    _: &mut Findings<'_>,
) -> PeerAuthentication {
    let empty = api::PeerAuthentication::default();
    let spec = if let Spec::PeerAuthentication(spec) = &object.spec {
        spec.as_ref()
    } else {
        &empty
    };

    let mode = |written: &api::MutualTls| match written.mode {
        api::MutualTlsMode::Unset => None,
        api::MutualTlsMode::Disable => Some(MtlsMode::Disable),
        api::MutualTlsMode::Permissive => Some(MtlsMode::Permissive),
        api::MutualTlsMode::Strict => Some(MtlsMode::Strict),
    };

    PeerAuthentication {
        origin: origin(object),
        selector: selector(spec.selector.as_ref()),
        mode: spec.mtls.as_ref().and_then(mode),
        ports: spec
            .port_level_mtls
            .iter()
            .map(|(port, written)| (*port, mode(written)))
            .collect(),
    }
}

fn selector(written: Option<&WorkloadSelector>) -> Option<Selector> {
    written
        .map(|selector| selector.match_labels.clone())
        .filter(|labels| !labels.is_empty())
}

fn target(
    namespace: &str,
    workloads: Option<&WorkloadSelector>,
    one: Option<&TargetReference>,
    many: &[TargetReference],
) -> PolicyTarget {
    let references: Vec<TargetRef> = one
        .into_iter()
        .chain(many)
        .map(|reference| TargetRef {
            group: reference.group.clone(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            namespace: if reference.namespace.is_empty() {
                namespace.to_owned()
            } else {
                reference.namespace.clone()
            },
        })
        .collect();

    match (references.is_empty(), selector(workloads)) {
        (false, _) => PolicyTarget::References(references),
        (true, Some(labels)) => PolicyTarget::Workloads(labels),
        (true, None) => PolicyTarget::All,
    }
}

pub(crate) fn lower_authorization_policy(
    object: &Object,
    _: &mut Findings<'_>,
) -> AuthorizationPolicy {
    let empty = api::AuthorizationPolicy::default();
    let spec = if let Spec::AuthorizationPolicy(spec) = &object.spec {
        spec.as_ref()
    } else {
        &empty
    };

    let namespace = object.meta.namespace.as_str();

    AuthorizationPolicy {
        origin: origin(object),
        target: target(
            namespace,
            spec.selector.as_ref(),
            spec.target_ref.as_ref(),
            &spec.target_refs,
        ),
        action: match spec.action {
            api::AuthorizationAction::Allow => AuthzAction::Allow,
            api::AuthorizationAction::Deny => AuthzAction::Deny,
            api::AuthorizationAction::Audit => AuthzAction::Audit,
            api::AuthorizationAction::Custom => AuthzAction::Custom {
                provider: spec
                    .provider
                    .as_ref()
                    .map(|provider| provider.name.clone())
                    .unwrap_or_default(),
            },
        },
        rules: spec
            .rules
            .iter()
            .map(|rule| lower_rule(rule, namespace))
            .collect(),
        dry_run: object
            .meta
            .annotations
            .get("istio.io/dry-run")
            .and_then(|value| parse_go_bool(value))
            .unwrap_or_default(),
    }
}

fn lower_rule(rule: &api::Rule, namespace: &str) -> AuthzRule {
    AuthzRule {
        from: rule
            .from
            .iter()
            .filter_map(|from| from.source.as_ref())
            .map(|source| lower_source(source, namespace))
            .collect(),
        to: rule
            .to
            .iter()
            .filter_map(|to| to.operation.as_ref())
            .map(lower_operation)
            .collect(),
        when: rule
            .when
            .iter()
            .map(|condition| AuthzCondition {
                key: condition.key.clone(),
                values: if condition.key == "source.serviceAccount" {
                    accounts(&condition.values, &condition.not_values, namespace)
                } else {
                    values(&condition.values, &condition.not_values)
                },
            })
            .collect(),
    }
}

fn values(any: &[String], none: &[String]) -> Values {
    Values {
        any: any.to_vec(),
        none: none.to_vec(),
    }
}

/// Service accounts as `NAMESPACE/NAME`; without one, the policy's own namespace is meant. Source:
/// Istio `serviceAccountRegex`.
fn accounts(any: &[String], none: &[String], namespace: &str) -> Values {
    let qualified = |account: &String| match account.contains('/') {
        true => account.clone(),
        false => format!("{namespace}/{account}"),
    };
    Values {
        any: any.iter().map(qualified).collect(),
        none: none.iter().map(qualified).collect(),
    }
}

/// Destructured, so that a new field cannot be forgotten: a condition that is left out would permit
/// more.
fn lower_source(source: &api::Source, namespace: &str) -> AuthzSource {
    let api::Source {
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
        trust_domains,
        not_trust_domains,
    } = source;

    AuthzSource {
        principals: values(principals, not_principals),
        request_principals: values(request_principals, not_request_principals),
        namespaces: values(namespaces, not_namespaces),
        service_accounts: accounts(service_accounts, not_service_accounts, namespace),
        ip_blocks: values(ip_blocks, not_ip_blocks),
        remote_ip_blocks: values(remote_ip_blocks, not_remote_ip_blocks),
        trust_domains: values(trust_domains, not_trust_domains),
    }
}

fn lower_operation(operation: &api::Operation) -> AuthzOperation {
    let api::Operation {
        hosts,
        not_hosts,
        ports,
        not_ports,
        methods,
        not_methods,
        paths,
        not_paths,
    } = operation;

    AuthzOperation {
        hosts: values(hosts, not_hosts),
        ports: values(ports, not_ports),
        methods: values(methods, not_methods),
        paths: values(paths, not_paths),
    }
}

pub(crate) fn lower_request_authentication(
    object: &Object,
    _: &mut Findings<'_>,
) -> RequestAuthentication {
    let empty = api::RequestAuthentication::default();
    let spec = if let Spec::RequestAuthentication(spec) = &object.spec {
        spec.as_ref()
    } else {
        &empty
    };

    RequestAuthentication {
        origin: origin(object),
        target: target(
            &object.meta.namespace,
            spec.selector.as_ref(),
            spec.target_ref.as_ref(),
            &spec.target_refs,
        ),
        rules: spec.jwt_rules.iter().map(lower_token_rule).collect(),
    }
}

/// Destructured, so that a new place of tokens cannot be forgotten.
fn lower_token_rule(rule: &api::JwtRule) -> TokenRule {
    let api::JwtRule {
        issuer,
        from_headers,
        from_params,
        from_cookies,
        output_payload_to_header,
        output_claim_to_headers,
        presence,
        // Without a check nothing is accepted, so that these decide nothing.
        audiences: _,
        jwks_uri: _,
        jwks: _,
        forward_original_token: _,
        timeout: _,
        space_delimited_claims: _,
    } = rule;

    TokenRule {
        issuer: issuer.clone(),
        headers: from_headers
            .iter()
            .map(|header| (header.name.clone(), header.prefix.clone()))
            .collect(),
        parameters: from_params.clone(),
        cookies: from_cookies.clone(),
        is_required: *presence == api::JwtPresence::Required,
        payload_header: output_payload_to_header.clone(),
        claim_headers: output_claim_to_headers
            .iter()
            .map(|output| (output.header.clone(), output.claim.clone()))
            .collect(),
    }
}
