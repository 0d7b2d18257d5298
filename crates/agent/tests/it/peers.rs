//! A control plane in the small: mutual TLS or token, the CSR API, and discovery that serves one
//! name table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use meltemi_agent::{ControlPlane, ControlPlaneOptions, Token};
use meltemi_ca::{Caller, CertificateAuthority, JwtTokenReview, TokenReview, TokenSigner};
use meltemi_proto::ca::{
    CertificateRequest, CertificateResponse, CertificateService, CertificateServiceServer,
};
use meltemi_proto::istio::{NameInfo, NameTable};
use meltemi_proto::{pack, type_url};
use meltemi_tls::{ClientAuth, SecretStore, ServerTerms, peer_spiffe, server_config};
use meltemi_types::{SpiffeId, TrustDomain};
use meltemi_xds::{AdsServer, Feed, Observer, Opening, ResourceSet, Source, Verdict};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::server::Connected;
use tonic::{Extensions, Request, Response, Status};

pub(crate) const SERVER_NAME: &str = "istiod.istio-system.svc";

/// How each certificate was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    Token,
    Certificate,
}

pub(crate) struct Peers {
    pub(crate) authority: Arc<CertificateAuthority>,
    signer: TokenSigner,
    folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) csr: Arc<Csr>,
    pub(crate) resources: watch::Sender<Option<Arc<ResourceSet>>>,
    /// Node ids of discovery streams, in order.
    pub(crate) nodes: Arc<Mutex<Vec<String>>>,
    /// Of its own, so that stopping it ends every connection, as the end of a process would.
    server: Option<tokio::runtime::Runtime>,
}

pub(crate) fn sleep_id() -> SpiffeId {
    "spiffe://cluster.local/ns/default/sa/sleep"
        .parse()
        .expect("an identity")
}

impl Peers {
    pub(crate) async fn start() -> Self {
        let authority =
            Arc::new(CertificateAuthority::in_memory(TrustDomain::default()).expect("authority"));
        let signer = TokenSigner::generate().expect("signer");
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("root-cert.pem"), authority.roots_pem())
            .expect("written");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let csr = Arc::new(Csr {
            authority: authority.clone(),
            review: JwtTokenReview::new(signer.public_key_pem()).expect("reviewer"),
            ttl: Mutex::new(None),
            now: Mutex::new(None),
            failing: Mutex::new(None),
            proofs: Mutex::default(),
        });

        let (resources, nodes) = (watch::Sender::new(None), Arc::new(Mutex::default()));
        let address = listener.local_addr().expect("bound");
        let server = serve(
            listener,
            authority.clone(),
            csr.clone(),
            resources.clone(),
            nodes.clone(),
        );

        Self {
            authority,
            signer,
            folder,
            address,
            csr,
            resources,
            nodes,
            server: Some(server),
        }
    }

    /// As if the control plane had been stopped: the port refuses.
    pub(crate) fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }

    /// On the same port again.
    pub(crate) async fn restart(&mut self) {
        let listener = until("the port is free", async || {
            std::net::TcpListener::bind(self.address).ok()
        })
        .await;

        self.server = Some(serve(
            listener,
            self.authority.clone(),
            self.csr.clone(),
            self.resources.clone(),
            self.nodes.clone(),
        ));
    }

    pub(crate) fn token(&self) -> String {
        self.token_made(SystemTime::now())
    }

    /// A token for an hour from then on.
    pub(crate) fn token_made(&self, at: SystemTime) -> String {
        let caller = Caller {
            namespace: "default".into(),
            service_account: "sleep".into(),
            pod: Some("sleep-1".into()),
        };
        self.signer
            .sign_at(&caller, Duration::from_secs(3600), at)
            .expect("token")
    }

    pub(crate) fn options(&self) -> ControlPlaneOptions {
        ControlPlaneOptions {
            address: self.address.to_string(),
            server_name: SERVER_NAME.into(),
            roots: self.folder.path().join("root-cert.pem"),
            token: Some(Token::Text(self.token().into())),
            mark: None,
            cluster_id: "Kubernetes".into(),
        }
    }

    pub(crate) fn control_plane(&self, secrets: &SecretStore) -> ControlPlane {
        ControlPlane::new(self.options(), secrets.clone())
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    pub(crate) fn serve_names(&self, version: &str, names: &[(&str, &str)]) {
        let table = names
            .iter()
            .map(|(host, ip)| {
                (
                    (*host).to_owned(),
                    NameInfo {
                        ips: vec![(*ip).to_owned()],
                        ..NameInfo::default()
                    },
                )
            })
            .collect();

        let mut set = ResourceSet::new();
        set.insert(
            type_url::NAME_TABLE,
            "names",
            version,
            pack(&NameTable { table }),
        );

        self.resources.send_replace(Some(Arc::new(set)));
    }
}

fn serve(
    listener: std::net::TcpListener,
    authority: Arc<CertificateAuthority>,
    csr: Arc<Csr>,
    resources: watch::Sender<Option<Arc<ResourceSet>>>,
    nodes: Arc<Mutex<Vec<String>>>,
) -> tokio::runtime::Runtime {
    let identity = authority
        .server_identity(&[SERVER_NAME.into()], &[], Duration::ZERO)
        .expect("issued");
    let terms = ServerTerms {
        alpn: vec!["h2".into()],
        client_auth: ClientAuth::Optional,
        ..ServerTerms::default()
    };

    let config =
        server_config(&terms, &identity, Some(&authority.trust().expect("roots"))).expect("terms");
    let acceptor = TlsAcceptor::from(config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");

    runtime.spawn(async move {
        listener.set_nonblocking(true).expect("non-blocking");
        let listener = TcpListener::from_std(listener).expect("registered");
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let source = Arc::new(NameSource { resources, nodes });
        let server = tonic::transport::Server::builder()
            .add_service(CertificateServiceServer::new(Shared(csr)))
            .add_service(AdsServer::service(
                source,
                meltemi_xds::ServerTerms::default(),
            ))
            .serve_with_incoming(ReceiverStream::new(receiver));

        let mut handshakes = tokio::task::JoinSet::new();
        let accept = async {
            loop {
                let (tcp, _) = listener.accept().await.expect("accepts");
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                handshakes.spawn(async move {
                    if let Ok(stream) = acceptor.accept(tcp).await {
                        let peer = stream
                            .get_ref()
                            .1
                            .peer_certificates()
                            .and_then(|chain| peer_spiffe(chain).ok());
                        let _ = sender.send(std::io::Result::Ok(Tls { stream, peer })).await;
                    }
                });
            }
        };

        tokio::select! {
            served = server => served.expect("serves"),
            () = accept => {}
        }
    });

    runtime
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) struct Csr {
    authority: Arc<CertificateAuthority>,
    review: JwtTokenReview,
    /// What is issued, whatever is asked for.
    pub(crate) ttl: Mutex<Option<Duration>>,
    /// The CA's clock, where it is not the machine's.
    pub(crate) now: Mutex<Option<SystemTime>>,
    /// The answer, if it shall be an error.
    pub(crate) failing: Mutex<Option<Status>>,
    pub(crate) proofs: Mutex<Vec<Proof>>,
}

struct Shared(Arc<Csr>);

#[derive(Clone)]
struct PeerId(Option<SpiffeId>);

#[tonic::async_trait]
impl CertificateService for Shared {
    async fn create_certificate(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        let this = &self.0;
        if let Some(status) = this.failing.lock().expect("lock").clone() {
            return Err(status);
        }
        let (identity, proof) = match request
            .extensions()
            .get::<PeerId>()
            .and_then(|peer| peer.0.clone())
        {
            Some(identity) => (identity, Proof::Certificate),
            None => {
                let header = request
                    .metadata()
                    .get("authorization")
                    .ok_or_else(|| Status::unauthenticated("no proof"))?;

                let token = header
                    .to_str()
                    .ok()
                    .and_then(|text| text.strip_prefix("Bearer "))
                    .unwrap_or_default();

                let caller = this
                    .review
                    .review(token)
                    .await
                    .map_err(|error| Status::unauthenticated(error.to_string()))?;

                (
                    caller
                        .identity(&TrustDomain::default())
                        .expect("an identity"),
                    Proof::Token,
                )
            }
        };

        this.proofs.lock().expect("lock").push(proof);
        let request = request.into_inner();
        let asked = Duration::from_secs(request.validity_duration.unsigned_abs());
        let ttl = this.ttl.lock().expect("lock").unwrap_or(asked);
        let now = this
            .now
            .lock()
            .expect("lock")
            .unwrap_or_else(SystemTime::now);

        let chain = this
            .authority
            .sign_at(&request.csr, &identity, None, ttl, now)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;

        Ok(Response::new(CertificateResponse { cert_chain: chain }))
    }
}

struct NameSource {
    resources: watch::Sender<Option<Arc<ResourceSet>>>,
    nodes: Arc<Mutex<Vec<String>>>,
}

struct Deaf;

impl Observer for Deaf {
    fn sent(&mut self, _: &str, _: usize, _: usize, _: usize) {}
    fn verdict(&mut self, _: &Verdict) {}
}

#[tonic::async_trait]
impl Source for NameSource {
    async fn admit(
        &self,
        metadata: &MetadataMap,
        extensions: &mut Extensions,
    ) -> Result<(), Status> {
        let is_known = extensions
            .get::<PeerId>()
            .is_some_and(|peer| peer.0.is_some());
        match is_known || metadata.get("authorization").is_some() {
            true => Ok(()),
            false => Err(Status::unauthenticated("no proof")),
        }
    }

    async fn open(&self, opening: Opening) -> Result<Feed, Status> {
        self.nodes.lock().expect("lock").push(opening.node.id);
        Ok(Feed {
            resources: self.resources.subscribe(),
            observer: Box::new(Deaf),
        })
    }
}

struct Tls {
    stream: TlsStream<TcpStream>,
    peer: Option<SpiffeId>,
}

impl Connected for Tls {
    type ConnectInfo = PeerId;
    fn connect_info(&self) -> PeerId {
        PeerId(self.peer.clone())
    }
}

impl tokio::io::AsyncRead for Tls {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl tokio::io::AsyncWrite for Tls {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Polls until it holds; a test that waits in vain fails after ten seconds.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };

    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap_or_else(|_| panic!("in vain: {what}"))
}

pub(crate) fn no_annotations() -> BTreeMap<String, String> {
    BTreeMap::new()
}
