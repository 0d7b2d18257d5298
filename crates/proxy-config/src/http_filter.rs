//! Compiling HTTP filters, and the settings that routes have for them.
//!
//! A filter that is unknown refuses the resource unless it says that it is optional: nobody knows
//! what it would have kept out.

use std::collections::HashMap;
use std::sync::Arc;

use meltemi_filters::alpn::AlpnOverrides;
use meltemi_filters::buffer::Buffer;
use meltemi_filters::cors::CorsPolicy;
use meltemi_filters::ext_authz::{CheckSettings, ExtAuthz, PerRoute};
use meltemi_filters::fault::Fault;
use meltemi_filters::header_mutation::HeaderMutation;
pub(crate) use meltemi_filters::http::FilterShared;
use meltemi_filters::http::{
    HttpChain, HttpFilter, HttpFilterSlot, Override, Overrides, Router, Stats,
};
use meltemi_filters::jwt_authn::{self, JwtAuthn};
use meltemi_filters::rate_limit::LocalRateLimit;
use meltemi_filters::rbac::Rbac;
use meltemi_filters::set_filter_state::SetFilterState;
use meltemi_filters::{PeerMetadata, Rejection, Scope};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::route::v3::FilterConfig;
use meltemi_proto::envoy::extensions::filters::http as proto;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use meltemi_proto::istio::AlpnConfig;

use crate::any::type_name;
use crate::convert::not_honoured;
use crate::typed_struct::{self, is_typed_struct};

/// One of a connection manager's filters.
enum Compiled {
    Filter(HttpFilter),
    Router(Router),
    Stats(Stats),
    GrpcStats,
}

/// The most filters in one chain; their places fit into 16 bits.
const MAX_FILTERS: usize = 1000;

/// Compiles a connection manager's filters; the last must be the router.
pub(crate) fn compile_chain(
    messages: &[hcm::HttpFilter],
    owner: &str,
    shared: &FilterShared,
    scope: &mut Scope,
) -> Result<HttpChain, Rejection> {
    if messages.len() > MAX_FILTERS {
        return scope.refuse(format!("more than {MAX_FILTERS} HTTP filters"));
    }
    let compiled = scope.each("http_filters", messages, |scope, message| {
        let compiled = compile_slot(message, owner, shared, scope)?;
        Ok(compiled.map(|compiled| (message, compiled)))
    })?;
    let mut compiled: Vec<_> = compiled.into_iter().flatten().collect();

    let Some((_, Compiled::Router(router))) = compiled.pop() else {
        return scope.refuse("the last HTTP filter is not the router");
    };
    let (mut slots, mut stats, mut grpc_stats) = (Vec::new(), None, false);
    for (message, compiled) in compiled {
        match compiled {
            Compiled::Filter(filter) => slots.push(HttpFilterSlot {
                name: message.name.as_str().into(),
                filter,
                disabled: message.disabled,
            }),
            Compiled::Stats(own) => {
                stats.get_or_insert(own);
            }
            Compiled::GrpcStats => grpc_stats = true,
            Compiled::Router(_) => {
                return scope.refuse("a router that is not the last HTTP filter");
            }
        }
    }

    let mut chain = HttpChain::new(slots, router);
    chain.stats = stats;
    chain.grpc_stats = grpc_stats;

    Ok(chain)
}

fn compile_slot(
    message: &hcm::HttpFilter,
    owner: &str,
    shared: &FilterShared,
    scope: &mut Scope,
) -> Result<Option<Compiled>, Rejection> {
    let any = match &message.config_type {
        Some(hcm::http_filter::ConfigType::TypedConfig(any)) => any,
        Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) if message.is_optional => {
            scope.warn(
                "",
                format!("filter {:?} by discovery is left out", message.name),
            );
            return Ok(None);
        }
        Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) => {
            return scope.refuse(format!("filter {:?} by discovery is unknown", message.name));
        }
        None => &Any::default(),
    };

    let kind = kind_of(any, &message.name, scope)?;
    if let Some((_, lack)) = LEFT_OUT.iter().find(|(left_out, _)| *left_out == kind) {
        scope.warn("", format!("filter {:?}: {lack}", message.name));
        return Ok(None);
    }

    match compile_filter(&message.name, any, owner, shared, scope)? {
        Some(compiled) => Ok(Some(compiled)),
        None if message.is_optional => {
            scope.warn(
                "",
                format!(
                    "optional filter {:?} ({}) is unknown and left out",
                    message.name,
                    type_name(any)
                ),
            );
            Ok(None)
        }
        None => scope.refuse(format!(
            "unknown HTTP filter {:?} ({})",
            message.name,
            type_name(any)
        )),
    }
}

/// `None`: unknown.
fn compile_filter(
    name: &str,
    any: &Any,
    owner: &str,
    shared: &FilterShared,
    scope: &mut Scope,
) -> Result<Option<Compiled>, Rejection> {
    let kind = kind_of(any, name, scope)?;
    let filter = match &*kind {
        "envoy.extensions.filters.http.router.v3.Router" => {
            let router = compile_router(&scope.unpack(any)?, scope)?;
            return Ok(Some(Compiled::Router(router)));
        }
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            let rbac = Rbac::compile_http(&scope.unpack(any)?, &shared.counters, scope)?;
            HttpFilter::Rbac(Box::new(rbac))
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            HttpFilter::Fault(Box::new(Fault::compile(&scope.unpack(any)?, scope)?))
        }
        "envoy.extensions.filters.http.cors.v3.Cors" => HttpFilter::Cors,
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => {
            let config: AlpnConfig = scope.unpack(any)?;
            HttpFilter::Alpn(Arc::new(AlpnOverrides::compile(&config, scope)?))
        }
        PEER_METADATA => {
            let config = typed_struct::peer_metadata(any, scope)?;
            HttpFilter::PeerMetadata(PeerMetadata::compile(&config, scope)?)
        }
        STATS => {
            let config = typed_struct::stats(any, scope)?;
            return Ok(Some(Compiled::Stats(Stats {
                host_header_fallback: !config.disable_host_header_fallback,
            })));
        }
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => {
            return Ok(Some(Compiled::GrpcStats));
        }
        "envoy.extensions.filters.http.buffer.v3.Buffer" => {
            HttpFilter::Buffer(Buffer::compile(&scope.unpack(any)?, scope)?)
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" => {
            let authz = ExtAuthz::compile(&scope.unpack(any)?, &shared.counters, scope)?;
            HttpFilter::ExtAuthz(Box::new(authz))
        }
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation" => {
            HttpFilter::HeaderMutation(Box::new(HeaderMutation::compile(
                &scope.unpack(any)?,
                scope,
            )?))
        }
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" => {
            let tokens = JwtAuthn::compile(&scope.unpack(any)?, &shared.counters, scope)?;
            HttpFilter::JwtAuthn(Box::new(tokens))
        }
        "envoy.extensions.filters.http.set_filter_state.v3.Config" => HttpFilter::SetFilterState(
            Box::new(SetFilterState::compile(&scope.unpack(any)?, scope)?),
        ),
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            let limit =
                LocalRateLimit::compile(&scope.unpack(any)?, owner, &shared.buckets, scope)?;
            HttpFilter::LocalRateLimit(Box::new(limit))
        }
        kind => match shared.extension(kind, any, scope) {
            Some(extension) => HttpFilter::Extension(extension?),
            None => return Ok(None),
        },
    };

    Ok(Some(Compiled::Filter(filter)))
}

fn compile_router(
    message: &proto::router::v3::Router,
    scope: &mut Scope,
) -> Result<Router, Rejection> {
    #[expect(deprecated, reason = "start_child_span is named to be ignored")]
    let proto::router::v3::Router {
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        upstream_http_filters,
        // Concern statistics of Envoy's that are not kept here.
        dynamic_stats: _,
        suppress_grpc_request_failure_code_stats: _,
        // No spans are made.
        start_child_span: _,
        // Concerns CONNECT in TLS early data, which is not accepted.
        reject_connect_request_early_data: _,
    } = message;

    if !upstream_http_filters.is_empty() {
        return scope.refuse("upstream_http_filters are unknown");
    }
    not_honoured!(
        scope,
        upstream_log,
        upstream_log_options,
        strict_check_headers,
    );

    Ok(Router {
        suppress_envoy_headers: *suppress_envoy_headers,
        respect_expected_timeout: *respect_expected_rq_timeout,
    })
}

/// The type that decides: the message's, or the one that a `TypedStruct` stands for, or the
/// filter's name where there is no message (Envoy's old way for filters without settings).
fn kind_of<'m>(
    any: &'m Any,
    name: &'m str,
    scope: &Scope,
) -> Result<std::borrow::Cow<'m, str>, Rejection> {
    Ok(match type_name(any) {
        "" => match name {
            "envoy.filters.http.cors" => "envoy.extensions.filters.http.cors.v3.Cors".into(),
            "envoy.filters.http.grpc_stats" => {
                "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig".into()
            }
            "envoy.filters.http.grpc_web" => GRPC_WEB.into(),
            "istio.stats" => STATS.into(),
            other => other.into(),
        },
        // Istio sends its own filters as structs; any other must be sent as its own message.
        _ if is_typed_struct(any) => match typed_struct::kind(any, scope)?.as_str() {
            kind @ (STATS | PEER_METADATA) => kind.to_owned().into(),
            other => format!("{other} as TypedStruct").into(),
        },
        kind => kind.into(),
    })
}

const GRPC_WEB: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
const PEER_METADATA: &str = "io.istio.http.peer_metadata.Config";
const STATS: &str = "stats.PluginConfig";

/// Filters that are left out with a warning, and what a message then lacks. None of them refuses or
/// directs a request, so that a request without them is as safe and goes where it should.
const LEFT_OUT: [(&str, &str); 2] = [
    (
        GRPC_WEB,
        "gRPC-Web is passed on as it comes, not translated to gRPC",
    ),
    (
        "envoy.extensions.filters.http.compressor.v3.Compressor",
        "messages are passed on uncompressed",
    ),
];

/// Compiles what a route, virtual host or weighted cluster has for filters. `owner` names it for
/// token buckets.
pub(crate) fn compile_overrides(
    messages: &HashMap<String, Any>,
    owner: &str,
    shared: &FilterShared,
    scope: &mut Scope,
) -> Result<Overrides, Rejection> {
    let mut settings = Vec::with_capacity(messages.len());
    for (name, any) in messages {
        let setting = scope.within(format_args!("typed_per_filter_config[{name}]"), |scope| {
            compile_override(any, owner, shared, scope)
        })?;
        if let Some(setting) = setting {
            settings.push((name.as_str().into(), setting));
        }
    }

    settings.sort_by(|(a, _): &(Box<str>, _), (b, _)| a.cmp(b));

    Ok(Overrides::new(settings))
}

fn compile_override(
    any: &Any,
    owner: &str,
    shared: &FilterShared,
    scope: &mut Scope,
) -> Result<Option<Override>, Rejection> {
    let mut any = any;
    let wrapper: FilterConfig;
    let mut is_optional = false;
    if type_name(any) == "envoy.config.route.v3.FilterConfig" {
        wrapper = scope.unpack(any)?;
        if wrapper.disabled {
            return Ok(Some(Override::Disabled));
        }
        is_optional = wrapper.is_optional;
        match &wrapper.config {
            Some(inner) => any = inner,
            None => return Ok(Some(Override::Enabled)),
        }
    }

    Ok(Some(match type_name(any) {
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
            let config: proto::rbac::v3::RbacPerRoute = scope.unpack(any)?;
            match &config.rbac {
                Some(rbac) => {
                    let rbac = Rbac::compile_http(rbac, &shared.counters, scope)?;
                    Override::Rbac(Box::new(rbac))
                }
                // Envoy: an empty one turns authorization off for the route.
                None => Override::Disabled,
            }
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            Override::Fault(Box::new(Fault::compile(&scope.unpack(any)?, scope)?))
        }
        "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {
            Override::Cors(Box::new(CorsPolicy::compile(&scope.unpack(any)?, scope)?))
        }
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute" => {
            Override::HeaderMutation(Box::new(HeaderMutation::compile_route(
                &scope.unpack(any)?,
                scope,
            )?))
        }
        "envoy.extensions.filters.http.set_filter_state.v3.Config" => Override::SetFilterState(
            Box::new(SetFilterState::compile(&scope.unpack(any)?, scope)?),
        ),
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            let limit =
                LocalRateLimit::compile(&scope.unpack(any)?, owner, &shared.buckets, scope)?;
            Override::LocalRateLimit(Box::new(limit))
        }
        "envoy.extensions.filters.http.buffer.v3.BufferPerRoute" => {
            match Buffer::compile_route(&scope.unpack(any)?, scope)? {
                Some(buffer) => Override::Buffer(buffer),
                None => Override::Disabled,
            }
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" => {
            match CheckSettings::compile_route(&scope.unpack(any)?, scope)? {
                PerRoute::Disabled => Override::Disabled,
                PerRoute::Enabled => Override::Enabled,
                PerRoute::Settings(settings) => Override::ExtAuthz(Box::new(settings)),
            }
        }
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig" => {
            match jwt_authn::requirement_of_route(&scope.unpack(any)?) {
                Some(name) => Override::TokenRequirement(name),
                None => Override::Disabled,
            }
        }
        // The filter that it would change is left out, see `LEFT_OUT`.
        "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute" => return Ok(None),
        other if is_optional => {
            scope.warn(
                "",
                format!("optional setting {other:?} is unknown and left out"),
            );
            return Ok(None);
        }
        other => return scope.refuse(format!("unknown filter setting {other:?}")),
    }))
}

/// Adds the CORS policy that stands in a route itself, unless the filter has one.
pub(crate) fn with_cors(overrides: Overrides, policy: Option<CorsPolicy>) -> Overrides {
    match policy {
        Some(policy) if overrides.find(CORS).is_none() => {
            overrides.with(CORS.into(), Override::Cors(Box::new(policy)))
        }
        _ => overrides,
    }
}

const CORS: &str = "envoy.filters.http.cors";
