//! The configuration that a proxy serves by, as one immutable value.
//!
//! A snapshot is swapped as a whole, and its parts are shared: a resource that did not change keeps
//! its `Arc` from one snapshot to the next, and so does the table of all listeners. "The same
//! `Arc`" means "the same configuration", so that a connection need not care about changes of
//! others.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use meltemi_filters::conn::canonical_socket;

use crate::address::Address;
use crate::cluster::Cluster;
use crate::endpoint::EndpointSet;
use crate::fast_hash::FastHash;
use crate::listener::Listener;
use crate::route::RouteTable;

/// The configuration that a proxy serves by.
#[derive(Debug, Clone, Default)]
pub struct ProxySnapshot {
    listeners: Arc<Listeners>,
    clusters: ByName<ServedCluster>,
    routes: ByName<Arc<RouteTable>>,
}

type ByName<T> = HashMap<Arc<str>, T, FastHash>;

/// A cluster with the endpoints that it has at the moment.
#[derive(Debug, Clone)]
pub struct ServedCluster {
    pub cluster: Arc<Cluster>,
    /// Its endpoints, names resolved.
    pub endpoints: Arc<EndpointSet>,
}

/// The resources of a snapshot.
#[derive(Debug, Default)]
pub struct SnapshotParts {
    pub listeners: Vec<Arc<Listener>>,
    pub clusters: Vec<ServedCluster>,
    /// The route tables that RDS delivers, by the name under which listeners ask for them.
    pub routes: Vec<(Arc<str>, Arc<RouteTable>)>,
}

impl ProxySnapshot {
    /// The snapshot of these resources, which follows `self`: the table of listeners is shared if
    /// no listener changed.
    pub fn next(&self, parts: SnapshotParts) -> Self {
        let SnapshotParts {
            listeners,
            clusters,
            routes,
        } = parts;

        let named = |served: ServedCluster| (served.cluster.name.clone(), served);

        Self {
            listeners: match self.listeners.are(&listeners) {
                true => self.listeners.clone(),
                false => Arc::new(Listeners::new(listeners)),
            },
            clusters: clusters.into_iter().map(named).collect(),
            routes: routes.into_iter().collect(),
        }
    }

    /// The listener of this name.
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.by_name.get(name)
    }

    /// The cluster of this name.
    pub fn cluster(&self, name: &str) -> Option<&ServedCluster> {
        self.clusters.get(name)
    }

    /// The route table of this name.
    pub fn route(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.routes.get(name)
    }

    /// All listeners, in order of their names.
    pub fn listeners(&self) -> impl ExactSizeIterator<Item = &Arc<Listener>> {
        self.listeners.by_name.values()
    }

    /// All clusters, in no order.
    pub fn clusters(&self) -> impl ExactSizeIterator<Item = &ServedCluster> {
        self.clusters.values()
    }

    /// Whether both snapshots have the same listeners. Cheap; a snapshot that does not follow the
    /// other has other listeners even where they are equal.
    pub fn has_listeners_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.listeners, &other.listeners)
    }

    /// The listener that serves a connection which arrived at `at` and was going to `destination`.
    ///
    /// A listener with `use_original_dst` hands the connection to the listener of that address and
    /// port, or else of the unspecified address (`0.0.0.0`, `[::]`) and that port. The unspecified
    /// address stands for addresses of its own family alone: `[::]` does not serve IPv4, as a
    /// socket of `[::]` does not accept it. Source: Envoy
    /// `ConnectionHandlerImpl::getBalancedHandlerByAddress`, with the sockets that Envoy opens
    /// unless `ipv4_compat` is set. Where there is no such listener, `at` serves the connection
    /// itself.
    pub fn find_listener<'a>(
        &'a self,
        at: &'a Arc<Listener>,
        destination: SocketAddr,
    ) -> &'a Arc<Listener> {
        if !at.use_original_dst {
            return at;
        }

        // A dual-stack socket would show an IPv4 destination in its IPv6 form.
        let destination = canonical_socket(destination);
        let any: IpAddr = match destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let serving = |address| self.listeners.by_destination.get(&address);

        serving(destination)
            .or_else(|| serving(SocketAddr::new(any, destination.port())))
            .unwrap_or(at)
    }
}

/// The listeners of a snapshot.
#[derive(Debug, Default)]
struct Listeners {
    by_name: BTreeMap<Arc<str>, Arc<Listener>>,
    /// By each address that a listener has, whether or not it has a socket.
    by_destination: HashMap<SocketAddr, Arc<Listener>, FastHash>,
}

impl Listeners {
    fn new(listeners: Vec<Arc<Listener>>) -> Self {
        let by_name: BTreeMap<_, _> = listeners
            .into_iter()
            .map(|listener| (listener.name.clone(), listener))
            .collect();

        // Two listeners may claim an address while one replaces the other. The one whose name comes
        // first serves it, whichever arrived first.
        let mut by_destination = HashMap::default();
        for listener in by_name.values() {
            for address in listener.addresses().filter_map(Address::socket) {
                by_destination
                    .entry(address)
                    .or_insert_with(|| listener.clone());
            }
        }

        Self {
            by_name,
            by_destination,
        }
    }

    /// Whether these are the listeners of the table, each the same `Arc`.
    fn are(&self, listeners: &[Arc<Listener>]) -> bool {
        let is_known = |listener: &Arc<Listener>| {
            self.by_name
                .get(&listener.name)
                .is_some_and(|known| Arc::ptr_eq(known, listener))
        };
        self.by_name.len() == listeners.len() && listeners.iter().all(is_known)
    }
}

#[cfg(test)]
mod tests;
