//! Compiles Envoy's RBAC messages.

use meltemi_proto::envoy::config::core::v3::TypedExtensionConfig;
use meltemi_proto::envoy::config::rbac::v3 as proto;
use meltemi_proto::envoy::extensions::filters::http::rbac::v3 as http;
use meltemi_proto::envoy::extensions::filters::network::rbac::v3 as network;
use meltemi_proto::envoy::extensions::rbac::principals::mtls_authenticated::v3 as mtls;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use proto::permission::Rule;
use proto::principal::Identifier;

use super::{Action, Condition, Counts, NameKind, Policy, Rbac, Rules};
use crate::counter::Counters;
use crate::finding::{Rejection, Scope};
use crate::matcher::{Cidr, HeaderMatch, MetadataMatch, PathTemplate, StringMatch};

/// How deep rules may nest; protobuf decoding stops at 100 anyway.
const MAX_DEPTH: usize = 50;

impl Rbac {
    /// Compiles the HTTP filter.
    pub fn compile_http(
        message: &http::Rbac,
        counters: &Counters,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let http::Rbac {
            rules,
            rules_stat_prefix,
            matcher,
            shadow_rules,
            shadow_matcher,
            shadow_rules_stat_prefix,
            track_per_rule_stats,
        } = message;
        if matcher.is_some() || shadow_matcher.is_some() {
            return scope.refuse("matcher trees are unknown; use rules");
        }
        scope.unsupported("track_per_rule_stats", *track_per_rule_stats);

        Ok(Self {
            rules: compile_rules("rules", rules.as_ref(), scope)?,
            shadow_rules: compile_rules("shadow_rules", shadow_rules.as_ref(), scope)?,
            shadow_stat_prefix: shadow_rules_stat_prefix.as_str().into(),
            counts: Counts::named(
                "rbac.",
                rules_stat_prefix,
                shadow_rules_stat_prefix,
                counters,
            ),
        })
    }

    /// Compiles the network filter.
    pub fn compile_network(
        message: &network::Rbac,
        counters: &Counters,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let network::Rbac {
            rules,
            matcher,
            shadow_rules,
            shadow_matcher,
            shadow_rules_stat_prefix,
            stat_prefix,
            // Both types are kept: a connection is judged again whenever its rules change.
            enforcement_type: _,
            delay_deny,
        } = message;
        if matcher.is_some() || shadow_matcher.is_some() {
            return scope.refuse("matcher trees are unknown; use rules");
        }
        scope.unsupported("delay_deny", delay_deny.is_some());

        Ok(Self {
            rules: compile_rules("rules", rules.as_ref(), scope)?,
            shadow_rules: compile_rules("shadow_rules", shadow_rules.as_ref(), scope)?,
            shadow_stat_prefix: shadow_rules_stat_prefix.as_str().into(),
            counts: Counts::named(
                &format!("{}rbac.", dotted(stat_prefix)),
                "",
                shadow_rules_stat_prefix,
                counters,
            ),
        })
    }
}

impl Counts {
    /// The counters below `of`, where each kind of rules may have a prefix of its own. Source: Envoy
    /// `RoleBasedAccessControlFilterStats`.
    fn named(of: &str, rules: &str, shadow: &str, counters: &Counters) -> Self {
        let (rules, shadow) = (dotted(rules), dotted(shadow));
        let counter = |prefix: &str, name: &str| counters.get(&format!("{of}{prefix}{name}"));

        Self {
            allowed: counter(&rules, "allowed"),
            denied: counter(&rules, "denied"),
            shadow_allowed: counter(&shadow, "shadow_allowed"),
            shadow_denied: counter(&shadow, "shadow_denied"),
        }
    }
}

/// A prefix that ends with a dot, or is empty.
fn dotted(prefix: &str) -> String {
    match prefix.is_empty() || prefix.ends_with('.') {
        true => prefix.to_owned(),
        false => format!("{prefix}."),
    }
}

fn compile_rules(
    field: &str,
    message: Option<&proto::Rbac>,
    scope: &mut Scope,
) -> Result<Option<Rules>, Rejection> {
    let Some(message) = message else {
        return Ok(None);
    };
    scope
        .within(field, |scope| Rules::compile(message, scope))
        .map(Some)
}

impl Rules {
    /// Compiles Envoy's message.
    pub fn compile(message: &proto::Rbac, scope: &mut Scope) -> Result<Self, Rejection> {
        let proto::Rbac {
            action,
            policies,
            audit_logging_options,
        } = message;
        scope.unsupported("audit_logging_options", audit_logging_options.is_some());

        let action = match proto::rbac::Action::try_from(*action) {
            Ok(proto::rbac::Action::Allow) => Action::Allow,
            Ok(proto::rbac::Action::Deny) => Action::Deny,
            Ok(proto::rbac::Action::Log) => Action::Log,
            Err(_) => return scope.refuse(format!("unknown action {action}")),
        };

        let mut compiled = Vec::with_capacity(policies.len());
        for (id, policy) in policies {
            compiled.push(scope.within(format_args!("policies[{id}]"), |scope| {
                compile_policy(id, policy, scope)
            })?);
        }

        // Envoy sorts the map of policies by name, and details name the first that matches.
        compiled.sort_by(|a: &Policy, b| a.id.cmp(&b.id));

        Ok(Self {
            action,
            policies: compiled,
        })
    }
}

fn compile_policy(
    id: &str,
    message: &proto::Policy,
    scope: &mut Scope,
) -> Result<Policy, Rejection> {
    let proto::Policy {
        permissions,
        principals,
        condition,
        checked_condition,
        cel_config: _,
    } = message;
    if condition.is_some() || checked_condition.is_some() {
        return scope.refuse("CEL conditions are unknown");
    }
    if permissions.is_empty() || principals.is_empty() {
        return scope.refuse("a policy needs permissions and principals");
    }
    Ok(Policy {
        id: id.into(),
        permissions: scope.each("permissions", permissions, |scope, message| {
            permission(message, scope, 0)
        })?,
        principals: scope.each("principals", principals, |scope, message| {
            principal(message, scope, 0)
        })?,
    })
}

#[expect(deprecated, reason = "Istio sends the older field")]
fn permission(
    message: &proto::Permission,
    scope: &mut Scope,
    depth: usize,
) -> Result<Condition, Rejection> {
    if depth > MAX_DEPTH {
        return scope.refuse("rules are nested too deeply");
    }
    Ok(match scope.required("rule", message.rule.as_ref())? {
        Rule::Any(value) => Condition::Constant(*value),
        Rule::AndRules(set) => {
            Condition::All(scope.each("and_rules", &set.rules, |scope, message| {
                permission(message, scope, depth + 1)
            })?)
        }
        Rule::OrRules(set) => {
            Condition::Any(scope.each("or_rules", &set.rules, |scope, message| {
                permission(message, scope, depth + 1)
            })?)
        }
        Rule::NotRule(rule) => Condition::Not(Box::new(
            scope.within("not_rule", |scope| permission(rule, scope, depth + 1))?,
        )),
        Rule::Header(header) => Condition::Header(HeaderMatch::compile(header, scope)?),
        Rule::UrlPath(path) => Condition::Path(path_matcher(path, scope)?),
        Rule::DestinationIp(range) => Condition::DestinationIp(Cidr::compile(range, scope)?),
        Rule::DestinationPort(port) => Condition::DestinationPort(*port, port.saturating_add(1)),
        Rule::DestinationPortRange(range) => {
            let bound = |bound: i32| {
                u32::try_from(bound).map_err(|_| scope.reject(format!("{bound} is not a port")))
            };
            Condition::DestinationPort(bound(range.start)?, bound(range.end)?)
        }
        Rule::Metadata(matcher) => Condition::Metadata(MetadataMatch::compile(matcher, scope)?),
        Rule::SourcedMetadata(sourced) => sourced_metadata(sourced, scope)?,
        Rule::RequestedServerName(matcher) => {
            Condition::ServerName(StringMatch::compile(matcher, scope)?)
        }
        Rule::UriTemplate(template) => {
            Condition::PathTemplate(PathTemplate::compile(template, scope)?)
        }
        Rule::Matcher(matcher) => {
            return scope.refuse(format!("unknown matcher {:?}", matcher.name));
        }
    })
}

fn principal(
    message: &proto::Principal,
    scope: &mut Scope,
    depth: usize,
) -> Result<Condition, Rejection> {
    if depth > MAX_DEPTH {
        return scope.refuse("principals are nested too deeply");
    }
    Ok(
        match scope.required("identifier", message.identifier.as_ref())? {
            Identifier::Any(value) => Condition::Constant(*value),
            Identifier::AndIds(set) => {
                Condition::All(scope.each("and_ids", &set.ids, |scope, message| {
                    principal(message, scope, depth + 1)
                })?)
            }
            Identifier::OrIds(set) => {
                Condition::Any(scope.each("or_ids", &set.ids, |scope, message| {
                    principal(message, scope, depth + 1)
                })?)
            }
            Identifier::NotId(id) => Condition::Not(Box::new(
                scope.within("not_id", |scope| principal(id, scope, depth + 1))?,
            )),
            Identifier::Authenticated(authenticated) => {
                Condition::Authenticated(match &authenticated.principal_name {
                    Some(matcher) => Some(StringMatch::compile(matcher, scope)?),
                    None => None,
                })
            }
            #[expect(deprecated, reason = "Istio sends the older field")]
            Identifier::SourceIp(range) => Condition::SourceIp(Cidr::compile(range, scope)?),
            Identifier::DirectRemoteIp(range) => {
                Condition::DirectRemoteIp(Cidr::compile(range, scope)?)
            }
            Identifier::RemoteIp(range) => Condition::RemoteIp(Cidr::compile(range, scope)?),
            Identifier::Header(header) => Condition::Header(HeaderMatch::compile(header, scope)?),
            Identifier::UrlPath(path) => Condition::Path(path_matcher(path, scope)?),
            #[expect(deprecated, reason = "Istio sends the older field")]
            Identifier::Metadata(matcher) => {
                Condition::Metadata(MetadataMatch::compile(matcher, scope)?)
            }
            Identifier::SourcedMetadata(sourced) => sourced_metadata(sourced, scope)?,
            Identifier::FilterState(matcher) => {
                // Istio's waypoints know the peer by this; on sidecars it is the certificate's URI.
                use meltemi_proto::envoy::r#type::matcher::v3::filter_state_matcher::Matcher;

                match (&*matcher.key, &matcher.matcher) {
                    ("io.istio.peer_principal", Some(Matcher::StringMatch(matcher))) => {
                        Condition::Validated(Some((
                            NameKind::Uri,
                            StringMatch::compile(matcher, scope)?,
                        )))
                    }
                    (key, _) => return scope.refuse(format!("unknown filter state {key:?}")),
                }
            }
            Identifier::Custom(custom) => custom_principal(custom, scope)?,
        },
    )
}

fn custom_principal(
    message: &TypedExtensionConfig,
    scope: &mut Scope,
) -> Result<Condition, Rejection> {
    let any = scope.required("typed_config", message.typed_config.as_ref())?;
    let config: mtls::Config = scope.unpack(any)?;
    let Some(san) = &config.san_matcher else {
        return match config.any_validated_client_certificate {
            true => Ok(Condition::Validated(None)),
            false => scope.refuse("mtls_authenticated without san_matcher"),
        };
    };

    let kind = match SanType::try_from(san.san_type) {
        Ok(SanType::Uri) => NameKind::Uri,
        Ok(SanType::Dns) => NameKind::Dns,
        _ => return scope.refuse("only URI and DNS names can be matched"),
    };

    let matcher = scope.required("matcher", san.matcher.as_ref())?;

    Ok(Condition::Validated(Some((
        kind,
        StringMatch::compile(matcher, scope)?,
    ))))
}

fn sourced_metadata(
    message: &proto::SourcedMetadata,
    scope: &mut Scope,
) -> Result<Condition, Rejection> {
    let matcher = scope.required("metadata_matcher", message.metadata_matcher.as_ref())?;
    let matcher = MetadataMatch::compile(matcher, scope)?;
    match proto::MetadataSource::try_from(message.metadata_source) {
        Ok(proto::MetadataSource::Dynamic) => Ok(Condition::Metadata(matcher)),
        Ok(proto::MetadataSource::Route) => Ok(Condition::RouteMetadata(matcher)),
        Err(_) => scope.refuse("unknown metadata source"),
    }
}

fn path_matcher(
    message: &meltemi_proto::envoy::r#type::matcher::v3::PathMatcher,
    scope: &mut Scope,
) -> Result<StringMatch, Rejection> {
    use meltemi_proto::envoy::r#type::matcher::v3::path_matcher::Rule;
    match scope.required("rule", message.rule.as_ref())? {
        Rule::Path(path) => StringMatch::compile(path, scope),
    }
}
