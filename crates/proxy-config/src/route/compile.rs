//! Compiling route tables. An unknown condition refuses the table: without the condition the route
//! would take requests that are not its own.

mod action;
mod matcher;
mod weighted;

use std::sync::Arc;

use meltemi_filters::cors::CorsPolicy;
use meltemi_filters::format::Place;
use meltemi_filters::metadata::Metadata;
use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3::HeaderValueOption;
use meltemi_proto::envoy::config::route::v3 as proto;
use meltemi_proto::google::protobuf::{UInt32Value, UInt64Value};

use super::vhost::RequireTls;
use super::{
    DirectResponse, HeaderOps, Redirect, RetryPolicy, Route, RouteAction, RouteMatch,
    RouteSettings, RouteTable, Target, VirtualHost,
};
use crate::convert::{boolean, not_honoured, require_one_line};
use crate::http_filter::{FilterShared, compile_overrides, with_cors};

/// Envoy's default bound on bodies of direct responses, in bytes.
const MAX_DIRECT_BODY: usize = 4096;

impl RouteTable {
    pub(crate) fn compile(
        message: &proto::RouteConfiguration,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::RouteConfiguration {
            name,
            virtual_hosts,
            vhds,
            internal_only_headers,
            response_headers_to_add,
            response_headers_to_remove,
            request_headers_to_add,
            request_headers_to_remove,
            most_specific_header_mutations_wins,
            validate_clusters,
            max_direct_response_body_size_bytes,
            cluster_specifier_plugins,
            request_mirror_policies,
            ignore_port_in_host_matching,
            vhost_header,
            ignore_path_parameters_in_path_matching,
            typed_per_filter_config,
            metadata,
            route_specifiers,
        } = message;

        // Each of these changes which route a request takes.
        if !vhost_header.is_empty() {
            return scope.refuse("vhost_header is unknown");
        }
        if *ignore_path_parameters_in_path_matching {
            return scope.refuse("ignore_path_parameters_in_path_matching is unknown");
        }
        refuse_specifiers(route_specifiers, scope)?;

        // A route that names a plugin is refused by itself. A route to an unknown cluster is
        // answered 503, whatever `validate_clusters` says.
        not_honoured!(scope, cluster_specifier_plugins, vhds);
        scope.unsupported(
            "validate_clusters",
            boolean(validate_clusters.as_ref(), false),
        );

        let body_limit = max_direct_response_body_size_bytes
            .as_ref()
            .and_then(|limit| usize::try_from(limit.value).ok())
            .unwrap_or(MAX_DIRECT_BODY);

        let settings = RouteSettings {
            request_headers: request_headers(
                request_headers_to_add,
                request_headers_to_remove,
                scope,
            )?,
            response_headers: response_headers(
                response_headers_to_add,
                response_headers_to_remove,
                scope,
            )?,
            most_specific_wins: *most_specific_header_mutations_wins,
            internal_only_headers: internal_only_headers
                .iter()
                .map(|name| crate::convert::header_name(name))
                .collect(),
            ignore_port: *ignore_port_in_host_matching,
            overrides: compile_overrides(typed_per_filter_config, name, shared, scope)?,
            metadata: Metadata::from_option(metadata.as_ref()),
        };

        let general = TableWide {
            name,
            mirrors: request_mirror_policies,
            body_limit,
        };
        let hosts = scope.each("virtual_hosts", virtual_hosts, |scope, host| {
            VirtualHost::compile(host, &general, shared, scope).map(Arc::new)
        })?;

        Self::assemble(name.as_str().into(), Arc::new(settings), hosts)
            .map_err(|reason| scope.reject(reason))
    }
}

impl VirtualHost {
    fn compile(
        message: &proto::VirtualHost,
        table: &TableWide<'_>,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        #[expect(deprecated, reason = "cors and the older limit are read")]
        let proto::VirtualHost {
            name,
            domains,
            routes,
            matcher,
            require_tls,
            virtual_clusters,
            rate_limits,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            cors,
            typed_per_filter_config,
            include_request_attempt_count,
            include_attempt_count_in_response,
            retry_policy,
            retry_policy_typed_config,
            hedge_policy,
            include_is_timeout_retry_header,
            per_request_buffer_limit_bytes,
            request_body_buffer_limit,
            request_mirror_policies,
            metadata,
            route_specifiers,
        } = message;

        if matcher.is_some() {
            return scope.refuse("matcher trees are unknown; use routes");
        }
        if retry_policy_typed_config.is_some() {
            return scope.refuse("retry_policy_typed_config is unknown");
        }
        refuse_specifiers(route_specifiers, scope)?;

        not_honoured!(
            scope,
            virtual_clusters,
            rate_limits,
            hedge_policy,
            include_is_timeout_retry_header,
        );

        let owner = format!("{}/{name}", table.name);
        let general = HostWide {
            retry: compile_retry(retry_policy.as_ref(), scope)?,
            mirrors: match request_mirror_policies.is_empty() {
                true => table.mirrors,
                false => request_mirror_policies,
            },
            copy_limits: CopyLimits::of(
                request_body_buffer_limit.as_ref(),
                per_request_buffer_limit_bytes.as_ref(),
            ),
            request_attempt_count: *include_request_attempt_count,
            response_attempt_count: *include_attempt_count_in_response,
            body_limit: table.body_limit,
        };

        let domains = scope.each("domains", domains, |scope, domain| {
            compile_domain(domain, scope)
        })?;
        if domains.is_empty() {
            return scope.refuse("a virtual host without domains");
        }
        let cors = compile_cors(cors.as_ref(), scope)?;

        Ok(Self {
            name: name.as_str().into(),
            domains,
            routes: scope.each("routes", routes, |scope, route| {
                Route::compile(route, &owner, &general, shared, scope)
            })?,
            requires_tls: RequireTls::compile(*require_tls, scope)?,
            request_headers: request_headers(
                request_headers_to_add,
                request_headers_to_remove,
                scope,
            )?,
            response_headers: response_headers(
                response_headers_to_add,
                response_headers_to_remove,
                scope,
            )?,
            overrides: with_cors(
                compile_overrides(typed_per_filter_config, &owner, shared, scope)?,
                cors,
            ),
            metadata: Metadata::from_option(metadata.as_ref()),
        })
    }
}

impl RequireTls {
    fn compile(requirement: i32, scope: &Scope) -> Result<Self, Rejection> {
        use proto::virtual_host::TlsRequirementType;

        match TlsRequirementType::try_from(requirement) {
            Ok(TlsRequirementType::None) => Ok(Self::No),
            Ok(TlsRequirementType::ExternalOnly) => Ok(Self::External),
            Ok(TlsRequirementType::All) => Ok(Self::All),
            Err(_) => scope.refuse(format!("unknown require_tls {requirement}")),
        }
    }
}

/// The settings of a table that each of its virtual hosts takes over.
struct TableWide<'m> {
    name: &'m str,
    mirrors: &'m [proto::route_action::RequestMirrorPolicy],
    body_limit: usize,
}

/// The settings of a virtual host that each of its routes takes over.
struct HostWide<'m> {
    retry: Option<Arc<RetryPolicy>>,
    mirrors: &'m [proto::route_action::RequestMirrorPolicy],
    copy_limits: CopyLimits,
    request_attempt_count: bool,
    response_attempt_count: bool,
    body_limit: usize,
}

/// How much of a body is kept for a retry or a mirror, as a route or a virtual host says it.
#[derive(Debug, Clone, Copy)]
struct CopyLimits {
    /// `request_body_buffer_limit`.
    newer: Option<u64>,
    /// `per_request_buffer_limit_bytes`.
    older: Option<u64>,
}

impl CopyLimits {
    fn of(newer: Option<&UInt64Value>, older: Option<&UInt32Value>) -> Self {
        Self {
            newer: newer.map(|limit| limit.value),
            older: older.map(|limit| limit.value.into()),
        }
    }

    /// The limit of a route in this virtual host. As in Envoy the newer field of either comes before
    /// the older field of either.
    fn within(self, host: Self) -> Option<u64> {
        let newer = self.newer.or(host.newer);
        newer.or(self.older).or(host.older)
    }
}

impl Route {
    fn compile(
        message: &proto::Route,
        host: &str,
        general: &HostWide<'_>,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        #[expect(deprecated, reason = "the older limit is read as well")]
        let proto::Route {
            name,
            r#match,
            metadata,
            typed_per_filter_config,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            tracing,
            per_request_buffer_limit_bytes,
            stat_prefix,
            request_body_buffer_limit,
            route_specifiers,
            action,
            decorator,
        } = message;

        refuse_specifiers(route_specifiers, scope)?;
        not_honoured!(scope, tracing, stat_prefix);
        let own = CopyLimits::of(
            request_body_buffer_limit.as_ref(),
            per_request_buffer_limit_bytes.as_ref(),
        );
        let copy_limit = own.within(general.copy_limits);

        let owner = format!("{host}/{name}");
        let matcher = scope.required("match", r#match.as_ref())?;
        let matcher = scope.within("match", |scope| RouteMatch::compile(matcher, scope))?;
        let mut overrides = compile_overrides(typed_per_filter_config, &owner, shared, scope)?;

        let target = match scope.required("action", action.as_ref())? {
            proto::route::Action::Route(action) => scope.within("route", |scope| {
                #[expect(deprecated, reason = "CORS may still stand in the action")]
                let cors = compile_cors(action.cors.as_ref(), scope)?;
                overrides = with_cors(std::mem::take(&mut overrides), cors);
                RouteAction::compile(action, &owner, general, copy_limit, shared, scope)
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

        Ok(Self {
            name: name.as_str().into(),
            matcher,
            target,
            request_headers: request_headers(
                request_headers_to_add,
                request_headers_to_remove,
                scope,
            )?,
            response_headers: response_headers(
                response_headers_to_add,
                response_headers_to_remove,
                scope,
            )?,
            overrides,
            metadata: Metadata::from_option(metadata.as_ref()),
            operation: compile_operation(decorator.as_ref(), scope)?,
        })
    }
}

/// The operation that other proxies are told.
fn compile_operation(
    decorator: Option<&proto::Decorator>,
    scope: &Scope,
) -> Result<Option<Arc<str>>, Rejection> {
    let Some(proto::Decorator {
        operation,
        propagate,
    }) = decorator
    else {
        return Ok(None);
    };
    require_one_line("decorator.operation", operation, scope)?;
    let is_told = boolean(propagate.as_ref(), true) && !operation.is_empty();

    Ok(is_told.then(|| operation.as_str().into()))
}

/// Specifiers may replace the route that matched, or drop it.
fn refuse_specifiers<T>(specifiers: &[T], scope: &Scope) -> Result<(), Rejection> {
    match specifiers.is_empty() {
        true => Ok(()),
        false => scope.refuse("route_specifiers are unknown"),
    }
}

/// A domain in lower case: a name, or one with a wildcard at its start or end.
fn compile_domain(domain: &str, scope: &Scope) -> Result<Box<str>, Rejection> {
    let lower = domain.to_ascii_lowercase();
    let at_an_end = lower.starts_with('*') || lower.ends_with('*');

    match lower.matches('*').count() {
        _ if lower.is_empty() => scope.refuse("an empty domain"),
        0 => Ok(lower.into()),
        1 if at_an_end => Ok(lower.into()),
        _ => scope.refuse(format!(
            "{domain:?}: a wildcard stands at the start or the end"
        )),
    }
}

fn compile_retry(
    message: Option<&proto::RetryPolicy>,
    scope: &mut Scope,
) -> Result<Option<Arc<RetryPolicy>>, Rejection> {
    let Some(message) = message else {
        return Ok(None);
    };
    let policy = scope.within("retry_policy", |scope| RetryPolicy::compile(message, scope))?;
    Ok(Some(Arc::new(policy)))
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

fn request_headers(
    add: &[HeaderValueOption],
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

fn response_headers(
    add: &[HeaderValueOption],
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
