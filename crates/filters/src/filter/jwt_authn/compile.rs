//! Compiling Envoy's message. A condition that is not read makes a rule match more requests, so that
//! more is denied.

use std::collections::HashMap;

use meltemi_proto::envoy::config::route::v3::RouteMatch;
use meltemi_proto::envoy::config::route::v3::route_match::PathSpecifier;
use meltemi_proto::envoy::extensions::filters::http::jwt_authn::v3 as proto;
use proto::jwt_requirement::RequiresType;
use proto::requirement_rule::RequirementType;

use super::{Counts, JwtAuthn, PathRule, Places, Requirement, Rule};
use crate::counter::Counters;
use crate::finding::{Rejection, Scope};

/// How deep requirements may nest; protobuf decoding stops at 100 anyway.
const MAX_DEPTH: usize = 50;

impl JwtAuthn {
    /// Compiles the filter's message.
    pub fn compile(
        message: &proto::JwtAuthentication,
        counters: &Counters,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::JwtAuthentication {
            providers,
            rules,
            filter_state_rules,
            bypass_cors_preflight,
            requirement_map,
            // Concerns the body of denials; they say little anyway.
            strip_failure_response: _,
            stat_prefix,
        } = message;

        if filter_state_rules.is_some() {
            return scope
                .refuse("filter_state_rules are unknown: they may require a token of any request");
        }
        scope.warn(
            "",
            "tokens are not checked: requests that carry one are denied",
        );

        let mut names: Vec<&str> = providers.keys().map(String::as_str).collect();
        names.sort_unstable();

        let mut named = HashMap::with_capacity(requirement_map.len());
        for (name, requirement) in requirement_map {
            let compiled = scope.within(format_args!("requirement_map[{name}]"), |scope| {
                compile_requirement(requirement, &names, 0, scope)
            })?;
            named.insert(name.as_str().into(), compiled);
        }

        let rules = scope.each("rules", rules, |scope, rule| {
            compile_rule(rule, &names, &named, scope)
        })?;

        let counter = |name: &str| counters.get(&format!("jwt_authn.{stat_prefix}{name}"));
        Ok(Self {
            providers: names
                .iter()
                .filter_map(|name| providers.get(*name).map(Places::of))
                .collect(),
            rules,
            named,
            bypass_preflight: *bypass_cors_preflight,
            counts: Counts {
                allowed: counter("allowed"),
                denied: counter("denied"),
                bypassed: counter("cors_preflight_bypassed"),
            },
        })
    }
}

/// The requirement that a route names; `None`: the route needs no token. Envoy's message demands one
/// of the two, and a route with neither names no requirement there is.
pub fn requirement_of_route(message: &proto::PerRouteConfig) -> Option<Box<str>> {
    use proto::per_route_config::RequirementSpecifier;

    match &message.requirement_specifier {
        Some(RequirementSpecifier::Disabled(true)) => None,
        Some(RequirementSpecifier::RequirementName(name)) => Some(name.as_str().into()),
        Some(RequirementSpecifier::Disabled(false)) | None => Some("".into()),
    }
}

fn compile_rule(
    message: &proto::RequirementRule,
    providers: &[&str],
    named: &HashMap<Box<str>, Requirement>,
    scope: &mut Scope,
) -> Result<Rule, Rejection> {
    let matched = scope.required("match", message.r#match.as_ref())?;

    Ok(Rule {
        path: path_rule(matched),
        requirement: match &message.requirement_type {
            None => None,
            Some(RequirementType::Requires(requirement)) => {
                Some(scope.within("requires", |scope| {
                    compile_requirement(requirement, providers, 0, scope)
                })?)
            }
            Some(RequirementType::RequirementName(name)) => match named.get(name.as_str()) {
                Some(requirement) => Some(requirement.clone()),
                None => return scope.refuse(format!("no requirement {name:?} in requirement_map")),
            },
        },
    })
}

/// A path alone decides; with any other condition the rule may match every request.
fn path_rule(message: &RouteMatch) -> PathRule {
    let RouteMatch {
        path_specifier,
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
    } = message;

    let is_plain = case_sensitive.is_none_or(|sensitive| sensitive.value)
        && runtime_fraction.is_none()
        && headers.is_empty()
        && query_parameters.is_empty()
        && cookies.is_empty()
        && grpc.is_none()
        && tls_context.is_none()
        && dynamic_metadata.is_empty()
        && filter_state.is_empty();

    match path_specifier {
        Some(PathSpecifier::Prefix(prefix)) if is_plain => PathRule::Prefix(prefix.as_str().into()),
        Some(PathSpecifier::Path(path)) if is_plain => PathRule::Exact(path.as_str().into()),
        _ => PathRule::Unknown,
    }
}

fn compile_requirement(
    message: &proto::JwtRequirement,
    providers: &[&str],
    depth: usize,
    scope: &mut Scope,
) -> Result<Requirement, Rejection> {
    if depth > MAX_DEPTH {
        return scope.refuse("requirements are nested too deeply");
    }

    let provider = |name: &str, scope: &Scope| match providers.binary_search(&name) {
        Ok(index) => Ok(Requirement::Provider(index)),
        Err(_) => scope.refuse(format!("no provider {name:?}")),
    };
    let several = |field: &str, all: &[proto::JwtRequirement], scope: &mut Scope| {
        // Envoy's message demands two; none at all would permit everything.
        if all.len() < 2 {
            return scope.refuse(format!("{field} has fewer than two requirements"));
        }
        scope.each(field, all, |scope, one| {
            compile_requirement(one, providers, depth + 1, scope)
        })
    };

    Ok(match &message.requires_type {
        Some(RequiresType::ProviderName(name)) => provider(name, scope)?,
        Some(RequiresType::ProviderAndAudiences(own)) => provider(&own.provider_name, scope)?,
        Some(RequiresType::RequiresAny(list)) => {
            Requirement::Any(several("requires_any", &list.requirements, scope)?)
        }
        Some(RequiresType::RequiresAll(list)) => {
            Requirement::All(several("requires_all", &list.requirements, scope)?)
        }
        Some(RequiresType::AllowMissing(_)) => Requirement::AllowMissing,
        // Both let requests with bad tokens pass, without claims.
        Some(
            RequiresType::AllowMissingOrFailed(_) | RequiresType::ExtractOnlyWithoutValidation(_),
        )
        | None => Requirement::Nothing,
    })
}
