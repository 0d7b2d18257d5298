//! Tokens of a mesh on one machine: ES256 JWTs with the claims of a bound Kubernetes service
//! account token.

use std::path::Path;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use crate::files::write_private;
use crate::review::{BoxFuture, Caller, ReviewError, TokenReview};

/// Claim `iss` of the tokens.
pub const ISSUER: &str = "meltemi";
/// Claim `aud` of the tokens. Source: Istio `TOKEN_AUDIENCES`.
pub const AUDIENCE: &str = "istio-ca";

/// Maximum size of a token in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// Tolerance for `exp` and `nbf`, for clocks that differ.
const LEEWAY_SECONDS: u64 = 10;

/// Why a signer or reviewer cannot be created, or a token cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The key is invalid.
    #[error("token key: {0}")]
    Key(String),
    /// The key file cannot be read or written.
    #[error("token key: {0}")]
    Io(#[from] std::io::Error),
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    exp: u64,
    nbf: u64,
    iat: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Named,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Named>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Named {
    name: String,
}

/// Signs tokens for the workloads of one machine.
pub struct TokenSigner {
    key: EncodingKey,
    public_pem: String,
}

impl TokenSigner {
    /// Creates a signer with a new key that is never written to disk.
    pub fn generate() -> Result<Self, TokenError> {
        Self::from_pair(&KeyPair::generate().map_err(|error| TokenError::Key(error.to_string()))?)
    }

    /// Loads the key from a file (PKCS#8 PEM, mode 0600), or creates it there.
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_pair(
                &KeyPair::from_pem(&text).map_err(|error| TokenError::Key(error.to_string()))?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let pair =
                    KeyPair::generate().map_err(|error| TokenError::Key(error.to_string()))?;
                write_private(path, pair.serialize_pem().as_bytes())?;
                Self::from_pair(&pair)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn from_pair(pair: &KeyPair) -> Result<Self, TokenError> {
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())
            .map_err(|error| TokenError::Key(error.to_string()))?;
        Ok(Self {
            key,
            public_pem: pair.public_key_pem(),
        })
    }

    /// The public key as PEM, for [`JwtTokenReview`].
    pub fn public_key_pem(&self) -> &str {
        &self.public_pem
    }

    /// Signs a token for this caller, valid for `lifetime`. The token is a secret.
    pub fn sign(&self, caller: &Caller, lifetime: Duration) -> Result<String, TokenError> {
        self.sign_at(caller, lifetime, SystemTime::now())
    }

    /// [`TokenSigner::sign`] at a given time.
    pub fn sign_at(
        &self,
        caller: &Caller,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let Caller {
            namespace,
            service_account,
            pod,
        } = caller;

        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();

        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: format!("system:serviceaccount:{namespace}:{service_account}"),
            aud: vec![AUDIENCE.to_owned()],
            exp: now.saturating_add(lifetime.as_secs()),
            nbf: now,
            iat: now,
            kubernetes: Bound {
                namespace: namespace.clone(),
                serviceaccount: Named {
                    name: service_account.clone(),
                },
                pod: pod.clone().map(|name| Named { name }),
            },
        };

        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)
            .map_err(|error| TokenError::Key(error.to_string()))
    }
}

/// Shows the public key's fingerprint, never the private key.
impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "TokenSigner({})",
            meltemi_tls::fingerprint(self.public_pem.as_bytes())
        )
    }
}

/// Verifies tokens of a [`TokenSigner`] by its public key.
pub struct JwtTokenReview {
    key: DecodingKey,
    validation: Validation,
}

impl JwtTokenReview {
    /// Creates a reviewer from the public key (`PUBLIC KEY` in PEM).
    pub fn new(public_key_pem: &str) -> Result<Self, TokenError> {
        let key = DecodingKey::from_ec_pem(public_key_pem.as_bytes())
            .map_err(|error| TokenError::Key(error.to_string()))?;

        // Accept only this algorithm: a token must not choose how it is verified.
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;

        Ok(Self { key, validation })
    }

    fn judge(&self, token: &str) -> Result<Caller, ReviewError> {
        if token.len() > MAX_TOKEN {
            return Err(ReviewError::Refused(format!(
                "longer than {MAX_TOKEN} bytes"
            )));
        }

        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| ReviewError::Refused(error.to_string()))?
            .claims;
        let Bound {
            namespace,
            serviceaccount,
            pod,
        } = claims.kubernetes;

        let subject = format!("system:serviceaccount:{namespace}:{}", serviceaccount.name);
        if claims.sub != subject {
            return Err(ReviewError::Refused(format!(
                "its subject is {:?} but it is bound to {subject:?}",
                claims.sub
            )));
        }

        Ok(Caller {
            namespace,
            service_account: serviceaccount.name,
            pod: pod.map(|pod| pod.name),
        })
    }
}

impl TokenReview for JwtTokenReview {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, ReviewError>> {
        Box::pin(std::future::ready(self.judge(token)))
    }
}
