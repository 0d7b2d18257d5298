//! The workload's certificate: fetched, and fetched again at half of its life.
//!
//! Keys are made here and never leave the process but for the local SDS socket. A failure never
//! takes the old certificate away: it stays in the store until a better one replaces it, even
//! beyond its time.

mod rotation;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use meltemi_tls::{
    CertificateInfo, DEFAULT_SECRET, Identity, ROOT_SECRET, Secret, SecretStore, TrustBundle,
    certificates_from_pem, key_from_pem, verify_workload,
};
use meltemi_types::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

use crate::{AgentMetrics, BoxFuture};
pub use rotation::{Rotation, retry_delay};

/// Why a CA gives no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// It does not answer, or cannot now.
    #[error("{0}")]
    Unreachable(String),
    /// It answers no.
    #[error("refused: {0}")]
    Refused(String),
    /// It answers with something that is no certificate for us.
    #[error("unusable answer: {0}")]
    Unusable(String),
}

/// Whoever turns a request into a chain: leaf first, roots as the last element.
pub trait CertificateSource: Send + Sync + 'static {
    /// One attempt, bounded in time. Cancel safe.
    fn fetch<'a>(
        &'a self,
        csr_pem: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, FetchError>>;
}

/// Time, so that tests can have their own.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock: certificates speak of nothing else.
    fn now(&self) -> SystemTime;
    /// Waits.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// What is asked for, and when again.
#[derive(Debug, Clone)]
pub struct IdentityOptions {
    /// Who we are; an answer for anybody else is refused.
    pub identity: SpiffeId,
    /// Requested lifetime. Source: Istio `SECRET_TTL`, 24 h.
    pub ttl: Duration,
    /// When to rotate.
    pub rotation: Rotation,
}

impl IdentityOptions {
    /// Istio's defaults.
    pub fn new(identity: SpiffeId) -> Self {
        Self {
            identity,
            ttl: Duration::from_secs(24 * 3600),
            rotation: Rotation::default(),
        }
    }
}

/// What can be said of the certificate now; for `/certs`, readiness and logs.
#[derive(Debug, Clone, Default)]
pub struct IdentityState {
    /// The certificate in use.
    pub certificate: Option<CertificateInfo>,
    /// How often one was obtained.
    pub issued: u64,
    /// Attempts that failed since the last one that did not.
    pub failures: u32,
    /// What the last failed attempt said; cleared by success.
    pub last_error: Option<String>,
    /// When the next attempt is due.
    pub next_attempt: Option<SystemTime>,
}

/// Keeps the secrets `default` and `ROOTCA` of a store.
pub struct IdentityAgent {
    options: IdentityOptions,
    source: Arc<dyn CertificateSource>,
    clock: Arc<dyn Clock>,
    secrets: SecretStore,
    metrics: AgentMetrics,
    state: Arc<Mutex<IdentityState>>,
}

impl IdentityAgent {
    /// Nothing happens before [`IdentityAgent::run`].
    pub fn new(
        options: IdentityOptions,
        source: Arc<dyn CertificateSource>,
        clock: Arc<dyn Clock>,
        secrets: SecretStore,
        metrics: AgentMetrics,
    ) -> Self {
        Self {
            options,
            source,
            clock,
            secrets,
            metrics,
            state: Arc::default(),
        }
    }

    /// Follows what happens.
    pub fn state(&self) -> IdentityView {
        IdentityView(self.state.clone())
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        loop {
            let asked = self.clock.now();
            let outcome = self.attempt().await;
            let now = self.clock.now();
            let due = match outcome {
                Ok(identity) => {
                    let delay = self
                        .options
                        .rotation
                        .delay(now, identity.not_after(), random());

                    tracing::info!(
                        serial = %identity.info().serial, sha256 = %&identity.info().sha256[..16],
                        identity = %self.options.identity, rotation_in = ?delay, "certificate obtained"
                    );

                    self.update(|state| {
                        state.certificate = Some(identity.info().clone());
                        state.issued += 1;
                        (state.failures, state.last_error) = (0, None);
                    });

                    now + delay
                }
                Err(error) => {
                    self.metrics.csr_failures.add_shared(1);
                    let failures = self.update(|state| {
                        state.failures = state.failures.saturating_add(1);
                        state.last_error = Some(error.to_string());
                        state.failures
                    });
                    let delay = retry_delay(failures, self.left(now), random());
                    tracing::warn!(%error, failures, took = ?now.duration_since(asked).unwrap_or_default(), retry_in = ?delay, "no certificate");
                    now + delay
                }
            };

            self.update(|state| state.next_attempt = Some(due));
            self.wait_until(due).await;
        }
    }

    /// In slices: the monotonic clock stands still while a laptop sleeps, the certificate's time
    /// does not.
    async fn wait_until(&self, due: SystemTime) {
        const SLICE: Duration = Duration::from_secs(30);

        loop {
            let now = self.clock.now();
            if self
                .secrets
                .get(DEFAULT_SECRET)
                .is_some_and(|secret| secret.identity.is_some())
            {
                self.metrics
                    .cert_expiry
                    .set(i64::try_from(self.left(now).as_secs()).unwrap_or(i64::MAX));
            }

            match due.duration_since(now) {
                Ok(left) if !left.is_zero() => self.clock.sleep(left.min(SLICE)).await,
                _ => return,
            }
        }
    }

    /// How long the certificate in use is good for; zero if there is none.
    fn left(&self, now: SystemTime) -> Duration {
        let identity = self
            .secrets
            .get(DEFAULT_SECRET)
            .and_then(|secret| secret.identity.clone());
        identity
            .and_then(|identity| identity.not_after().duration_since(now).ok())
            .unwrap_or_default()
    }

    /// One request, from a new key to the store.
    async fn attempt(&self) -> Result<Identity, FetchError> {
        self.metrics.csr_requests.add_shared(1);
        let (key_pem, csr_pem) = request(&self.options.identity)?;
        let chain = self.source.fetch(&csr_pem, self.options.ttl).await?;
        let (identity, trust) = accept(&self.options.identity, &chain, &key_pem, self.clock.now())?;
        // Roots first: a peer that is verified with the new certificate's roots must find them.
        self.secrets.set(ROOT_SECRET, Secret::trust(trust));
        self.secrets
            .set(DEFAULT_SECRET, Secret::identity(identity.clone()));
        Ok(identity)
    }

    fn update<T>(&self, change: impl FnOnce(&mut IdentityState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A look at the state of an [`IdentityAgent`].
#[derive(Debug, Clone)]
pub struct IdentityView(Arc<Mutex<IdentityState>>);

impl IdentityView {
    /// As it is now.
    pub fn get(&self) -> IdentityState {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A new ECDSA P-256 key and the request for it.
fn request(identity: &SpiffeId) -> Result<(String, String), FetchError> {
    let failed = |error: rcgen::Error| FetchError::Unusable(format!("making a key: {error}"));
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();

    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(
        identity.to_string().try_into().map_err(failed)?,
    )];
    let csr = params
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .map_err(failed)?;

    Ok((key.serialize_pem(), csr))
}

/// An answer counts only if a peer would accept it as ours.
fn accept(
    expected: &SpiffeId,
    chain: &[String],
    key_pem: &str,
    now: SystemTime,
) -> Result<(Identity, TrustBundle), FetchError> {
    let unusable = |error: &dyn std::fmt::Display| FetchError::Unusable(error.to_string());
    let [links @ .., roots] = chain else {
        return Err(unusable(&"it is empty"));
    };
    let links =
        certificates_from_pem(links.concat().as_bytes()).map_err(|error| unusable(&error))?;
    let key = key_from_pem(key_pem.as_bytes()).map_err(|error| unusable(&error))?;
    let trust = TrustBundle::from_pem(roots.as_bytes()).map_err(|error| unusable(&error))?;
    let identity = Identity::new(links, key).map_err(|error| unusable(&error))?;

    match identity.spiffe() {
        Some(id) if id == expected => {}
        _ => {
            return Err(unusable(&format_args!(
                "asked for {expected}, got {}",
                identity.info().names()
            )));
        }
    }

    verify_workload(identity.chain(), &trust, now).map_err(|error| unusable(&error))?;

    Ok((identity, trust))
}

/// Good enough to spread rotations; no use for secrets.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
