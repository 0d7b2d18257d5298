//! One worker's looked-up metric series, and the peers and services that their labels name: what a
//! request adds to is found without building its labels again.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use meltemi_filters::ResponseFlags;
use meltemi_filters::metadata::{Metadata, Value};
use meltemi_filters::peer_metadata::PeerInfo;
use meltemi_proxy_config::cluster::Cluster;
use meltemi_telemetry::{HttpSeries, Peer, Reporter};

use crate::upstream::cluster::{WorkerCluster, WorkerHost};

/// Names of services by cluster, each with the cluster that it was read from.
type ServiceNames = HashMap<Arc<str>, (Option<Arc<Cluster>>, Arc<ServiceName>)>;

/// Names made of hosts that clients asked for, with what stood in their place.
type HostNames = (Arc<ServiceName>, HashMap<Box<str>, Arc<ServiceName>>);

/// The label of whatever is not known.
pub const UNKNOWN: &str = "unknown";

/// No longer host becomes a label; a DNS name with a port is shorter.
const MAX_HOST: usize = 261;
/// Hosts beside the mesh's services that have series of their own.
const MAX_HOSTS: usize = 256;

/// Workloads that one identity may name.
const MAX_WORKLOADS: usize = 256;

/// More looked-up series than this are forgotten; they are found again.
const MAX_CACHED: usize = 4096;

/// A shared value as a part of a key: equal only to itself. The key keeps the value alive, so that
/// its address cannot come to mean another one.
#[derive(Debug)]
pub struct Same<T>(pub Arc<T>);

impl<T> PartialEq for Same<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for Same<T> {}

impl<T> Hash for Same<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// What tells the series of requests apart.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// Whose side reports.
    pub reporter: Reporter,
    /// The client's workload.
    pub source: Same<Peer>,
    /// The server's workload.
    pub destination: Same<Peer>,
    /// The destination service.
    pub service: Same<ServiceName>,
    /// Whether the request is gRPC.
    pub grpc: bool,
    /// The HTTP status.
    pub code: u16,
    /// The gRPC status; `None` if there is none.
    pub grpc_status: Option<u32>,
    /// Envoy's response flags.
    pub flags: ResponseFlags,
    /// Whether the peer was authenticated.
    pub mutual: bool,
}

/// A service as metrics name it.
#[derive(Debug)]
pub struct ServiceName {
    /// `destination_service`.
    pub host: Arc<str>,
    /// `destination_service_name`.
    pub name: Arc<str>,
    /// `destination_service_namespace`.
    pub namespace: Arc<str>,
}

type PeerKey = (usize, Option<Arc<str>>);
type KnownPeer = (Option<Arc<PeerInfo>>, Arc<Peer>);

/// One worker's looked-up series and the values that their keys point to.
#[derive(Debug, Default)]
pub struct Series {
    requests: RefCell<HashMap<RequestKey, Rc<HttpSeries>>>,
    peers: RefCell<HashMap<PeerKey, KnownPeer>>,
    workloads: RefCell<HashMap<Arc<str>, Arc<PeerInfo>>>,
    services: RefCell<ServiceNames>,
    hosts: RefCell<HashMap<usize, HostNames>>,
    /// The workloads that each identity has named.
    claims: RefCell<HashMap<Arc<str>, HashSet<PeerInfo>>>,
}

impl Series {
    /// The series of requests with this key; `resolve` finds it at its first use.
    pub fn of_requests(
        &self,
        key: RequestKey,
        resolve: impl FnOnce(&RequestKey) -> HttpSeries,
    ) -> Rc<HttpSeries> {
        if let Some(series) = self.requests.borrow().get(&key) {
            return series.clone();
        }

        let series = Rc::new(resolve(&key));
        let mut requests = self.requests.borrow_mut();
        if requests.len() >= MAX_CACHED {
            requests.clear();
        }
        requests.insert(key, series.clone());

        series
    }

    /// Lets all looked-up series go; they are found again.
    pub fn forget(&self) {
        self.requests.borrow_mut().clear();
    }

    /// A peer with the identity that it proved.
    pub fn peer(&self, info: Option<&Arc<PeerInfo>>, principal: Option<&Arc<str>>) -> Arc<Peer> {
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
        let believed = info.filter(|info| self.is_believed(info, principal));
        let peer = Arc::new(labels_of(believed.map(|info| &**info), principal));
        peers.insert(key, (info.cloned(), peer.clone()));

        peer
    }

    /// Whether a peer may be who it says. A peer that has proved an identity names a workload of
    /// that identity's namespace, and one identity has a limited number of workloads: a peer must
    /// not write the names of others, or endless names, into the metrics.
    fn is_believed(&self, info: &PeerInfo, principal: Option<&Arc<str>>) -> bool {
        let Some(principal) = principal else {
            return true;
        };
        let namespace = principal.split("/ns/").nth(1);
        let namespace = namespace.and_then(|rest| rest.split('/').next());
        if namespace.is_some_and(|namespace| *namespace != *info.namespace) {
            return false;
        }

        // Replicas come and go; their names are in no label.
        let workload = PeerInfo {
            name: Box::default(),
            ..info.clone()
        };
        let mut claims = self.claims.borrow_mut();
        let named = claims.entry(principal.clone()).or_default();
        if named.len() >= MAX_WORKLOADS {
            return named.contains(&workload);
        }
        named.insert(workload);
        true
    }

    /// The workload that an endpoint's metadata names, for requests and connections whose peer told
    /// nothing of itself: `name;namespace;canonical name;canonical revision;cluster`.
    pub fn workload(&self, host: &WorkerHost) -> Option<Arc<PeerInfo>> {
        let text = workload_of(host)?;
        let mut workloads = self.workloads.borrow_mut();
        if let Some(info) = workloads.get(text) {
            return Some(info.clone());
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

        Some(info)
    }

    /// The service that a cluster stands for, from its metadata. `cluster` is `None` where there is
    /// no cluster of this name.
    pub fn service(
        &self,
        name: Option<&Arc<str>>,
        cluster: Option<&WorkerCluster>,
    ) -> Arc<ServiceName> {
        let name: Arc<str> = name.cloned().unwrap_or_else(|| UNKNOWN.into());
        let cluster = cluster.map(|cluster| &cluster.entry.cluster);
        let mut services = self.services.borrow_mut();
        if let Some((made_of, service)) = services.get(&name)
            && made_of.as_ref().map(Arc::as_ptr) == cluster.map(Arc::as_ptr)
        {
            return service.clone();
        }

        if services.len() >= MAX_CACHED {
            services.clear();
        }
        let service = Arc::new(service_of(cluster.map(|cluster| &cluster.metadata), &name));
        services.insert(name, (cluster.cloned(), service.clone()));

        service
    }

    /// The name of a destination that is no known service: the host that the client asked for, as
    /// Istio has it. A passthrough keeps its own name beside it. Clients can make up hosts: the
    /// first ones are named, so that those beyond take no series from the services of the mesh.
    pub fn by_host(&self, unknown: &Arc<ServiceName>, host: &str) -> Arc<ServiceName> {
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

fn workload_of(host: &WorkerHost) -> Option<&Arc<str>> {
    let endpoint = host.endpoint.as_ref()?;
    match endpoint.metadata.at("istio", &["workload"])? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_names_itself_and_not_others() {
        let series = Series::default();
        let labels = |namespace: &str, workload: &str, principal: &str| {
            let info = Arc::new(PeerInfo {
                namespace: namespace.into(),
                workload: workload.into(),
                ..PeerInfo::default()
            });
            let principal: Arc<str> = principal.into();
            let peer = series.peer(Some(&info), Some(&principal));
            (peer.workload.to_string(), peer.principal.to_string())
        };

        let own = "cluster.local/ns/shop/sa/web";
        assert_eq!(labels("shop", "web-v1", own).0, "web-v1");
        assert_eq!(
            labels("bank", "ledger", own),
            (UNKNOWN.to_owned(), format!("spiffe://{own}"))
        );

        // Endless names: the first ones are believed, and stay believed.
        for n in 0..MAX_WORKLOADS * 2 {
            labels("shop", &format!("w{n}"), own);
        }
        assert_eq!(labels("shop", "web-v1", own).0, "web-v1");
        assert_eq!(labels("shop", "late", own).0, UNKNOWN);
        let other = "cluster.local/ns/shop/sa/other";
        assert_eq!(labels("shop", "late", other).0, "late");
    }
}
