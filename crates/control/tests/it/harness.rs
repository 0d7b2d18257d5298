//! A control plane with its files, and clients of it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use meltemi_admin_api::Client as Admin;
use meltemi_ca::{Caller, CertificateAuthority, JwtTokenReview, TokenSigner};
use meltemi_control::{ControlOptions, ControlPlane};
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::google::protobuf::Struct;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use meltemi_proto::value_of;
use meltemi_store::World;
use meltemi_tls::{ClientTerms, Identity, ServerRule, TrustBundle};
use meltemi_types::TrustDomain;
use meltemi_xds::{
    Backoff, BoxError, Client, ClientConfig, ClientEvent, ClientHandle, Connection, Subscription,
    Update, Variant,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::PATIENCE;

pub struct Mesh {
    folder: tempfile::TempDir,
    signer: TokenSigner,
    authority: Arc<CertificateAuthority>,
    control: ControlPlane,
}

pub struct Proxy {
    pub handle: ClientHandle,
    pub events: mpsc::Receiver<ClientEvent>,
}

fn options(
    folder: &Path,
    signer: &TokenSigner,
    authority: Arc<CertificateAuthority>,
    secure: SocketAddr,
) -> ControlOptions {
    let tokens = Arc::new(JwtTokenReview::new(signer.public_key_pem()).expect("a sound key"));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    ControlOptions {
        config: vec![folder.join("config")],
        runtime: vec![folder.join("runtime")],
        secure,
        http: Some(any),
        socket: Some(folder.join("control.sock")),
        ..ControlOptions::new(folder.join("state"), authority, tokens)
    }
}

impl Mesh {
    /// With the service `reviews` and one pod of it.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for name in ["config", "runtime"] {
            std::fs::create_dir(folder.path().join(name)).expect("made");
        }
        std::fs::write(
            folder.path().join("config/reviews.yaml"),
            service("reviews"),
        )
        .expect("written");

        let signer = TokenSigner::generate().expect("a key");
        let authority = Arc::new(
            CertificateAuthority::in_memory(TrustDomain::default()).expect("an authority"),
        );
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = options(folder.path(), &signer, authority.clone(), any);
        let control = ControlPlane::start(options).await.expect("starts");

        Self {
            folder,
            signer,
            authority,
            control,
        }
    }

    /// The same files, keys and address, another process as far as clients can tell.
    pub async fn restart(self) -> Self {
        let Self {
            folder,
            signer,
            authority,
            control,
        } = self;

        let secure = control.addresses().secure;
        control.shutdown().await;
        let control = loop {
            // Connections of the old one may hold the port for a moment.
            match ControlPlane::start(options(folder.path(), &signer, authority.clone(), secure))
                .await
            {
                Ok(control) => break control,
                Err(_) => tokio::task::yield_now().await,
            }
        };

        Self {
            folder,
            signer,
            authority,
            control,
        }
    }

    pub async fn shutdown(self) {
        self.control.shutdown().await;
    }

    pub async fn ready(&self) {
        let mut worlds = self.control.worlds();
        tokio::time::timeout(PATIENCE, worlds.wait_for(|world| world.is_ready()))
            .await
            .expect("in time")
            .expect("the store lives");
    }

    /// The newest state.
    pub fn world(&self) -> Arc<World> {
        self.control.worlds().borrow().clone()
    }

    /// Waits for a state.
    pub async fn see(&self, wanted: impl FnMut(&Arc<World>) -> bool) {
        let mut worlds = self.control.worlds();
        tokio::time::timeout(PATIENCE, worlds.wait_for(wanted))
            .await
            .expect("in time")
            .expect("the store lives");
    }

    /// Lets every applied object be as old as this.
    pub fn age_applied(&self, created: &str) {
        for entry in std::fs::read_dir(self.folder.path().join("state/applied")).expect("there") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("an object");
            let (before, rest) = text.split_once("creationTimestamp: ").expect("a time");
            let rest = rest.split_once('\n').expect("a line").1;
            std::fs::write(
                &path,
                format!("{before}creationTimestamp: '{created}'\n{rest}"),
            )
            .expect("written");
        }
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join("config").join(name), text).expect("written");
    }

    /// Writes what the node would write.
    pub fn bring(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join("runtime").join(name), text).expect("written");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join("config").join(name)).expect("there")
    }

    pub fn admin(&self) -> Admin {
        Admin::unix(self.folder.path().join("control.sock"))
    }

    pub fn http(&self) -> SocketAddr {
        self.control.addresses().http.expect("asked for")
    }

    /// A file of the mesh's own state.
    pub fn state(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join("state").join(name)).expect("there")
    }

    /// A token that is bound to a pod.
    pub fn pod_token(&self, namespace: &str, account: &str, pod: &str) -> String {
        let caller = Caller {
            pod: Some(pod.to_owned()),
            ..crate::caller(namespace, account)
        };
        self.signer
            .sign(&caller, Duration::from_secs(60))
            .expect("signed")
    }

    pub fn token(&self, namespace: &str, account: &str) -> String {
        self.signer
            .sign(&crate::caller(namespace, account), Duration::from_secs(60))
            .expect("signed")
    }

    /// A proxy with a token, subscribed as a sidecar is.
    pub fn proxy(&self, namespace: &str, account: &str, variant: Variant) -> Proxy {
        self.connect(
            Some(self.token(namespace, account)),
            None,
            proxy_node(namespace, account),
            variant,
        )
    }

    pub fn subscribe_to(&self, namespace: &str, account: &str, url: &str) -> Proxy {
        let initial = vec![(url.to_owned(), Subscription::wildcard())];
        self.client(
            Some(self.token(namespace, account)),
            None,
            proxy_node(namespace, account),
            Variant::Delta,
            initial,
        )
    }

    pub fn connect(
        &self,
        token: Option<String>,
        identity: Option<Identity>,
        node: Node,
        variant: Variant,
    ) -> Proxy {
        let none: [&str; 0] = [];
        let initial = vec![
            (CLUSTER.to_owned(), Subscription::wildcard()),
            (ENDPOINT.to_owned(), Subscription::names(none)),
            (LISTENER.to_owned(), Subscription::wildcard()),
            (ROUTE.to_owned(), Subscription::names(none)),
        ];
        self.client(token, identity, node, variant, initial)
    }

    fn client(
        &self,
        token: Option<String>,
        identity: Option<Identity>,
        node: Node,
        variant: Variant,
        initial: Vec<(String, Subscription)>,
    ) -> Proxy {
        let (address, roots) = (
            self.control.addresses().secure,
            self.authority.roots_pem().to_owned(),
        );

        let connect = move || dial(address, roots.clone(), token.clone(), identity.clone());
        let backoff = Backoff {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(50),
        };

        let (handle, events) = Client::spawn(ClientConfig {
            variant,
            backoff,
            ..ClientConfig::new(connect, node, initial)
        });

        Proxy { handle, events }
    }

    pub async fn channel(
        &self,
        token: Option<String>,
        identity: Option<Identity>,
    ) -> Result<Connection, BoxError> {
        dial(
            self.control.addresses().secure,
            self.authority.roots_pem().to_owned(),
            token,
            identity,
        )
        .await
    }
}

async fn dial(
    address: SocketAddr,
    roots: String,
    token: Option<String>,
    identity: Option<Identity>,
) -> Result<Connection, BoxError> {
    let name = "istiod.istio-system.svc";
    let terms = ClientTerms {
        alpn: vec!["h2".into()],
        rule: ServerRule::Host(name.into()),
        ..ClientTerms::default()
    };

    let config = meltemi_tls::client_config(
        &terms,
        identity.as_ref(),
        &TrustBundle::from_pem(roots.as_bytes())?,
    )?;

    let tcp = TcpStream::connect(address).await?;
    let stream = TlsConnector::from(config)
        .connect(ServerName::try_from(name)?, tcp)
        .await?;
    let endpoint = tonic::transport::Endpoint::from_static("http://istiod.istio-system.svc");
    let mut connection =
        Connection::from(endpoint.connect_with_connector(Once(Some(stream))).await?);
    if let Some(token) = token {
        connection
            .metadata
            .insert("authorization", format!("Bearer {token}").parse()?);
    }

    Ok(connection)
}

/// Hands out the one connection that was made.
struct Once(Option<TlsStream<TcpStream>>);

impl tower_service::Service<http::Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        std::future::ready(
            self.0
                .take()
                .map(TokioIo::new)
                .ok_or_else(|| std::io::ErrorKind::NotConnected.into()),
        )
    }
}

/// The node of the pod `productpage-1`.
pub fn proxy_node(namespace: &str, account: &str) -> Node {
    let fields = [
        ("NAME", "productpage-1"),
        ("NAMESPACE", namespace),
        ("SERVICE_ACCOUNT", account),
        ("INSTANCE_IPS", "10.44.0.9"),
    ];

    let fields = fields
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value_of(value)))
        .collect();

    Node {
        id: format!("sidecar~10.44.0.9~productpage-1.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct { fields }),
        user_agent_name: "meltemi".to_owned(),
        ..Node::default()
    }
}

/// A service and one pod of it.
pub fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  selector:\n    app: {name}\n  ports:\n  - name: http\n    port: 9080\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}-v1\n  labels:\n    app: {name}\nspec:\n  serviceAccountName: bookinfo-{name}\n  \
         containers:\n  - name: app\n    ports:\n    - containerPort: 9080\nstatus:\n  podIP: 10.44.0.7\n  phase: Running\n  conditions:\n  - type: Ready\n    status: \"True\"\n"
    )
}

/// A key and a certificate request, both in PEM.
pub fn request(name: Option<&str>) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    if let Some(name) = name {
        params.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().expect("ASCII"))];
    }
    let csr = params
        .serialize_request(&key)
        .expect("a request")
        .pem()
        .expect("PEM");

    (key.serialize_pem(), csr)
}

/// The next update, whatever else happens.
pub async fn update(events: &mut mpsc::Receiver<ClientEvent>) -> Update {
    let next = async {
        let mut last = String::new();
        loop {
            match events.recv().await {
                Some(ClientEvent::Update(update)) => return update,
                Some(ClientEvent::Disconnected { reason }) => last = reason,
                Some(ClientEvent::Connected) => {}
                None => panic!("the driver ended: {last}"),
            }
        }
    };

    tokio::time::timeout(PATIENCE, next)
        .await
        .expect("an update comes")
}

/// Nothing has come.
pub fn nothing_more(events: &mut mpsc::Receiver<ClientEvent>) {
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, ClientEvent::Update(_)), "{event:?}");
    }
}

/// The status code of a plain GET.
pub async fn http_status(address: SocketAddr, path: &str, host: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.expect("listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("answered");
    let text = String::from_utf8_lossy(&answer);

    text.split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status line")
}
