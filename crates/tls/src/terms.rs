//! What both ends of a TLS connection are asked for, as values without any TLS library in them.

use crate::SanMatcher;

/// Protocol versions that exist here; older ones are refused on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Whether a server asks its clients for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ClientAuth {
    /// Not asked (SIMPLE).
    #[default]
    None,
    /// Asked; none is welcome too, a wrong one is not (OPTIONAL_MUTUAL).
    Optional,
    /// Asked, and no connection without (MUTUAL, ISTIO_MUTUAL).
    Required,
}

/// What a client's certificate must be, beyond a chain to a root, the time and the key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PeerRule {
    /// A mesh identity: exactly one URI name, a SPIFFE identity of a trust domain with roots.
    #[default]
    Spiffe,
    /// Any certificate under the roots.
    Chain,
}

/// What a server's certificate must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ServerRule {
    /// A mesh identity, as [`PeerRule::Spiffe`].
    #[default]
    Spiffe,
    /// Valid for this host name or address (SIMPLE and MUTUAL towards the outside).
    Host(String),
    /// Any certificate under the roots; the names to match decide (Envoy without automatic SAN
    /// validation).
    Chain,
    /// Anything at all (`insecureSkipVerify`, or a cluster without validation context).
    Insecure,
}

/// Which of the provider's algorithms may be used, by their IANA numbers; an empty list: all of
/// them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Algorithms {
    /// Cipher suites of TLS 1.2. Those of TLS 1.3 are not chosen by anybody.
    pub tls12_suites: Box<[u16]>,
    /// Key exchange groups, most wanted first.
    pub groups: Box<[u16]>,
}

/// A server's side of a connection.
#[derive(Debug, Clone, Default)]
pub struct ServerTerms {
    /// In the server's order of preference; empty: no ALPN.
    pub alpn: Vec<String>,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
    /// What the certificate must be.
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

/// A client's side of a connection.
#[derive(Debug, Clone, Default)]
pub struct ClientTerms {
    /// What is offered; empty: no ALPN.
    pub alpn: Vec<String>,
    /// Whether a server name is sent at all. Which one is said at connect time (rustls
    /// `ServerName`); addresses are never sent.
    pub no_sni: bool,
    /// What the server's certificate must be.
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
