//! The facts that format strings name, and the trait that supplies them.

use std::borrow::Cow;
use std::time::{Instant, SystemTime};

use crate::metadata::Value;

/// A head of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    Request,
    Response,
    Trailer,
}

/// A moment of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Start,
    EmitLog,
    DownstreamPeerCertStart,
    DownstreamPeerCertEnd,
    UpstreamPeerCertStart,
    UpstreamPeerCertEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataOf {
    Dynamic,
    Route,
    VirtualHost,
    Cluster,
    UpstreamHost,
    Listener,
    ListenerFilterChain,
}

/// A point that `%COMMON_DURATION%` measures from or to: bytes of downstream (DS) and upstream
/// (US), received (RX) and sent (TX), connections (CX) and handshakes (HS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    RequestStart,
    RequestEnd,
    ResponseStart,
    End,
    /// A point that this proxy does not record.
    Other,
}

impl Point {
    pub(super) fn from_word(word: &str) -> Self {
        match word {
            "DS_RX_BEG" => Self::RequestStart,
            "DS_RX_END" => Self::RequestEnd,
            "US_RX_BEG" => Self::ResponseStart,
            "DS_TX_END" => Self::End,
            _ => Self::Other,
        }
    }
}

/// The unit of `%COMMON_DURATION%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

macro_rules! facts {
    ($($name:ident = $word:literal $(, $number:ident)?;)*) => {
        /// An operator without parameters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Fact { $($name,)* }

        impl Fact {
            /// The operator as it is written between the percent signs.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// Whether it is a number where types matter (JSON).
            pub fn is_number(self) -> bool {
                match self { $(Self::$name => facts!(@number $($number)?),)* }
            }

            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub(super) fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$name),)* _ => None }
            }
        }
    };
    (@number) => { false };
    (@number $number:ident) => { true };
}

facts! {
    Protocol = "PROTOCOL";
    UpstreamProtocol = "UPSTREAM_PROTOCOL";
    ResponseCode = "RESPONSE_CODE", number;
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS";
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS";
    ResponseFlags = "RESPONSE_FLAGS";
    ResponseFlagsLong = "RESPONSE_FLAGS_LONG";
    BytesReceived = "BYTES_RECEIVED", number;
    BytesSent = "BYTES_SENT", number;
    UpstreamWireBytesSent = "UPSTREAM_WIRE_BYTES_SENT", number;
    UpstreamWireBytesReceived = "UPSTREAM_WIRE_BYTES_RECEIVED", number;
    DownstreamWireBytesSent = "DOWNSTREAM_WIRE_BYTES_SENT", number;
    DownstreamWireBytesReceived = "DOWNSTREAM_WIRE_BYTES_RECEIVED", number;
    UpstreamHeaderBytesSent = "UPSTREAM_HEADER_BYTES_SENT", number;
    UpstreamHeaderBytesReceived = "UPSTREAM_HEADER_BYTES_RECEIVED", number;
    DownstreamHeaderBytesSent = "DOWNSTREAM_HEADER_BYTES_SENT", number;
    DownstreamHeaderBytesReceived = "DOWNSTREAM_HEADER_BYTES_RECEIVED", number;
    Duration = "DURATION", number;
    RequestDuration = "REQUEST_DURATION", number;
    RequestTxDuration = "REQUEST_TX_DURATION", number;
    ResponseDuration = "RESPONSE_DURATION", number;
    ResponseTxDuration = "RESPONSE_TX_DURATION", number;
    DownstreamHandshakeDuration = "DOWNSTREAM_HANDSHAKE_DURATION", number;
    RoundtripDuration = "ROUNDTRIP_DURATION", number;
    UpstreamHost = "UPSTREAM_HOST";
    UpstreamHostName = "UPSTREAM_HOST_NAME";
    UpstreamHostNameWithoutPort = "UPSTREAM_HOST_NAME_WITHOUT_PORT";
    UpstreamHostsAttempted = "UPSTREAM_HOSTS_ATTEMPTED";
    UpstreamConnectionId = "UPSTREAM_CONNECTION_ID", number;
    UpstreamCluster = "UPSTREAM_CLUSTER";
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW";
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS";
    UpstreamLocalAddressWithoutPort = "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    UpstreamLocalPort = "UPSTREAM_LOCAL_PORT", number;
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS";
    UpstreamRemoteAddressWithoutPort = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT", number;
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON";
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT", number;
    UpstreamTlsCipher = "UPSTREAM_TLS_CIPHER";
    UpstreamTlsVersion = "UPSTREAM_TLS_VERSION";
    UpstreamPeerSubject = "UPSTREAM_PEER_SUBJECT";
    UpstreamPeerUriSan = "UPSTREAM_PEER_URI_SAN";
    UpstreamPeerDnsSan = "UPSTREAM_PEER_DNS_SAN";
    UpstreamLocalUriSan = "UPSTREAM_LOCAL_URI_SAN";
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS";
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT", number;
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS";
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT";
    DownstreamDirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT", number;
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS";
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT", number;
    DownstreamTransportFailureReason = "DOWNSTREAM_TRANSPORT_FAILURE_REASON";
    DownstreamTlsCipher = "DOWNSTREAM_TLS_CIPHER";
    DownstreamTlsVersion = "DOWNSTREAM_TLS_VERSION";
    DownstreamPeerSubject = "DOWNSTREAM_PEER_SUBJECT";
    DownstreamPeerIssuer = "DOWNSTREAM_PEER_ISSUER";
    DownstreamPeerUriSan = "DOWNSTREAM_PEER_URI_SAN";
    DownstreamPeerDnsSan = "DOWNSTREAM_PEER_DNS_SAN";
    DownstreamPeerFingerprint256 = "DOWNSTREAM_PEER_FINGERPRINT_256";
    DownstreamPeerCert = "DOWNSTREAM_PEER_CERT";
    DownstreamLocalUriSan = "DOWNSTREAM_LOCAL_URI_SAN";
    RequestedServerName = "REQUESTED_SERVER_NAME";
    ConnectionId = "CONNECTION_ID", number;
    StreamId = "STREAM_ID";
    RouteName = "ROUTE_NAME";
    VirtualClusterName = "VIRTUAL_CLUSTER_NAME";
    FilterChainName = "FILTER_CHAIN_NAME";
    Hostname = "HOSTNAME";
    GrpcStatus = "GRPC_STATUS";
    GrpcStatusSnake = "GRPC_STATUS(SNAKE_STRING)";
    GrpcStatusNumber = "GRPC_STATUS_NUMBER", number;
    LocalReplyBody = "LOCAL_REPLY_BODY";
    Cause = "CAUSE";
    UniqueId = "UNIQUE_ID";
    TraceId = "TRACE_ID";
    SpanId = "SPAN_ID";
    AccessLogType = "ACCESS_LOG_TYPE";
}

/// The values of an exchange that a renderer can supply. Each is optional.
pub trait Facts {
    /// A header's first line.
    fn header(&self, _head: Head, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    /// Writes a fact; `false`: unknown.
    fn fact(&self, _fact: Fact, _out: &mut Vec<u8>) -> bool {
        false
    }
    fn time(&self, _moment: Moment) -> Option<SystemTime> {
        None
    }
    /// Metadata at a path.
    fn metadata(
        &self,
        _of: MetadataOf,
        _filter: &str,
        _path: &[Box<str>],
    ) -> Option<Cow<'_, Value>> {
        None
    }
    /// Filter state as text, or one field of it.
    fn filter_state(&self, _key: &str, _field: Option<&str>) -> Option<Cow<'_, str>> {
        None
    }
    /// A point, for the time between two.
    fn point(&self, _point: Point) -> Option<Instant> {
        None
    }
    /// An environment variable.
    fn environment(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }
}

/// Nothing is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFacts;

impl Facts for NoFacts {}
