//! The interface that turns a token into the caller that it was issued to.

use std::future::Future;
use std::pin::Pin;

use meltemi_types::{SpiffeError, SpiffeId, TrustDomain};

/// A boxed future, as methods of trait objects return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The workload that a token was issued to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes service account.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: Option<String>,
}

impl Caller {
    /// The caller's SPIFFE ID in a trust domain.
    pub fn identity(&self, trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(trust_domain.clone(), &self.namespace, &self.service_account)
    }
}

/// Why a token does not identify a caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The token is invalid; the caller needs another one.
    #[error("token refused: {0}")]
    Refused(String),
    /// The token cannot be verified now; the caller may retry.
    #[error("token cannot be reviewed now: {0}")]
    Unavailable(String),
}

/// Turns a bearer token into a [`Caller`].
pub trait TokenReview: Send + Sync + 'static {
    /// Verifies one token. Cancellation safe.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, ReviewError>>;
}
