//! One worker's side of a cluster: its balancer, its pools, whom to send the next request to.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meltemi_lb::{Balancer, Cursor, Health, PickContext, SubsetMatch};
use meltemi_proxy_config::cluster::Discovery;
use meltemi_proxy_config::endpoint::Endpoint;
use meltemi_proxy_config::tls::UpstreamTransport;

use super::live::HostLive;
use super::pool::HostPool;
use crate::counts::ClusterCounts;
use crate::published::ClusterEntry;

/// No idle timeout is so short that pools are swept more often.
const SHORTEST_SWEEP: Duration = Duration::from_millis(10);

/// An endpoint with everything that a request to it needs.
#[derive(Debug)]
pub struct WorkerHost {
    /// Its configuration; `None` for original destinations.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Where it is.
    pub address: SocketAddr,
    /// Its record.
    pub live: Arc<HostLive>,
    /// Our connections to it.
    pub pool: Rc<HostPool>,
    /// How it is spoken to.
    pub transport: UpstreamTransport,
}

impl WorkerHost {
    /// Its own name, if it is known by one.
    pub fn hostname(&self) -> Option<&str> {
        self.endpoint
            .as_ref()
            .map(|endpoint| &*endpoint.hostname)
            .filter(|name| !name.is_empty())
    }
}

/// A worker's side of a cluster.
#[derive(Debug)]
pub struct WorkerCluster {
    /// The part that all workers share.
    pub entry: Arc<ClusterEntry>,
    /// What we have counted of it.
    pub counts: Rc<ClusterCounts>,
    hosts: Vec<Option<Rc<WorkerHost>>>,
    balancer: RefCell<Rc<Balancer>>,
    balancer_of: Cell<u64>,
    cursor: Cell<Cursor>,
    original: RefCell<HashMap<SocketAddr, Rc<WorkerHost>>>,
}

/// What an endpoint is chosen by.
#[derive(Debug)]
pub struct PickRequest<'a> {
    /// 64 random bits.
    pub random: u64,
    /// What consistent hashing goes by.
    pub hash: Option<u64>,
    /// Metadata that the endpoint must have.
    pub subset: Option<&'a SubsetMatch>,
    /// Endpoints that were tried.
    pub tried: &'a [SocketAddr],
    /// Metadata of endpoints to avoid.
    pub omitted: &'a [SubsetMatch],
    /// How often another one is drawn.
    pub attempts: u32,
    /// Priorities to leave out.
    pub failed_priorities: &'a [u32],
    /// Where the client of a captured connection wanted to go.
    pub original: Option<SocketAddr>,
    /// Milliseconds, as outlier records count them.
    pub now: u64,
}

impl WorkerCluster {
    /// Builds it; pools of an earlier version of the same configuration are taken over.
    pub fn new(entry: Arc<ClusterEntry>, before: Option<&WorkerCluster>, random: u64) -> Self {
        let counts = before
            .map(|before| before.counts.clone())
            .unwrap_or_default();
        let before = before.filter(|before| Arc::ptr_eq(&before.entry.cluster, &entry.cluster));
        let mut pools: HashMap<SocketAddr, Rc<HostPool>> = HashMap::new();
        for host in before
            .iter()
            .flat_map(|before| before.hosts.iter().flatten())
        {
            pools.insert(host.address, host.pool.clone());
        }

        let hosts = entry
            .endpoints
            .endpoints
            .iter()
            .zip(&entry.hosts)
            .map(|(endpoint, live)| {
                let live = live.clone()?;
                let (transport, _) = entry.cluster.transport_for(&endpoint.metadata);
                Some(Rc::new(WorkerHost {
                    address: live.address,
                    pool: pools.entry(live.address).or_default().clone(),
                    endpoint: Some(endpoint.clone()),
                    transport: transport.clone(),
                    live,
                }))
            });

        let hosts = hosts.collect();
        let now = super::live::epoch_ms(Instant::now());

        // First: it may bring endpoints back.
        let generation = entry.live.health_generation(now);
        let balancer = balancer(&entry);

        Self {
            balancer: RefCell::new(Rc::new(balancer)),
            balancer_of: Cell::new(generation),
            cursor: Cell::new(
                before.map_or_else(|| Cursor::seeded(random), |before| before.cursor.get()),
            ),
            original: RefCell::new(
                before
                    .map(|before| before.original.take())
                    .unwrap_or_default(),
            ),
            hosts,
            entry,
            counts,
        }
    }

    /// Chooses an endpoint; `None`: there is none that may be used.
    pub fn pick(&self, request: &PickRequest<'_>) -> Option<(Rc<WorkerHost>, u32)> {
        if let Discovery::OriginalDst(terms) = &self.entry.cluster.discovery {
            let mut address = request.original?;
            if let Some(port) = terms.port {
                address.set_port(port);
            }
            return Some((self.original(address), 0));
        }

        let generation = self.entry.live.health_generation(request.now);
        if generation != self.balancer_of.get() {
            *self.balancer.borrow_mut() = Rc::new(balancer(&self.entry));
            self.balancer_of.set(generation);
        }

        let balancer = self.balancer.borrow();
        let mut cursor = self.cursor.get();
        let active = |host: u32| match self.hosts.get(host as usize) {
            Some(Some(host)) => host.live.active.load(std::sync::atomic::Ordering::Relaxed),
            _ => u32::MAX,
        };

        let avoid = |host: u32| match self.hosts.get(host as usize) {
            Some(Some(host)) => {
                let is_omitted = |endpoint: &Arc<Endpoint>| {
                    let mut omitted = request.omitted.iter();
                    omitted.any(|metadata| endpoint.has_metadata(metadata))
                };
                request.tried.contains(&host.address)
                    || host.endpoint.as_ref().is_some_and(is_omitted)
            }
            _ => true,
        };

        let picked = balancer.pick(&mut PickContext {
            random: request.random,
            hash: request.hash,
            active: &active,
            cursor: &mut cursor,
            subset: request.subset,
            avoid: &avoid,
            attempts: match request.tried.is_empty() && request.omitted.is_empty() {
                true => 1,
                false => request.attempts,
            },
            failed_priorities: request.failed_priorities,
        });

        self.cursor.set(cursor);
        let picked = picked?;
        let host = self.hosts.get(picked.host as usize)?.clone()?;

        Some((host, picked.priority))
    }

    fn original(&self, address: SocketAddr) -> Rc<WorkerHost> {
        let mut original = self.original.borrow_mut();
        if let Some(host) = original.get(&address) {
            return host.clone();
        }
        let host = Rc::new(WorkerHost {
            endpoint: None,
            address,
            live: self.entry.live.host(address),
            pool: Rc::default(),
            transport: self.entry.cluster.transport.clone(),
        });

        original.insert(address, host.clone());

        host
    }

    /// Drops connections that ended or idled too long, and unused original destinations.
    pub fn sweep(&self, now: Instant) {
        let idle = self.entry.cluster.http.idle_timeout;
        for host in self.hosts.iter().flatten() {
            host.pool.sweep(now, idle);
        }
        let mut original = self.original.borrow_mut();
        let before = original.len();
        original.retain(|_, host| host.pool.sweep(now, idle) || Rc::strong_count(host) > 1);

        if original.len() < before {
            // Other workers may still call them.
            self.entry.live.forget_unused_hosts();
        }
    }

    /// How often to sweep it: soon enough for its idle timeout, and within `longest`.
    pub fn sweep_every(&self, longest: Duration) -> Duration {
        let idle = self.entry.cluster.http.idle_timeout;
        idle.map_or(longest, |idle| {
            (idle / 4).clamp(SHORTEST_SWEEP.min(longest), longest)
        })
    }
}

fn balancer(entry: &ClusterEntry) -> Balancer {
    let health = |number: u32| {
        let (Some(endpoint), Some(Some(live))) = (
            entry.endpoints.endpoints.get(number as usize),
            entry.hosts.get(number as usize),
        ) else {
            // An address that cannot be connected to (a name that has not been resolved).
            return Health::Excluded;
        };

        if live.is_ejected() {
            Health::Unhealthy
        } else {
            endpoint.status.health()
        }
    };

    entry
        .endpoints
        .balancer(&entry.cluster.lb, entry.cluster.hash_by_hostname, health)
}

impl WorkerCluster {
    /// Open connections by endpoint.
    pub fn open(&self) -> impl Iterator<Item = (SocketAddr, usize)> + '_ {
        let originals: Vec<_> = self
            .original
            .borrow()
            .values()
            .map(|host| (host.address, host.pool.len()))
            .collect();

        self.hosts
            .iter()
            .flatten()
            .map(|host| (host.address, host.pool.len()))
            .chain(originals)
    }
}

#[cfg(test)]
mod tests {
    use meltemi_proto::envoy::config::cluster::v3 as proto;
    use meltemi_proxy_config::compile_cluster;

    use super::super::live::ClusterLive;
    use super::*;

    fn entry(message: &proto::Cluster) -> Arc<ClusterEntry> {
        let (cluster, _) = compile_cluster(message).expect("a good cluster");
        let live = Arc::new(ClusterLive::new(Default::default(), None));
        Arc::new(ClusterEntry::new(cluster, Arc::default(), live))
    }

    fn called(cluster: &WorkerCluster, port: u16) -> Rc<WorkerHost> {
        cluster.original(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn original_destinations_are_forgotten_when_no_worker_calls_them() {
        let original = proto::cluster::DiscoveryType::OriginalDst as i32;
        let entry = entry(&proto::Cluster {
            name: "passthrough".to_owned(),
            cluster_discovery_type: Some(proto::cluster::ClusterDiscoveryType::Type(original)),
            lb_policy: proto::cluster::LbPolicy::ClusterProvided as i32,
            ..Default::default()
        });

        let known = || {
            let mut ports: Vec<_> = entry.live.hosts().keys().map(SocketAddr::port).collect();
            ports.sort_unstable();
            ports
        };

        let [one, other] = [1, 2].map(|seed| WorkerCluster::new(entry.clone(), None, seed));
        for port in 1..=1000 {
            called(&one, port);
        }
        let (busy, elsewhere) = (called(&one, 7), called(&other, 8));
        one.sweep(Instant::now());
        assert_eq!(known(), [7, 8]);
        drop(busy);
        one.sweep(Instant::now());
        assert_eq!(known(), [8], "another worker calls it");

        // Endpoints of other clusters are forgotten when configuration no longer has them; here it
        // never had any.
        ClusterEntry::new(entry.cluster.clone(), Arc::default(), entry.live.clone());
        assert!(Arc::ptr_eq(
            &elsewhere.live,
            &entry.live.host(elsewhere.address)
        ));

        drop(elsewhere);
        other.sweep(Instant::now());
        assert_eq!(known(), [0_u16; 0]);
    }

    #[test]
    fn short_idle_timeouts_are_swept_for_more_often() {
        let longest = Duration::from_secs(5);
        let every = |idle_ms: u64| {
            let idle = Duration::from_millis(idle_ms);
            #[expect(deprecated, reason = "the short way to an idle timeout")]
            let entry = entry(&proto::Cluster {
                name: "up".to_owned(),
                common_http_protocol_options: Some(
                    meltemi_proto::envoy::config::core::v3::HttpProtocolOptions {
                        idle_timeout: Some(meltemi_proto::google::protobuf::Duration {
                            seconds: idle.as_secs() as i64,
                            nanos: idle.subsec_nanos() as i32,
                        }),
                        ..Default::default()
                    },
                ),
                ..Default::default()
            });

            WorkerCluster::new(entry, None, 1).sweep_every(longest)
        };

        // 0 is no timeout.
        assert_eq!(
            [0, 1, 2000, 3_600_000].map(every),
            [longest, SHORTEST_SWEEP, Duration::from_millis(500), longest]
        );
    }
}
