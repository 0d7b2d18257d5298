//! Certificate requests: proof of possession and key strength are checked, names are only compared.

use meltemi_types::SpiffeId;
use rcgen::{CertificateSigningRequestParams, PublicKeyData, SanType};

/// A request with more text than this is not parsed.
const MAX_PEM: usize = 16 * 1024;

/// Why a request gets no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Not a PKCS#10 request in PEM, or its signature is not made with its key.
    #[error("certificate request: {0}")]
    Request(String),
    /// A key that is too weak, or too large to verify cheaply.
    #[error("certificate request: {0}; use ECDSA P-256 or P-384, or RSA with 2048 to 8192 bits")]
    Key(String),
    /// The request names somebody else. Worth an audit event.
    #[error("the caller is {caller} but asks for a certificate of {asked}")]
    ForeignIdentity {
        /// Whom the caller proved to be.
        caller: String,
        /// Whom the request names.
        asked: String,
    },
    /// The identity is of another trust domain.
    #[error("identity {identity} is not of this authority's trust domain {ours}")]
    TrustDomain {
        /// The identity.
        identity: String,
        /// The authority's.
        ours: String,
    },
    /// The issuing certificate has run out.
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
    /// Whether the caller is at fault, so that asking again is of no use.
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

/// The key of a request whose sender proved to be `identity`.
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

        // Agents may not know the mesh's trust domain, so only namespace and account are compared;
        // a name that is no SPIFFE identity is ignored, as every name of a request is.
        let Ok(asked) = uri.as_str().parse::<SpiffeId>() else {
            continue;
        };
        if (asked.namespace(), asked.service_account())
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

    // The encoding adds a few bytes to the modulus, so these bounds are a little wide.
    if rsa.contains(&csr.public_key.algorithm()) && !(2048..=8192 + 256).contains(&bits) {
        return Err(SignError::Key(format!("an RSA key of about {bits} bits")));
    }

    Ok(csr.public_key)
}
