//! Serves certificates and roots to Envoy over SDS on a local socket, in the delta and the
//! state-of-the-world variant.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::Stream;
use meltemi_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use meltemi_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as SecretResource, TlsCertificate,
    secret::Type as SecretType,
};
use meltemi_proto::{pack, type_url};
use meltemi_tls::{DEFAULT_SECRET, Secret, SecretStore, sha256_hex};
use meltemi_xds::{DeltaSession, ResourceSet, ServerSession, SotwSession, Verdict};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The secret discovery service that Envoy connects to.
pub struct SdsServer {
    secrets: SecretStore,
}

type Outbound<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

impl SdsServer {
    /// Creates the gRPC service for every secret of the store. Streams get their first answer when
    /// the workload has its certificate.
    pub fn service(secrets: SecretStore) -> SecretDiscoveryServiceServer<Self> {
        SecretDiscoveryServiceServer::new(Self { secrets })
    }

    fn start<S: ServerSession>(
        &self,
        inbound: Streaming<S::Request>,
    ) -> Response<Outbound<S::Response>> {
        let (outbound, receiver) = mpsc::channel(1);
        tokio::spawn(serve_stream::<S>(self.secrets.clone(), inbound, outbound));
        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SdsServer {
    type DeltaSecretsStream = Outbound<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Outbound<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(self.start::<DeltaSession>(request.into_inner()))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(self.start::<SotwSession>(request.into_inner()))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets come over a stream"))
    }
}

/// Serves one stream until the client closes it.
async fn serve_stream<S: ServerSession>(
    secrets: SecretStore,
    mut inbound: Streaming<S::Request>,
    outbound: mpsc::Sender<Result<S::Response, Status>>,
) {
    let session = Mutex::new(S::new());
    let lock = || session.lock().unwrap_or_else(PoisonError::into_inner);
    // Files are read again for as long as somebody watches them.
    let mut watched = BTreeMap::new();
    let mut changes = secrets.changes();
    changes.mark_changed();

    loop {
        tokio::select! {
            biased;
            message = inbound.message() => match message {
                Ok(Some(request)) => {
                    // A name that is a file is read when it is first watched, which wakes
                    // `changes` below.
                    for name in S::names(&request) {
                        let watch = || secrets.watch(name);
                        watched.entry(name.clone()).or_insert_with(watch);
                    }
                    let taken = lock().on_request(request);
                    match taken {
                        Ok(Some(Verdict::Nacked { names, reason, .. })) => tracing::warn!(?names, %reason, "sds: refused by the proxy"),
                        Ok(_) => {}
                        Err(error) => {
                            let _ = outbound.send(Err(Status::invalid_argument(error.to_string()))).await;
                            return;
                        }
                    }
                }
                Ok(None) | Err(_) => return,
            },
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                // Without a certificate, send nothing: an answer without the secret would make
                // Envoy give up on it.
                if secrets.get(DEFAULT_SECRET).is_some() {
                    lock().set_resources(Arc::new(sds_resources(&secrets)));
                }
            }
            sent = send_next(&session, &outbound) => if sent.is_none() {
                return;
            }
        }
    }
}

/// Sends the next response. If there is none, waits until the client leaves; returns `None` then.
/// Cancellation safe.
async fn send_next<S: ServerSession>(
    session: &Mutex<S>,
    outbound: &mpsc::Sender<Result<S::Response, Status>>,
) -> Option<()> {
    let place = outbound.reserve().await.ok()?;
    let next = session
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .next_response();

    match next {
        Some(response) => {
            place.send(Ok(response));
            Some(())
        }
        None => {
            drop(place);
            outbound.closed().await;
            None
        }
    }
}

/// Every secret of the store as an SDS resource. Versions are hashes of certificates, never of
/// private keys.
pub fn sds_resources(secrets: &SecretStore) -> ResourceSet {
    let mut set = ResourceSet::new();
    for name in secrets.names() {
        let Some(secret) = secrets.get(&name) else {
            continue;
        };
        if let Some((resource, version)) = resource(&name, &secret) {
            set.insert(type_url::SECRET, name, version, pack(&resource));
        }
    }

    set
}

fn resource(name: &str, secret: &Secret) -> Option<(SecretResource, String)> {
    let inline = |text: String| {
        Some(DataSource {
            specifier: Some(Specifier::InlineBytes(text.into_bytes())),
            ..DataSource::default()
        })
    };

    let (kind, version) = match (&secret.identity, &secret.trust) {
        (Some(identity), _) => {
            let chain = identity.chain_pem();
            let version = sha256_hex(chain.as_bytes());
            let certificate = TlsCertificate {
                certificate_chain: inline(chain),
                private_key: inline(identity.key_pem()),
                ..TlsCertificate::default()
            };
            (SecretType::TlsCertificate(certificate), version)
        }
        (None, Some(trust)) => {
            let roots = trust.to_pem();
            let version = sha256_hex(roots.as_bytes());
            let context = CertificateValidationContext {
                trusted_ca: inline(roots),
                ..CertificateValidationContext::default()
            };
            (SecretType::ValidationContext(context), version)
        }
        (None, None) => return None,
    };

    Some((
        SecretResource {
            name: name.to_owned(),
            r#type: Some(kind),
        },
        version,
    ))
}
