//! Declared protocols of ports.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The declared protocol of a port. Source: Istio `pkg/config/protocol`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Protocol {
    /// HTTP/1.1 in plaintext (a client may still upgrade).
    Http,
    /// HTTP/2, in plaintext with prior knowledge where there is no TLS.
    Http2,
    /// gRPC, so HTTP/2.
    Grpc,
    /// gRPC-Web, so HTTP/1.1.
    GrpcWeb,
    /// TLS that carries HTTP; opaque to a sidecar.
    Https,
    /// Opaque TLS, routed by SNI.
    Tls,
    /// Opaque bytes.
    Tcp,
    /// Datagrams; not captured.
    Udp,
    /// MongoDB, served as opaque bytes.
    Mongo,
    /// MySQL: the server speaks first, so it is never sniffed.
    MySql,
    /// Redis, served as opaque bytes.
    Redis,
    /// Nothing declared: the first bytes decide.
    #[default]
    Unsupported,
}

impl Protocol {
    /// The protocol that `appProtocol` or the part of a port name before `-` declares; `None` if
    /// the word is unknown. Case does not matter.
    pub fn from_word(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "http" | "kubernetes.io/ws" => Self::Http,
            "http2" | "kubernetes.io/h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "https" | "kubernetes.io/wss" => Self::Https,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "mongo" => Self::Mongo,
            "mysql" => Self::MySql,
            "redis" => Self::Redis,
            _ => return None,
        })
    }

    /// The declared protocol of a Service port: `appProtocol` wins over the name's prefix;
    /// undeclared ports are sniffed, except those whose server speaks first (25, 53, 3306, 27017).
    pub fn of_port(number: u16, name: &str, app_protocol: Option<&str>, transport: &str) -> Self {
        // Capture takes TCP connections alone: SCTP passes it as datagrams do.
        if ["UDP", "SCTP"]
            .iter()
            .any(|other| transport.eq_ignore_ascii_case(other))
        {
            return Self::Udp;
        }
        if let Some(declared) = app_protocol.and_then(Self::from_word) {
            return declared;
        }
        let is_grpc_web = |start: &str| start.eq_ignore_ascii_case("grpc-web");
        if name.get(..8).is_some_and(is_grpc_web) {
            return Self::GrpcWeb;
        }
        let prefix = name.split('-').next().unwrap_or_default();
        if let Some(declared) = Self::from_word(prefix) {
            return declared;
        }

        match number {
            25 | 53 | 3306 | 27017 => Self::Tcp,
            _ => Self::Unsupported,
        }
    }

    /// The protocol of the bytes that TLS of this protocol carries. Source: Istio
    /// `Instance.AfterTLSTermination`.
    pub fn after_tls_termination(self) -> Self {
        match self {
            Self::Https => Self::Http,
            Self::Tls => Self::Tcp,
            plain => plain,
        }
    }

    /// Whether requests of this protocol are routed one by one.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether the upstream connection is HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }

    /// Whether a sidecar forwards the bytes without reading requests.
    pub fn is_tcp(self) -> bool {
        matches!(
            self,
            Self::Tcp | Self::Https | Self::Tls | Self::Mongo | Self::MySql | Self::Redis
        )
    }

    /// Whether the bytes begin with a ClientHello whose SNI can be routed.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// Whether the first bytes decide between HTTP and opaque bytes.
    pub fn is_sniffed(self) -> bool {
        self == Self::Unsupported
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-Web",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Mongo => "Mongo",
            Self::MySql => "MySQL",
            Self::Redis => "Redis",
            Self::Unsupported => "UnsupportedProtocol",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declaration_wins_in_istios_order() {
        assert_eq!(Protocol::of_port(9080, "http", None, "TCP"), Protocol::Http);
        assert_eq!(
            Protocol::of_port(9080, "http2-web", None, "TCP"),
            Protocol::Http2
        );

        assert_eq!(
            Protocol::of_port(9080, "grpc-web-x", None, "TCP"),
            Protocol::GrpcWeb
        );

        assert_eq!(
            Protocol::of_port(9080, "tcp", Some("http"), "TCP"),
            Protocol::Http
        );

        assert_eq!(
            Protocol::of_port(9080, "web", None, "TCP"),
            Protocol::Unsupported
        );

        // A name is any text until somebody validates it.
        assert_eq!(Protocol::of_port(1, "tcp-abcé", None, "TCP"), Protocol::Tcp);
        assert_eq!(
            Protocol::of_port(1, "abcdefgé", None, "TCP"),
            Protocol::Unsupported
        );

        assert_eq!(Protocol::of_port(3306, "db", None, "TCP"), Protocol::Tcp);
        assert_eq!(Protocol::of_port(53, "dns", None, "UDP"), Protocol::Udp);
        assert_eq!(Protocol::of_port(80, "http", None, "SCTP"), Protocol::Udp);
    }
}
