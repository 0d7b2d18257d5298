//! Who holds a token.

use std::future::Future;
use std::pin::Pin;

use meltemi_types::{SpiffeError, SpiffeId, TrustDomain};

/// A future that can be a trait object's.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whom a token was made out to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes service account.
    pub service_account: String,
    /// The pod that it is bound to, if it is.
    pub pod: Option<String>,
}

impl Caller {
    /// The identity in a trust domain.
    pub fn identity(&self, trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(trust_domain.clone(), &self.namespace, &self.service_account)
    }
}

/// Why a token tells nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The token is refused; the caller needs another one.
    #[error("token refused: {0}")]
    Refused(String),
    /// The reviewer cannot be asked now; the caller may come again.
    #[error("token cannot be reviewed now: {0}")]
    Unavailable(String),
}

/// Turns a bearer token into a [`Caller`].
pub trait TokenReview: Send + Sync + 'static {
    /// Judges one token. Cancel safe.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, ReviewError>>;
}
