//! Compiling route tables. A condition that is unknown refuses the table: without it the route
//! would take requests that are not its own.

mod action;

use std::sync::Arc;

use meltemi_filters::cors::CorsPolicy;
use meltemi_filters::format::Place;
use meltemi_filters::matcher::{
    CookieMatch, Fraction, FullRegex, HeaderMatch, MetadataMatch, PathTemplate, QueryMatch,
};
use meltemi_filters::metadata::Metadata;
use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::route::v3 as proto;
use proto::route_match::PathSpecifier;

use self::action::mirrors;
use super::vhost::RequireTls;
use super::{
    DirectResponse, HeaderOps, PathMatch, Redirect, RetryPolicy, Route, RouteAction, RouteMatch,
    RouteSettings, RouteTable, Target, VirtualHost,
};
use crate::compiler::Compiler;
use crate::convert::boolean;
use crate::http_filter::{compile_overrides, with_cors};

/// Envoy's default bound on bodies of direct responses.
const MAX_DIRECT_BODY: usize = 4096;

/// Compiles `request_headers_to_add` and `request_headers_to_remove`, which every level has.
fn request_headers(
    add: &[core::HeaderValueOption],
    remove: &[String],
    scope: &mut Scope,
) -> Result<HeaderOps, Rejection> {
    HeaderOps::compile(
        Place::RouteRequest,
        "request_headers_to_add",
        add,
        remove,
        scope,
    )
}

/// Compiles `response_headers_to_add` and `response_headers_to_remove`, which every level has.
fn response_headers(
    add: &[core::HeaderValueOption],
    remove: &[String],
    scope: &mut Scope,
) -> Result<HeaderOps, Rejection> {
    HeaderOps::compile(
        Place::RouteResponse,
        "response_headers_to_add",
        add,
        remove,
        scope,
    )
}

impl RouteTable {
    pub(crate) fn compile(
        message: &proto::RouteConfiguration,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        if !message.vhost_header.is_empty() {
            return scope.refuse("vhost_header is unknown");
        }
        if message.ignore_path_parameters_in_path_matching {
            return scope.refuse("ignore_path_parameters_in_path_matching is unknown");
        }
        scope.unsupported(
            "cluster_specifier_plugins",
            !message.cluster_specifier_plugins.is_empty(),
        );

        scope.unsupported("vhds", message.vhds.is_some());
        let limit = message
            .max_direct_response_body_size_bytes
            .as_ref()
            .map_or(MAX_DIRECT_BODY, |limit| {
                usize::try_from(limit.value).unwrap_or(MAX_DIRECT_BODY)
            });

        let settings = RouteSettings {
            request_headers: request_headers(
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
                scope,
            )?,
            response_headers: response_headers(
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
                scope,
            )?,
            most_specific_wins: message.most_specific_header_mutations_wins,
            internal_only_headers: message
                .internal_only_headers
                .iter()
                .map(|name| name.to_ascii_lowercase().into())
                .collect(),
            ignore_port: message.ignore_port_in_host_matching,
            overrides: compile_overrides(
                &message.typed_per_filter_config,
                &message.name,
                compiler,
                scope,
            )?,
            metadata: Metadata::from_option(message.metadata.as_ref()),
        };

        let general = mirrors(&message.request_mirror_policies, scope)?;
        scope.unsupported("request_mirror_policies", !general.is_empty());
        let hosts = scope.each("virtual_hosts", &message.virtual_hosts, |scope, host| {
            VirtualHost::compile_limited(host, &message.name, limit, compiler, scope).map(Arc::new)
        })?;

        Self::assemble(
            message.name.as_str().into(),
            Arc::new(settings),
            hosts,
            message.vhds.is_some(),
        )
        .map_err(|reason| scope.reject(reason))
    }
}

impl VirtualHost {
    pub(crate) fn compile(
        message: &proto::VirtualHost,
        table: &str,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        Self::compile_limited(message, table, MAX_DIRECT_BODY, compiler, scope)
    }

    fn compile_limited(
        message: &proto::VirtualHost,
        table: &str,
        body_limit: usize,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        use proto::virtual_host::TlsRequirementType;

        if message.matcher.is_some() {
            return scope.refuse("matcher trees are unknown; use routes");
        }
        if message.retry_policy_typed_config.is_some() {
            return scope.refuse("retry_policy_typed_config is unknown");
        }
        scope.unsupported("hedge_policy", message.hedge_policy.is_some());
        scope.unsupported("rate_limits", !message.rate_limits.is_empty());
        scope.unsupported(
            "request_body_buffer_limit",
            message.request_body_buffer_limit.is_some(),
        );

        let owner = format!("{table}/{}", message.name);
        let retry = match &message.retry_policy {
            None => None,
            Some(retry) => {
                Some(Arc::new(scope.within("retry_policy", |scope| {
                    RetryPolicy::compile(retry, scope)
                })?))
            }
        };

        let general = HostWide {
            retry,
            mirrors: &message.request_mirror_policies,
            request_attempt_count: message.include_request_attempt_count,
            response_attempt_count: message.include_attempt_count_in_response,
            body_limit,
        };

        let domains = scope.each("domains", &message.domains, |scope, domain| {
            let lower = domain.to_ascii_lowercase();
            let stars = lower.matches('*').count();
            match lower.as_str() {
                "" => scope.refuse("an empty domain"),
                _ if stars > 1
                    || stars == 1 && !lower.starts_with('*') && !lower.ends_with('*') =>
                {
                    scope.refuse(format!(
                        "{domain:?}: a wildcard stands at the start or the end"
                    ))
                }
                _ => Ok(Box::from(lower)),
            }
        })?;

        if domains.is_empty() {
            return scope.refuse("a virtual host without domains");
        }
        #[allow(deprecated)]
        let cors = compile_cors(message.cors.as_ref(), scope)?;

        Ok(Self {
            name: message.name.as_str().into(),
            domains,
            routes: scope.each("routes", &message.routes, |scope, route| {
                Route::compile(route, &owner, &general, compiler, scope)
            })?,
            requires_tls: match TlsRequirementType::try_from(message.require_tls) {
                Ok(TlsRequirementType::None) => RequireTls::No,
                Ok(TlsRequirementType::ExternalOnly) => RequireTls::External,
                Ok(TlsRequirementType::All) => RequireTls::All,
                Err(_) => {
                    return scope.refuse(format!("unknown require_tls {}", message.require_tls));
                }
            },
            request_headers: request_headers(
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
                scope,
            )?,
            response_headers: response_headers(
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
                scope,
            )?,
            overrides: with_cors(
                compile_overrides(&message.typed_per_filter_config, &owner, compiler, scope)?,
                cors,
            ),
            metadata: Metadata::from_option(message.metadata.as_ref()),
        })
    }
}

/// What a virtual host says for all its routes.
struct HostWide<'m> {
    retry: Option<Arc<RetryPolicy>>,
    mirrors: &'m [proto::route_action::RequestMirrorPolicy],
    request_attempt_count: bool,
    response_attempt_count: bool,
    body_limit: usize,
}

fn compile_cors(
    message: Option<&proto::CorsPolicy>,
    scope: &mut Scope,
) -> Result<Option<CorsPolicy>, Rejection> {
    match message {
        None => Ok(None),
        Some(message) => scope
            .within("cors", |scope| CorsPolicy::compile_route(message, scope))
            .map(Some),
    }
}

impl Route {
    fn compile(
        message: &proto::Route,
        host: &str,
        general: &HostWide<'_>,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let owner = format!("{host}/{}", message.name);
        let matcher = scope.required("match", message.r#match.as_ref())?;
        let matcher = scope.within("match", |scope| RouteMatch::compile(matcher, scope))?;
        let mut overrides =
            compile_overrides(&message.typed_per_filter_config, &owner, compiler, scope)?;
        let target = match scope.required("action", message.action.as_ref())? {
            proto::route::Action::Route(action) => scope.within("route", |scope| {
                #[allow(deprecated)]
                let cors = compile_cors(action.cors.as_ref(), scope)?;
                overrides = with_cors(std::mem::take(&mut overrides), cors);
                RouteAction::compile(action, &owner, general, compiler, scope)
                    .map(|action| Target::Forward(Box::new(action)))
            })?,
            proto::route::Action::Redirect(redirect) => {
                let redirect =
                    scope.within("redirect", |scope| Redirect::compile(redirect, scope))?;
                Target::Redirect(Box::new(redirect))
            }
            proto::route::Action::DirectResponse(direct) => {
                Target::Direct(scope.within("direct_response", |scope| {
                    DirectResponse::compile(direct, general.body_limit, scope)
                })?)
            }
            proto::route::Action::NonForwardingAction(_) => Target::NonForwarding,
            proto::route::Action::FilterAction(_) => {
                return scope.refuse("filter_action is unknown");
            }
        };

        scope.unsupported("tracing", message.tracing.is_some());

        Ok(Self {
            name: message.name.as_str().into(),
            matcher,
            target,
            request_headers: request_headers(
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
                scope,
            )?,
            response_headers: response_headers(
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
                scope,
            )?,
            overrides,
            metadata: Metadata::from_option(message.metadata.as_ref()),
            stat_prefix: message.stat_prefix.as_str().into(),
        })
    }
}

impl RouteMatch {
    /// Compiles Envoy's message.
    pub fn compile(message: &proto::RouteMatch, scope: &mut Scope) -> Result<Self, Rejection> {
        if !message.filter_state.is_empty() {
            return scope.refuse("filter_state conditions are unknown");
        }
        let tls = message.tls_context.as_ref();
        Ok(Self {
            path: PathMatch::compile(message, scope)?,
            headers: HeaderMatch::compile_all("headers", &message.headers, scope)?,
            query: scope
                .each("query_parameters", &message.query_parameters, |scope, m| {
                    QueryMatch::compile(m, scope)
                })?
                .into(),
            cookies: scope
                .each("cookies", &message.cookies, |scope, m| {
                    CookieMatch::compile(m, scope)
                })?
                .into(),
            metadata: scope
                .each("dynamic_metadata", &message.dynamic_metadata, |scope, m| {
                    MetadataMatch::compile(m, scope)
                })?
                .into(),
            fraction: message
                .runtime_fraction
                .as_ref()
                .map(|fraction| Fraction::from_runtime(Some(fraction), Fraction::NONE)),
            grpc: message.grpc.is_some(),
            tls_presented: tls
                .and_then(|tls| tls.presented.as_ref())
                .map(|value| value.value),
            tls_validated: tls
                .and_then(|tls| tls.validated.as_ref())
                .map(|value| value.value),
        })
    }
}

impl PathMatch {
    fn compile(message: &proto::RouteMatch, scope: &mut Scope) -> Result<Self, Rejection> {
        let case = boolean(message.case_sensitive.as_ref(), true);
        Ok(
            match scope.required("path_specifier", message.path_specifier.as_ref())? {
                PathSpecifier::Prefix(prefix) if case => Self::Prefix(prefix.as_str().into()),
                PathSpecifier::Prefix(prefix) => Self::PrefixIgnoreCase(prefix.as_str().into()),
                PathSpecifier::Path(path) if case => Self::Exact(path.as_str().into()),
                PathSpecifier::Path(path) => Self::ExactIgnoreCase(path.as_str().into()),
                PathSpecifier::PathSeparatedPrefix(prefix) => {
                    if !prefix.starts_with('/')
                        || prefix.ends_with('/')
                        || prefix.contains(['?', '#'])
                    {
                        return scope.refuse(format!(
                            "path_separated_prefix {prefix:?} must begin and not end with a slash"
                        ));
                    }
                    Self::Separated(prefix.as_str().into(), case)
                }
                PathSpecifier::SafeRegex(regex) => {
                    Self::Regex(Box::new(FullRegex::compile(regex, scope)?))
                }
                PathSpecifier::ConnectMatcher(_) => Self::Connect,
                PathSpecifier::PathMatchPolicy(policy) => {
                    Self::Template(Box::new(PathTemplate::compile(policy, scope)?))
                }
            },
        )
    }
}
