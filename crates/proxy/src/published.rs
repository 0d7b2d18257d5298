//! What the control thread publishes and every worker serves from: a snapshot of the configuration,
//! and the live records of its clusters. Immutable, and swapped as a whole.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_proxy_config::ProxySnapshot;
use meltemi_proxy_config::cluster::{Cluster, Discovery};
use meltemi_proxy_config::endpoint::{Endpoint, EndpointSet};
use meltemi_proxy_config::listener::{Direction, Listener};

use crate::upstream::live::{ClusterLive, HostLive};

/// One generation of configuration, with the live records that belong to it.
#[derive(Debug, Default)]
pub struct Published {
    /// Grows by one with each publication.
    pub generation: u64,
    /// The configuration.
    pub snapshot: ProxySnapshot,
    /// The snapshot's clusters by name, each with its live record.
    pub clusters: HashMap<Arc<str>, Arc<ClusterEntry>>,
    /// Connections of these listeners are asked to end.
    pub draining: Option<Drained>,
}

/// Which listeners drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drained {
    /// Those of inbound traffic.
    Inbound,
    /// All of them.
    All,
}

impl Drained {
    /// Whether the listener is among them.
    pub fn has(self, listener: &Listener) -> bool {
        self == Self::All || listener.direction == Direction::Inbound
    }
}

/// A cluster with its endpoints of the moment.
#[derive(Debug)]
pub struct ClusterEntry {
    /// Its configuration. The same allocation for as long as it does not change.
    pub cluster: Arc<Cluster>,
    /// Its endpoints, names resolved.
    pub endpoints: Arc<EndpointSet>,
    /// Its breakers and outlier records.
    pub live: Arc<ClusterLive>,
    /// The record of each endpoint; `None` where its address is no IP address.
    pub hosts: Vec<Option<Arc<HostLive>>>,
}

impl ClusterEntry {
    /// Puts a cluster, its endpoints and their records together.
    pub fn new(cluster: Arc<Cluster>, endpoints: Arc<EndpointSet>, live: Arc<ClusterLive>) -> Self {
        let address = |endpoint: &Arc<Endpoint>| endpoint.address.socket();
        let hosts = endpoints
            .endpoints
            .iter()
            .map(|endpoint| Some(live.host(address(endpoint)?)))
            .collect();

        let known: std::collections::HashSet<SocketAddr> =
            endpoints.endpoints.iter().filter_map(address).collect();
        if matches!(cluster.discovery, Discovery::OriginalDst(_)) {
            live.forget_unused_hosts();
        } else {
            live.keep_hosts(|address| known.contains(address));
        }

        Self {
            cluster,
            endpoints,
            live,
            hosts,
        }
    }
}
