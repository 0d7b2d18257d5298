//! Authorization policies as Envoy's RBAC filters, for HTTP and for TCP.
//!
//! One filter each for CUSTOM (refused: no external authorizer is served), AUDIT, DENY and ALLOW,
//! in this order. On a TCP port, a condition that only HTTP can decide drops an ALLOW rule
//! (narrower) and is left out of DENY and AUDIT rules (wider): a policy never permits more than it
//! says.

mod condition;
mod value;

use std::collections::HashMap;

use meltemi_model::{AuthorizationPolicies, AuthorizationPolicy, AuthzAction, AuthzRule};
use meltemi_proto::pack;

use crate::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use crate::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use crate::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use crate::envoy::http::{http_filter, network_filter};
use crate::envoy::{listener, rbac};

pub(crate) const HTTP_FILTER: &str = "envoy.filters.http.rbac";
pub(crate) const NETWORK_FILTER: &str = "envoy.filters.network.rbac";

/// The policies of a workload and the trust domains under which its peers may be known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct AuthzInput {
    pub policies: AuthorizationPolicies,
    /// The mesh's own first, then its aliases.
    pub trust_domains: Vec<String>,
}

/// What the rules are to be decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Http,
    Tcp,
}

/// A condition that TCP cannot decide.
#[derive(Debug)]
pub(super) struct HttpOnly;

struct Built {
    rules: Option<rbac::Rbac>,
    shadow: Option<rbac::Rbac>,
    shadow_prefix: &'static str,
}

/// The HTTP filters, in order.
pub(crate) fn http_filters(input: &AuthzInput) -> Vec<HttpFilter> {
    build(input, Layer::Http)
        .into_iter()
        .map(|built| {
            http_filter(
                HTTP_FILTER,
                &http_rbac::Rbac {
                    rules: built.rules,
                    shadow_rules: built.shadow,
                    shadow_rules_stat_prefix: built.shadow_prefix.to_owned(),
                    ..Default::default()
                },
            )
        })
        .collect()
}

/// The network filters, in order.
pub(crate) fn network_filters(input: &AuthzInput) -> Vec<listener::Filter> {
    build(input, Layer::Tcp)
        .into_iter()
        .map(|built| {
            network_filter(
                NETWORK_FILTER,
                pack(&network_rbac::Rbac {
                    rules: built.rules,
                    shadow_rules: built.shadow,
                    shadow_rules_stat_prefix: built.shadow_prefix.to_owned(),
                    stat_prefix: "tcp.".to_owned(),
                    ..Default::default()
                }),
            )
        })
        .collect()
}

fn build(input: &AuthzInput, layer: Layer) -> Vec<Built> {
    let AuthorizationPolicies {
        custom,
        deny,
        allow,
        audit,
    } = &input.policies;

    let mut filters = Vec::new();
    if !custom.is_empty() {
        let mut rules = rules_of(rbac::rbac::Action::Deny);
        for policy in custom {
            add_policy(&mut rules, policy, input, layer);
        }
        filters.push(Built {
            rules: Some(rules),
            shadow: None,
            shadow_prefix: "istio_dry_run_deny_",
        });
    }

    for (policies, action) in [
        (audit, rbac::rbac::Action::Log),
        (deny, rbac::rbac::Action::Deny),
        (allow, rbac::rbac::Action::Allow),
    ] {
        let (mut enforced, mut shadow) = (None, None);
        for policy in policies {
            let slot = if policy.dry_run {
                &mut shadow
            } else {
                &mut enforced
            };

            add_policy(
                slot.get_or_insert_with(|| rules_of(action)),
                policy,
                input,
                layer,
            );
        }

        let is_denial = action == rbac::rbac::Action::Deny && shadow.is_some();
        if enforced.is_some() || shadow.is_some() {
            let shadow_prefix = if is_denial {
                "istio_dry_run_deny_"
            } else {
                "istio_dry_run_allow_"
            };

            filters.push(Built {
                rules: enforced,
                shadow,
                shadow_prefix,
            });
        }
    }

    filters
}

fn rules_of(action: rbac::rbac::Action) -> rbac::Rbac {
    rbac::Rbac {
        action: action as i32,
        policies: HashMap::new(),
        audit_logging_options: None,
    }
}

fn add_policy(
    rules: &mut rbac::Rbac,
    policy: &AuthorizationPolicy,
    input: &AuthzInput,
    layer: Layer,
) {
    let name = policy.origin.name();
    for (index, rule) in policy.rules.iter().enumerate() {
        let plain = format!("ns[{}]-policy[{}]-rule[{index}]", name.namespace, name.name);
        let key = match &policy.action {
            AuthzAction::Custom { provider } => {
                format!("istio-ext-authz-{provider}-{plain}-deny-due-to-bad-CUSTOM-action")
            }
            _ => plain,
        };

        if let Ok(built) = rule_message(rule, &policy.action, input, layer) {
            rules.policies.insert(key, built);
        }
    }
}

fn rule_message(
    rule: &AuthzRule,
    action: &AuthzAction,
    input: &AuthzInput,
    layer: Layer,
) -> Result<rbac::Policy, HttpOnly> {
    let AuthzRule { from, to, when } = rule;
    let settle = |outcome: Result<_, HttpOnly>| match (outcome, action) {
        (Err(HttpOnly), AuthzAction::Allow) => Err(HttpOnly),
        (Err(HttpOnly), _) => Ok(None),
        (Ok(condition), _) => Ok(Some(condition)),
    };

    let mut conditions = condition::Conditions::default();
    for one in when {
        let split = condition::of_key(one, input, layer);
        if let Some(more) = settle(split)? {
            conditions.permissions.extend(more.permissions);
            conditions.principals.extend(more.principals);
        }
    }

    let mut permissions = Vec::new();
    for operation in to {
        let mut all = Vec::new();
        for part in condition::operation(operation, layer) {
            all.extend(
                settle(part.map(condition::Conditions::of_permissions))?
                    .unwrap_or_default()
                    .permissions,
            );
        }
        permissions.push(all);
    }

    let mut principals = Vec::new();
    for source in from {
        let mut all = Vec::new();
        for part in condition::source(source, input, layer) {
            all.extend(
                settle(part.map(condition::Conditions::of_principals))?
                    .unwrap_or_default()
                    .principals,
            );
        }
        principals.push(all);
    }

    if permissions.is_empty() {
        permissions.push(Vec::new());
    }
    if principals.is_empty() {
        principals.push(Vec::new());
    }

    Ok(rbac::Policy {
        permissions: permissions
            .into_iter()
            .map(|mut all| {
                all.extend(conditions.permissions.iter().cloned());
                condition::all_permissions(all)
            })
            .collect(),
        principals: principals
            .into_iter()
            .map(|mut all| {
                all.extend(conditions.principals.iter().cloned());
                condition::all_principals(all)
            })
            .collect(),
        ..Default::default()
    })
}
