//! What is known of a downstream connection: addresses, what was sniffed, who the peer proved to
//! be.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

/// How the first bytes look. Source: Envoy `FilterChainMatch.transport_protocol`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    /// Plaintext, or not inspected.
    #[default]
    RawBuffer,
    /// A TLS ClientHello.
    Tls,
    /// QUIC.
    Quic,
}

impl TransportProtocol {
    /// Envoy's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RawBuffer => "raw_buffer",
            Self::Tls => "tls",
            Self::Quic => "quic",
        }
    }
}

/// What filter chains, network filters and authorization look at. Addresses are canonical: an IPv4
/// address in IPv6 clothes is IPv4 (see [`canonical`]).
#[derive(Debug, Clone)]
pub struct ConnInfo {
    /// Where the peer wanted to go: the original destination if the listener restores it.
    pub local: SocketAddr,
    /// The other end of the socket.
    pub direct_remote: SocketAddr,
    /// The client, as the PROXY protocol says; else the same as `direct_remote`.
    pub remote: SocketAddr,
    /// What the TLS inspector found.
    pub transport: TransportProtocol,
    /// SNI, lower case.
    pub server_name: Option<Box<str>>,
    /// The ALPN list of the ClientHello, or what the HTTP inspector found (`http/1.0`, `http/1.1`,
    /// `h2c`).
    pub application_protocols: SmallVec<[Box<str>; 4]>,
    /// The peer, once a TLS handshake is done.
    pub tls: Option<Arc<TlsPeer>>,
}

impl ConnInfo {
    /// A plaintext connection between two addresses, not inspected yet.
    pub fn plain(local: SocketAddr, remote: SocketAddr) -> Self {
        let remote = canonical_socket(remote);
        Self {
            local: canonical_socket(local),
            direct_remote: remote,
            remote,
            transport: TransportProtocol::RawBuffer,
            server_name: None,
            application_protocols: SmallVec::new(),
            tls: None,
        }
    }

    /// The SPIFFE identity that the peer proved, without its scheme, as Istio writes principals.
    pub fn peer_principal(&self) -> Option<&str> {
        self.tls
            .as_ref()?
            .uri_sans
            .iter()
            .find_map(|uri| uri.strip_prefix("spiffe://"))
    }
}

/// The peer of a finished handshake. The certificate's fields are empty if it presented none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsPeer {
    /// Whether the peer presented a certificate.
    pub presented: bool,
    /// Whether the certificate was verified against a trust bundle.
    pub validated: bool,
    /// URI subject alternative names of the peer's certificate.
    pub uri_sans: Vec<String>,
    /// DNS subject alternative names of the peer's certificate.
    pub dns_sans: Vec<String>,
    /// The subject, in RFC 2253 form.
    pub subject: String,
    /// The issuer, in RFC 2253 form.
    pub issuer: String,
    /// SHA-256 of the DER certificate, hexadecimal.
    pub fingerprint: String,
    /// The peer's certificate, DER.
    pub certificate: Bytes,
    /// URI subject alternative names of our own certificate.
    pub local_uri_sans: Vec<String>,
    /// The application protocol that both sides agreed on.
    pub alpn: Option<String>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, in OpenSSL's or IANA's spelling.
    pub cipher: String,
}

/// An IPv4 address in IPv6 clothes (`::ffff:10.0.0.1`) as IPv4, so that no rule is passed by
/// spelling.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// [`canonical`] for an address with port.
pub fn canonical_socket(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical(address.ip()), address.port())
}
