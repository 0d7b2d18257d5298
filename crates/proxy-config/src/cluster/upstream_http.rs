//! The version of HTTP that endpoints are spoken to in, and its settings.

use std::time::Duration;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use meltemi_proto::envoy::extensions::upstreams::http::v3 as upstream;

use crate::convert::{header_name, limit, not_honoured, number};
use crate::http::{Http1Options, Http2Options};

/// The key of HTTP settings in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The version of HTTP that endpoints are spoken to in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge in plaintext.
    Http2,
    /// The version that the downstream connection speaks.
    Downstream,
    /// The version that ALPN agrees on.
    Auto,
}

/// HTTP settings of connections to endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamHttp {
    /// The time after which an idle connection is closed; `None`: never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// The age at which a connection is closed; `None`: never.
    pub max_connection_duration: Option<Duration>,
    /// The age at which a stream is ended; `None`: never.
    pub max_stream_duration: Option<Duration>,
    /// The number of requests that a connection takes; 0: no limit.
    pub max_requests_per_connection: u32,
    /// The most header fields of a response. Default 100.
    pub max_head_fields: u32,
    /// Settings of HTTP/2 connections.
    pub http2: Http2Options,
    /// The request's host is sent as SNI.
    pub auto_sni: bool,
    /// The certificate of the endpoint must be for that SNI.
    pub auto_san_validation: bool,
    /// The SNI is taken from this header, not from the host.
    pub auto_sni_header: Option<Box<str>>,
}

impl Default for UpstreamHttp {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: 0,
            max_head_fields: 100,
            http2: Http2Options::default(),
            auto_sni: false,
            auto_san_validation: false,
            auto_sni_header: None,
        }
    }
}

impl UpstreamHttp {
    /// The most concurrent streams of an HTTP/2 connection; the peer may allow fewer. Default 1024.
    pub fn max_streams(&self) -> u32 {
        self.http2.max_concurrent_streams.unwrap_or(1024).max(1)
    }
}

pub(super) fn compile(
    message: &proto::Cluster,
    scope: &mut Scope,
) -> Result<(UpstreamProtocol, UpstreamHttp), Rejection> {
    let options: Option<upstream::HttpProtocolOptions> =
        match message.typed_extension_protocol_options.get(HTTP_OPTIONS) {
            Some(any) => Some(scope.within(HTTP_OPTIONS, |scope| scope.unpack(any))?),
            None => None,
        };

    let others = message.typed_extension_protocol_options.keys();
    for key in others.filter(|key| *key != HTTP_OPTIONS) {
        scope.warn(
            "typed_extension_protocol_options",
            format!("{key:?} is not honoured"),
        );
    }

    // Envoy does not look at the older fields where there are newer ones.
    let (protocol, mut http) = match &options {
        Some(options) => compile_options(options, scope)?,
        None => compile_older(message, scope)?,
    };

    if http.max_requests_per_connection == 0 {
        #[expect(
            deprecated,
            reason = "the older field counts where the newer one is absent"
        )]
        let older = message.max_requests_per_connection.as_ref();
        http.max_requests_per_connection = number(older, 0);
    }

    Ok((protocol, http))
}

fn compile_options(
    message: &upstream::HttpProtocolOptions,
    scope: &mut Scope,
) -> Result<(UpstreamProtocol, UpstreamHttp), Rejection> {
    use upstream::http_protocol_options::UpstreamProtocolOptions as Options;

    let upstream::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = message;

    let is_codec = |filter: &HttpFilter| filter.name == "envoy.filters.http.upstream_codec";
    if !http_filters.iter().all(is_codec) {
        return scope.refuse("upstream HTTP filters are unknown");
    }
    not_honoured!(
        scope,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
    );

    let (protocol, http2) = match upstream_protocol_options {
        Some(Options::ExplicitHttpConfig(explicit)) => compile_explicit(explicit, scope)?,
        Some(Options::UseDownstreamProtocolConfig(
            upstream::http_protocol_options::UseDownstreamHttpConfig {
                http_protocol_options,
                http2_protocol_options,
                http3_protocol_options,
            },
        )) => {
            check_http1(http_protocol_options.as_ref(), scope);
            not_honoured!(scope, http3_protocol_options);
            let http2 = Http2Options::compile(http2_protocol_options.as_ref(), scope)?;
            (UpstreamProtocol::Downstream, http2)
        }
        Some(Options::AutoConfig(upstream::http_protocol_options::AutoHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
            alternate_protocols_cache_options,
        })) => {
            check_http1(http_protocol_options.as_ref(), scope);
            not_honoured!(
                scope,
                http3_protocol_options,
                alternate_protocols_cache_options,
            );
            let http2 = Http2Options::compile(http2_protocol_options.as_ref(), scope)?;
            (UpstreamProtocol::Auto, http2)
        }
        None => (UpstreamProtocol::Http1, Http2Options::default()),
    };

    let mut http = UpstreamHttp {
        http2,
        ..UpstreamHttp::default()
    };
    http.set_common(common_http_protocol_options.as_ref(), scope)?;
    http.set_sni(upstream_http_protocol_options.as_ref());

    Ok((protocol, http))
}

fn compile_explicit(
    message: &upstream::http_protocol_options::ExplicitHttpConfig,
    scope: &mut Scope,
) -> Result<(UpstreamProtocol, Http2Options), Rejection> {
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;

    match &message.protocol_config {
        Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
            check_http1(Some(http1), scope);
            Ok((UpstreamProtocol::Http1, Http2Options::default()))
        }
        None => Ok((UpstreamProtocol::Http1, Http2Options::default())),
        Some(ProtocolConfig::Http2ProtocolOptions(http2)) => Ok((
            UpstreamProtocol::Http2,
            Http2Options::compile(Some(http2), scope)?,
        )),
        Some(ProtocolConfig::Http3ProtocolOptions(_)) => scope.refuse("HTTP/3 is not spoken"),
    }
}

/// Compiles the fields of the cluster itself, which mean the same as the newer options.
fn compile_older(
    message: &proto::Cluster,
    scope: &mut Scope,
) -> Result<(UpstreamProtocol, UpstreamHttp), Rejection> {
    use proto::cluster::ClusterProtocolSelection as Selection;

    #[expect(
        deprecated,
        reason = "these fields count where there are no newer ones"
    )]
    let proto::Cluster {
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        protocol_selection,
        ..
    } = message;

    let protocol = if *protocol_selection == Selection::UseDownstreamProtocol as i32 {
        UpstreamProtocol::Downstream
    } else if http2_protocol_options.is_some() {
        UpstreamProtocol::Http2
    } else {
        UpstreamProtocol::Http1
    };
    check_http1(http_protocol_options.as_ref(), scope);

    let mut http = UpstreamHttp {
        http2: Http2Options::compile(http2_protocol_options.as_ref(), scope)?,
        ..UpstreamHttp::default()
    };
    http.set_common(common_http_protocol_options.as_ref(), scope)?;
    http.set_sni(upstream_http_protocol_options.as_ref());

    Ok((protocol, http))
}

/// Warns of settings of HTTP/1: none of them has an effect on connections to endpoints.
fn check_http1(message: Option<&core::Http1ProtocolOptions>, scope: &mut Scope) {
    let Http1Options { accept_http_10 } = Http1Options::compile(message, scope);
    scope.unsupported("accept_http_10", accept_http_10);
}

impl UpstreamHttp {
    fn set_common(
        &mut self,
        message: Option<&core::HttpProtocolOptions>,
        scope: &mut Scope,
    ) -> Result<(), Rejection> {
        let Some(message) = message else {
            return Ok(());
        };
        let core::HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter,
            max_headers_count,
            max_response_headers_kb,
            max_stream_duration,
            headers_with_underscores_action,
            max_requests_per_connection,
        } = message;
        not_honoured!(
            scope,
            max_connection_duration_jitter,
            max_response_headers_kb,
            headers_with_underscores_action,
        );

        self.idle_timeout = limit(
            "idle_timeout",
            idle_timeout.as_ref(),
            self.idle_timeout,
            scope,
        )?;
        self.max_connection_duration = limit(
            "max_connection_duration",
            max_connection_duration.as_ref(),
            None,
            scope,
        )?;
        self.max_stream_duration = limit(
            "max_stream_duration",
            max_stream_duration.as_ref(),
            None,
            scope,
        )?;
        self.max_requests_per_connection = number(max_requests_per_connection.as_ref(), 0);
        self.max_head_fields = number(max_headers_count.as_ref(), self.max_head_fields).max(1);

        Ok(())
    }

    fn set_sni(&mut self, message: Option<&core::UpstreamHttpProtocolOptions>) {
        let Some(message) = message else {
            return;
        };
        let core::UpstreamHttpProtocolOptions {
            auto_sni,
            auto_san_validation,
            override_auto_sni_header,
        } = message;

        self.auto_sni = *auto_sni;
        self.auto_san_validation = *auto_san_validation;
        self.auto_sni_header =
            (!override_auto_sni_header.is_empty()).then(|| header_name(override_auto_sni_header));
    }
}
