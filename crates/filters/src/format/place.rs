//! The places where format strings are rendered, and the operators that never have a value there,
//! so that compilers can warn of them.

use super::{Fact, Head, MetadataOf, Moment, Operator, Part, Point, Template};

/// Where a format is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An access log.
    Log,
    /// Request headers that the router changes, before it picks an endpoint.
    RouteRequest,
    /// Response headers that the router changes.
    RouteResponse,
    /// Changes that a filter makes to a request.
    FilterRequest,
    /// Changes that a filter makes to a response.
    FilterResponse,
}

impl Place {
    fn is_filter(self) -> bool {
        matches!(self, Self::FilterRequest | Self::FilterResponse)
    }

    fn is_request(self) -> bool {
        matches!(self, Self::RouteRequest | Self::FilterRequest)
    }
}

impl Template {
    /// Warnings for this place: operators that never have a value there, and unknown conversions of
    /// time formats, which print as they are written.
    pub fn gaps(&self, place: Place) -> Vec<String> {
        let mut gaps = Vec::new();
        for part in &self.parts {
            let Part::Operator(operator, _) = part else {
                continue;
            };
            if !operator.is_known(place) {
                let value = if place == Place::Log {
                    "prints as \"-\""
                } else {
                    "has no value here"
                };
                gaps.push(format!(
                    "%{}% is not known to this proxy; it {value}",
                    operator.word()
                ));
            }

            if let Operator::Time(_, format) = operator {
                let unknown = format.unknown().iter();
                gaps.extend(unknown.map(|word| {
                    format!("{word} in a time format is unknown and printed as it is")
                }));
            }
        }

        gaps
    }
}

impl Operator {
    fn word(&self) -> &'static str {
        match self {
            Self::Header(Head::Request, ..) => "REQ",
            Self::Header(Head::Response, ..) => "RESP",
            Self::Header(Head::Trailer, ..) => "TRAILER",
            Self::WithoutQuery(..) => "REQ_WITHOUT_QUERY",
            Self::Fact(fact) => fact.word(),
            Self::Time(Moment::Start, _) => "START_TIME",
            Self::Time(Moment::EmitLog, _) => "EMIT_TIME",
            Self::Time(Moment::DownstreamPeerCertStart, _) => "DOWNSTREAM_PEER_CERT_V_START",
            Self::Time(Moment::DownstreamPeerCertEnd, _) => "DOWNSTREAM_PEER_CERT_V_END",
            Self::Time(Moment::UpstreamPeerCertStart, _) => "UPSTREAM_PEER_CERT_V_START",
            Self::Time(Moment::UpstreamPeerCertEnd, _) => "UPSTREAM_PEER_CERT_V_END",
            Self::Metadata(MetadataOf::Dynamic, ..) => "DYNAMIC_METADATA",
            Self::Metadata(MetadataOf::Route, ..) => "METADATA(ROUTE)",
            Self::Metadata(MetadataOf::VirtualHost, ..) => "METADATA(VIRTUAL_HOST)",
            Self::Metadata(MetadataOf::Cluster, ..) => "CLUSTER_METADATA",
            Self::Metadata(MetadataOf::UpstreamHost, ..) => "UPSTREAM_METADATA",
            Self::Metadata(MetadataOf::Listener, ..) => "METADATA(LISTENER)",
            Self::Metadata(MetadataOf::ListenerFilterChain, ..) => {
                "METADATA(LISTENER_FILTER_CHAIN)"
            }
            Self::FilterState(..) => "FILTER_STATE",
            Self::CommonDuration(..) => "COMMON_DURATION",
            Self::Environment(_) => "ENVIRONMENT",
        }
    }

    fn is_known(&self, place: Place) -> bool {
        match self {
            Self::Header(Head::Request, ..) | Self::WithoutQuery(..) | Self::FilterState(..) => {
                true
            }
            Self::Header(Head::Response, ..) => !place.is_request(),
            Self::Header(Head::Trailer, ..) => place == Place::Log,
            Self::Fact(fact) => fact.is_known(place),
            Self::Time(Moment::Start, _) => true,
            Self::Time(Moment::EmitLog, _) => !place.is_filter(),
            Self::Time(..) => false,
            Self::Metadata(MetadataOf::Dynamic | MetadataOf::Route, ..) => true,
            Self::Metadata(MetadataOf::UpstreamHost, ..) => {
                matches!(place, Place::Log | Place::RouteResponse)
            }
            Self::Metadata(..) | Self::Environment(_) => !place.is_filter(),
            Self::CommonDuration(from, to, _) => {
                let is_noted = |point| match point {
                    Point::RequestStart | Point::RequestEnd | Point::ResponseStart => true,
                    Point::End => place == Place::Log,
                    Point::Other => false,
                };
                !place.is_request() && !place.is_filter() && is_noted(*from) && is_noted(*to)
            }
        }
    }
}

impl Fact {
    /// Whether this proxy ever knows the fact in this place.
    pub fn is_known(self, place: Place) -> bool {
        match self {
            Self::UpstreamWireBytesSent
            | Self::UpstreamWireBytesReceived
            | Self::DownstreamWireBytesSent
            | Self::DownstreamWireBytesReceived
            | Self::UpstreamHeaderBytesSent
            | Self::UpstreamHeaderBytesReceived
            | Self::DownstreamHeaderBytesSent
            | Self::DownstreamHeaderBytesReceived
            | Self::RequestTxDuration
            | Self::DownstreamHandshakeDuration
            | Self::RoundtripDuration
            | Self::UpstreamHostsAttempted
            | Self::UpstreamConnectionId
            | Self::UpstreamTlsCipher
            | Self::UpstreamTlsVersion
            | Self::UpstreamPeerSubject
            | Self::UpstreamPeerDnsSan
            | Self::UpstreamLocalUriSan
            | Self::DownstreamPeerCert
            | Self::VirtualClusterName
            | Self::LocalReplyBody
            | Self::TraceId
            | Self::SpanId => false,
            Self::DownstreamTransportFailureReason | Self::ConnectionTerminationDetails => {
                place == Place::Log
            }
            Self::DownstreamRemoteAddress
            | Self::DownstreamRemoteAddressWithoutPort
            | Self::DownstreamRemotePort
            | Self::DownstreamDirectRemoteAddress
            | Self::DownstreamDirectRemoteAddressWithoutPort
            | Self::DownstreamDirectRemotePort
            | Self::DownstreamLocalAddress
            | Self::DownstreamLocalAddressWithoutPort
            | Self::DownstreamLocalPort
            | Self::DownstreamTlsCipher
            | Self::DownstreamTlsVersion
            | Self::DownstreamPeerSubject
            | Self::DownstreamPeerIssuer
            | Self::DownstreamPeerUriSan
            | Self::DownstreamPeerDnsSan
            | Self::DownstreamPeerFingerprint256
            | Self::DownstreamLocalUriSan
            | Self::RequestedServerName
            | Self::ConnectionId
            | Self::Protocol
            | Self::ResponseFlags
            | Self::RouteName
            | Self::UpstreamCluster
            | Self::UpstreamClusterRaw
            | Self::StreamId => true,
            Self::ResponseCode => place != Place::FilterRequest,
            Self::UpstreamHost
            | Self::UpstreamRemoteAddress
            | Self::UpstreamRemoteAddressWithoutPort
            | Self::UpstreamRemotePort
            | Self::ResponseCodeDetails => !place.is_request(),
            Self::UpstreamProtocol
            | Self::UpstreamHostName
            | Self::UpstreamHostNameWithoutPort
            | Self::UpstreamLocalAddress
            | Self::UpstreamLocalAddressWithoutPort
            | Self::UpstreamLocalPort
            | Self::UpstreamPeerUriSan
            | Self::UpstreamTransportFailureReason
            | Self::GrpcStatus
            | Self::GrpcStatusSnake
            | Self::GrpcStatusNumber
            | Self::ResponseDuration
            | Self::ResponseTxDuration
            | Self::Cause => !place.is_request() && !place.is_filter(),
            Self::ResponseFlagsLong
            | Self::BytesReceived
            | Self::BytesSent
            | Self::Duration
            | Self::RequestDuration
            | Self::UpstreamRequestAttemptCount
            | Self::FilterChainName
            | Self::Hostname
            | Self::UniqueId
            | Self::AccessLogType => !place.is_filter(),
        }
    }
}
