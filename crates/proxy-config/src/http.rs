//! The HTTP connection manager's settings.

mod compile;

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::http::HttpFilterSlot;
use meltemi_filters::matcher::Cidr;

use crate::access_log::AccessLog;
use crate::normalize::PathNormalization;
use crate::route::RouteTable;

/// `envoy.filters.network.http_connection_manager`, compiled.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// Which versions of HTTP are spoken.
    pub codec: Codec,
    /// For metrics.
    pub stat_prefix: Arc<str>,
    /// Where routes come from.
    pub routes: RouteSource,
    /// HTTP filters in order; the last is the router.
    pub filters: Arc<[HttpFilterSlot]>,
    /// Access logs.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// The `server` header of responses.
    pub server_name: Box<str>,
    /// What happens to an upstream's `server` header.
    pub server_header: ServerHeader,
    /// The peer is the client: trust no `x-forwarded-for`, append to it.
    pub use_remote_address: bool,
    /// How many proxies in front are trusted to have appended to `x-forwarded-for`.
    pub xff_trusted_hops: u32,
    /// Append nothing to `x-forwarded-for`.
    pub skip_xff_append: bool,
    /// Appended to `via`; empty appends nothing.
    pub via: Box<str>,
    /// Make an `x-request-id` where there is none.
    pub generate_request_id: bool,
    /// Keep the request id of a client outside.
    pub preserve_external_request_id: bool,
    /// Tell the request id in the response.
    pub request_id_in_response: bool,
    /// What happens to `x-forwarded-client-cert`.
    pub client_cert: ForwardClientCert,
    /// What of the client's certificate is told in it.
    pub client_cert_parts: ClientCertParts,
    /// How paths are made canonical.
    pub path: PathNormalization,
    /// Strip the port from the host; `Matching` only the listener's own.
    pub strip_port: StripPort,
    /// Strip a trailing dot from the host.
    pub strip_trailing_host_dot: bool,
    /// Protocols to upgrade to: lower-case names (`websocket`, `connect`) and whether they are on.
    pub upgrades: Vec<(Box<str>, bool)>,
    /// A stream without bytes for so long ends (408/504); `None`: never. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// A request must be complete by then; `None`: never.
    pub request_timeout: Option<Duration>,
    /// The head of a request must be complete by then; `None`: never.
    pub request_headers_timeout: Option<Duration>,
    /// A connection without streams is closed after so long; `None`: never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// A connection is drained after so long.
    pub max_connection_duration: Option<Duration>,
    /// A stream ends after so long.
    pub max_stream_duration: Option<Duration>,
    /// A connection is drained after so many requests; 0: never.
    pub max_requests_per_connection: u32,
    /// Bytes that a head may have. Default 60 KiB.
    pub max_head_bytes: u32,
    /// Fields that a head may have. Default 100.
    pub max_head_fields: u32,
    /// What happens to names with underscores.
    pub underscores: Underscores,
    /// HTTP/1.
    pub http1: Http1Options,
    /// HTTP/2.
    pub http2: Http2Options,
    /// Addresses that count as internal, so that their `x-envoy-*` headers are obeyed; none if
    /// empty.
    pub internal_addresses: Vec<Cidr>,
    /// The scheme that requests are said to have.
    pub scheme_overwrite: Option<Box<str>>,
}

/// Which versions of HTTP a connection may speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// ALPN, else the first bytes decide.
    #[default]
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Where routes come from.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// In the listener itself.
    Inline(Arc<RouteTable>),
    /// A resource by name.
    Rds(Arc<str>),
}

/// What happens to an upstream's `server` header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServerHeader {
    /// Replaced.
    #[default]
    Overwrite,
    /// Kept; set where there is none.
    AppendIfAbsent,
    /// Left alone.
    PassThrough,
}

/// What happens to `x-forwarded-client-cert`. Source: Envoy `ForwardClientCertDetails`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForwardClientCert {
    /// Removed.
    #[default]
    Sanitize,
    /// Kept on mutual TLS, else removed.
    ForwardOnly,
    /// Appended to on mutual TLS, else removed.
    AppendForward,
    /// Replaced on mutual TLS, else removed.
    SanitizeSet,
    /// Kept always.
    AlwaysForwardOnly,
}

/// Which parts of the client's certificate are told. The hash always is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCertParts {
    /// `Subject=`
    pub subject: bool,
    /// `Cert=`
    pub cert: bool,
    /// `Chain=`
    pub chain: bool,
    /// `DNS=`
    pub dns: bool,
    /// `URI=`
    pub uri: bool,
}

/// Which ports are stripped from the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StripPort {
    /// None.
    #[default]
    Keep,
    /// The listener's own.
    Matching,
    /// Any.
    Any,
}

/// What happens to header names with underscores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Underscores {
    /// Forwarded.
    #[default]
    Allow,
    /// The request is refused.
    Reject,
    /// The field is dropped.
    Drop,
}

/// HTTP/1 settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http1Options {
    /// HTTP/1.0 is spoken.
    pub accept_http_10: bool,
    /// Trailers are forwarded.
    pub trailers: bool,
}

/// HTTP/2 settings; unset parts are the codec's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http2Options {
    /// Streams at a time.
    pub max_concurrent_streams: Option<u32>,
    /// Window of a stream.
    pub initial_stream_window: Option<u32>,
    /// Window of a connection.
    pub initial_connection_window: Option<u32>,
    /// PING so often.
    pub keepalive_interval: Option<Duration>,
    /// A PING must be answered by then.
    pub keepalive_timeout: Option<Duration>,
}

impl HttpConnectionManager {
    /// Whether an upgrade is on for the connection manager; a route may say otherwise.
    pub fn allows_upgrade(&self, protocol: &str) -> bool {
        self.upgrades
            .iter()
            .any(|(name, on)| *on && name.eq_ignore_ascii_case(protocol))
    }

    /// The name of the route table to subscribe to, if it is not inline.
    pub fn rds(&self) -> Option<&Arc<str>> {
        match &self.routes {
            RouteSource::Inline(_) => None,
            RouteSource::Rds(name) => Some(name),
        }
    }
}
