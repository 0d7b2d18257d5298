//! Reads certificate requests: verifies the proof of possession and the key's strength, and
//! compares names with the caller's identity.

use meltemi_types::{SpiffeId, TrustDomain};
use rcgen::{CertificateSigningRequestParams, PublicKeyData, SanType};

/// Maximum size of a request in bytes.
const MAX_PEM: usize = 16 * 1024;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The text is not a PKCS#10 request in PEM, or its signature does not match its key.
    #[error("certificate request: {0}")]
    Request(String),
    /// The key is too weak, or too large to verify cheaply.
    #[error("certificate request: {0}; use ECDSA P-256 or P-384, or RSA with 2048 to 8192 bits")]
    Key(String),
    /// The request names another identity than the caller's. Worth an audit event.
    #[error("the caller is {caller} but asks for a certificate of {asked}")]
    ForeignIdentity {
        /// The caller's authenticated identity.
        caller: String,
        /// The identity in the request.
        asked: String,
    },
    /// The identity is of another trust domain.
    #[error("identity {identity} is not of this authority's trust domain {ours}")]
    TrustDomain {
        identity: String,
        /// The authority's.
        ours: String,
    },
    /// The issuing certificate has expired.
    #[error("the issuing certificate {issuer:?} has expired; replace it")]
    Expired {
        /// Its subject.
        issuer: String,
    },
    /// The crypto library refuses.
    #[error("signing: {0}")]
    Crypto(String),
}

impl SignError {
    /// Whether the caller is at fault, so that a retry is useless.
    pub fn is_callers_fault(&self) -> bool {
        matches!(
            self,
            Self::Request(_)
                | Self::Key(_)
                | Self::ForeignIdentity { .. }
                | Self::TrustDomain { .. }
        )
    }
}

/// Checks a request of the authenticated `identity` and returns its public key.
pub(crate) fn read_request(
    csr_pem: &str,
    identity: &SpiffeId,
) -> Result<impl PublicKeyData, SignError> {
    if csr_pem.len() > MAX_PEM {
        return Err(SignError::Request(format!(
            "{} bytes are more than the limit of {MAX_PEM}",
            csr_pem.len()
        )));
    }

    let csr = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|error| SignError::Request(error.to_string()))?;
    for name in &csr.params.subject_alt_names {
        let SanType::URI(uri) = name else { continue };

        // Names that are not SPIFFE IDs are ignored, like all names of a request. An agent may not
        // know the mesh's trust domain, and then names Istio's default.
        let Ok(asked) = uri.as_str().parse::<SpiffeId>() else {
            continue;
        };
        let is_own_domain = asked.trust_domain() == identity.trust_domain()
            || *asked.trust_domain() == TrustDomain::default();
        if !is_own_domain
            || (asked.namespace(), asked.service_account())
                != (identity.namespace(), identity.service_account())
        {
            return Err(SignError::ForeignIdentity {
                caller: identity.to_string(),
                asked: asked.to_string(),
            });
        }
    }

    let bits = csr.public_key.der_bytes().len() * 8;
    let rsa = [
        &rcgen::PKCS_RSA_SHA256,
        &rcgen::PKCS_RSA_SHA384,
        &rcgen::PKCS_RSA_SHA512,
    ];

    // The DER encoding is slightly longer than the modulus, so the upper bound has some slack.
    if rsa.contains(&csr.public_key.algorithm()) && !(2048..=8192 + 256).contains(&bits) {
        return Err(SignError::Key(format!("an RSA key of about {bits} bits")));
    }

    Ok(csr.public_key)
}
