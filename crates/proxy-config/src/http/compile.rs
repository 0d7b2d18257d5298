//! Compiling the HTTP connection manager.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use proto::http_connection_manager as hcm;

use super::*;
use crate::compiler::Compiler;
use crate::convert::{boolean, http1_options, http2_options, limit, number};
use crate::http_filter::compile_slots;
use crate::normalize::EscapedSlashes;

impl HttpConnectionManager {
    pub(crate) fn compile(
        message: &proto::HttpConnectionManager,
        owner: &str,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let unknown = |field: &str, value: i32, scope: &Scope| {
            scope.reject(format!("unknown {field} {value}"))
        };
        let codec = match hcm::CodecType::try_from(message.codec_type) {
            Ok(hcm::CodecType::Auto) => Codec::Auto,
            Ok(hcm::CodecType::Http1) => Codec::Http1,
            Ok(hcm::CodecType::Http2) => Codec::Http2,
            Ok(hcm::CodecType::Http3) => return scope.refuse("HTTP/3 is not spoken"),
            Err(_) => return Err(unknown("codec_type", message.codec_type, scope)),
        };

        let routes = match scope.required("route_specifier", message.route_specifier.as_ref())? {
            hcm::RouteSpecifier::RouteConfig(config) => {
                let table = scope.within("route_config", |scope| {
                    RouteTable::compile(config, compiler, scope)
                })?;
                RouteSource::Inline(Arc::new(table))
            }
            hcm::RouteSpecifier::Rds(rds) if rds.route_config_name.is_empty() => {
                return scope.refuse("rds.route_config_name is empty");
            }
            hcm::RouteSpecifier::Rds(rds) => {
                RouteSource::Rds(rds.route_config_name.as_str().into())
            }
            hcm::RouteSpecifier::ScopedRoutes(_) => {
                return scope.refuse("scoped routes are unknown");
            }
        };

        if message.forward_client_cert_matcher.is_some() {
            return scope.refuse("forward_client_cert_matcher is unknown");
        }
        if !message.original_ip_detection_extensions.is_empty() {
            return scope.refuse("original_ip_detection_extensions are unknown");
        }
        scope.unsupported(
            "early_header_mutation_extensions",
            !message.early_header_mutation_extensions.is_empty(),
        );

        scope.unsupported("local_reply_config", message.local_reply_config.is_some());
        scope.unsupported(
            "request_id_extension",
            message.request_id_extension.is_some(),
        );

        scope.unsupported("proxy_status_config", message.proxy_status_config.is_some());
        scope.unsupported(
            "path_normalization_options",
            message.path_normalization_options.is_some(),
        );

        scope.unsupported(
            "typed_header_validation_config",
            message.typed_header_validation_config.is_some(),
        );

        if message.forward_proto_config.is_some() {
            return scope.refuse(
                "forward_proto_config is unknown, so x-forwarded-proto would be trusted otherwise than is meant",
            );
        }

        scope.unsupported(
            "stream_flush_timeout",
            message.stream_flush_timeout.is_some(),
        );

        // A connection that is to end is told so at once, and by HTTP/2 as soon as the client has
        // heard it for certain.
        scope.unsupported("drain_timeout", message.drain_timeout.is_some());
        scope.unsupported(
            "delayed_close_timeout",
            message.delayed_close_timeout.is_some(),
        );

        scope.unsupported("access_log_options", message.access_log_options.is_some());
        scope.unsupported("append_local_overload", message.append_local_overload);
        scope.unsupported("append_x_forwarded_port", message.append_x_forwarded_port);
        scope.unsupported("proxy_100_continue", message.proxy_100_continue);
        scope.unsupported("tracing", message.tracing.is_some());
        let common = message.common_http_protocol_options.unwrap_or_default();
        scope.unsupported(
            "common_http_protocol_options.max_connection_duration_jitter",
            common.max_connection_duration_jitter.is_some(),
        );

        let filters = compile_slots(&message.http_filters, owner, compiler, scope)?;
        #[allow(deprecated)]
        let parts = message.set_current_client_cert_details.unwrap_or_default();
        scope.unsupported("set_current_client_cert_details.cert", parts.cert);
        scope.unsupported("set_current_client_cert_details.chain", parts.chain);

        Ok(Self {
            codec,
            stat_prefix: message.stat_prefix.as_str().into(),
            routes,
            filters: filters.into(),
            access_logs: crate::access_log::compile::compile_all(&message.access_log, scope)?,
            server_name: match message.server_name.as_str() {
                "" => "envoy".into(),
                name => name.into(),
            },
            server_header: match hcm::ServerHeaderTransformation::try_from(
                message.server_header_transformation,
            ) {
                Ok(hcm::ServerHeaderTransformation::Overwrite) => ServerHeader::Overwrite,
                Ok(hcm::ServerHeaderTransformation::AppendIfAbsent) => ServerHeader::AppendIfAbsent,
                Ok(hcm::ServerHeaderTransformation::PassThrough) => ServerHeader::PassThrough,
                Err(_) => {
                    return Err(unknown(
                        "server_header_transformation",
                        message.server_header_transformation,
                        scope,
                    ));
                }
            },
            use_remote_address: boolean(message.use_remote_address.as_ref(), false),
            xff_trusted_hops: message.xff_num_trusted_hops,
            skip_xff_append: message.skip_xff_append,
            via: message.via.as_str().into(),
            generate_request_id: boolean(message.generate_request_id.as_ref(), true),
            preserve_external_request_id: message.preserve_external_request_id,
            request_id_in_response: message.always_set_request_id_in_response,
            client_cert: match hcm::ForwardClientCertDetails::try_from(
                message.forward_client_cert_details,
            ) {
                Ok(hcm::ForwardClientCertDetails::Sanitize) => ForwardClientCert::Sanitize,
                Ok(hcm::ForwardClientCertDetails::ForwardOnly) => ForwardClientCert::ForwardOnly,
                Ok(hcm::ForwardClientCertDetails::AppendForward) => {
                    ForwardClientCert::AppendForward
                }
                Ok(hcm::ForwardClientCertDetails::SanitizeSet) => ForwardClientCert::SanitizeSet,
                Ok(hcm::ForwardClientCertDetails::AlwaysForwardOnly) => {
                    ForwardClientCert::AlwaysForwardOnly
                }
                Err(_) => {
                    return Err(unknown(
                        "forward_client_cert_details",
                        message.forward_client_cert_details,
                        scope,
                    ));
                }
            },
            client_cert_parts: ClientCertParts {
                subject: boolean(parts.subject.as_ref(), false),
                cert: parts.cert,
                chain: parts.chain,
                dns: parts.dns,
                uri: parts.uri,
            },
            path: path_normalization(message, scope)?,
            strip_port: match (message.strip_matching_host_port, &message.strip_port_mode) {
                (_, Some(hcm::StripPortMode::StripAnyHostPort(true))) => StripPort::Any,
                (true, _) => StripPort::Matching,
                _ => StripPort::Keep,
            },
            strip_trailing_host_dot: message.strip_trailing_host_dot,
            upgrades: upgrades(&message.upgrade_configs, scope),
            stream_idle_timeout: limit(
                "stream_idle_timeout",
                message.stream_idle_timeout.as_ref(),
                Some(Duration::from_secs(300)),
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
            idle_timeout: limit(
                "idle_timeout",
                common.idle_timeout.as_ref(),
                Some(Duration::from_secs(3600)),
                scope,
            )?,
            max_connection_duration: limit(
                "max_connection_duration",
                common.max_connection_duration.as_ref(),
                None,
                scope,
            )?,
            max_stream_duration: limit(
                "max_stream_duration",
                common.max_stream_duration.as_ref(),
                None,
                scope,
            )?,
            max_requests_per_connection: number(common.max_requests_per_connection.as_ref(), 0),
            max_head_bytes: number(message.max_request_headers_kb.as_ref(), 60).clamp(1, 8192)
                * 1024,
            max_head_fields: number(common.max_headers_count.as_ref(), 100).max(1),
            underscores: underscores(common.headers_with_underscores_action, scope)?,
            http1: http1_options(message.http_protocol_options.as_ref(), scope),
            http2: http2_options(message.http2_protocol_options.as_ref(), scope)?,
            internal_addresses: match &message.internal_address_config {
                None => Vec::new(),
                Some(config) => scope.each(
                    "internal_address_config.cidr_ranges",
                    &config.cidr_ranges,
                    |scope, range| Cidr::compile(range, scope),
                )?,
            },
            scheme_overwrite: message
                .scheme_header_transformation
                .as_ref()
                .and_then(|scheme| scheme.transformation.as_ref())
                .map(|transformation| {
                    let core::scheme_header_transformation::Transformation::SchemeToOverwrite(
                        scheme,
                    ) = transformation;
                    scheme.as_str().into()
                }),
        })
    }
}

fn underscores(action: i32, scope: &Scope) -> Result<Underscores, Rejection> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Proto;
    match Proto::try_from(action) {
        Ok(Proto::Allow) => Ok(Underscores::Allow),
        Ok(Proto::RejectRequest) => Ok(Underscores::Reject),
        Ok(Proto::DropHeader) => Ok(Underscores::Drop),
        Err(_) => scope.refuse(format!("unknown headers_with_underscores_action {action}")),
    }
}

fn path_normalization(
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

fn upgrades(messages: &[hcm::UpgradeConfig], scope: &mut Scope) -> Vec<(Box<str>, bool)> {
    let compile = |upgrade: &hcm::UpgradeConfig| {
        scope.unsupported("upgrade_configs.filters", !upgrade.filters.is_empty());
        (
            upgrade.upgrade_type.to_ascii_lowercase().into(),
            boolean(upgrade.enabled.as_ref(), true),
        )
    };
    messages.iter().map(compile).collect()
}
