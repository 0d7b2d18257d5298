//! Sources, operations and conditions of a rule as RBAC principals and permissions.

use meltemi_model::{AuthzCondition, AuthzOperation, AuthzSource, Values};

use super::value;
use super::{AuthzInput, HttpOnly, Layer};
use crate::envoy::rbac::permission::{Rule, Set as PermissionSet};
use crate::envoy::rbac::principal::{Identifier, Set as PrincipalSet};
use crate::envoy::rbac::{Permission, Principal};

/// What must hold, each on its side.
#[derive(Default)]
pub(super) struct Conditions {
    pub permissions: Vec<Permission>,
    pub principals: Vec<Principal>,
}

impl Conditions {
    pub fn of_permissions(permissions: Vec<Permission>) -> Self {
        Self {
            permissions,
            principals: Vec::new(),
        }
    }

    pub fn of_principals(principals: Vec<Principal>) -> Self {
        Self {
            permissions: Vec::new(),
            principals,
        }
    }
}

fn permission(rule: Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

pub(super) fn all_permissions(mut rules: Vec<Permission>) -> Permission {
    if rules.is_empty() {
        rules.push(permission(Rule::Any(true)));
    }
    permission(Rule::AndRules(PermissionSet { rules }))
}

pub(super) fn all_principals(mut ids: Vec<Principal>) -> Principal {
    if ids.is_empty() {
        ids.push(principal(Identifier::Any(true)));
    }
    principal(Identifier::AndIds(PrincipalSet { ids }))
}

/// `any` of the values and `none` of the others. A value that cannot be read matches nothing;
/// Istio's validation, and ours, refuses such policies before.
fn permissions(values: &Values, build: impl Fn(&str) -> Option<Rule>) -> Vec<Permission> {
    let Values { any, none } = values;
    let or = |values: &[String]| {
        let rules: Vec<_> = values
            .iter()
            .filter_map(|value| build(value))
            .map(permission)
            .collect();

        // Without a readable value nothing can match; an empty set is refused by Envoy.
        let rules = if rules.is_empty() {
            vec![nothing()]
        } else {
            rules
        };

        permission(Rule::OrRules(PermissionSet { rules }))
    };

    let mut both = Vec::new();
    if !any.is_empty() {
        both.push(or(any));
    }
    if !none.is_empty() {
        both.push(permission(Rule::NotRule(Box::new(or(none)))));
    }

    both
}

fn nothing() -> Permission {
    permission(Rule::NotRule(Box::new(permission(Rule::Any(true)))))
}

fn principals(values: &Values, build: impl Fn(&str) -> Option<Identifier>) -> Vec<Principal> {
    let Values { any, none } = values;
    let or = |values: &[String]| {
        let ids: Vec<_> = values
            .iter()
            .filter_map(|value| build(value))
            .map(principal)
            .collect();
        let ids = if ids.is_empty() { vec![nobody()] } else { ids };
        principal(Identifier::OrIds(PrincipalSet { ids }))
    };

    let mut both = Vec::new();
    if !any.is_empty() {
        both.push(or(any));
    }
    if !none.is_empty() {
        both.push(principal(Identifier::NotId(Box::new(or(none)))));
    }

    both
}

fn nobody() -> Principal {
    principal(Identifier::NotId(Box::new(principal(Identifier::Any(
        true,
    )))))
}

/// One matcher for all values (metadata), and its opposite.
fn metadata_principals(values: &Values, build: impl Fn(&[String]) -> Identifier) -> Vec<Principal> {
    let Values { any, none } = values;
    let mut both = Vec::new();
    if !any.is_empty() {
        both.push(principal(build(any)));
    }
    if !none.is_empty() {
        both.push(principal(Identifier::NotId(Box::new(principal(build(
            none,
        ))))));
    }

    both
}

fn http_only<T: Default>(
    layer: Layer,
    values: &Values,
    build: impl FnOnce() -> T,
) -> Result<T, HttpOnly> {
    match layer {
        _ if values.is_empty() => Ok(T::default()),
        Layer::Http => Ok(build()),
        Layer::Tcp => Err(HttpOnly),
    }
}

/// The parts of an operation, each decided for itself.
pub(super) fn operation(
    input: &AuthzOperation,
    layer: Layer,
) -> [Result<Vec<Permission>, HttpOnly>; 4] {
    let AuthzOperation {
        hosts,
        ports,
        methods,
        paths,
    } = input;

    [
        http_only(layer, hosts, || {
            permissions(hosts, |host| Some(value::host(host)))
        }),
        http_only(layer, methods, || {
            permissions(methods, |method| {
                Some(value::header_rule(":method", method))
            })
        }),
        http_only(layer, paths, || {
            permissions(paths, |path| Some(value::path(path)))
        }),
        Ok(permissions(ports, value::port)),
    ]
}

/// The parts of a source, each decided for itself.
pub(super) fn source(
    input: &AuthzSource,
    authz: &AuthzInput,
    layer: Layer,
) -> [Result<Vec<Principal>, HttpOnly>; 7] {
    let AuthzSource {
        principals: peers,
        request_principals,
        namespaces,
        service_accounts,
        ip_blocks,
        remote_ip_blocks,
        trust_domains,
    } = input;

    [
        Ok(principals(&with_aliases(peers, authz), |peer| {
            Some(value::peer(peer))
        })),
        http_only(layer, request_principals, || {
            principals(request_principals, |text| {
                Some(value::request_principal(text))
            })
        }),
        Ok(principals(namespaces, |namespace| {
            Some(value::namespace(namespace))
        })),
        Ok(principals(service_accounts, |account| {
            Some(value::service_account(account))
        })),
        Ok(principals(remote_ip_blocks, |block| {
            value::block(block).map(Identifier::RemoteIp)
        })),
        Ok(principals(ip_blocks, |block| {
            value::block(block).map(Identifier::DirectRemoteIp)
        })),
        Ok(principals(trust_domains, |domain| {
            Some(value::trust_domain(domain))
        })),
    ]
}

/// A `when` condition.
pub(super) fn of_key(
    input: &AuthzCondition,
    authz: &AuthzInput,
    layer: Layer,
) -> Result<Conditions, HttpOnly> {
    let AuthzCondition { key, values } = input;
    let (peer, operation) = (Conditions::of_principals, Conditions::of_permissions);
    Ok(match key.as_str() {
        "source.ip" => peer(principals(values, |block| {
            value::block(block).map(Identifier::DirectRemoteIp)
        })),
        "remote.ip" => peer(principals(values, |block| {
            value::block(block).map(Identifier::RemoteIp)
        })),
        "source.namespace" => peer(principals(values, |namespace| {
            Some(value::namespace(namespace))
        })),
        "source.serviceAccount" => peer(principals(values, |account| {
            Some(value::service_account(account))
        })),
        "source.trustDomain" => peer(principals(values, |domain| {
            Some(value::trust_domain(domain))
        })),
        "source.principal" => peer(principals(&with_aliases(values, authz), |text| {
            Some(value::peer(text))
        })),
        "request.auth.principal" => peer(http_only(layer, values, || {
            principals(values, |text| Some(value::request_principal(text)))
        })?),
        "request.auth.audiences" => peer(claim(layer, values, &["aud"])?),
        "request.auth.presenter" => peer(claim(layer, values, &["azp"])?),
        "destination.ip" => operation(permissions(values, |block| {
            value::block(block).map(Rule::DestinationIp)
        })),
        "destination.port" => operation(permissions(values, value::port)),
        "connection.sni" => operation(permissions(values, |name| Some(value::server_name(name)))),
        _ => {
            if let Some(header) = value::bracketed(key, "request.headers") {
                return Ok(peer(http_only(layer, values, || {
                    principals(values, |text| Some(value::header_identifier(header, text)))
                })?));
            }

            if let Some(path) = value::nested(key, "request.auth.claims") {
                return Ok(peer(claim(layer, values, &path)?));
            }
            if let Some(rule) = value::experimental(key) {
                let Values { any, none } = values;
                let mut both = Vec::new();
                if !any.is_empty() {
                    both.push(permission(rule(any)));
                }
                if !none.is_empty() {
                    both.push(permission(Rule::NotRule(Box::new(permission(rule(none))))));
                }
                return Ok(operation(both));
            }

            // A key of a later version: nothing is known to hold.
            operation(vec![nothing()])
        }
    })
}

fn claim(layer: Layer, values: &Values, path: &[&str]) -> Result<Vec<Principal>, HttpOnly> {
    http_only(layer, values, || {
        metadata_principals(values, |values| value::claim(path, values))
    })
}

fn with_aliases(values: &Values, authz: &AuthzInput) -> Values {
    let each = |values: &[String]| {
        let mut wide = Vec::new();
        for value in values {
            for alias in value::under_aliases(value, &authz.trust_domains) {
                if !wide.contains(&alias) {
                    wide.push(alias);
                }
            }
        }
        wide
    };

    Values {
        any: each(&values.any),
        none: each(&values.none),
    }
}
