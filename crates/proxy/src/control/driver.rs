//! Runs the control side: events in, publications out. One task on the control thread.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use meltemi_net::ListenOptions;
use meltemi_proto::Any;
use meltemi_proto::type_url::{ENDPOINT, ROUTE, SECRET};
use meltemi_proxy_config::bootstrap::Bootstrap;
use meltemi_proxy_config::cluster::Cluster;
use meltemi_proxy_config::endpoint::EndpointSet;
use meltemi_proxy_config::listener::Listener;
use meltemi_proxy_config::tls::{SecretRef, SecretSource};
use meltemi_proxy_config::{Address, Compiler};
use meltemi_tls::{Secret, SecretStore};
use meltemi_xds::{ClientEvent, ClientHandle, Update};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::dns;
use super::fixed::NamedSecret;
use super::sds::SdsStreams;
use super::secrets;
use super::state::{Applied, State};
use crate::common::Common;
use crate::published::{Drained, Published};
use crate::worker::Command;

/// A closure that reads the received and the serving configuration.
pub type Look = Box<dyn FnOnce(&State, &Published, &Status) + Send>;

/// What the rest of the process asks of the control side.
pub enum Request {
    /// Resources that need no server: type, name and message each; and names to remove.
    Apply(
        &'static str,
        Vec<(String, Any)>,
        Vec<String>,
        oneshot::Sender<Result<(), String>>,
    ),
    /// Where listeners listen: name and actual address.
    Addresses(oneshot::Sender<Vec<(Arc<str>, SocketAddr)>>),
    /// Reads the received and the serving configuration.
    Inspect(Look),
    /// The listeners that serve, and the addresses that lead to them: the actual ones, where there
    /// are sockets.
    Listeners(oneshot::Sender<Vec<(Arc<str>, Vec<Address>)>>),
    /// Ends in order: connections are asked to, new ones are served until the listeners are gone.
    Drain(Drained),
    /// [`Request::Drain`] now, [`Request::StopListening`] once the time for draining has passed.
    DrainAndStop(Drained),
    /// Stops accepting.
    StopListening(Drained),
    /// Ends the workers.
    Stop,
}

/// How the control side stands with its server.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// A stream stands.
    pub connected: bool,
    /// Why the last one ended.
    pub last_disconnect: Option<String>,
    /// Updates taken and refused, by type.
    pub updates: BTreeMap<String, (u64, u64)>,
    /// The last refusal by type.
    pub refusals: BTreeMap<String, String>,
    /// Sockets that could not be opened, by listener.
    pub bind_errors: BTreeMap<Arc<str>, String>,
}

/// How long after a socket could not be opened it is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(1);
/// How often idle metric series are looked for.
const EXPIRE: Duration = Duration::from_secs(60);

/// The control side.
pub struct Driver {
    common: Arc<Common>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    state: State,
    published: Arc<Published>,
    status: Status,
    bound: HashMap<Arc<str>, Vec<(SocketAddr, SocketAddr)>>,
    xds: Option<ClientHandle>,
    asked: BTreeMap<&'static str, BTreeSet<Arc<str>>>,
    /// Types that were asked for as a whole and have not been answered.
    awaited: BTreeSet<String>,
    resolving: HashMap<Arc<str>, (Arc<Cluster>, AbortHandle)>,
    sds: SdsStreams,
    /// The secrets that the configuration names: the store forgets files that nobody watches.
    watched: Vec<watch::Receiver<Option<Arc<Secret>>>>,
    answers: mpsc::Sender<(Arc<Cluster>, EndpointSet)>,
    ready: watch::Sender<bool>,
    /// Listeners without sockets.
    stopped: Option<Drained>,
    /// When more of them lose theirs.
    stops: Option<(Instant, Drained)>,
}

impl Driver {
    /// A control side without configuration, and where names that were resolved arrive.
    pub fn new(
        common: Arc<Common>,
        workers: Vec<mpsc::UnboundedSender<Command>>,
        compiler: Compiler,
        ready: watch::Sender<bool>,
    ) -> (Self, mpsc::Receiver<(Arc<Cluster>, EndpointSet)>) {
        let (answers, resolved) = mpsc::channel(64);
        let driver = Self {
            common,
            workers,
            state: State::new(compiler),
            published: Arc::default(),
            status: Status::default(),
            bound: HashMap::new(),
            xds: None,
            asked: BTreeMap::new(),
            awaited: BTreeSet::new(),
            resolving: HashMap::new(),
            sds: SdsStreams::default(),
            watched: Vec::new(),
            answers,
            ready,
            stopped: None,
            stops: None,
        };

        (driver, resolved)
    }

    /// Takes over the static resources of a bootstrap and its secrets.
    pub fn set_static(&mut self, bootstrap: Bootstrap, secrets: Vec<NamedSecret>) {
        for (name, secret) in secrets {
            self.common.secrets.set(&name, secret);
        }
        self.sds = SdsStreams::new(&bootstrap);
        self.state.set_static(bootstrap);
    }

    /// Runs until told to stop.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut resolved: mpsc::Receiver<(Arc<Cluster>, EndpointSet)>,
        xds: Option<meltemi_xds::ClientConfig>,
    ) {
        let mut events = xds.map(|config| {
            let whole = config
                .initial
                .iter()
                .filter(|(_, subscription)| subscription.wildcard);
            self.awaited = whole.map(|(type_url, _)| type_url.clone()).collect();
            let (handle, events) = meltemi_xds::Client::spawn(config);
            self.xds = Some(handle);
            events
        });

        let mut secrets = self.common.secrets.changes();
        let mut expiry = tokio::time::interval(EXPIRE);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.reconcile();
        loop {
            tokio::select! {
                event = next_event(&mut events) => match event {
                    Some(event) => self.event(event),
                    None => events = None,
                },
                changed = secrets.changed() => {
                    if changed.is_ok() {
                        self.reconcile();
                    }
                }
                Some((cluster, endpoints)) = resolved.recv() => {
                    self.state.set_resolved(&cluster, endpoints);
                    self.reconcile();
                }
                _ = expiry.tick() => self.common.registry.expire(Instant::now().into_std()),
                // The process that holds the port may give it up.
                () = tokio::time::sleep(BIND_AGAIN), if !self.status.bind_errors.is_empty() => {
                    self.listen(&self.published.clone());
                }
                drained = passed(self.stops) => {
                    self.stops = None;
                    self.stop(drained);
                }
                request = requests.recv() => match request {
                    Some(Request::Stop) | None => break,
                    Some(request) => self.request(request),
                },
            }
        }

        for worker in &self.workers {
            let _ = worker.send(Command::Stop);
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Apply(type_url, resources, removed, answer) => {
                let set = resources.iter().map(|(name, any)| (name.as_str(), "", any));
                let applied = self.state.apply(type_url, set, &removed);
                self.reconcile();
                let _ = answer.send(applied.nack().map_or(Ok(()), Err));
            }
            Request::Addresses(answer) => {
                let all = self.bound.iter();
                let flat = all.flat_map(|(name, bound)| {
                    bound.iter().map(|(_, actual)| (name.clone(), *actual))
                });
                let _ = answer.send(flat.collect());
            }
            Request::Inspect(look) => look(&self.state, &self.published, &self.status),
            Request::Listeners(answer) => {
                let _ = answer.send(self.listeners());
            }
            Request::Drain(drained) => self.drain(drained),
            Request::DrainAndStop(drained) => {
                self.drain(drained);
                let at = Instant::now() + self.common.drain_time;
                // A second call delays nothing, and may mean more listeners.
                let (at, before) = self
                    .stops
                    .map_or((at, drained), |(sooner, drained)| (sooner.min(at), drained));
                self.stops = Some((at, before.max(drained)));
            }
            Request::StopListening(drained) => self.stop(drained),
            Request::Stop => {}
        }
    }

    fn drain(&mut self, drained: Drained) {
        self.state.draining = self.state.draining.max(Some(drained));
        self.reconcile();
    }

    fn stop(&mut self, drained: Drained) {
        self.stopped = self.stopped.max(Some(drained));
        self.reconcile();
    }

    fn listeners(&self) -> Vec<(Arc<str>, Vec<Address>)> {
        let serves = self
            .published
            .snapshot
            .listeners()
            .filter(|listener| !self.status.bind_errors.contains_key(&listener.name));

        let addressed = serves.map(|listener| {
            let name = &listener.name;
            let bound = self.bound.get(name).map(Vec::as_slice).unwrap_or_default();
            let actual = |address: &Address| {
                let asked = address.socket()?;
                bound
                    .iter()
                    .find(|(wanted, _)| *wanted == asked)
                    .map(|(_, actual)| Address::Socket(*actual))
            };

            (
                name.clone(),
                listener
                    .addresses()
                    .map(|address| actual(address).unwrap_or_else(|| address.clone()))
                    .collect(),
            )
        });

        addressed.collect()
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Connected => {
                tracing::info!("connected to the control plane");
                self.status.connected = true;
            }
            ClientEvent::Disconnected { reason } => {
                if self.status.connected {
                    tracing::warn!(%reason, "lost the control plane; the configuration stays");
                }
                self.status.connected = false;
                self.status.last_disconnect = Some(reason);
            }
            ClientEvent::Update(update) => self.update(update),
        }
    }

    fn update(&mut self, update: Update) {
        let applied = if update.type_url == SECRET {
            let mut applied = Applied::default();
            for resource in &update.set {
                if let Err(reason) =
                    secrets::apply(&self.common.secrets, &resource.name, &resource.any)
                {
                    applied.refused.push((resource.name.clone(), reason));
                }
            }

            for name in &update.removed {
                self.common.secrets.remove(name);
            }
            applied
        } else {
            let set = update
                .set
                .iter()
                .map(|r| (r.name.as_str(), r.version.as_str(), &r.any));
            self.state.apply(&update.type_url, set, &update.removed)
        };

        self.awaited.remove(&update.type_url);

        // Subscriptions first: a server that sees the ACK then knows what we wait for.
        self.reconcile();
        let Some(xds) = &self.xds else { return };
        let count = self
            .status
            .updates
            .entry(update.type_url.clone())
            .or_default();

        match applied.nack() {
            None => {
                count.0 += 1;
                self.status.refusals.remove(&update.type_url);
                xds.ack(&update.type_url, &update.nonce);
            }
            Some(reason) => {
                count.1 += 1;
                tracing::warn!(type_url = %update.type_url, %reason, "update refused");
                self.status
                    .refusals
                    .insert(update.type_url.clone(), reason.clone());
                xds.nack(&update.type_url, &update.nonce, reason);
            }
        }
    }

    /// Brings everything in line with the state: subscriptions, names, sockets, workers.
    fn reconcile(&mut self) {
        self.subscribe(ENDPOINT, self.state.wanted_endpoints());
        self.subscribe(ROUTE, self.state.wanted_routes());
        let secrets = self.state.wanted_secrets();
        let from_ads = secrets
            .iter()
            .filter(|secret| secret.source == SecretSource::Ads);
        self.subscribe(SECRET, from_ads.map(|secret| secret.name.clone()).collect());
        self.watched = watched(&secrets, &self.common.secrets);
        self.sds.keep(&secrets, &self.common.secrets);
        self.state.forget_unused();
        self.keep_resolved();
        let store = &self.common.secrets;
        let published = Arc::new(self.state.publish(|name| store.get(name).is_some()));
        self.published = published.clone();
        for worker in &self.workers {
            // A worker that is gone has been told to stop.
            let _ = worker.send(Command::Publish(published.clone()));
        }

        self.listen(&published);

        if self.awaited.is_empty() && self.state.is_warm() && !self.common.ready.swap(true, Relaxed)
        {
            self.ready.send_replace(true);
        }
    }

    fn subscribe(&mut self, type_url: &'static str, wanted: BTreeSet<Arc<str>>) {
        let Some(xds) = &self.xds else { return };
        let asked = self.asked.entry(type_url).or_default();
        let new: Vec<String> = wanted
            .difference(asked)
            .map(|name| name.to_string())
            .collect();

        let old: Vec<String> = asked
            .difference(&wanted)
            .map(|name| name.to_string())
            .collect();

        if !new.is_empty() {
            xds.subscribe(type_url, new);
        }
        if !old.is_empty() {
            xds.unsubscribe(type_url, old);
        }
        *asked = wanted;
    }

    fn keep_resolved(&mut self) {
        let wanted: HashMap<Arc<str>, Arc<Cluster>> = self
            .state
            .to_resolve()
            .map(|cluster| (cluster.name.clone(), cluster.clone()))
            .collect();

        self.resolving.retain(|name, (cluster, task)| {
            let stays = wanted
                .get(name)
                .is_some_and(|wanted| Arc::ptr_eq(wanted, cluster));
            if !stays {
                task.abort();
            }
            stays
        });

        for (name, cluster) in wanted {
            self.resolving.entry(name).or_insert_with(|| {
                let task = tokio::spawn(dns::keep(cluster.clone(), self.answers.clone()));
                (cluster, task.abort_handle())
            });
        }
    }

    /// Opens and closes listening sockets.
    fn listen(&mut self, published: &Published) {
        let mut wanted: HashMap<&Arc<str>, Vec<(&Arc<Listener>, SocketAddr)>> = HashMap::new();
        let stays =
            |listener: &Listener| !self.stopped.is_some_and(|stopped| stopped.has(listener));
        let listening = published
            .snapshot
            .listeners()
            .filter(|listener| listener.bind_to_port && stays(listener));

        for listener in listening {
            let addresses = listener.addresses();
            let sockets = addresses.filter_map(|address| Some((listener, address.socket()?)));
            wanted.insert(&listener.name, sockets.collect());
        }

        self.status
            .bind_errors
            .retain(|name, _| wanted.contains_key(name));
        let workers = &self.workers;
        self.bound.retain(|name, bound| {
            let keep = wanted.get(name);
            bound.retain(|(asked, actual)| {
                let stays =
                    keep.is_some_and(|sockets| sockets.iter().any(|(_, address)| address == asked));
                if !stays {
                    for worker in workers {
                        let _ = worker.send(Command::Unlisten(name.clone(), *actual));
                    }
                }
                stays
            });

            !bound.is_empty()
        });

        for (name, sockets) in wanted {
            for (listener, address) in sockets {
                if self
                    .bound
                    .get(name)
                    .is_some_and(|bound| bound.iter().any(|(asked, _)| *asked == address))
                {
                    continue;
                }

                let mut options = ListenOptions::new(address);
                options.transparent = listener.transparent;
                options.freebind = listener.freebind;
                options.backlog = listener.backlog.unwrap_or(options.backlog);
                match self.common.binder.bind(&options, workers.len()) {
                    Ok(sockets) => {
                        self.status.bind_errors.remove(name);
                        let actual = sockets
                            .first()
                            .and_then(|socket| socket.local_addr().ok())
                            .unwrap_or(address);

                        for (worker, socket) in workers.iter().cycle().zip(sockets) {
                            let _ = worker.send(Command::Listen(name.clone(), actual, socket));
                        }
                        self.bound
                            .entry(name.clone())
                            .or_default()
                            .push((address, actual));

                        tracing::info!(listener = %name, address = %actual, "listening");
                    }
                    Err(error) => {
                        if self
                            .status
                            .bind_errors
                            .insert(name.clone(), error.to_string())
                            .is_none()
                        {
                            tracing::error!(listener = %name, %address, %error, "cannot listen; check who else has the port");
                        }
                    }
                }
            }
        }
    }
}

async fn passed(stops: Option<(Instant, Drained)>) -> Drained {
    match stops {
        Some((at, drained)) => {
            tokio::time::sleep_until(at).await;
            drained
        }
        None => std::future::pending().await,
    }
}

async fn next_event(events: &mut Option<mpsc::Receiver<ClientEvent>>) -> Option<ClientEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

fn watched(
    secrets: &[SecretRef],
    store: &SecretStore,
) -> Vec<watch::Receiver<Option<Arc<Secret>>>> {
    secrets
        .iter()
        .map(|secret| store.watch(&secret.name))
        .collect()
}
