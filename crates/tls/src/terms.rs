//! The settings of both ends of a TLS connection, as values without a TLS library.

use crate::SanMatcher;

/// Supported protocol versions. Older versions are refused on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Whether a server requests client certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ClientAuth {
    /// No certificate is requested (SIMPLE).
    #[default]
    None,
    /// A certificate is requested. Clients may send none, but an invalid one is refused
    /// (OPTIONAL_MUTUAL).
    Optional,
    /// A valid certificate is required (MUTUAL, ISTIO_MUTUAL).
    Required,
}

/// The rule for client certificates, beyond chain, validity and key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PeerRule {
    /// The certificate has exactly one URI name, a SPIFFE ID of a trust domain with roots.
    #[default]
    Spiffe,
    /// Any certificate with a chain to the roots, unless it has a SPIFFE ID beside another URI name.
    Chain,
}

/// The rule for server certificates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ServerRule {
    /// The same as [`PeerRule::Spiffe`].
    #[default]
    Spiffe,
    /// The certificate is valid for this host name or address (SIMPLE and MUTUAL to outside
    /// servers).
    Host(String),
    /// Any certificate with a chain to the roots; only the SAN matchers decide (Envoy without
    /// `auto_san_validation`).
    Chain,
    /// Any certificate, without verification (`insecureSkipVerify`, or a cluster without a
    /// validation context).
    Insecure,
}

/// The allowed algorithms by IANA number. An empty list allows all algorithms of the provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Algorithms {
    /// Cipher suites of TLS 1.2. The suites of TLS 1.3 cannot be configured.
    pub tls12_suites: Box<[u16]>,
    /// Key exchange groups, in order of preference.
    pub groups: Box<[u16]>,
}

/// Settings of a server.
#[derive(Debug, Clone, Default)]
pub struct ServerTerms {
    /// ALPN protocols in order of preference; empty turns ALPN off.
    pub alpn: Vec<String>,
    /// Whether client certificates are requested.
    pub client_auth: ClientAuth,
    /// The rule for client certificates.
    pub rule: PeerRule,
    /// One of these must match; empty: any name.
    pub san: Vec<SanMatcher>,
    /// `None`: TLS 1.2.
    pub min_version: Option<TlsVersion>,
    /// `None`: TLS 1.3.
    pub max_version: Option<TlsVersion>,
    /// What may be agreed on.
    pub algorithms: Algorithms,
}

/// Settings of a client.
#[derive(Debug, Clone, Default)]
pub struct ClientTerms {
    /// Offered ALPN protocols; empty turns ALPN off.
    pub alpn: Vec<String>,
    /// Whether to leave SNI out. The name itself is given at connect time (rustls `ServerName`); IP
    /// addresses are never sent.
    pub no_sni: bool,
    /// The rule for the server's certificate.
    pub rule: ServerRule,
    /// One of these must match; empty: any name.
    pub san: Vec<SanMatcher>,
    /// `None`: TLS 1.2.
    pub min_version: Option<TlsVersion>,
    /// `None`: TLS 1.3.
    pub max_version: Option<TlsVersion>,
    /// What may be agreed on.
    pub algorithms: Algorithms,
}
