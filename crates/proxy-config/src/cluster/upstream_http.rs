//! Which HTTP is spoken to endpoints, and how.

use std::time::Duration;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::envoy::extensions::upstreams::http::v3 as upstream;

use crate::convert::{http2_options, limit, number};
use crate::http::Http2Options;

/// The key of HTTP settings in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Which protocol is spoken to endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge in plaintext.
    Http2,
    /// What the downstream speaks.
    Downstream,
    /// What ALPN says.
    Auto,
}

/// HTTP settings of connections to endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamHttp {
    /// An idle connection is closed after so long; `None`: never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// A connection is closed after so long.
    pub max_connection_duration: Option<Duration>,
    /// A stream ends after so long.
    pub max_stream_duration: Option<Duration>,
    /// A connection takes so many requests; 0: any number.
    pub max_requests_per_connection: u32,
    /// Fields that a response head may have. Default 100.
    pub max_head_fields: u32,
    /// HTTP/2.
    pub http2: Http2Options,
    /// Send the request's host as SNI.
    pub auto_sni: bool,
    /// The peer's certificate must be for it.
    pub auto_san_validation: bool,
    /// Take it from this header instead of the host.
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
    /// Streams that an HTTP/2 connection carries at a time, if the peer allows as many. Envoy's
    /// default is 1024.
    pub fn max_streams(&self) -> u32 {
        self.http2.max_concurrent_streams.unwrap_or(1024).max(1)
    }
}

pub(super) fn compile(
    message: &proto::Cluster,
    scope: &mut Scope,
) -> Result<(UpstreamProtocol, UpstreamHttp), Rejection> {
    use upstream::http_protocol_options::UpstreamProtocolOptions as Options;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;

    let mut protocol = UpstreamProtocol::Http1;
    let mut http = UpstreamHttp::default();
    #[allow(deprecated)] // the older fields mean the same where there is no HttpProtocolOptions
    let (old_http2, old_common, old_upstream, old_selection, old_max_requests) = (
        message.http2_protocol_options.as_ref(),
        message.common_http_protocol_options.as_ref(),
        message.upstream_http_protocol_options.as_ref(),
        message.protocol_selection,
        message.max_requests_per_connection.as_ref(),
    );

    let options: Option<upstream::HttpProtocolOptions> =
        match message.typed_extension_protocol_options.get(HTTP_OPTIONS) {
            Some(any) => Some(scope.within(HTTP_OPTIONS, |scope| scope.unpack(any))?),
            None => None,
        };

    if let Some(any) = message
        .typed_extension_protocol_options
        .keys()
        .find(|key| *key != HTTP_OPTIONS)
    {
        scope.warn(
            "typed_extension_protocol_options",
            format!("{any:?} is not honoured"),
        );
    }

    let (common, upstream_options) = match &options {
        Some(options) => {
            if options
                .http_filters
                .iter()
                .any(|filter| filter.name != "envoy.filters.http.upstream_codec")
            {
                return scope.refuse("upstream HTTP filters are unknown");
            }

            (
                options.common_http_protocol_options.as_ref(),
                options.upstream_http_protocol_options.as_ref(),
            )
        }
        None => (old_common, old_upstream),
    };

    match options
        .as_ref()
        .and_then(|options| options.upstream_protocol_options.as_ref())
    {
        Some(Options::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(_)) | None => {}
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                protocol = UpstreamProtocol::Http2;
                http.http2 = http2_options(Some(http2), scope)?;
            }
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                return scope.refuse("HTTP/3 is not spoken");
            }
        },
        Some(Options::UseDownstreamProtocolConfig(config)) => {
            protocol = UpstreamProtocol::Downstream;
            http.http2 = http2_options(config.http2_protocol_options.as_ref(), scope)?;
        }
        Some(Options::AutoConfig(config)) => {
            protocol = UpstreamProtocol::Auto;
            http.http2 = http2_options(config.http2_protocol_options.as_ref(), scope)?;
        }
        None => {
            if old_selection
                == proto::cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32
            {
                protocol = UpstreamProtocol::Downstream;
            } else if old_http2.is_some() {
                protocol = UpstreamProtocol::Http2;
            }
            http.http2 = http2_options(old_http2, scope)?;
        }
    }

    if let Some(common) = common {
        http.idle_timeout = limit(
            "idle_timeout",
            common.idle_timeout.as_ref(),
            http.idle_timeout,
            scope,
        )?;

        http.max_connection_duration = limit(
            "max_connection_duration",
            common.max_connection_duration.as_ref(),
            None,
            scope,
        )?;

        http.max_stream_duration = limit(
            "max_stream_duration",
            common.max_stream_duration.as_ref(),
            None,
            scope,
        )?;

        http.max_requests_per_connection = number(common.max_requests_per_connection.as_ref(), 0);
        http.max_head_fields =
            number(common.max_headers_count.as_ref(), http.max_head_fields).max(1);
    }

    if http.max_requests_per_connection == 0 {
        http.max_requests_per_connection = number(old_max_requests, 0);
    }
    if let Some(options) = upstream_options {
        http.auto_sni = options.auto_sni;
        http.auto_san_validation = options.auto_san_validation;
        http.auto_sni_header = Some(options.override_auto_sni_header.to_ascii_lowercase())
            .filter(|name| !name.is_empty())
            .map(Into::into);
    }

    Ok((protocol, http))
}
