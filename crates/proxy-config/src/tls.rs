//! Terms of TLS and secrets, as plain data. The proxy makes rustls configurations of the terms once
//! the secrets that they name have arrived.

mod algorithms;
mod compile;
mod secret;
mod validation;

use std::fmt;
use std::sync::Arc;

use meltemi_filters::TlsPeer;
use meltemi_filters::matcher::StringMatch;

pub use secret::SecretContent;
pub(crate) use secret::grpc_source;

/// The server side of a filter chain.
#[derive(Debug, Clone, PartialEq)]
pub struct DownstreamTls {
    /// Certificates, versions, ALPN and how clients are verified.
    pub common: CommonTls,
    /// Whether a client must present a certificate.
    pub require_client_certificate: bool,
    /// Whether a client must send SNI.
    pub require_sni: bool,
    /// Sessions are not resumed by tickets.
    pub disable_tickets: bool,
    /// Sessions are not resumed by session ids.
    pub disable_sessions: bool,
}

impl DownstreamTls {
    /// Whether a peer that was accepted on older terms would be accepted on these: roots,
    /// revocation list and pins are the same, and its names match. Our own certificate, versions
    /// and ALPN only matter to the next handshake.
    pub fn goes_on_with(&self, older: &Self, peer: &TlsPeer) -> bool {
        let (new, old) = (&self.common.validation, &older.common.validation);
        let named = |matcher: &SanMatch| {
            let among = |names: &[String]| {
                names
                    .iter()
                    .any(|name| matcher.value.is_match(name.as_bytes()))
            };

            match matcher.kind {
                SanKind::Uri => among(&peer.uri_sans),
                SanKind::Dns => among(&peer.dns_sans),
                SanKind::Any => among(&peer.uri_sans) || among(&peer.dns_sans),
                // A connection does not keep these names of its peer.
                SanKind::Ip | SanKind::Email => false,
            }
        };

        (peer.validated || !self.require_client_certificate)
            && new.trust == old.trust
            && new.crl == old.crl
            && (&new.spki_pins, &new.certificate_pins) == (&old.spki_pins, &old.certificate_pins)
            && (!peer.presented
                || new.san_matchers.is_empty()
                || new.san_matchers.iter().any(named))
    }
}

/// The client side of a cluster or of one of its transport socket matches.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTls {
    /// Certificates, versions, ALPN and how servers are verified.
    pub common: CommonTls,
    /// The SNI to send; none if empty.
    pub sni: Box<str>,
    /// The request's host is sent as SNI, not `sni`.
    pub auto_host_sni: bool,
    /// The peer's certificate must be for the SNI that was sent.
    pub auto_sni_san_validation: bool,
}

/// The terms that both sides share. Source: Envoy `CommonTlsContext`.
#[derive(Debug, Clone, PartialEq)]
pub struct CommonTls {
    /// Certificates of our own to present; none if empty.
    pub certificates: Vec<CertificateSource>,
    /// How the peer's certificate is verified.
    pub validation: Validation,
    /// ALPN protocols to offer or accept, in order of preference.
    pub alpn: Arc<[Box<str>]>,
    /// The lowest version that is spoken.
    pub min_version: TlsVersion,
    /// The highest version that is spoken.
    pub max_version: TlsVersion,
    /// IANA numbers of the cipher suites of TLS 1.2; empty means all that this proxy has.
    pub cipher_suites: Box<[u16]>,
    /// IANA numbers of the key exchange groups, in order of preference; empty means the default.
    pub groups: Box<[u16]>,
}

/// A version of TLS that this proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

/// Where a certificate and its key come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateSource {
    /// A secret that arrives over SDS.
    Secret(SecretRef),
    /// Data of the configuration itself, or files that it names.
    Inline {
        /// The chain in PEM, leaf first.
        chain: DataSource,
        /// The private key in PEM.
        key: DataSource,
    },
}

/// A secret by name, and who delivers it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretRef {
    /// For example `default` or `kubernetes://cert`.
    pub name: Arc<str>,
    /// Who delivers it.
    pub source: SecretSource,
}

/// Who delivers a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// The ADS stream.
    Ads,
    /// An SDS server that is a static cluster of the bootstrap.
    Cluster {
        /// The cluster's name, for example `sds-grpc`.
        cluster: Arc<str>,
        /// The stream speaks the delta variant, not state of the world.
        delta: bool,
    },
    /// A secret in the bootstrap's static resources, or a file of discovery responses.
    Static,
}

/// Bytes in the configuration or elsewhere. They may be a private key, so `Debug` does not show
/// them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum DataSource {
    /// The content of the file at this path.
    File(Box<str>),
    /// The bytes themselves.
    Inline(Box<[u8]>),
    /// The value of this environment variable.
    Environment(Box<str>),
}

impl fmt::Debug for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::Environment(name) => f.debug_tuple("Environment").field(name).finish(),
        }
    }
}

/// How the peer's certificate is verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// The roots that must have issued the certificate.
    pub trust: Trust,
    /// One of these must match one of its subject alternative names; if empty, every name will do.
    pub san_matchers: Vec<SanMatch>,
    /// SHA-256 of accepted public keys (the whole SubjectPublicKeyInfo).
    pub spki_pins: Vec<[u8; 32]>,
    /// SHA-256 of accepted certificates. A certificate needs one pin of either kind, unless there
    /// are none at all.
    pub certificate_pins: Vec<[u8; 32]>,
    /// Revoked certificates, in PEM.
    pub crl: Option<DataSource>,
}

impl Validation {
    /// Whether the certificate needs a pin.
    pub fn is_pinned(&self) -> bool {
        !self.spki_pins.is_empty() || !self.certificate_pins.is_empty()
    }

    /// Whether the pins accept a leaf certificate with these SHA-256 digests.
    pub fn accepts_pin(&self, certificate: &[u8; 32], spki: &[u8; 32]) -> bool {
        !self.is_pinned()
            || self.certificate_pins.contains(certificate)
            || self.spki_pins.contains(spki)
    }
}

/// Where trust roots come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trust {
    /// There are none: the certificate is not verified.
    None,
    /// A secret that arrives over SDS, for example `ROOTCA`.
    Secret(SecretRef),
    /// PEM in the configuration or a file.
    Inline(DataSource),
    /// The roots of the public web.
    System,
}

/// A condition on one subject alternative name.
#[derive(Debug, Clone, PartialEq)]
pub struct SanMatch {
    /// The kind of name that it looks at.
    pub kind: SanKind,
    /// The condition on the name.
    pub value: StringMatch,
}

/// A kind of subject alternative name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SanKind {
    /// Any kind (Envoy's deprecated untyped matcher).
    Any,
    /// A DNS name.
    Dns,
    /// A URI, as SPIFFE has it.
    Uri,
    /// An IP address.
    Ip,
    /// An e-mail address.
    Email,
}

/// The transport of connections to an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamTransport {
    Plaintext,
    Tls(Arc<UpstreamTls>),
    /// A header of the PROXY protocol, version 1 or 2, before the inner transport.
    ProxyProtocol(u8, Box<UpstreamTransport>),
    /// Through an internal listener.
    Internal(Box<UpstreamTransport>),
}

/// The transport of a filter chain's connections.
#[derive(Debug, Clone, PartialEq)]
pub enum DownstreamTransport {
    /// Plaintext, or TLS that the proxy passes on without ending it.
    Plaintext,
    /// The proxy ends TLS.
    Tls(Arc<DownstreamTls>),
}

impl DownstreamTransport {
    /// The terms of TLS, if the proxy ends it.
    pub fn tls(&self) -> Option<&Arc<DownstreamTls>> {
        match self {
            Self::Plaintext => None,
            Self::Tls(tls) => Some(tls),
        }
    }
}

impl CommonTls {
    /// Every secret without which these terms cannot be used.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        let own = self
            .certificates
            .iter()
            .filter_map(|certificate| match certificate {
                CertificateSource::Secret(secret) => Some(secret),
                CertificateSource::Inline { .. } => None,
            });

        let trust = match &self.validation.trust {
            Trust::Secret(secret) => Some(secret),
            _ => None,
        };

        own.chain(trust)
    }
}
