//! Errors about certificates, keys and peers. Their texts name what was expected and what was
//! presented.

use std::sync::Arc;

/// Local certificates, keys or terms cannot be used. The owner of the file or resource must fix
/// them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// The text is not PEM, or holds no block of the wanted kind.
    #[error("{what}: {reason}; give it as PEM")]
    Pem {
        /// The kind of block that was expected.
        what: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// The bytes are not a certificate.
    #[error("not a readable X.509 certificate: {0}")]
    Certificate(String),
    /// The key has an unknown form, or is not the certificate's.
    #[error(
        "private key: {0}; give the PKCS#8, PKCS#1 or SEC1 key that belongs to the first certificate of the chain"
    )]
    Key(String),
    /// A revocation list that cannot be read. The bundle is refused as a whole: fail closed.
    #[error("certificate revocation list: {0}")]
    Crl(String),
    /// The terms verify the peer, but there are no roots.
    #[error("no root certificate to verify the peer with")]
    NoRoots,
    /// A pattern that is not a regular expression.
    #[error("subject alternative name pattern {pattern:?}: {reason}")]
    Pattern {
        /// The configured pattern.
        pattern: String,
        /// What the parser says.
        reason: String,
    },
    /// rustls refuses the combination, for example a maximum version below the minimum.
    #[error("TLS terms: {0}")]
    Terms(String),
}

/// A peer's certificate is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer presented no certificate.
    #[error("the peer presented no certificate")]
    None,
    /// The bytes are not a certificate, or carry names that must not be trusted.
    #[error("the peer's certificate is malformed: {0}")]
    Malformed(String),
    /// The chain ends in no root that is trusted here.
    #[error(
        "expected a certificate chain to a root of trust domain {expected}, presented {presented}: {reason}"
    )]
    Chain {
        /// The trust domain, or `any` where roots are not bound to one.
        expected: String,
        /// What the leaf calls itself, and who issued it.
        presented: String,
        /// What the verifier says.
        reason: String,
    },
    /// Outside its time, revoked, or under a stale revocation list.
    #[error("the certificate of {presented} is not valid now: {reason}")]
    Validity {
        /// What the leaf calls itself.
        presented: String,
        /// Expired when, revoked, ...
        reason: String,
    },
    /// The extended key usage does not allow this side of a connection.
    #[error(
        "expected a certificate for {expected} authentication, presented {presented}: {reason}"
    )]
    Usage {
        /// `client` or `server`.
        expected: &'static str,
        /// What the leaf calls itself.
        presented: String,
        /// What the verifier says.
        reason: String,
    },
    /// Not exactly one URI name.
    #[error("expected exactly one URI subject alternative name, presented {presented}")]
    UriCount {
        /// The names.
        presented: String,
    },
    /// The one URI name is not an identity of the mesh.
    #[error("expected a SPIFFE identity, presented {presented:?}: {reason}")]
    NotSpiffe {
        /// The name.
        presented: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// A trust domain without roots here.
    #[error("expected an identity of trust domain {expected}, presented {presented}")]
    TrustDomain {
        /// The domains that there are roots for.
        expected: String,
        /// The identity.
        presented: String,
    },
    /// A good identity, but not one that this connection is meant for.
    #[error("expected a subject alternative name that matches {expected}, presented {presented}")]
    Name {
        /// The patterns, or the host name.
        expected: String,
        /// The names of the certificate.
        presented: String,
    },
    /// More certificates than any honest peer sends.
    #[error("expected at most {limit} certificates, presented {presented}")]
    TooMany {
        limit: usize,
        /// The number.
        presented: usize,
    },
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        use rustls::CertificateError as C;
        // The alert that the peer gets depends on this; the text for our side travels inside
        // `Other` in every case that rustls has no better word for.
        match error {
            PeerError::None => Self::NoCertificatesPresented,
            other => Self::InvalidCertificate(C::Other(rustls::OtherError(Arc::new(other)))),
        }
    }
}

/// The text of a TLS error for logs and causes; the text of the [`PeerError`] if there is one.
pub fn cause_of(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(
            inner,
        ))) => inner.to_string(),
        rustls::Error::NoCertificatesPresented => PeerError::None.to_string(),
        rustls::Error::AlertReceived(alert) => {
            format!("the peer refused the handshake with alert {alert:?}")
        }
        other => other.to_string(),
    }
}

/// [`cause_of`] for the IO error that a handshake returns.
pub fn cause_of_io(error: &std::io::Error) -> String {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        Some(tls) => cause_of(tls),
        None => error.to_string(),
    }
}
