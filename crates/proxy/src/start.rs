//! Starts a proxy inside this process: worker threads, the control thread, and a handle to both.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meltemi_filters::http::ExtensionFactory;
use meltemi_filters::peer_metadata::{LocalPeer, PeerInfo};
use meltemi_net::{Binder, OsBinder};
use meltemi_proto::envoy::config::bootstrap::v3 as proto;
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET};
use meltemi_proto::{Any, pack};
use meltemi_proxy_config::Compiler;
use meltemi_proxy_config::bootstrap::Bootstrap;
use meltemi_telemetry::Registry;
use meltemi_tls::SecretStore;
use meltemi_xds::{ClientConfig, Subscription};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin;
use crate::common::{Common, Levels, ServerState};
use crate::control::driver::{Driver, Request, Status};
use crate::control::fixed;
use crate::control::inspect::{Inspector, look};
use crate::logs::Logs;
use crate::published::Drained;
use crate::worker::{Command, Worker, serve};

/// What a proxy is started with.
pub struct ProxyOptions {
    /// Who we are.
    pub node: Node,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// SO_MARK of upstream connections, so that capture rules let them pass.
    pub mark: Option<u32>,
    /// Where the admin interface listens.
    pub admin: Option<SocketAddr>,
    /// Where metrics alone are served (15090).
    pub metrics: Option<SocketAddr>,
    /// Where listening sockets come from.
    pub binder: Arc<dyn Binder>,
    /// Secrets by name; the embedder fills it.
    pub secrets: SecretStore,
    /// The server of configuration. Its `initial` subscriptions are set here.
    pub xds: Option<ClientConfig>,
    /// The resource types that the proxy asks for without names.
    pub discover: Discover,
    /// Static resources. Its other parts have no effect here: whoever starts the proxy has read
    /// them into these options.
    pub bootstrap: Option<Bootstrap>,
    /// Metrics.
    pub registry: Arc<Registry>,
    /// Access logs.
    pub logs: Logs,
    /// How long draining connections may take.
    pub drain_time: Duration,
    /// The most connections of one worker that have not shown what they are: their first bytes or
    /// their TLS handshake are still to come. A further one takes the place of the eldest of the
    /// address that holds most. Default 32,768.
    pub strangers: usize,
    /// The levels of the process's own log, for `/logging`; without them they cannot be changed
    /// there.
    pub levels: Option<Arc<dyn Levels>>,
    /// HTTP filters of optional crates, beside the built-in ones.
    pub extensions: Vec<Arc<dyn ExtensionFactory>>,
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self {
            node: Node::default(),
            workers: 1,
            mark: None,
            admin: None,
            metrics: None,
            binder: Arc::new(OsBinder),
            secrets: SecretStore::new(),
            xds: None,
            discover: Discover::default(),
            bootstrap: None,
            registry: Arc::default(),
            logs: Logs::default(),
            drain_time: Duration::from_secs(5),
            strangers: 32 * 1024,
            levels: None,
            extensions: Vec::new(),
        }
    }
}

/// The resource types that the proxy asks its xDS server for without names. It asks for all other
/// types by the names that clusters and listeners mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discover {
    /// Clusters (CDS). Default true.
    pub clusters: bool,
    /// Listeners (LDS). Default true.
    pub listeners: bool,
}

impl Default for Discover {
    fn default() -> Self {
        Self {
            clusters: true,
            listeners: true,
        }
    }
}

impl Discover {
    fn subscriptions(self) -> Vec<(String, Subscription)> {
        let all = |wanted| {
            if wanted {
                Subscription::wildcard()
            } else {
                Subscription::default()
            }
        };

        vec![
            (CLUSTER.to_owned(), all(self.clusters)),
            (ENDPOINT.to_owned(), Subscription::default()),
            (LISTENER.to_owned(), all(self.listeners)),
            (ROUTE.to_owned(), Subscription::default()),
            (SECRET.to_owned(), Subscription::default()),
        ]
    }
}

/// A running proxy. Dropping the handle stops it at once; see [`ProxyHandle::shutdown`] for an end
/// in order.
#[derive(Debug)]
pub struct ProxyHandle {
    common: Arc<Common>,
    requests: mpsc::Sender<Request>,
    ready: watch::Receiver<bool>,
    threads: Vec<JoinHandle<()>>,
    admin: Vec<SocketAddr>,
}

/// The entry.
#[derive(Debug)]
pub struct Proxy;

impl Proxy {
    /// Whether a proxy can start with this bootstrap: reads the certificates and secrets that it
    /// names, and fails with the words of [`Proxy::start`].
    pub fn validate(bootstrap: &Bootstrap) -> io::Result<()> {
        fixed::load(bootstrap).map(drop).map_err(io::Error::other)
    }

    /// Starts the threads. Fails if a thread or the admin socket cannot be had, or if a static
    /// resource cannot be used.
    pub fn start(options: ProxyOptions) -> io::Result<ProxyHandle> {
        let ProxyOptions {
            node,
            workers,
            mark,
            admin: admin_address,
            metrics,
            binder,
            secrets,
            mut xds,
            discover,
            bootstrap,
            registry,
            logs,
            drain_time,
            strangers,
            levels,
            extensions,
        } = options;

        let fixed = match bootstrap {
            Some(bootstrap) => {
                let secrets = fixed::load(&bootstrap).map_err(io::Error::other)?;
                Some((bootstrap, secrets))
            }
            None => None,
        };

        let message = match &fixed {
            Some((bootstrap, _)) => bootstrap.message.clone(),
            None => pack(&proto::Bootstrap {
                node: Some(node.clone()),
                ..Default::default()
            }),
        };

        let common = Arc::new(Common {
            mark,
            secrets,
            registry,
            logs,
            binder,
            local: local_peer(&node),
            node_id: node.id.as_str().into(),
            bootstrap: message,
            connections: Default::default(),
            since: Instant::now(),
            ready: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            drain_time,
            strangers,
            levels,
            limited: Default::default(),
        });

        let mut threads = Vec::new();
        let mut senders = Vec::new();
        for number in 0..workers.max(1) {
            let (sender, commands) = mpsc::unbounded_channel();
            threads.push(worker_thread(common.clone(), number as u64, commands)?);
            senders.push(sender);
        }

        if let Some(config) = &mut xds {
            config.initial = discover.subscriptions();
        }
        let (ready_sender, ready) = watch::channel(false);
        let compiler = Compiler::with_extensions(extensions.into());
        let (mut driver, resolved) =
            Driver::new(common.clone(), senders.clone(), compiler, ready_sender);
        if let Some((bootstrap, secrets)) = fixed {
            driver.set_static(bootstrap, secrets);
        }
        let (requests, inbox) = mpsc::channel(64);
        let admin_sockets = bind_admin([(admin_address, false), (metrics, true)])?;

        let admin = admin_sockets
            .iter()
            .filter_map(|(socket, _)| socket.local_addr().ok())
            .collect();

        let inspector = Inspector {
            common: common.clone(),
            requests: requests.clone(),
            workers: senders,
        };

        threads.push(control_thread(
            driver,
            inbox,
            resolved,
            xds,
            admin_sockets,
            inspector,
        )?);

        Ok(ProxyHandle {
            common,
            requests,
            ready,
            threads,
            admin,
        })
    }
}

/// What the proxy tells peers of itself.
fn local_peer(node: &Node) -> LocalPeer {
    let info = node
        .metadata
        .as_ref()
        .map(PeerInfo::from_struct)
        .unwrap_or_default();

    LocalPeer {
        id: node.id.as_str().into(),
        encoded: info.encode().into(),
        info,
    }
}

/// Opens the sockets of the admin interface; each says whether it serves metrics alone.
fn bind_admin(
    addresses: [(Option<SocketAddr>, bool); 2],
) -> io::Result<Vec<(std::net::TcpListener, bool)>> {
    let mut sockets = Vec::new();
    for (address, only_metrics) in addresses {
        if let Some(address) = address {
            let socket = std::net::TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            sockets.push((socket, only_metrics));
        }
    }

    Ok(sockets)
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

fn worker_thread(
    common: Arc<Common>,
    number: u64,
    commands: mpsc::UnboundedReceiver<Command>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(Default::default());
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    let worker = Worker::new(common, number, seed());
                    serve::run(worker, commands).await;
                }),
                Err(error) => tracing::error!(%error, "a worker cannot start"),
            }
        })
}

fn control_thread(
    driver: Driver,
    inbox: mpsc::Receiver<Request>,
    resolved: mpsc::Receiver<(
        Arc<meltemi_proxy_config::cluster::Cluster>,
        meltemi_proxy_config::endpoint::EndpointSet,
    )>,
    xds: Option<ClientConfig>,
    sockets: Vec<(std::net::TcpListener, bool)>,
    inspector: Inspector,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    for (socket, only_metrics) in sockets {
                        tokio::spawn(admin::serve(socket, inspector.clone(), only_metrics));
                    }
                    drop(inspector);
                    driver.run(inbox, resolved, xds).await;
                }),
                Err(error) => tracing::error!(%error, "the control thread cannot start"),
            }
        })
}

impl ProxyHandle {
    /// Applies resources without a server; `Err` names those that were refused, the others serve.
    pub async fn apply(
        &self,
        type_url: &'static str,
        resources: Vec<(String, Any)>,
        removed: Vec<String>,
    ) -> Result<(), String> {
        let (answer, receiver) = oneshot::channel();
        let gone = || "the proxy has stopped".to_owned();
        self.requests
            .send(Request::Apply(type_url, resources, removed, answer))
            .await
            .map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// Whether everything that was needed at start has arrived, and nobody said that traffic shall
    /// stay away.
    pub fn is_ready(&self) -> bool {
        self.common.state() == ServerState::Live
    }

    /// Whether every thread runs; a thread that ended by itself takes the proxy with it.
    pub fn is_running(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Whether the admin interface was asked for the proxy's end.
    pub fn was_asked_to_end(&self) -> bool {
        self.common.quit.load(Relaxed)
    }

    /// Resolves once everything that was needed at start has arrived.
    pub async fn ready(&self) {
        let mut ready = self.ready.clone();
        // Fails only when the proxy has stopped.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// Where listeners listen: name and actual address.
    pub async fn addresses(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let (answer, receiver) = oneshot::channel();
        let _ = self.requests.send(Request::Addresses(answer)).await;
        receiver.await.unwrap_or_default()
    }

    /// Where the admin interface and the metrics listen.
    pub fn admin_addresses(&self) -> &[SocketAddr] {
        &self.admin
    }

    /// Why the proxy is not ready yet, one line for each listener and cluster.
    pub async fn not_ready(&self) -> Vec<String> {
        let secrets = self.common.secrets.clone();
        look(&self.requests, move |state, _, _| {
            state.not_ready(|name| secrets.get(name).is_some())
        })
        .await
        .unwrap_or_default()
    }

    /// How it stands with its server.
    pub async fn status(&self) -> Status {
        look(&self.requests, |_, _, status| status.clone())
            .await
            .unwrap_or_default()
    }

    /// Open downstream connections.
    pub fn connections(&self) -> i64 {
        self.common.connections.get()
    }

    /// The metrics as text.
    pub fn metrics(&self) -> String {
        admin::metrics(&self.common)
    }

    /// What [`Self::metrics`] shows, also while [`Self::shutdown`] has the handle.
    pub fn metrics_source(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let common = Arc::clone(&self.common);
        move || admin::metrics(&common)
    }

    /// Asks every connection to end in order, while new ones are still served.
    pub async fn drain(&self) {
        let _ = self.requests.send(Request::Drain(Drained::All)).await;
    }

    /// Drains, waits until no connection is left or the time is up, and ends the threads.
    pub async fn shutdown(mut self, time: Duration) {
        let _ = self
            .requests
            .send(Request::StopListening(Drained::All))
            .await;

        let _ = self.requests.send(Request::Drain(Drained::All)).await;
        let end = tokio::time::Instant::now() + time;
        while self.connections() > 0 && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = self.requests.send(Request::Stop).await;
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| _ = thread.join())
        });
        let _ = joined.await;
    }
}

impl Drop for ProxyHandle {
    fn drop(&mut self) {
        // A full queue means that the control side still lives and sees the sender go.
        let _ = self.requests.try_send(Request::Stop);
    }
}
