//! Obtains the workload's certificate and renews it at half of its lifetime.
//!
//! Private keys are generated here and leave the process only over the local SDS socket. After a
//! failure the old certificate stays in the store, even beyond its expiry, until a new one replaces
//! it.

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

/// Why a certificate could not be obtained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The CA does not answer, or failed for a reason that may pass.
    #[error("{0}")]
    Unreachable(String),
    /// The CA refused the request: wrong credential or wrong request.
    #[error("refused: {0}")]
    Refused(String),
    /// The CA's answer is not a valid certificate for this identity and key.
    #[error("unusable answer: {0}")]
    Unusable(String),
}

/// A CA client.
pub trait CertificateSource: Send + Sync + 'static {
    /// Sends one certificate request, with a time limit. Returns PEM texts: leaf first,
    /// intermediates, and the roots as the last element. Cancellation safe.
    fn fetch<'a>(
        &'a self,
        csr_pem: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, FetchError>>;
}

/// The clock, replaced in tests.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock, by which certificates expire.
    fn now(&self) -> SystemTime;
    /// Waits by the monotonic clock, which stops while the machine is suspended.
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

/// The certificate to request, and when to renew it.
#[derive(Debug, Clone)]
pub struct IdentityOptions {
    /// The workload's SPIFFE ID. A certificate for another ID is not used.
    pub identity: SpiffeId,
    /// Requested lifetime. Istio's `SECRET_TTL`: 24 h.
    pub ttl: Duration,
    /// When to renew.
    pub rotation: Rotation,
}

impl IdentityOptions {
    /// Istio's defaults: 24 h, renewed at half of the lifetime.
    pub fn new(identity: SpiffeId) -> Self {
        Self {
            identity,
            ttl: Duration::from_secs(24 * 3600),
            rotation: Rotation::default(),
        }
    }
}

/// State of the certificate, for `/certs`, readiness and logs.
#[derive(Debug, Clone, Default)]
pub struct IdentityState {
    /// The current certificate.
    pub certificate: Option<CertificateInfo>,
    /// Number of certificates obtained since the start.
    pub issued: u64,
    /// Number of failed attempts since the last success.
    pub failures: u32,
    /// Error of the last attempt; `None` after a success.
    pub last_error: Option<String>,
    /// Time of the next attempt.
    pub next_attempt: Option<SystemTime>,
}

/// The task that keeps the secrets `default` (certificate and key) and `ROOTCA` (roots) of a store
/// current.
pub struct IdentityAgent {
    options: IdentityOptions,
    source: Arc<dyn CertificateSource>,
    clock: Arc<dyn Clock>,
    secrets: SecretStore,
    metrics: AgentMetrics,
    state: Arc<Mutex<IdentityState>>,
}

impl IdentityAgent {
    /// Creates the task; [`IdentityAgent::run`] starts it.
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

    /// A view of the state, valid for as long as the agent runs and after.
    pub fn state(&self) -> IdentityView {
        IdentityView(self.state.clone())
    }

    /// Obtains and renews the certificate until the future is dropped.
    pub async fn run(self) {
        loop {
            let started = self.clock.now();
            let outcome = self.obtain().await;
            let now = self.clock.now();

            let delay = match outcome {
                Ok(identity) => self.record_success(&identity, now),
                Err(error) => {
                    let took = now.duration_since(started).unwrap_or_default();
                    self.record_failure(&error, now, took)
                }
            };

            let due = now + delay;
            self.update(|state| state.next_attempt = Some(due));
            self.wait_until(due).await;
        }
    }

    /// Returns the delay until the renewal.
    fn record_success(&self, identity: &Identity, now: SystemTime) -> Duration {
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

        delay
    }

    /// Returns the delay until the next attempt.
    fn record_failure(&self, error: &FetchError, now: SystemTime, took: Duration) -> Duration {
        self.metrics.csr_failures.add_shared(1);
        let failures = self.update(|state| {
            state.failures = state.failures.saturating_add(1);
            state.last_error = Some(error.to_string());
            state.failures
        });

        let delay = retry_delay(failures, self.remaining(now), random());
        tracing::warn!(%error, failures, ?took, retry_in = ?delay, "no certificate");

        delay
    }

    /// Waits until `due` by the wall clock, which is checked every 30 s: timers stop while the
    /// machine is suspended, but the certificate still expires.
    async fn wait_until(&self, due: SystemTime) {
        const CLOCK_CHECK: Duration = Duration::from_secs(30);

        loop {
            let now = self.clock.now();
            if self
                .secrets
                .get(DEFAULT_SECRET)
                .is_some_and(|secret| secret.identity.is_some())
            {
                self.metrics
                    .cert_expiry
                    .set(i64::try_from(self.remaining(now).as_secs()).unwrap_or(i64::MAX));
            }

            match due.duration_since(now) {
                Ok(left) if !left.is_zero() => self.clock.sleep(left.min(CLOCK_CHECK)).await,
                _ => return,
            }
        }
    }

    /// Remaining validity of the current certificate; zero if it expired or there is none.
    fn remaining(&self, now: SystemTime) -> Duration {
        let identity = self
            .secrets
            .get(DEFAULT_SECRET)
            .and_then(|secret| secret.identity.clone());
        identity
            .and_then(|identity| identity.not_after().duration_since(now).ok())
            .unwrap_or_default()
    }

    /// Generates a key, requests a certificate, checks it and stores it.
    async fn obtain(&self) -> Result<Identity, FetchError> {
        self.metrics.csr_requests.add_shared(1);
        let (key_pem, csr_pem) = new_request(&self.options.identity)?;
        let chain = self.source.fetch(&csr_pem, self.options.ttl).await?;
        let (identity, trust) =
            verified_identity(&self.options.identity, &chain, &key_pem, self.clock.now())?;

        // Roots first: once peers see the new certificate they may present one of the same CA,
        // which only the new roots verify.
        self.secrets.set(ROOT_SECRET, Secret::trust(trust));
        self.secrets
            .set(DEFAULT_SECRET, Secret::identity(identity.clone()));
        Ok(identity)
    }

    fn update<T>(&self, change: impl FnOnce(&mut IdentityState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A read-only view of the state of an [`IdentityAgent`].
#[derive(Debug, Clone)]
pub struct IdentityView(Arc<Mutex<IdentityState>>);

impl IdentityView {
    /// A copy of the current state.
    pub fn get(&self) -> IdentityState {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Generates an ECDSA P-256 key and a certificate request for it; returns both as PEM.
fn new_request(identity: &SpiffeId) -> Result<(String, String), FetchError> {
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

/// Parses the CA's answer and verifies it as a peer would: the key matches, the SPIFFE ID is ours,
/// and the chain leads to the roots.
fn verified_identity(
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

/// A random number to spread renewals over time. Not for secrets.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
