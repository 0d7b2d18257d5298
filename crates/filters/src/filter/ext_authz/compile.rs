//! Compiling Envoy's messages. What would let a request pass that Envoy would refuse, or ask
//! another service than is meant, refuses the configuration; the rest is warned of.

use std::time::Duration;

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::filters::http::ext_authz::v3 as proto;
use meltemi_proto::envoy::r#type::matcher::v3::ListStringMatcher;
use meltemi_proto::envoy::r#type::v3::HttpStatus;

use super::*;
use crate::counter;
use crate::finding::{Rejection, Scope};
use crate::format::Place;

/// Envoy's default for a service that has no timeout of its own.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

impl ExtAuthz {
    /// Compiles the filter's message.
    pub fn compile(
        message: &proto::ExtAuthz,
        counters: &counter::Counters,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::ExtAuthz {
            transport_api_version: _,
            failure_mode_allow,
            failure_mode_allow_header_add,
            with_request_body,
            clear_route_cache,
            status_on_error,
            validate_mutations,
            metadata_context_namespaces,
            typed_metadata_context_namespaces: _,
            route_metadata_context_namespaces,
            route_typed_metadata_context_namespaces: _,
            filter_enabled,
            filter_enabled_metadata,
            deny_at_disable,
            include_peer_certificate,
            stat_prefix,
            bootstrap_metadata_labels_key: _,
            allowed_headers,
            disallowed_headers,
            include_tls_session,
            charge_cluster_response_stats: _,
            encode_raw_headers,
            decoder_header_mutation_rules: _,
            enable_dynamic_metadata_ingestion,
            filter_metadata: _,
            emit_filter_state_stats: _,
            max_denied_response_body_bytes,
            enforce_response_header_limits: _,
            shadow_mode: _,
            emit_client_span: _,
            services,
        } = message;

        refuse_unsafe(message, scope)?;
        warn_of_unsupported(message, scope);

        let (service, allowed_headers) =
            service_and_headers(services.as_ref(), allowed_headers.as_ref(), scope)?;
        let metadata = match filter_enabled_metadata {
            None => None,
            Some(matcher) => Some(scope.within("filter_enabled_metadata", |scope| {
                MetadataMatch::compile(matcher, scope)
            })?),
        };
        let denies = deny_at_disable
            .as_ref()
            .and_then(|flag| flag.default_value.as_ref());

        Ok(Self {
            service,
            enabled: Enabled {
                fraction: Fraction::from_runtime(filter_enabled.as_ref(), Fraction::ALL),
                metadata,
                deny_at_disable: denies.is_some_and(|on| on.value),
            },
            body: match with_request_body {
                None => None,
                Some(settings) => Some(body_settings(settings, scope)?),
            },
            failure: Failure {
                allow: *failure_mode_allow,
                header: *failure_mode_allow_header_add,
                status: status_or_forbidden(status_on_error.as_ref(), scope)?,
            },
            clear_route_cache: *clear_route_cache,
            validate_mutations: *validate_mutations,
            ingests_metadata: enable_dynamic_metadata_ingestion
                .as_ref()
                .is_none_or(|on| on.value),
            max_denied_body: Some(*max_denied_response_body_bytes as usize).filter(|max| *max > 0),
            question: Question {
                allowed_headers,
                disallowed_headers: names(
                    "disallowed_headers",
                    disallowed_headers.as_ref(),
                    scope,
                )?
                .unwrap_or_default(),
                raw_headers: *encode_raw_headers,
                metadata: texts(metadata_context_namespaces),
                route_metadata: texts(route_metadata_context_namespaces),
                peer_certificate: *include_peer_certificate,
                tls_session: *include_tls_session,
            },
            counters: Counters::of(stat_prefix, counters, scope),
        })
    }
}

/// Refuses the settings whose absence would let through what Envoy refuses, or the reverse.
fn refuse_unsafe(message: &proto::ExtAuthz, scope: &mut Scope) -> Result<(), Rejection> {
    if message.transport_api_version != core::ApiVersion::V3 as i32 {
        return scope.refuse("transport_api_version must be V3");
    }
    if message.decoder_header_mutation_rules.is_some() {
        return scope.refuse(
            "decoder_header_mutation_rules are unknown: the service could change what they protect",
        );
    }
    if message.shadow_mode {
        return scope.refuse("shadow_mode is unknown: requests would be refused in earnest");
    }
    Ok(())
}

/// Warns of the settings that have no effect here.
fn warn_of_unsupported(message: &proto::ExtAuthz, scope: &mut Scope) {
    for (field, is_set) in [
        (
            "typed_metadata_context_namespaces",
            !message.typed_metadata_context_namespaces.is_empty(),
        ),
        (
            "route_typed_metadata_context_namespaces",
            !message.route_typed_metadata_context_namespaces.is_empty(),
        ),
        (
            "bootstrap_metadata_labels_key",
            !message.bootstrap_metadata_labels_key.is_empty(),
        ),
        (
            "charge_cluster_response_stats",
            message.charge_cluster_response_stats.is_some(),
        ),
        ("filter_metadata", message.filter_metadata.is_some()),
        ("emit_filter_state_stats", message.emit_filter_state_stats),
        (
            "enforce_response_header_limits",
            message.enforce_response_header_limits,
        ),
        ("emit_client_span", message.emit_client_span.is_some()),
    ] {
        scope.unsupported(field, is_set);
    }
}

/// The service to ask, and the request headers that it is shown. An HTTP service has an older field
/// for these headers, too.
fn service_and_headers(
    services: Option<&proto::ext_authz::Services>,
    allowed: Option<&ListStringMatcher>,
    scope: &mut Scope,
) -> Result<(Service, Option<Names>), Rejection> {
    let (service, older) = match services {
        None => return scope.refuse("neither grpc_service nor http_service"),
        Some(proto::ext_authz::Services::GrpcService(service)) => {
            let service = scope.within("grpc_service", |scope| grpc(service, scope))?;
            (Service::Grpc(service), None)
        }
        Some(proto::ext_authz::Services::HttpService(service)) => {
            let (service, headers) = scope.within("http_service", |scope| http(service, scope))?;
            (Service::Http(Box::new(service)), headers)
        }
    };

    let allowed = names("allowed_headers", allowed, scope)?;
    if allowed.is_some() && older.is_some() {
        return scope.refuse("allowed_headers is set twice");
    }
    Ok((service, allowed.or(older)))
}

impl CheckSettings {
    /// Compiles a route's message.
    pub fn compile_route(
        message: &proto::ExtAuthzPerRoute,
        scope: &mut Scope,
    ) -> Result<PerRoute, Rejection> {
        let proto::ExtAuthzPerRoute { r#override } = message;
        match scope.required("override", r#override.as_ref())? {
            proto::ext_authz_per_route::Override::Disabled(true) => Ok(PerRoute::Disabled),
            proto::ext_authz_per_route::Override::Disabled(false) => Ok(PerRoute::Enabled),
            proto::ext_authz_per_route::Override::CheckSettings(settings) => scope
                .within("check_settings", |scope| Self::compile(settings, scope))
                .map(PerRoute::Settings),
        }
    }

    fn compile(message: &proto::CheckSettings, scope: &mut Scope) -> Result<Self, Rejection> {
        let proto::CheckSettings {
            context_extensions,
            disable_request_body_buffering,
            with_request_body,
            emit_client_span,
            service_override,
        } = message;

        if service_override.is_some() {
            return scope.refuse("another service for a route is unknown");
        }
        scope.unsupported("emit_client_span", emit_client_span.is_some());

        let body = match (disable_request_body_buffering, with_request_body) {
            (true, Some(_)) => return scope.refuse("the body is both told and not told"),
            (true, None) => BodyRule::Off,
            (false, Some(settings)) => BodyRule::Own(body_settings(settings, scope)?),
            (false, None) => BodyRule::Inherit,
        };
        let mut context_extensions: Vec<(String, String)> = context_extensions
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        context_extensions.sort();

        Ok(Self {
            context_extensions,
            body,
        })
    }
}

impl Counters {
    fn of(prefix: &str, counters: &counter::Counters, scope: &mut Scope) -> Self {
        let prefix = match prefix {
            "" => "ext_authz".to_owned(),
            prefix => format!("ext_authz.{prefix}"),
        };
        let get = |name: &str| counters.get(&format!("{prefix}.{name}"));
        let own = Self {
            ok: get("ok"),
            denied: get("denied"),
            error: get("error"),
            failure_mode_allowed: get("failure_mode_allowed"),
            disabled: get("disabled"),
            invalid: get("invalid"),
            ignored_dynamic_metadata: get("ignored_dynamic_metadata"),
        };
        if own.ignored_dynamic_metadata.is_none() {
            scope.warn("stat_prefix", "too many names of counters: not counted");
        }

        own
    }
}

pub(super) fn grpc(
    message: &core::GrpcService,
    scope: &mut Scope,
) -> Result<GrpcService, Rejection> {
    use core::grpc_service::TargetSpecifier;

    let core::GrpcService {
        timeout,
        initial_metadata,
        retry_policy,
        target_specifier,
    } = message;
    scope.unsupported("retry_policy", retry_policy.is_some());

    let target = match scope.required("target_specifier", target_specifier.as_ref())? {
        TargetSpecifier::EnvoyGrpc(target) => target,
        TargetSpecifier::GoogleGrpc(_) => return scope.refuse("google_grpc is unknown"),
    };
    let core::grpc_service::EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy,
        max_receive_message_length,
        skip_envoy_headers,
    } = target;
    scope.unsupported("envoy_grpc.retry_policy", retry_policy.is_some());
    scope.unsupported(
        "envoy_grpc.max_receive_message_length",
        max_receive_message_length.is_some(),
    );
    // No such header is sent.
    let _ = skip_envoy_headers;

    let authority = match authority.as_str() {
        "" => cluster_name,
        authority => authority,
    };

    Ok(GrpcService {
        cluster: cluster("envoy_grpc.cluster_name", cluster_name, scope)?,
        authority: authority.into(),
        timeout: time_limit("timeout", timeout.as_ref(), scope)?,
        initial_metadata: headers("initial_metadata", initial_metadata, scope)?,
    })
}

/// The service, and the headers that the older of two fields lets it see.
fn http(
    message: &proto::HttpService,
    scope: &mut Scope,
) -> Result<(HttpService, Option<Names>), Rejection> {
    let proto::HttpService {
        server_uri,
        path_prefix,
        path_override,
        authorization_request,
        authorization_response,
        retry_policy,
    } = message;
    scope.unsupported("retry_policy", retry_policy.is_some());

    let core::HttpUri {
        uri: _,
        timeout,
        http_upstream_type,
    } = scope.required("server_uri", server_uri.as_ref())?;
    let core::http_uri::HttpUpstreamType::Cluster(cluster_name) =
        scope.required("server_uri.cluster", http_upstream_type.as_ref())?;

    let rooted = |path: &str| path.is_empty() || path.starts_with('/');
    let path = match (path_prefix.as_str(), path_override.as_str()) {
        (prefix, path) if !rooted(prefix) || !rooted(path) => {
            return scope.refuse("path_prefix and path_override must begin with a slash");
        }
        (prefix, "") => PathRule::Prefix(prefix.into()),
        ("", path) => PathRule::Override(path.into()),
        _ => return scope.refuse("both path_prefix and path_override"),
    };

    let proto::AuthorizationRequest {
        headers_to_add,
        #[expect(deprecated, reason = "control planes still send it")]
        allowed_headers,
    } = &authorization_request.clone().unwrap_or_default();
    let older_headers = names(
        "authorization_request.allowed_headers",
        allowed_headers.as_ref(),
        scope,
    )?;

    let proto::AuthorizationResponse {
        allowed_upstream_headers,
        allowed_upstream_headers_to_append,
        allowed_client_headers,
        allowed_client_headers_on_success,
        dynamic_metadata_from_headers,
    } = &authorization_response.clone().unwrap_or_default();
    let mut list = |field: &str, list: &Option<ListStringMatcher>| {
        names(
            &format!("authorization_response.{field}"),
            list.as_ref(),
            scope,
        )
    };

    let service = HttpService {
        upstream: list("allowed_upstream_headers", allowed_upstream_headers)?.unwrap_or_default(),
        upstream_append: list(
            "allowed_upstream_headers_to_append",
            allowed_upstream_headers_to_append,
        )?
        .unwrap_or_default(),
        client: list("allowed_client_headers", allowed_client_headers)?,
        client_on_success: list(
            "allowed_client_headers_on_success",
            allowed_client_headers_on_success,
        )?
        .unwrap_or_default(),
        metadata: list(
            "dynamic_metadata_from_headers",
            dynamic_metadata_from_headers,
        )?
        .unwrap_or_default(),
        cluster: cluster("server_uri.cluster", cluster_name, scope)?,
        timeout: time_limit("server_uri.timeout", timeout.as_ref(), scope)?,
        path,
        headers_to_add: headers("headers_to_add", headers_to_add, scope)?,
    };

    Ok((service, older_headers))
}

fn cluster(field: &str, name: &str, scope: &Scope) -> Result<Arc<str>, Rejection> {
    match name {
        "" => scope.refuse(format!("{field} is empty")),
        name => Ok(name.into()),
    }
}

/// Zero is no limit.
fn time_limit(
    field: &str,
    value: Option<&meltemi_proto::google::protobuf::Duration>,
    scope: &Scope,
) -> Result<Option<Duration>, Rejection> {
    let limit = scope.duration(field, value)?.unwrap_or(DEFAULT_TIMEOUT);
    Ok(Some(limit).filter(|limit| !limit.is_zero()))
}

/// Headers that replace equal ones.
fn headers(
    field: &str,
    values: &[core::HeaderValue],
    scope: &mut Scope,
) -> Result<HeaderOps, Rejection> {
    use core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd;

    let options: Vec<core::HeaderValueOption> = values
        .iter()
        .map(|header| core::HeaderValueOption {
            header: Some(header.clone()),
            append_action: OverwriteIfExistsOrAdd as i32,
            ..Default::default()
        })
        .collect();

    HeaderOps::compile(Place::FilterRequest, field, &options, &[], scope)
}

/// An absent or empty list is `None`, as Envoy has it.
fn names(
    field: &str,
    list: Option<&ListStringMatcher>,
    scope: &mut Scope,
) -> Result<Option<Names>, Rejection> {
    let Some(list) = list else { return Ok(None) };
    let patterns = scope.each(field, &list.patterns, |scope, pattern| {
        StringMatch::compile(pattern, scope)
    })?;

    Ok(Some(Names(patterns)).filter(|names| !names.0.is_empty()))
}

fn texts(texts: &[String]) -> Box<[Box<str>]> {
    texts.iter().map(|text| text.as_str().into()).collect()
}

fn body_settings(
    message: &proto::BufferSettings,
    scope: &mut Scope,
) -> Result<BodySettings, Rejection> {
    let proto::BufferSettings {
        max_request_bytes,
        allow_partial_message,
        pack_as_bytes,
    } = *message;
    if max_request_bytes == 0 {
        return scope.refuse("with_request_body.max_request_bytes is 0");
    }

    Ok(BodySettings {
        max_bytes: max_request_bytes as usize,
        allow_partial: allow_partial_message,
        as_bytes: pack_as_bytes,
    })
}

/// The status where the service fails; 403 by default.
fn status_or_forbidden(status: Option<&HttpStatus>, scope: &Scope) -> Result<u16, Rejection> {
    let Some(status) = status else { return Ok(403) };
    match u16::try_from(status.code) {
        Ok(status) if (200..600).contains(&status) => Ok(status),
        _ => scope.refuse("status_on_error is no status of a response"),
    }
}
