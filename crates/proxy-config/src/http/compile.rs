//! Compiling the HTTP connection manager.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use proto::http_connection_manager as hcm;

use super::*;
use crate::convert::{boolean, limit, not_honoured, number, require_ads, require_one_line};
use crate::http_filter::{FilterShared, compile_chain};
use crate::normalize::EscapedSlashes;

/// Envoy's bound on `max_request_headers_kb`.
const MAX_HEAD_KB: u32 = 8192;

impl HttpConnectionManager {
    /// `owner` names the filter chain for token shared.
    pub(crate) fn compile(
        message: &proto::HttpConnectionManager,
        owner: &str,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        check_fields(message, scope)?;
        require_one_line("server_name", &message.server_name, scope)?;
        require_one_line("via", &message.via, scope)?;
        let connection = ConnectionLimits::compile(message, scope)?;
        let seconds = |seconds| Some(Duration::from_secs(seconds));

        Ok(Self {
            codec: compile_codec(message.codec_type, scope)?,
            stat_prefix: message.stat_prefix.as_str().into(),
            routes: RouteSource::compile(message.route_specifier.as_ref(), shared, scope)?,
            filters: compile_chain(&message.http_filters, owner, shared, scope)?,
            access_logs: crate::access_log::compile::compile_all(&message.access_log, scope)?,
            server_name: match message.server_name.as_str() {
                "" => "envoy".into(),
                name => name.into(),
            },
            server_header: compile_server_header(message.server_header_transformation, scope)?,
            use_remote_address: boolean(message.use_remote_address.as_ref(), false),
            xff_trusted_hops: message.xff_num_trusted_hops,
            skip_xff_append: message.skip_xff_append,
            via: message.via.as_str().into(),
            generate_request_id: boolean(message.generate_request_id.as_ref(), true),
            preserve_external_request_id: message.preserve_external_request_id,
            request_id_in_response: message.always_set_request_id_in_response,
            client_cert: compile_client_cert(message.forward_client_cert_details, scope)?,
            client_cert_parts: ClientCertParts::compile(
                message.set_current_client_cert_details.as_ref(),
                scope,
            ),
            path: compile_path(message, scope)?,
            strip_port: match (message.strip_matching_host_port, &message.strip_port_mode) {
                (_, Some(hcm::StripPortMode::StripAnyHostPort(true))) => StripPort::Any,
                (true, _) => StripPort::Matching,
                _ => StripPort::Keep,
            },
            strip_trailing_host_dot: message.strip_trailing_host_dot,
            upgrades: compile_upgrades(&message.upgrade_configs, scope),
            stream_idle_timeout: limit(
                "stream_idle_timeout",
                message.stream_idle_timeout.as_ref(),
                seconds(300),
                scope,
            )?,
            request_timeout: limit(
                "request_timeout",
                message.request_timeout.as_ref(),
                None,
                scope,
            )?,
            request_headers_timeout: limit(
                "request_headers_timeout",
                message.request_headers_timeout.as_ref(),
                None,
                scope,
            )?,
            idle_timeout: connection.idle_timeout,
            max_connection_duration: connection.max_duration,
            max_stream_duration: connection.max_stream_duration,
            max_requests_per_connection: connection.max_requests,
            max_head_bytes: number(message.max_request_headers_kb.as_ref(), 60)
                .clamp(1, MAX_HEAD_KB)
                * 1024,
            max_head_fields: connection.max_head_fields,
            underscores: connection.underscores,
            http1: Http1Options::compile(message.http_protocol_options.as_ref(), scope),
            http2: Http2Options::compile(message.http2_protocol_options.as_ref(), scope)?,
            internal_addresses: compile_internal_addresses(
                message.internal_address_config.as_ref(),
                scope,
            )?,
            passes_operations: message.tracing.is_some(),
            scheme_overwrite: compile_scheme(message.scheme_header_transformation.as_ref(), scope),
        })
    }
}

/// Refuses, or warns of, the fields that have no effect here.
fn check_fields(
    message: &proto::HttpConnectionManager,
    scope: &mut Scope,
) -> Result<(), Rejection> {
    #[expect(deprecated, reason = "older fields are warned of like the newer ones")]
    let proto::HttpConnectionManager {
        add_user_agent,
        tracing,
        http1_safe_max_connection_duration,
        http3_protocol_options,
        stream_flush_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        request_id_extension,
        local_reply_config,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        forward_proto_config,
        // Tells about the PROXY protocol of a connection, which is not read.
        add_proxy_protocol_connection_state: _,
        // All others are compiled.
        codec_type: _,
        stat_prefix: _,
        http_filters: _,
        common_http_protocol_options: _,
        http_protocol_options: _,
        http2_protocol_options: _,
        server_name: _,
        server_header_transformation: _,
        scheme_header_transformation: _,
        max_request_headers_kb: _,
        stream_idle_timeout: _,
        request_timeout: _,
        request_headers_timeout: _,
        access_log: _,
        use_remote_address: _,
        xff_num_trusted_hops: _,
        internal_address_config: _,
        skip_xff_append: _,
        via: _,
        generate_request_id: _,
        preserve_external_request_id: _,
        always_set_request_id_in_response: _,
        forward_client_cert_details: _,
        set_current_client_cert_details: _,
        upgrade_configs: _,
        normalize_path: _,
        merge_slashes: _,
        path_with_escaped_slashes_action: _,
        strip_matching_host_port: _,
        strip_trailing_host_dot: _,
        route_specifier: _,
        strip_port_mode: _,
    } = message;

    // Each of these decides which client a request is said to come from.
    if forward_client_cert_matcher.is_some() {
        return scope.refuse("forward_client_cert_matcher is unknown");
    }
    if !original_ip_detection_extensions.is_empty() {
        return scope.refuse("original_ip_detection_extensions are unknown");
    }
    if forward_proto_config.is_some() {
        return scope.refuse(
            "forward_proto_config is unknown, so x-forwarded-proto would be trusted otherwise than is meant",
        );
    }

    // A connection that is to end is told so at once, and over HTTP/2 as soon as the client has
    // certainly heard it: there is nothing for the drain and close timeouts to measure.
    not_honoured!(
        scope,
        add_user_agent,
        tracing,
        http1_safe_max_connection_duration,
        http3_protocol_options,
        stream_flush_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        early_header_mutation_extensions,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        request_id_extension,
        local_reply_config,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
    );

    Ok(())
}

/// What `common_http_protocol_options` says of downstream connections.
struct ConnectionLimits {
    idle_timeout: Option<Duration>,
    max_duration: Option<Duration>,
    max_stream_duration: Option<Duration>,
    max_requests: u32,
    max_head_fields: u32,
    underscores: Underscores,
}

impl ConnectionLimits {
    fn compile(
        message: &proto::HttpConnectionManager,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let core::HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter,
            max_headers_count,
            max_stream_duration,
            headers_with_underscores_action,
            max_requests_per_connection,
            // A limit for clusters.
            max_response_headers_kb: _,
        } = message.common_http_protocol_options.unwrap_or_default();

        scope.unsupported(
            "common_http_protocol_options.max_connection_duration_jitter",
            max_connection_duration_jitter.is_some(),
        );

        let hour = Some(Duration::from_secs(3600));

        Ok(Self {
            idle_timeout: limit("idle_timeout", idle_timeout.as_ref(), hour, scope)?,
            max_duration: limit(
                "max_connection_duration",
                max_connection_duration.as_ref(),
                None,
                scope,
            )?,
            max_stream_duration: limit(
                "max_stream_duration",
                max_stream_duration.as_ref(),
                None,
                scope,
            )?,
            max_requests: number(max_requests_per_connection.as_ref(), 0),
            max_head_fields: number(max_headers_count.as_ref(), 100).max(1),
            underscores: compile_underscores(headers_with_underscores_action, scope)?,
        })
    }
}

impl RouteSource {
    fn compile(
        message: Option<&hcm::RouteSpecifier>,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        match scope.required("route_specifier", message)? {
            hcm::RouteSpecifier::RouteConfig(config) => {
                let table = scope.within("route_config", |scope| {
                    RouteTable::compile(config, shared, scope)
                })?;
                Ok(Self::Inline(Arc::new(table)))
            }
            hcm::RouteSpecifier::Rds(proto::Rds {
                config_source,
                route_config_name,
            }) => {
                if route_config_name.is_empty() {
                    return scope.refuse("rds.route_config_name is empty");
                }
                require_ads("rds.config_source", config_source.as_ref(), scope)?;
                Ok(Self::Rds(route_config_name.as_str().into()))
            }
            hcm::RouteSpecifier::ScopedRoutes(_) => scope.refuse("scoped routes are unknown"),
        }
    }
}

impl ClientCertParts {
    fn compile(message: Option<&hcm::SetCurrentClientCertDetails>, scope: &mut Scope) -> Self {
        let hcm::SetCurrentClientCertDetails {
            subject,
            cert,
            chain,
            dns,
            uri,
            issuer,
            format,
        } = message.cloned().unwrap_or_default();

        scope.within("set_current_client_cert_details", |scope| {
            let (cert, chain, issuer, format) = (&cert, &chain, &issuer, &format);
            not_honoured!(scope, cert, chain, issuer, format);
        });

        Self {
            subject: boolean(subject.as_ref(), false),
            dns,
            uri,
        }
    }
}

fn compile_codec(codec: i32, scope: &Scope) -> Result<Codec, Rejection> {
    match hcm::CodecType::try_from(codec) {
        Ok(hcm::CodecType::Auto) => Ok(Codec::Auto),
        Ok(hcm::CodecType::Http1) => Ok(Codec::Http1),
        Ok(hcm::CodecType::Http2) => Ok(Codec::Http2),
        Ok(hcm::CodecType::Http3) => scope.refuse("HTTP/3 is not spoken"),
        Err(_) => scope.refuse(format!("unknown codec_type {codec}")),
    }
}

fn compile_server_header(transformation: i32, scope: &Scope) -> Result<ServerHeader, Rejection> {
    use hcm::ServerHeaderTransformation as Proto;

    match Proto::try_from(transformation) {
        Ok(Proto::Overwrite) => Ok(ServerHeader::Overwrite),
        Ok(Proto::AppendIfAbsent) => Ok(ServerHeader::AppendIfAbsent),
        Ok(Proto::PassThrough) => Ok(ServerHeader::PassThrough),
        Err(_) => scope.refuse(format!(
            "unknown server_header_transformation {transformation}"
        )),
    }
}

fn compile_client_cert(details: i32, scope: &Scope) -> Result<ForwardClientCert, Rejection> {
    use hcm::ForwardClientCertDetails as Proto;

    match Proto::try_from(details) {
        Ok(Proto::Sanitize) => Ok(ForwardClientCert::Sanitize),
        Ok(Proto::ForwardOnly) => Ok(ForwardClientCert::ForwardOnly),
        Ok(Proto::AppendForward) => Ok(ForwardClientCert::AppendForward),
        Ok(Proto::SanitizeSet) => Ok(ForwardClientCert::SanitizeSet),
        Ok(Proto::AlwaysForwardOnly) => Ok(ForwardClientCert::AlwaysForwardOnly),
        Err(_) => scope.refuse(format!("unknown forward_client_cert_details {details}")),
    }
}

fn compile_underscores(action: i32, scope: &Scope) -> Result<Underscores, Rejection> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Proto;

    match Proto::try_from(action) {
        Ok(Proto::Allow) => Ok(Underscores::Allow),
        Ok(Proto::RejectRequest) => Ok(Underscores::Reject),
        Ok(Proto::DropHeader) => Ok(Underscores::Drop),
        Err(_) => scope.refuse(format!("unknown headers_with_underscores_action {action}")),
    }
}

fn compile_path(
    message: &proto::HttpConnectionManager,
    scope: &Scope,
) -> Result<PathNormalization, Rejection> {
    use hcm::PathWithEscapedSlashesAction as Action;

    let escaped_slashes = match Action::try_from(message.path_with_escaped_slashes_action) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => EscapedSlashes::Keep,
        Ok(Action::RejectRequest) => EscapedSlashes::Reject,
        Ok(Action::UnescapeAndRedirect) => EscapedSlashes::Redirect,
        Ok(Action::UnescapeAndForward) => EscapedSlashes::Forward,
        Err(_) => return scope.refuse("unknown path_with_escaped_slashes_action"),
    };

    Ok(PathNormalization {
        normalize: boolean(message.normalize_path.as_ref(), false),
        merge_slashes: message.merge_slashes,
        escaped_slashes,
    })
}

fn compile_upgrades(messages: &[hcm::UpgradeConfig], scope: &mut Scope) -> Upgrades {
    let settings = messages.iter().map(|message| {
        let hcm::UpgradeConfig {
            upgrade_type,
            filters,
            enabled,
        } = message;
        scope.unsupported("upgrade_configs.filters", !filters.is_empty());

        (upgrade_type.as_str(), boolean(enabled.as_ref(), true))
    });

    settings.collect()
}

fn compile_internal_addresses(
    message: Option<&hcm::InternalAddressConfig>,
    scope: &mut Scope,
) -> Result<Vec<Cidr>, Rejection> {
    let Some(message) = message else {
        return Ok(Vec::new());
    };

    let hcm::InternalAddressConfig {
        cidr_ranges,
        unix_sockets,
    } = message;

    scope.within("internal_address_config", |scope| {
        not_honoured!(scope, unix_sockets);
        scope.each("cidr_ranges", cidr_ranges, |scope, range| {
            Cidr::compile(range, scope)
        })
    })
}

fn compile_scheme(
    message: Option<&core::SchemeHeaderTransformation>,
    scope: &mut Scope,
) -> Option<Box<str>> {
    use core::scheme_header_transformation::Transformation;

    let core::SchemeHeaderTransformation {
        match_upstream,
        transformation,
    } = message?;
    scope.unsupported(
        "scheme_header_transformation.match_upstream",
        *match_upstream,
    );

    transformation.as_ref().map(|transformation| {
        let Transformation::SchemeToOverwrite(scheme) = transformation;
        scheme.as_str().into()
    })
}
