//! Authorization policies as Envoy's RBAC and ext_authz filters, for HTTP and for TCP.
//!
//! The filters of CUSTOM policies come first, then one RBAC filter each for AUDIT, DENY and ALLOW.
//! On a TCP port, a condition that only HTTP can decide drops an ALLOW rule (narrower) and is left
//! out of the other rules (wider): a policy never permits more than it says.

mod condition;
mod external;
mod tokens;
mod value;

use std::collections::HashMap;

use meltemi_model::{
    AuthorizationPolicies, AuthorizationPolicy, Authorizer, AuthzAction, AuthzRule,
    CustomAuthorization, TokenRule,
};
use meltemi_proto::pack;

use crate::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use crate::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use crate::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use crate::envoy::http::{http_filter, network_filter};
use crate::envoy::{listener, rbac};

pub(crate) use external::{HTTP_FILTER as HTTP_EXT_AUTHZ, NETWORK_FILTER as NETWORK_EXT_AUTHZ};

pub(crate) const HTTP_FILTER: &str = "envoy.filters.http.rbac";
pub(crate) const NETWORK_FILTER: &str = "envoy.filters.network.rbac";

/// The policies of a workload and the trust domains under which its peers may be known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct AuthzInput {
    pub policies: AuthorizationPolicies,
    /// The mesh's own first, then its aliases.
    pub trust_domains: Vec<String>,
    /// The issuers whose tokens requests may carry.
    pub tokens: Vec<TokenRule>,
}

/// The protocol that rules are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Http,
    Tcp,
}

/// A condition that TCP cannot decide.
#[derive(Debug)]
pub(super) struct HttpOnly;

/// An RBAC filter, and after it perhaps the ext_authz filter that its shadow rules switch on.
struct Built<'a> {
    rules: Option<rbac::Rbac>,
    shadow: Option<rbac::Rbac>,
    shadow_prefix: &'static str,
    ask: Option<(&'a str, &'a Authorizer)>,
}

/// The HTTP filters, in order. `can_ask`: the client has the ext_authz filter.
pub(crate) fn http_filters(input: &AuthzInput, can_ask: bool) -> Vec<HttpFilter> {
    let mut filters = Vec::new();
    if let Some(message) = tokens::filter(&input.tokens) {
        filters.push(http_filter(tokens::FILTER, &message));
    }

    for built in build(input, Layer::Http, can_ask) {
        filters.push(http_filter(
            HTTP_FILTER,
            &http_rbac::Rbac {
                rules: built.rules,
                shadow_rules: built.shadow,
                shadow_rules_stat_prefix: built.shadow_prefix.to_owned(),
                ..Default::default()
            },
        ));

        if let Some((provider, authorizer)) = built.ask {
            filters.push(http_filter(
                HTTP_EXT_AUTHZ,
                &external::http(provider, authorizer),
            ));
        }
    }

    filters
}

/// The network filters, in order. `can_ask`: the client has the ext_authz filter.
pub(crate) fn network_filters(input: &AuthzInput, can_ask: bool) -> Vec<listener::Filter> {
    let mut filters = Vec::new();
    for built in build(input, Layer::Tcp, can_ask) {
        filters.push(network_filter(
            NETWORK_FILTER,
            pack(&network_rbac::Rbac {
                rules: built.rules,
                shadow_rules: built.shadow,
                shadow_rules_stat_prefix: built.shadow_prefix.to_owned(),
                stat_prefix: "tcp.".to_owned(),
                ..Default::default()
            }),
        ));

        if let Some((provider, authorizer)) = built.ask {
            filters.push(network_filter(
                NETWORK_EXT_AUTHZ,
                pack(&external::network(provider, authorizer)),
            ));
        }
    }

    filters
}

fn build(input: &AuthzInput, layer: Layer, can_ask: bool) -> Vec<Built<'_>> {
    let AuthorizationPolicies {
        custom,
        deny,
        allow,
        audit,
    } = &input.policies;

    let mut filters: Vec<_> = custom
        .iter()
        .filter_map(|custom| build_custom(custom, input, layer, can_ask))
        .collect();

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

            let rules = slot.get_or_insert_with(|| rules_of(action));
            add_policy(rules, policy, input, layer, |rule| rule);
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
                ask: None,
            });
        }
    }

    filters
}

/// The policies of one provider: shadow rules that select requests for the authorizer, or rules
/// that deny them. `None` if the provider has no say here. Source: Istio `Builder.buildHTTP` and
/// `buildTCP`.
fn build_custom<'a>(
    custom: &'a CustomAuthorization,
    input: &AuthzInput,
    layer: Layer,
    can_ask: bool,
) -> Option<Built<'a>> {
    let CustomAuthorization {
        provider,
        authorizer,
        policies,
    } = custom;

    if let Some(authorizer) = authorizer
        && layer == Layer::Tcp
        && !external::decides_on_connections(authorizer)
    {
        return None;
    }

    // A client without the ext_authz filter must not let through what it should ask about.
    let ask = authorizer
        .as_deref()
        .filter(|_| can_ask)
        .map(|authorizer| (provider.as_str(), authorizer));

    // DENY, so that a condition that TCP cannot decide selects more connections, not fewer.
    let mut rules = rules_of(rbac::rbac::Action::Deny);
    for policy in policies {
        add_policy(&mut rules, policy, input, layer, |rule| {
            let selects = external::rule_name(provider, &rule);
            match ask {
                Some(_) => selects,
                None => format!("{selects}-deny-due-to-bad-CUSTOM-action"),
            }
        });
    }

    let (rules, shadow) = match ask {
        Some(_) => (None, Some(rules)),
        None => (Some(rules), None),
    };

    Some(Built {
        rules,
        shadow_prefix: if shadow.is_some() {
            external::SHADOW_PREFIX
        } else {
            ""
        },
        shadow,
        ask,
    })
}

fn rules_of(action: rbac::rbac::Action) -> rbac::Rbac {
    rbac::Rbac {
        action: action as i32,
        policies: HashMap::new(),
        audit_logging_options: None,
    }
}

/// Adds the rules of a policy; `name` makes a rule's key of `ns[..]-policy[..]-rule[..]`.
fn add_policy(
    rules: &mut rbac::Rbac,
    policy: &AuthorizationPolicy,
    input: &AuthzInput,
    layer: Layer,
    name: impl Fn(String) -> String,
) {
    let origin = policy.origin.name();
    for (index, rule) in policy.rules.iter().enumerate() {
        if let Ok(built) = rule_message(rule, &policy.action, input, layer) {
            let plain = format!(
                "ns[{}]-policy[{}]-rule[{index}]",
                origin.namespace, origin.name
            );
            rules.policies.insert(name(plain), built);
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
