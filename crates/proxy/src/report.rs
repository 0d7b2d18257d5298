//! Istio's standard metrics: which labels a request or connection has, and the series that it adds
//! to.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::ResponseFlags;
use meltemi_filters::head::RequestHead;
use meltemi_filters::metadata::{Metadata, Value};
use meltemi_filters::peer_metadata::PeerInfo;
use meltemi_net::Meter;
use meltemi_proxy_config::listener::{Direction, NetworkFilter};
use meltemi_telemetry::{HttpLabels, HttpSeries, Peer, Reporter, TcpLabels, TcpSeries};

use crate::downstream::{ChainView, Downstream};
use crate::exchange::Run;
use crate::record::StreamInfo;
use crate::steps;
use crate::upstream::cluster::WorkerHost;
use crate::worker::Worker;

/// Names of services by cluster, each with the address of the cluster it was read from.
type ServiceNames = HashMap<Arc<str>, (usize, Arc<ServiceName>)>;

/// Names made of hosts that clients asked for, with what stood in their place.
type HostNames = (Arc<ServiceName>, HashMap<Box<str>, Arc<ServiceName>>);

const UNKNOWN: &str = "unknown";

/// No longer host becomes a label; a DNS name with a port is shorter.
const MAX_HOST: usize = 261;
/// Hosts beside the mesh's services that have series of their own.
const MAX_HOSTS: usize = 256;

/// More looked-up series than this are forgotten; they are found again.
const MAX_CACHED: usize = 4096;

/// What tells series apart, as addresses of shared values and small numbers: a request costs no
/// label map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    reporter: Reporter,
    source: usize,
    destination: usize,
    service: usize,
    grpc: bool,
    code: u16,
    grpc_status: u32,
    flags: ResponseFlags,
    mutual: bool,
}

/// A service as metrics name it.
#[derive(Debug)]
pub struct ServiceName {
    host: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
}

type Keep = (Arc<Peer>, Arc<Peer>, Arc<ServiceName>);
type PeerKey = (usize, Option<Arc<str>>);
type KnownPeer = (Option<Arc<PeerInfo>>, Arc<Peer>);
type KnownSeries = (Rc<HttpSeries>, Keep);

/// One worker's looked-up series and the values that their keys point to.
#[derive(Debug, Default)]
pub struct Series {
    http: RefCell<HashMap<Key, KnownSeries>>,
    peers: RefCell<HashMap<PeerKey, KnownPeer>>,
    workloads: RefCell<HashMap<Arc<str>, Arc<PeerInfo>>>,
    services: RefCell<ServiceNames>,
    hosts: RefCell<HashMap<usize, HostNames>>,
}

impl Series {
    /// A peer with the identity that it proved.
    fn peer(&self, info: Option<&Arc<PeerInfo>>, principal: Option<&Arc<str>>) -> Arc<Peer> {
        let key = (
            info.map_or(0, |info| Arc::as_ptr(info) as usize),
            principal.cloned(),
        );

        let mut peers = self.peers.borrow_mut();
        if let Some((_, peer)) = peers.get(&key) {
            return peer.clone();
        }
        if peers.len() >= MAX_CACHED {
            peers.clear();
        }
        let peer = Arc::new(labels_of(info.map(|info| &**info), principal));
        peers.insert(key, (info.cloned(), peer.clone()));

        peer
    }

    /// A workload from an endpoint's metadata: `name;namespace;canonical name;canonical
    /// revision;cluster`.
    fn workload(&self, text: &Arc<str>) -> Arc<PeerInfo> {
        let mut workloads = self.workloads.borrow_mut();
        if let Some(info) = workloads.get(text) {
            return info.clone();
        }
        if workloads.len() >= MAX_CACHED {
            workloads.clear();
        }
        let mut parts = text.split(';').map(Box::<str>::from);
        let mut next = || parts.next().unwrap_or_default();
        let info = PeerInfo {
            workload: next(),
            namespace: next(),
            canonical_service: next(),
            canonical_revision: next(),
            cluster: next(),
            ..PeerInfo::default()
        };

        let info = Arc::new(info);
        workloads.insert(text.clone(), info.clone());

        info
    }

    /// The service that a cluster stands for, from its metadata.
    fn service(&self, worker: &Worker, cluster: Option<&Arc<str>>) -> Arc<ServiceName> {
        let name: Arc<str> = cluster.cloned().unwrap_or_else(|| UNKNOWN.into());
        let entry = worker.cluster(&name);
        let version = entry
            .as_ref()
            .map_or(0, |entry| Arc::as_ptr(&entry.entry.cluster) as usize);
        let mut services = self.services.borrow_mut();
        if let Some((made_of, service)) = services.get(&name)
            && *made_of == version
        {
            return service.clone();
        }

        if services.len() >= MAX_CACHED {
            services.clear();
        }
        let service = Arc::new(service_of(
            entry.as_ref().map(|entry| &entry.entry.cluster.metadata),
            &name,
        ));

        services.insert(name, (version, service.clone()));

        service
    }

    /// The name of a destination that is no known service: the host that the client asked for, as
    /// Istio has it. A passthrough keeps its own name beside it. Clients can make up hosts: the
    /// first ones are named, so that those beyond take no series from the services of the mesh.
    fn by_host(&self, unknown: &Arc<ServiceName>, host: &str) -> Arc<ServiceName> {
        if host.is_empty() || host.len() > MAX_HOST {
            return unknown.clone();
        }
        let mut all = self.hosts.borrow_mut();
        if all.len() >= MAX_CACHED {
            all.clear();
        }
        let key = Arc::as_ptr(unknown) as usize;
        if let Some(service) = all.get(&key).and_then(|(_, hosts)| hosts.get(host)) {
            return service.clone();
        }
        if all.values().map(|(_, hosts)| hosts.len()).sum::<usize>() >= MAX_HOSTS {
            return unknown.clone();
        }
        let (_, hosts) = all
            .entry(key)
            .or_insert_with(|| (unknown.clone(), HashMap::new()));
        let text: Arc<str> = host.into();
        let name = if *unknown.name == *UNKNOWN {
            text.clone()
        } else {
            unknown.name.clone()
        };

        let service = Arc::new(ServiceName {
            host: text,
            name,
            namespace: unknown.namespace.clone(),
        });

        hosts.insert(host.into(), service.clone());

        service
    }
}

fn service_of(metadata: Option<&Metadata>, cluster: &Arc<str>) -> ServiceName {
    let unknown: Arc<str> = UNKNOWN.into();
    let first = metadata.and_then(|metadata| match metadata.at("istio", &["services"])? {
        Value::List(services) => services.first(),
        _ => None,
    });

    match first {
        Some(service) => {
            let field = |name: &str| match service.field(name) {
                Some(Value::String(text)) => text.clone(),
                _ => unknown.clone(),
            };
            ServiceName {
                host: field("host"),
                name: field("name"),
                namespace: field("namespace"),
            }
        }
        // A passthrough or black hole is named by itself.
        None if cluster.ends_with("Cluster") => ServiceName {
            host: unknown.clone(),
            name: cluster.clone(),
            namespace: unknown,
        },
        None => ServiceName {
            host: unknown.clone(),
            name: unknown.clone(),
            namespace: unknown,
        },
    }
}

fn labels_of(info: Option<&PeerInfo>, principal: Option<&Arc<str>>) -> Peer {
    let known = |text: &str| -> Arc<str> {
        if text.is_empty() {
            UNKNOWN.into()
        } else {
            text.into()
        }
    };

    let principal: Arc<str> =
        principal.map_or_else(|| UNKNOWN.into(), |p| format!("spiffe://{p}").into());
    match info {
        None => Peer {
            principal,
            ..Peer::unknown()
        },
        Some(info) => Peer {
            workload: known(&info.workload),
            namespace: known(&info.namespace),
            principal,
            app: known(&info.app),
            version: known(&info.version),
            canonical_service: known(&info.canonical_service),
            canonical_revision: known(&info.canonical_revision),
            cluster: known(&info.cluster),
        },
    }
}

fn reporter(view: &ChainView) -> Reporter {
    match view.listener.direction {
        Direction::Inbound => Reporter::Destination,
        Direction::Outbound | Direction::Unspecified => Reporter::Source,
    }
}

fn is_mutual(conn: &Downstream) -> bool {
    conn.info
        .tls
        .as_deref()
        .is_some_and(|tls| tls.presented && tls.validated)
}

fn security(reporter: Reporter, mutual: bool) -> &'static str {
    match (reporter, mutual) {
        (Reporter::Source, _) => "unknown",
        (Reporter::Destination, true) => "mutual_tls",
        (Reporter::Destination, false) => "none",
    }
}

fn workload_of(host: &WorkerHost) -> Option<&Arc<str>> {
    match host
        .endpoint
        .as_ref()?
        .metadata
        .at("istio", &["workload"])?
    {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// Whether a cluster leads into the mesh, so that its servers may be told who we are.
pub fn is_in_mesh(worker: &Worker, cluster: &str) -> bool {
    if cluster.ends_with("PassthroughCluster") || cluster == "BlackHoleCluster" {
        return false;
    }
    worker.cluster(cluster).is_some_and(|cluster| {
        cluster.entry.cluster.metadata.at("istio", &["external"]) != Some(&Value::Bool(true))
    })
}

/// Source and destination, seen from our side.
fn sides(
    worker: &Worker,
    conn: &Downstream,
    reporter: Reporter,
    downstream: Option<&Arc<PeerInfo>>,
    upstream: Option<&Arc<PeerInfo>>,
    upstream_principal: Option<&Arc<str>>,
) -> (Arc<Peer>, Arc<Peer>) {
    let series = &worker.series;
    let own = worker.own_peer();
    match reporter {
        Reporter::Source => {
            let us = worker.own_principal();
            let us = upstream_principal.and(us.as_ref());
            (
                series.peer(Some(&own), us),
                series.peer(upstream, upstream_principal),
            )
        }
        Reporter::Destination => {
            let us = if is_mutual(conn) {
                conn.own_principal()
            } else {
                None
            };
            (
                series.peer(downstream, conn.peer_principal().as_ref()),
                series.peer(Some(&own), us.as_ref()),
            )
        }
    }
}

/// Adds a finished request.
pub fn http(run: &Run<'_>, request: &RequestHead) {
    let Some(stats) = steps::stats(&run.http.filters) else {
        return;
    };
    let (worker, conn, info) = (run.worker, run.conn, &run.info);
    let reporter = reporter(run.view);
    let upstream = info
        .state
        .upstream_peer
        .clone()
        .or_else(|| info.workload.clone());

    let (source, destination) = sides(
        worker,
        conn,
        reporter,
        info.state.downstream_peer.as_ref(),
        upstream.as_ref(),
        info.upstream_principal.as_ref(),
    );

    let series = &worker.series;
    let mut service = series.service(worker, info.cluster.as_ref());
    if stats.host_header_fallback && *service.host == *UNKNOWN {
        service = series.by_host(&service, request.authority());
    }
    let grpc = request.is_grpc();
    let mutual = is_mutual(conn);
    let key = Key {
        reporter,
        source: Arc::as_ptr(&source) as usize,
        destination: Arc::as_ptr(&destination) as usize,
        service: Arc::as_ptr(&service) as usize,
        grpc,
        code: info.status,
        grpc_status: info
            .grpc_status
            .filter(|_| grpc)
            .map_or(u32::MAX, |status| status.min(99)),
        flags: info.state.flags,
        mutual,
    };

    let found = series
        .http
        .borrow()
        .get(&key)
        .map(|(series, _)| series.clone());

    let found = found.unwrap_or_else(|| {
        let labels = HttpLabels {
            reporter,
            source: (*source).clone(),
            destination: (*destination).clone(),
            destination_service: service.host.clone(),
            destination_service_name: service.name.clone(),
            destination_service_namespace: service.namespace.clone(),
            request_protocol: if grpc { "grpc" } else { "http" },
            response_code: info.status,
            response_flags: info.state.flags.to_string().into(),
            grpc_response_status: info
                .grpc_status
                .filter(|_| grpc)
                .map_or_else(|| "".into(), |s| s.to_string().into()),
            connection_security_policy: security(reporter, mutual),
        };

        let made = Rc::new(HttpSeries::resolve(&worker.shard, &labels));
        let mut all = series.http.borrow_mut();
        if all.len() >= MAX_CACHED {
            all.clear();
        }
        all.insert(
            key,
            (
                made.clone(),
                (source.clone(), destination.clone(), service.clone()),
            ),
        );

        made
    });

    let heads = (
        request.fields().byte_len() as u64,
        run.response.fields().byte_len() as u64,
    );

    found.record(
        info.start.elapsed(),
        info.received.get() + heads.0,
        info.sent.get() + heads.1,
    );

    if let Some(messages) = &info.messages {
        found.record_messages(
            messages.requests.get().messages(),
            messages.responses.get().messages(),
        );
    }
}

/// The metrics of one TCP connection.
#[derive(Debug)]
pub struct TcpReport {
    labels: Box<TcpLabels>,
    series: TcpSeries,
    interval: Duration,
    told: (Cell<u64>, Cell<u64>),
}

impl TcpReport {
    /// A connection that has an upstream or is refused; `None` if nobody asked for metrics.
    pub fn of(
        worker: &Worker,
        conn: &Downstream,
        view: &ChainView,
        info: &StreamInfo,
    ) -> Option<Self> {
        let interval = view.chain.filters.iter().find_map(|filter| match filter {
            NetworkFilter::Stats { interval } => Some(*interval),
            _ => None,
        })?;

        let reporter = reporter(view);
        let upstream = info
            .state
            .upstream_peer
            .clone()
            .or_else(|| info.workload.clone());

        let (source, destination) = sides(
            worker,
            conn,
            reporter,
            info.state.downstream_peer.as_ref(),
            upstream.as_ref(),
            info.upstream_principal.as_ref(),
        );

        let service = worker.series.service(worker, info.cluster.as_ref());
        let labels = TcpLabels {
            reporter,
            source: (*source).clone(),
            destination: (*destination).clone(),
            destination_service: service.host.clone(),
            destination_service_name: service.name.clone(),
            destination_service_namespace: service.namespace.clone(),
            response_flags: info.state.flags.to_string().into(),
            connection_security_policy: security(reporter, is_mutual(conn)),
        };

        let series = TcpSeries::resolve(&worker.shard, &labels);
        series.opened.inc();

        Some(Self {
            labels: Box::new(labels),
            series,
            interval,
            told: Default::default(),
        })
    }

    /// How often [`TcpReport::progress`] is wanted.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Adds the bytes since the last call.
    pub fn progress(&self, meter: &Meter) {
        let (received, sent) = (meter.received.get(), meter.sent.get());
        self.series
            .received
            .add(received - self.told.0.replace(received));
        self.series.sent.add(sent - self.told.1.replace(sent));
    }

    /// Ends the connection; its flags are known now.
    pub fn close(self, worker: &Worker, meter: &Meter, info: &StreamInfo) {
        self.progress(meter);
        let flags = info.state.flags.to_string();
        if *flags == *self.labels.response_flags {
            self.series.closed.inc();
            return;
        }

        let labels = TcpLabels {
            response_flags: flags.into(),
            ..*self.labels
        };

        TcpSeries::resolve(&worker.shard, &labels).closed.inc();
    }
}

/// What an endpoint's metadata says of its workload, for requests and connections whose peer told
/// nothing of itself.
pub fn workload(worker: &Worker, host: &WorkerHost) -> Option<Arc<PeerInfo>> {
    workload_of(host).map(|text| worker.series.workload(text))
}
