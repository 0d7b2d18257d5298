//! The CSR API: certificates for whom the caller proved to be, whatever the request says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meltemi_admin_api::CertificateStatus;
use meltemi_ca::{CertificateAuthority, SignError};
use meltemi_proto::ca::{CertificateRequest, CertificateResponse, CertificateService};
use meltemi_tls::{CertificateInfo, certificates_from_pem, info_of};
use meltemi_types::SpiffeId;
use tonic::{Request, Response, Status};

use crate::audit::{Audit, Event, Record};
use crate::auth::{Authenticator, Peer, PeerCertificate};
use crate::caller_limit::CallerLimit;
use crate::clock::{millis_of, now_ms};
use crate::metrics::Metrics;

/// Certificates that a caller gets at once. A node with many replicas of one workload asks for all
/// of them together.
const CSR_BURST: u32 = 100;
/// After this time a caller gets one more.
const CSR_REFILL: Duration = Duration::from_secs(1);

/// How many workloads' newest certificates are remembered for status.
const REMEMBERED: usize = 20_000;

/// The newest certificate of each workload, by identity and address: those that were issued here,
/// and those that proxies show when they connect, since an earlier process of ours, or another
/// control plane, may have issued them.
#[derive(Default)]
pub(crate) struct Issued {
    newest: Mutex<BTreeMap<(String, String), CertificateStatus>>,
}

impl Issued {
    /// Notes an issued certificate.
    fn record(&self, certificate: CertificateStatus) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_ms();
        if newest.len() >= REMEMBERED {
            newest.retain(|_, certificate| certificate.expires_at_ms > now);
        }
        let key = (certificate.identity.clone(), certificate.peer.clone());
        if newest.len() < REMEMBERED || newest.contains_key(&key) {
            newest.insert(key, certificate);
        }
    }

    /// Notes what a proxy showed, unless a later one is known: a stream outlives the certificate
    /// that it began with.
    pub(crate) fn shown(&self, peer: &Peer) {
        let Some(PeerCertificate { identity, info }) = &peer.certificate else {
            return;
        };
        let new = status_of(
            &identity.to_string(),
            &peer.address.ip().to_string(),
            info,
            millis_of(info.not_before),
        );

        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let held = newest
            .get(&(new.identity.clone(), new.peer.clone()))
            .map(|held| held.expires_at_ms);
        drop(newest);

        if held.is_none_or(|held| held < new.expires_at_ms) {
            self.record(new);
        }
    }

    /// Certificates that are still valid.
    pub(crate) fn valid(&self) -> Vec<CertificateStatus> {
        let now = now_ms();
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest
            .values()
            .filter(|certificate| certificate.expires_at_ms > now)
            .cloned()
            .collect()
    }
}

pub(crate) struct Csr {
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) issued: Arc<Issued>,
    pub(crate) limit: Arc<CallerLimit>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl CertificateService for Csr {
    async fn create_certificate(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        self.metrics.csr_count.add(1);
        let peer = request.extensions().get::<Peer>().cloned();
        let address = peer
            .as_ref()
            .map(|peer| peer.address.ip().to_string())
            .unwrap_or_default();

        let authenticated = self
            .authenticator
            .authenticate(peer.as_ref(), request.metadata())
            .await;

        let (identity, pod) = match authenticated {
            Ok(authenticated) => (authenticated.identity, authenticated.pod),
            Err(status) => {
                self.metrics.csr_unauthenticated.add(1);
                self.refused(&address, None, None, status.message());
                return Err(status);
            }
        };

        let Some(identity) = identity else {
            self.metrics.csr_unauthenticated.add(1);
            return Err(Status::unauthenticated(
                "a certificate needs a token or a client certificate",
            ));
        };

        if !self
            .limit
            .admit(&identity.to_string(), &address, Instant::now())
        {
            self.metrics.csr_refused.add(1);
            let why = format!("{identity} asks for too many certificates; there is one a second");
            self.refused(&address, Some(&identity), pod.as_deref(), &why);
            return Err(Status::resource_exhausted(why));
        }

        let request = request.into_inner();
        if let Some(metadata) = &request.metadata
            && let Some(key) = ["ImpersonatedIdentity", "CertSigner"]
                .into_iter()
                .find(|key| metadata.fields.contains_key(*key))
        {
            let why =
                format!("{key} is not offered: a certificate names its caller, signed by the mesh");
            self.refused(&address, Some(&identity), pod.as_deref(), &why);
            return Err(Status::permission_denied(why));
        }

        let ttl = Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or(0));

        match self
            .authority
            .sign(&request.csr, &identity, pod.as_deref(), ttl)
        {
            Ok(cert_chain) => {
                self.metrics.csr_issued.add(1);
                self.remember(&identity, pod.as_deref(), &address, &cert_chain);
                Ok(Response::new(CertificateResponse { cert_chain }))
            }
            Err(error) => {
                self.metrics.csr_refused.add(1);
                let why = error.to_string();
                self.refused(&address, Some(&identity), pod.as_deref(), &why);
                if matches!(error, SignError::ForeignIdentity { .. }) {
                    return Err(Status::permission_denied(why));
                }

                Err(match error.is_callers_fault() {
                    true => Status::invalid_argument(error.to_string()),
                    false => Status::internal(error.to_string()),
                })
            }
        }
    }
}

impl Csr {
    /// The limit on certificates, one for all listeners.
    pub(crate) fn limit() -> CallerLimit {
        CallerLimit::new(CSR_BURST, CSR_REFILL)
    }

    /// Notes that nothing was issued, and why.
    fn refused(&self, peer: &str, identity: Option<&SpiffeId>, pod: Option<&str>, why: &str) {
        self.audit.record(&Record {
            event: Event::CertificateRefused,
            peer,
            identity,
            pod,
            detail: why,
        });
    }

    fn remember(&self, identity: &SpiffeId, pod: Option<&str>, peer: &str, chain: &[String]) {
        let leaf = chain
            .first()
            .and_then(|leaf| certificates_from_pem(leaf.as_bytes()).ok());
        let Some(info) = leaf.and_then(|leaf| info_of(leaf.first()?).ok()) else {
            return;
        };
        self.audit.record(&Record {
            event: Event::CertificateIssued,
            peer,
            identity: Some(identity),
            pod,
            detail: &info.serial,
        });
        self.issued
            .record(status_of(&identity.to_string(), peer, &info, now_ms()));
    }
}

fn status_of(
    identity: &str,
    peer: &str,
    info: &CertificateInfo,
    issued_at_ms: u64,
) -> CertificateStatus {
    CertificateStatus {
        identity: identity.to_owned(),
        peer: peer.to_owned(),
        serial: info.serial.clone(),
        sha256: info.sha256.clone(),
        issued_at_ms,
        expires_at_ms: millis_of(info.not_after),
    }
}
