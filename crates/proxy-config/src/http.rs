//! The HTTP connection manager's settings.

mod compile;
mod options;

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::http::HttpChain;
use meltemi_filters::matcher::Cidr;

use crate::access_log::AccessLog;
use crate::normalize::PathNormalization;
use crate::route::RouteTable;
use crate::upgrade::Upgrades;
pub use options::{Http1Options, Http2Options};

/// `envoy.filters.network.http_connection_manager`, compiled.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// The versions of HTTP that a connection may speak.
    pub codec: Codec,
    /// Names the connection manager in metrics.
    pub stat_prefix: Arc<str>,
    /// Where its route table comes from.
    pub routes: RouteSource,
    /// HTTP filters, and how requests are forwarded after them.
    pub filters: HttpChain,
    /// Access logs of its requests.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// The value of the `server` header. Default `envoy`.
    pub server_name: Box<str>,
    /// Whether `server_name` replaces the `server` header of an upstream.
    pub server_header: ServerHeader,
    /// The peer is the client itself: its `x-forwarded-for` is not trusted, and its address is
    /// appended.
    pub use_remote_address: bool,
    /// How many proxies in front of this one are trusted to have appended to `x-forwarded-for`.
    pub xff_trusted_hops: u32,
    /// Nothing is appended to `x-forwarded-for`.
    pub skip_xff_append: bool,
    /// Appended to the `via` header; nothing is appended if empty.
    pub via: Box<str>,
    /// A request without `x-request-id` is given one.
    pub generate_request_id: bool,
    /// The `x-request-id` of a client outside the mesh is kept.
    pub preserve_external_request_id: bool,
    /// The response carries the request's `x-request-id`.
    pub request_id_in_response: bool,
    /// What becomes of the header `x-forwarded-client-cert`.
    pub client_cert: ForwardClientCert,
    /// The parts of a client's certificate that this header names.
    pub client_cert_parts: ClientCertParts,
    /// How paths are normalized before routes and policies see them.
    pub path: PathNormalization,
    /// Which ports are stripped from the host.
    pub strip_port: StripPort,
    /// A trailing dot is stripped from the host.
    pub strip_trailing_host_dot: bool,
    /// Protocols that requests may upgrade to, unless their route says otherwise.
    pub upgrades: Upgrades,
    /// The longest time without bytes in a stream, after which it is answered 408 or 504; `None`:
    /// no limit. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// The time within which a request must be complete; `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// The time within which the head of a request must be complete; `None`: no limit.
    pub request_headers_timeout: Option<Duration>,
    /// The time after which a connection without streams is closed; `None`: never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// The age at which a connection is drained; `None`: never.
    pub max_connection_duration: Option<Duration>,
    /// The age at which a stream is ended; `None`: never.
    pub max_stream_duration: Option<Duration>,
    /// The number of requests after which a connection is drained; 0: no limit.
    pub max_requests_per_connection: u32,
    /// The longest head of a request, in bytes. Default 60 KiB.
    pub max_head_bytes: u32,
    /// The most header fields of a request. Default 100.
    pub max_head_fields: u32,
    /// What becomes of header names with underscores.
    pub underscores: Underscores,
    /// Settings of HTTP/1 connections.
    pub http1: Http1Options,
    /// Settings of HTTP/2 connections.
    pub http2: Http2Options,
    /// Addresses of the mesh itself: the `x-envoy-*` headers of clients there are obeyed.
    pub internal_addresses: Vec<Cidr>,
    /// The names of operations pass between proxies, as where Envoy traces. Spans are not made.
    /// Source: Envoy `tracing`.
    pub passes_operations: bool,
    /// The scheme of every request, whatever the connection says.
    pub scheme_overwrite: Option<Box<str>>,
}

/// The versions of HTTP that a connection may speak. Source: Envoy `codec_type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Any: ALPN decides, and without ALPN the first bytes.
    #[default]
    Auto,
    /// HTTP/1 alone.
    Http1,
    /// HTTP/2 alone.
    Http2,
}

/// Where the route table of a connection manager comes from.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// The listener holds it.
    Inline(Arc<RouteTable>),
    /// RDS delivers the resource of this name.
    Rds(Arc<str>),
}

/// What becomes of the `server` header of an upstream's response. Source: Envoy
/// `server_header_transformation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServerHeader {
    /// The proxy's own name replaces it.
    #[default]
    Overwrite,
    /// It stays; where there is none, the proxy's own name is set.
    AppendIfAbsent,
    /// It stays, and nothing is set.
    PassThrough,
}

/// What becomes of the header `x-forwarded-client-cert`. Source: Envoy
/// `forward_client_cert_details`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForwardClientCert {
    /// It is removed.
    #[default]
    Sanitize,
    /// It is forwarded from connections with mutual TLS, and removed from others.
    ForwardOnly,
    /// The client's certificate is appended on connections with mutual TLS; on others the header is
    /// removed.
    AppendForward,
    /// The client's certificate replaces it on connections with mutual TLS; on others it is
    /// removed.
    SanitizeSet,
    /// It is forwarded from every connection.
    AlwaysForwardOnly,
}

/// The parts of a client's certificate that `x-forwarded-client-cert` names. The hash always is one
/// of them. Source: Envoy `set_current_client_cert_details`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCertParts {
    /// `Subject=`
    pub subject: bool,
    /// `DNS=`
    pub dns: bool,
    /// `URI=`
    pub uri: bool,
}

/// Which ports are stripped from the host of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StripPort {
    /// No port.
    #[default]
    Keep,
    /// The listener's own port.
    Matching,
    /// Every port.
    Any,
}

/// What becomes of header names with underscores. Source: Envoy
/// `headers_with_underscores_action`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Underscores {
    /// The field is forwarded.
    #[default]
    Allow,
    /// The request is refused.
    Reject,
    /// The field is dropped.
    Drop,
}
