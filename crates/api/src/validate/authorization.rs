//! AuthorizationPolicy.

use super::rules::*;
use crate::schema::{Report, closest, shorten};
use crate::security::{
    AuthorizationAction, AuthorizationPolicy, Condition, Operation, Rule, Source,
};

/// Attributes without brackets.
const KEYS: &[&str] = &[
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
    "source.principal",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

pub(super) fn check(spec: &AuthorizationPolicy, at: &mut Report) {
    let AuthorizationPolicy {
        selector,
        target_ref,
        target_refs,
        rules,
        action,
        provider,
    } = spec;

    check_targets(selector, target_ref, target_refs, at);
    let named = provider
        .as_ref()
        .is_some_and(|provider| !provider.name.is_empty());
    if *action == AuthorizationAction::Custom {
        if !named {
            at.field("provider", |at| {
                at.error(
                    MISSING,
                    "CUSTOM action requires `provider.name`",
                    "name an extension provider of MeshConfig",
                );
            });
        }
    } else if provider.is_some() {
        at.field("provider", |at| {
            let message = format!(
                "`provider.name` must not be set with {} action, only used with CUSTOM action",
                action.as_str()
            );
            at.error(CONFLICT, message, "remove provider, or use action CUSTOM");
        });
    }

    check_has_rules(*action, rules, at);

    if rules.len() > 512 {
        at.field("rules", |at| {
            at.error(
                INVALID,
                "must have at most 512 items",
                "write several policies",
            )
        });
    }

    at.each("rules", rules, |rule, at| {
        check_rule(rule, at);
        if *action == AuthorizationAction::Custom {
            check_custom_rule(rule, at);
        }
    });
}

/// ALLOW without rules denies everything, which some write on purpose; without rules every other
/// action never applies.
fn check_has_rules(action: AuthorizationAction, rules: &[Rule], at: &mut Report) {
    if !rules.is_empty() {
        return;
    }
    let remedy = "add rules; `- {}` matches every request";
    match action {
        AuthorizationAction::Allow => {}
        AuthorizationAction::Deny | AuthorizationAction::Custom => at.error(
            MISSING,
            format!(
                "{} action without `rules` is meaningless as it will never be triggered",
                action.as_str()
            ),
            remedy,
        ),
        AuthorizationAction::Audit => {
            at.warn(DOUBTFUL, "AUDIT action without rules never matches", remedy)
        }
    }
}

/// Conditions on a caller's identity, which Istio refuses under CUSTOM.
fn check_custom_rule(rule: &Rule, at: &mut Report) {
    let unsupported = |what: &str, at: &mut Report| {
        at.error(
            CONFLICT,
            format!("{what} is currently not supported with CUSTOM action"),
            "select by ipBlocks, remoteIpBlocks and operations; let the authorizer decide by identity",
        );
    };

    at.each("from", &rule.from, |from, at| {
        let Some(source) = &from.source else { return };
        at.field("source", |at| {
            for (key, list) in identity_lists(source) {
                if !list.is_empty() {
                    at.field(key, |at| unsupported(key, at));
                }
            }
        });
    });

    at.each("when", &rule.when, |condition, at| {
        let key = condition.key.as_str();
        let is_identity = matches!(
            key,
            "source.namespace"
                | "source.serviceAccount"
                | "source.trustDomain"
                | "source.principal"
        ) || key.starts_with("request.auth.");
        if is_identity {
            at.field("key", |at| unsupported(key, at));
        }
    });
}

/// The lists of a source that compare the caller's identity.
fn identity_lists(source: &Source) -> [(&'static str, &Vec<String>); 10] {
    [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ]
}

fn check_rule(rule: &Rule, at: &mut Report) {
    let Rule { from, to, when } = rule;
    at.each("from", from, |from, at| match &from.source {
        Some(source) if *source != Source::default() => {
            at.field("source", |at| check_source(source, at))
        }
        _ => at.error(
            MISSING,
            "`from.source` must have at least one attribute",
            "add for example principals or namespaces",
        ),
    });

    at.each("to", to, |to, at| match &to.operation {
        Some(operation) if *operation != Operation::default() => {
            at.field("operation", |at| check_operation(operation, at))
        }
        _ => at.error(
            MISSING,
            "`to.operation` must have at least one attribute",
            "add for example methods or paths",
        ),
    });

    at.each("when", when, check_condition);
}

fn check_source(source: &Source, at: &mut Report) {
    let Source {
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

    let by_account = !service_accounts.is_empty() || !not_service_accounts.is_empty();
    let by_identity = [principals, not_principals, namespaces, not_namespaces]
        .iter()
        .any(|list| !list.is_empty());
    if by_account && by_identity {
        at.error(
            CONFLICT,
            "Cannot set serviceAccounts with namespaces or principals",
            "write two sources, or use principals alone",
        );
    }

    for (key, list) in [
        ("principals", principals),
        ("notPrincipals", not_principals),
        ("requestPrincipals", request_principals),
        ("notRequestPrincipals", not_request_principals),
        ("namespaces", namespaces),
        ("notNamespaces", not_namespaces),
    ] {
        at.each(key, list, |value, at| {
            check_value(value, at);
            if key.ends_with("rincipals") && value.starts_with("spiffe://") {
                at.warn(
                    DOUBTFUL,
                    "principals are written without spiffe://, so this never matches",
                    "remove spiffe://",
                );
            }
        });
    }

    for (key, list) in [
        ("trustDomains", trust_domains),
        ("notTrustDomains", not_trust_domains),
    ] {
        at.each(key, list, |domain, at| {
            check_value(domain, at);
            check_wildcard_value(domain, at);
            if domain.contains('/') {
                at.error(
                    INVALID,
                    "trust domain must not contain '/'",
                    "write a trust domain alone, for example cluster.local",
                );
            }
        });
    }

    for (key, list) in [
        ("serviceAccounts", service_accounts),
        ("notServiceAccounts", not_service_accounts),
    ] {
        if list.len() > MAX_ACCOUNTS {
            at.field(key, |at| {
                at.error(
                    INVALID,
                    format!("may not have more than {MAX_ACCOUNTS} values"),
                    "write a second source",
                )
            });
        }
        at.each(key, list, |account, at| check_account(account, at));
    }

    for (key, list) in [
        ("ipBlocks", ip_blocks),
        ("notIpBlocks", not_ip_blocks),
        ("remoteIpBlocks", remote_ip_blocks),
        ("notRemoteIpBlocks", not_remote_ip_blocks),
    ] {
        at.each(key, list, |block, at| check_ip_or_cidr(block, at));
    }
}

/// Source: Istio `CheckServiceAccount`.
const MAX_ACCOUNTS: usize = 16;

fn check_account(account: &str, at: &mut Report) {
    check_value(account, at);
    let parts: Vec<&str> = account.split('/').collect();
    if parts.len() > 2
        || parts.iter().any(|part| part.is_empty())
        || account.contains('*')
        || account.len() > 320
    {
        at.error(
            INVALID,
            format!("{:?} is not a service account", shorten(account)),
            "write NAMESPACE/NAME, or NAME",
        );
    }
}

/// One `*` at most, at the start or the end.
fn check_wildcard_value(value: &str, at: &mut Report) {
    let wildcards = value.matches('*').count();
    let is_at_an_end = value.starts_with('*') || value.ends_with('*');
    if wildcards > 1 || (wildcards == 1 && !is_at_an_end) {
        at.error(
            INVALID,
            format!(
                "one wildcard is allowed, at the start or end: {:?}",
                shorten(value)
            ),
            "write exact, prefix* or *suffix",
        );
    }
}

fn check_operation(operation: &Operation, at: &mut Report) {
    let Operation {
        hosts,
        not_hosts,
        ports,
        not_ports,
        methods,
        not_methods,
        paths,
        not_paths,
    } = operation;

    for (key, list) in [
        ("hosts", hosts),
        ("notHosts", not_hosts),
        ("methods", methods),
        ("notMethods", not_methods),
    ] {
        at.each(key, list, |value, at| {
            check_value(value, at);
            if key.ends_with("ethods") && value.bytes().any(|b| b.is_ascii_lowercase()) {
                at.warn(
                    DOUBTFUL,
                    format!(
                        "method {:?} is compared exactly, and requests have upper case",
                        shorten(value)
                    ),
                    "write it in upper case",
                );
            }
        });
    }

    for (key, list) in [("ports", ports), ("notPorts", not_ports)] {
        at.each(key, list, |port, at| check_port_text(port, at));
    }

    for (key, list) in [("paths", paths), ("notPaths", not_paths)] {
        at.each(key, list, |path, at| {
            check_value(path, at);
            check_path_template(path, at);
        });
    }
}

fn check_port_text(port: &str, at: &mut Report) {
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        at.error(
            INVALID,
            format!(
                "invalid port {:?}: port must be between 1-65535",
                shorten(port)
            ),
            "write a port number in quotes",
        );
    }
}

fn check_value(value: &str, at: &mut Report) {
    if value.is_empty() {
        at.error(
            INVALID,
            "empty value not allowed",
            "write a value; * is any that is there",
        );
    }
}

/// Envoy takes so many variables in a template (`kPatternMatchingMaxVariablesPerUrl`).
const MAX_TEMPLATES: usize = 5;

/// A character of `pchar`, RFC 3986 §3.3. Source: Istio `IsValidLiteral`.
fn is_path_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}

/// `{*}` is one whole segment, `{**}` several and only once; no other `*` or braces beside them.
fn check_path_template(path: &str, at: &mut Report) {
    if !path.contains('{') && !path.contains('}') {
        return;
    }
    let remedy = "use {*} for one segment and {**}, once and last but literals, for several";
    if path == "{*}" || path == "{**}" || !path.starts_with('/') {
        return at.error(
            INVALID,
            format!(
                "invalid or unsupported path {:?}: a template begins with /",
                shorten(path)
            ),
            remedy,
        );
    }

    let mut deep = false;
    let operators = path.matches("{*}").count() + path.matches("{**}").count();
    if operators > MAX_TEMPLATES {
        let message = format!(
            "invalid or unsupported path {:?}: more than {MAX_TEMPLATES} of {{*}} and {{**}}",
            shorten(path)
        );
        return at.error(INVALID, message, remedy);
    }

    // Envoy ends itself at a template with an empty segment. The slash at its end makes none.
    let segments = path.strip_prefix('/').unwrap_or(path);
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    for segment in segments.split('/') {
        let fault = match segment {
            "" => Some("a segment beside {*} or {**} is empty"),
            "{*}" if deep => Some("{*} must not follow {**}"),
            "{**}" if deep => Some("{**} must not be there twice"),
            "{**}" => {
                deep = true;
                None
            }
            "{*}" => None,
            plain if plain.contains(['{', '}']) => Some("{*} and {**} must be whole segments"),
            plain if plain.contains('*') => Some("* cannot be used beside {*} or {**}"),
            plain if !plain.bytes().all(is_path_literal) => {
                Some("a segment beside {*} or {**} has characters of a path alone")
            }
            _ => None,
        };

        if let Some(fault) = fault {
            return at.error(
                INVALID,
                format!("invalid or unsupported path {:?}: {fault}", shorten(path)),
                remedy,
            );
        }
    }
}

fn check_condition(condition: &Condition, at: &mut Report) {
    let Condition {
        key,
        values,
        not_values,
    } = condition;

    let bracketed = |prefix: &str| {
        key.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2)
    };

    let known = KEYS.contains(&key.as_str())
        || bracketed("request.headers")
        || bracketed("request.auth.claims")
        || (key.starts_with("experimental.envoy.filters.")
            && key.ends_with(']')
            && key.contains('['));

    if !known {
        let remedy = match closest(key, KEYS) {
            Some(word) => format!("did you mean {word}?"),
            None => format!(
                "use request.headers[NAME], request.auth.claims[NAME] or one of {}",
                KEYS.join(", ")
            ),
        };

        let message = if key.is_empty() {
            "`key` must not be empty".to_owned()
        } else {
            format!("unknown attribute: {:?}", shorten(key))
        };

        at.field("key", |at| at.error(INVALID, message, remedy));
    }

    if values.is_empty() && not_values.is_empty() {
        at.error(
            MISSING,
            format!(
                "at least one of `values` or `notValues` must be set for key {:?}",
                shorten(key)
            ),
            "add values; * is any",
        );
    }

    for (list_key, list) in [("values", values), ("notValues", not_values)] {
        at.each(list_key, list, |value, at| match key.as_str() {
            "source.ip" | "remote.ip" | "destination.ip" => check_ip_or_cidr(value, at),
            "destination.port" => check_port_text(value, at),
            "source.serviceAccount" => check_account(value, at),
            "source.trustDomain" => {
                check_value(value, at);
                check_wildcard_value(value, at);
            }
            _ => check_value(value, at),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::UnknownFields;

    #[test]
    fn path_templates() {
        let faulty = |path: &str| {
            let mut report = Report::new("", UnknownFields::Refuse);
            check_path_template(path, &mut report);
            report.has_errors()
        };

        for good in [
            "/a",
            "/a//b",
            "/a/*",
            "*",
            "/a/{*}/b",
            "/{**}",
            "/{*}/{**}/x",
            "/a/{*}/",
        ] {
            assert!(!faulty(good), "{good}");
        }
        for bad in [
            "{*}",
            "/a{*}",
            "/{**}/{*}",
            "/{**}/{**}",
            "/{a}",
            "/{*}/*",
            "/a//{*}",
            "//{*}",
            "/{*}//",
            "/{*}//b",
            "/{*}/b c",
            "/{*}/b?c",
            "a/{*}",
            "/{",
        ] {
            assert!(faulty(bad), "{bad}");
        }
    }
}
