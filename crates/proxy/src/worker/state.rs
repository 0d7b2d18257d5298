//! A worker's state: its share of the metrics, its clusters and pools, its connections, and the
//! configuration that they run under.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meltemi_filters::ConnInfo;
use meltemi_filters::head::RequestHead;
use meltemi_filters::metadata::Value;
use meltemi_filters::peer_metadata::{PeerCache, PeerInfo};
use meltemi_net::Buffers;
use meltemi_proxy_config::listener::{FilterChain, Listener};
use meltemi_telemetry::Shard;
use meltemi_web::Places;

use crate::body::tee::CopyBudget;
use crate::causes::Causes;
use crate::common::Common;
use crate::counts::{Copied, Known};
use crate::downstream::{ChainView, Downstream, DrainReason};
use crate::http2::send::WorkerBudget;
use crate::logs::WorkerLogs;
use crate::published::Published;
use crate::series::Series;
use crate::stalls::Stalls;
use crate::tls::TlsConfigs;
use crate::upstream::cluster::WorkerCluster;

/// How often pools are swept.
pub const SWEEP: Duration = Duration::from_secs(5);
/// Heads that are kept for reuse.
const KEEP_HEADS: usize = 256;

/// A worker's state.
#[derive(Debug)]
pub struct Worker {
    /// What all workers share.
    pub common: Arc<Common>,
    /// Spare buffers.
    pub buffers: Buffers,
    pub tls: TlsConfigs,
    /// Our share of the metrics.
    pub shard: Arc<Shard>,
    /// Series that were looked up already.
    pub series: Series,
    /// What Envoy counts of connection managers and listeners.
    pub counts: Known,
    /// Counts of what we answered ourselves and refused.
    pub causes: Causes,
    /// What waits for the sockets of HTTP/2 connections.
    pub send_budget: WorkerBudget,
    /// Copies of bodies for another attempt or a mirror.
    pub copy_budget: CopyBudget,
    /// Bodies whose reader takes nothing.
    pub stalls: Stalls,
    /// Places for connections that have not shown what they are.
    pub strangers: Places,
    /// Peers that told who they are.
    pub peers: RefCell<PeerCache>,
    /// Our buffers in front of the access logs.
    pub logs: WorkerLogs,
    /// A buffer for short-lived text such as a rewritten path.
    pub scratch: RefCell<Vec<u8>>,
    own_peer: Arc<PeerInfo>,
    date: RefCell<(u64, Vec<u8>)>,
    number: u64,
    published: RefCell<Arc<Published>>,
    generation: Cell<u64>,
    clusters: RefCell<HashMap<Arc<str>, Rc<WorkerCluster>>>,
    random: Cell<u64>,
    heads: RefCell<Vec<RequestHead>>,
    connections: RefCell<HashMap<u64, Rc<Downstream>>>,
    next_connection: Cell<u64>,
}

impl Worker {
    /// A worker with an empty configuration.
    pub fn new(common: Arc<Common>, number: u64, seed: u64) -> Rc<Self> {
        let shard = common.registry.shard();
        Rc::new(Self {
            buffers: Buffers::default(),
            tls: TlsConfigs::new(common.secrets.clone()),
            series: Series::default(),
            counts: Known::default(),
            causes: Causes::new(shard.clone()),
            send_budget: WorkerBudget::default(),
            copy_budget: CopyBudget::default(),
            stalls: Stalls::default(),
            strangers: Places::new(common.strangers),
            peers: RefCell::default(),
            scratch: RefCell::default(),
            logs: WorkerLogs::new(common.logs.clone()),
            own_peer: Arc::new(common.local.info.clone()),
            date: RefCell::default(),
            shard,
            number,
            published: RefCell::default(),
            generation: Cell::new(0),
            clusters: RefCell::default(),
            random: Cell::new(seed | 1),
            heads: RefCell::default(),
            connections: RefCell::default(),
            next_connection: Cell::new(1),
            common,
        })
    }

    /// 64 random bits; not for secrets.
    pub fn random(&self) -> u64 {
        let mut state = self.random.get();
        let drawn = meltemi_lb::random::next(&mut state);
        self.random.set(state);
        drawn
    }

    /// Time since the process began to serve.
    pub fn uptime(&self) -> Duration {
        self.common.since.elapsed()
    }

    /// Who we are, as metrics tell it.
    pub fn own_peer(&self) -> Arc<PeerInfo> {
        self.own_peer.clone()
    }

    /// The identity of our own certificate, if there is one.
    pub fn own_principal(&self) -> Option<Arc<str>> {
        self.tls.own_principal()
    }

    /// The date as HTTP writes it; made once a second.
    pub fn with_date<T>(&self, use_it: impl FnOnce(&[u8]) -> T) -> T {
        let now = std::time::SystemTime::now();
        let second = now
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let mut date = self.date.borrow_mut();
        if date.0 != second {
            date.0 = second;
            date.1.clear();
            meltemi_filters::format::write_http_date(second, &mut date.1);
        }

        use_it(&date.1)
    }

    /// The generation of the configuration that is served.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// The configuration that is served.
    pub fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    /// An empty head, used before or new.
    pub fn take_head(&self) -> RequestHead {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives a head back.
    pub fn give_head(&self, mut head: RequestHead) {
        let mut heads = self.heads.borrow_mut();
        if heads.len() < KEEP_HEADS {
            head.clear();
            heads.push(head);
        }
    }

    /// Our side of a cluster, made at its first use.
    pub fn cluster(&self, name: &str) -> Option<Rc<WorkerCluster>> {
        if let Some(cluster) = self.clusters.borrow().get(name) {
            return Some(cluster.clone());
        }
        let published = self.published.borrow();
        let (name, entry) = published.clusters.get_key_value(name)?;
        let cluster = Rc::new(WorkerCluster::new(entry.clone(), None, self.random()));

        sweep_often(&cluster);
        self.clusters
            .borrow_mut()
            .insert(name.clone(), cluster.clone());

        Some(cluster)
    }

    /// Replaces the configuration that is served and returns the one before. Clusters whose
    /// configuration did not change keep their pools.
    pub fn swap(&self, published: Arc<Published>) -> Arc<Published> {
        let before = self.published.replace(published.clone());
        self.generation.set(published.generation);

        let mut clusters = self.clusters.borrow_mut();
        clusters.retain(|name, _| published.clusters.contains_key(name));
        for (name, cluster) in clusters.iter_mut() {
            if let Some(entry) = published.clusters.get(name)
                && !Arc::ptr_eq(entry, &cluster.entry)
            {
                *cluster = Rc::new(WorkerCluster::new(
                    entry.clone(),
                    Some(cluster),
                    self.random(),
                ));
                sweep_often(cluster);
            }
        }

        before
    }

    /// Drops pooled connections that ended or were idle for too long, gives up stalled bodies if
    /// there are too many, and lets series go if there are many.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.stalls.relieve(now);
        if self.shard.is_nearly_full() {
            self.series.forget();
        }
        for cluster in self.clusters.borrow().values() {
            cluster.sweep(now);
        }
    }

    /// Open upstream connections: cluster, address, connections.
    pub fn pools(&self) -> Vec<(Arc<str>, SocketAddr, usize)> {
        let clusters = self.clusters.borrow();
        clusters
            .iter()
            .flat_map(|(name, cluster)| {
                cluster
                    .open()
                    .map(|(at, n)| (name.clone(), at, n))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// A copy of everything that was counted.
    pub fn copy_counts(&self) -> Copied {
        let clusters = self.clusters.borrow();
        let each = clusters
            .iter()
            .map(|(name, cluster)| (name.clone(), (*cluster.counts).clone()));
        self.counts.copy(each.collect())
    }

    /// Calls `act` with every downstream connection. `act` must not open or close one.
    pub fn each_connection(&self, act: impl FnMut(&Rc<Downstream>)) {
        self.connections.borrow().values().for_each(act);
    }

    /// Whether a cluster leads into the mesh, so that its servers may be told who we are.
    pub fn is_in_mesh(&self, cluster: &str) -> bool {
        if cluster.ends_with("PassthroughCluster") || cluster == "BlackHoleCluster" {
            return false;
        }
        self.cluster(cluster).is_some_and(|cluster| {
            cluster.entry.cluster.metadata.at("istio", &["external"]) != Some(&Value::Bool(true))
        })
    }

    /// Registers a connection for draining.
    pub fn register(self: &Rc<Self>, info: ConnInfo, view: Rc<ChainView>) -> Registered {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        let conn = Rc::new(Downstream::new(id << 8 | self.number & 0xff, info, view));
        self.connections.borrow_mut().insert(conn.id, conn.clone());
        self.common.connections.add(1);
        Registered {
            worker: self.clone(),
            conn,
        }
    }

    /// The chain that a connection's next request runs under: the newest version. If the chain is
    /// gone, the connection is asked to drain, and the last version serves the requests that still
    /// arrive.
    pub fn view_of(&self, conn: &Downstream) -> Rc<ChainView> {
        let current = conn.last_view();
        if current.generation == self.generation() {
            return current;
        }

        match self.renew(&conn.info, &current) {
            Some(view) => {
                let view = Rc::new(view);
                conn.set_view(view.clone());
                view
            }
            None => {
                conn.ask_to_drain(DrainReason::ChainChanged);
                current
            }
        }
    }

    /// The newest version of a connection's chain; `None` if it would now be served by another one,
    /// or on other terms.
    fn renew(&self, info: &ConnInfo, current: &ChainView) -> Option<ChainView> {
        let published = self.published.borrow();
        let listener = published.snapshot.listener(&current.listener.name)?;
        let chain = if Arc::ptr_eq(listener, &current.listener) {
            &current.chain
        } else {
            let chain = listener.chains.select(info)?;
            if !same_terms(chain, &current.chain, info) {
                return None;
            }
            chain
        };

        let table = |name: &str| published.snapshot.route(name).cloned();

        Some(ChainView::new(
            published.generation,
            listener.clone(),
            chain.clone(),
            table,
            &self.counts,
        ))
    }

    /// The chain for a new connection. A listener that was replaced since it was chosen is of an
    /// older generation.
    pub fn view_for(&self, listener: &Arc<Listener>, chain: &Arc<FilterChain>) -> ChainView {
        let published = self.published.borrow();
        let table = |name: &str| published.snapshot.route(name).cloned();
        let is_newest = published
            .snapshot
            .listener(&listener.name)
            .is_some_and(|newest| Arc::ptr_eq(newest, listener));

        let generation = if is_newest { published.generation } else { 0 };

        ChainView::new(
            generation,
            listener.clone(),
            chain.clone(),
            table,
            &self.counts,
        )
    }
}

/// Has a cluster's pools swept beside the worker's own sweeps if its idle timeout is too short for
/// those.
fn sweep_often(cluster: &Rc<WorkerCluster>) {
    let every = cluster.sweep_every(SWEEP);
    if every == SWEEP {
        return;
    }
    let cluster = Rc::downgrade(cluster);
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(every).await;
            // The task ends with the cluster.
            let Some(cluster) = cluster.upgrade() else {
                return;
            };
            cluster.sweep(Instant::now());
        }
    });
}

/// Whether a connection may go on under the newer chain: the same name and kind, and TLS on the
/// same terms or on terms that it would meet. Compared by their debug form, which shows every
/// field; only when configuration changes.
fn same_terms(new: &FilterChain, old: &FilterChain, info: &ConnInfo) -> bool {
    use meltemi_proxy_config::listener::Terminal;

    let transport = match (new.transport.tls(), old.transport.tls()) {
        (None, None) => true,
        (Some(new), Some(old)) => {
            Arc::ptr_eq(new, old)
                || new == old
                || info
                    .tls
                    .as_ref()
                    .is_some_and(|peer| new.goes_on_with(old, peer))
        }
        _ => false,
    };

    let kind = matches!(
        (&new.terminal, &old.terminal),
        (Terminal::Http(_), Terminal::Http(_)) | (Terminal::Tcp(_), Terminal::Tcp(_))
    );

    new.name == old.name && transport && kind
}

/// A connection in its worker's table, for as long as it lives.
#[derive(Debug)]
pub struct Registered {
    worker: Rc<Worker>,
    pub conn: Rc<Downstream>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(&self.conn.id);
        self.worker.common.connections.add(-1);
    }
}
