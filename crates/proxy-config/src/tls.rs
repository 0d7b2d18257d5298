//! Terms of TLS, as plain data: what the proxy hands to the TLS crate once the named secrets are
//! there.

mod algorithms;
pub(crate) mod compile;

use std::sync::Arc;

use meltemi_filters::TlsPeer;
use meltemi_filters::matcher::StringMatch;

/// The server side of a filter chain.
#[derive(Debug, Clone)]
pub struct DownstreamTls {
    /// Certificates, versions, ALPN, how peers are verified.
    pub common: CommonTls,
    /// Whether a client must present a certificate.
    pub require_client_certificate: bool,
    /// Whether a client must send SNI.
    pub require_sni: bool,
    /// No resumption by tickets.
    pub disable_tickets: bool,
    /// No resumption by session ids.
    pub disable_sessions: bool,
}

impl DownstreamTls {
    /// Whether a peer that was taken on older terms would be taken on these: who vouches and who is
    /// revoked or pinned is the same, and its names are among those that are asked for. Our own
    /// certificate, versions and protocols are for the next handshake.
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
                // Not kept.
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
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    /// Certificates, versions, ALPN, how peers are verified.
    pub common: CommonTls,
    /// SNI to send; empty sends none.
    pub sni: Box<str>,
    /// Send the request's host as SNI instead.
    pub auto_host_sni: bool,
    /// The peer's certificate must be for the SNI that was sent.
    pub auto_sni_san_validation: bool,
}

/// What both sides share. Source: Envoy `CommonTlsContext`.
#[derive(Debug, Clone)]
pub struct CommonTls {
    /// Our own certificate; empty presents none.
    pub certificates: Vec<CertificateSource>,
    /// How the peer is verified.
    pub validation: Validation,
    /// Protocols to offer or accept, most wanted first.
    pub alpn: Arc<[Box<str>]>,
    /// The lowest version.
    pub min_version: TlsVersion,
    /// The highest version.
    pub max_version: TlsVersion,
    /// Cipher suites of TLS 1.2 by their IANA numbers; empty means all that there are.
    pub cipher_suites: Box<[u16]>,
    /// Key exchange groups by their IANA numbers, most wanted first; empty means the default.
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
    /// Written in the configuration, or in files.
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
    /// From whom.
    pub source: SecretSource,
}

/// Who delivers a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// The ADS stream.
    Ads,
    /// An SDS server that a cluster of the bootstrap names, as `sds-grpc`.
    Cluster(Arc<str>),
    /// A secret in the bootstrap's static resources, or a file of discovery responses.
    Static,
}

/// Bytes in the configuration or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DataSource {
    /// A file.
    File(Box<str>),
    /// The bytes themselves.
    Inline(Box<[u8]>),
    /// An environment variable.
    Environment(Box<str>),
}

/// How the peer's certificate is verified.
#[derive(Debug, Clone)]
pub struct Validation {
    /// What vouches for the peer. None of them: the peer is not verified.
    pub trust: Trust,
    /// Any of these must match a subject alternative name; empty accepts all.
    pub san_matchers: Vec<SanMatch>,
    /// SHA-256 of accepted public keys (the whole SubjectPublicKeyInfo).
    pub spki_pins: Vec<[u8; 32]>,
    /// SHA-256 of accepted certificates. Without pins of either kind every one is accepted, else
    /// any of either kind.
    pub certificate_pins: Vec<[u8; 32]>,
    /// Revoked certificates.
    pub crl: Option<DataSource>,
}

impl Validation {
    /// Whether the peer's certificate must be one of those that are pinned.
    pub fn is_pinned(&self) -> bool {
        !self.spki_pins.is_empty() || !self.certificate_pins.is_empty()
    }

    /// Whether a leaf with these SHA-256 digests is among those that are pinned, if any are.
    pub fn accepts_pin(&self, certificate: &[u8; 32], spki: &[u8; 32]) -> bool {
        !self.is_pinned()
            || self.certificate_pins.contains(certificate)
            || self.spki_pins.contains(spki)
    }
}

/// Where trust roots come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Nothing is configured: no verification.
    None,
    /// A secret that arrives over SDS, as `ROOTCA`.
    Secret(SecretRef),
    /// PEM in the configuration or a file.
    Inline(DataSource),
    /// The roots of the public web.
    System,
}

/// A condition on one subject alternative name.
#[derive(Debug, Clone)]
pub struct SanMatch {
    /// Which kind of name.
    pub kind: SanKind,
    /// The name.
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

/// How to speak to an endpoint.
#[derive(Debug, Clone)]
pub enum UpstreamTransport {
    /// Plaintext.
    Plaintext,
    /// TLS.
    Tls(Arc<UpstreamTls>),
    /// The PROXY protocol in front of the inner transport; the version is 1 or 2.
    ProxyProtocol(u8, Box<UpstreamTransport>),
    /// Through an internal listener.
    Internal(Box<UpstreamTransport>),
}

/// How a filter chain is spoken to.
#[derive(Debug, Clone)]
pub enum DownstreamTransport {
    /// Plaintext, or TLS that passes through.
    Plaintext,
    /// TLS ends here.
    Tls(Arc<DownstreamTls>),
}

impl DownstreamTransport {
    /// The terms, if TLS ends here.
    pub fn tls(&self) -> Option<&Arc<DownstreamTls>> {
        match self {
            Self::Plaintext => None,
            Self::Tls(tls) => Some(tls),
        }
    }
}

impl CommonTls {
    /// Every secret that must arrive before these terms can be used.
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
