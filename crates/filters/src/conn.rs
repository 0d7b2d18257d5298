//! The facts of a downstream connection: its addresses, the inspected first bytes and the peer's
//! proven identity.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

/// The transport protocol that the first bytes show. Source: Envoy
/// `FilterChainMatch.transport_protocol`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    /// Plaintext, or no inspector has looked.
    #[default]
    RawBuffer,
    /// The connection began with a TLS ClientHello.
    Tls,
    /// QUIC; no listener serves it yet.
    Quic,
}

impl TransportProtocol {
    /// The value that Envoy's filter chain matches compare with.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RawBuffer => "raw_buffer",
            Self::Tls => "tls",
            Self::Quic => "quic",
        }
    }
}

/// The facts that filter chain matches, network filters and authorization read. Addresses are
/// canonical: an IPv4-mapped IPv6 address is IPv4 (see [`canonical`]).
#[derive(Debug, Clone)]
pub struct ConnInfo {
    /// The address that the peer connected to: the original destination if the listener restores
    /// it.
    pub local: SocketAddr,
    /// `local` is where the client wanted to go before the connection was captured: another address
    /// than the listener's own. Clusters of original destinations connect only there; to the
    /// listener's own address the proxy would call itself without end.
    pub captured: bool,
    /// The other end of the socket.
    pub direct_remote: SocketAddr,
    /// The client, as the PROXY protocol says; else the same as `direct_remote`.
    pub remote: SocketAddr,
    /// The transport protocol that the TLS inspector found.
    pub transport: TransportProtocol,
    /// The SNI of the ClientHello, in lower case.
    pub server_name: Option<Box<str>>,
    /// The ALPN list of the ClientHello, or the protocol that the HTTP inspector found (`http/1.0`,
    /// `http/1.1`, `h2c`).
    pub application_protocols: SmallVec<[Box<str>; 4]>,
    /// The peer, once a TLS handshake is done.
    pub tls: Option<Arc<TlsPeer>>,
}

impl ConnInfo {
    /// A plaintext connection between two addresses that no inspector has looked at.
    pub fn plain(local: SocketAddr, remote: SocketAddr) -> Self {
        let remote = canonical_socket(remote);
        Self {
            local: canonical_socket(local),
            captured: false,
            direct_remote: remote,
            remote,
            transport: TransportProtocol::RawBuffer,
            server_name: None,
            application_protocols: SmallVec::new(),
            tls: None,
        }
    }

    /// Where the client wanted to go, if the connection was captured.
    pub fn original_destination(&self) -> Option<SocketAddr> {
        self.captured.then_some(self.local)
    }

    /// Whether mutual TLS has proven that the peer belongs to the mesh: a verified certificate with
    /// a SPIFFE identity.
    pub fn is_mesh_peer(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.validated) && self.peer_principal().is_some()
    }

    /// The SPIFFE identity in the peer's certificate, without `spiffe://`, as Istio writes
    /// principals.
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

/// Writes an IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) as IPv4, so that no rule for IPv4 is
/// evaded.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// [`canonical`] for an address with port.
pub fn canonical_socket(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical(address.ip()), address.port())
}
