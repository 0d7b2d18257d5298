//! Everything that a proxy serves by, as one immutable value.
//!
//! A snapshot is swapped as a whole; its parts are shared. A part that a push did not name keeps
//! its `Arc`, and [`Compiler::listener_from`](crate::Compiler::listener_from) and its kin give the
//! same `Arc` for the same bytes: so "same `Arc`" means "same configuration", and connections need
//! not care about pushes of others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use meltemi_filters::ConnInfo;

use crate::address::Address;
use crate::cluster::Cluster;
use crate::endpoint::EndpointSet;
use crate::fast_hash::FastHash;
use crate::listener::{FilterChain, Listener};
use crate::route::RouteTable;

/// Everything, by name.
#[derive(Debug, Clone, Default)]
pub struct ProxySnapshot {
    listeners: HashMap<Arc<str>, Arc<Listener>, FastHash>,
    clusters: HashMap<Arc<str>, Arc<Cluster>, FastHash>,
    routes: HashMap<Arc<str>, Arc<RouteTable>, FastHash>,
    endpoints: HashMap<Arc<str>, Arc<EndpointSet>, FastHash>,
    /// Listeners without a socket of their own, by the address that they serve.
    by_destination: HashMap<SocketAddr, Arc<Listener>, FastHash>,
}

impl ProxySnapshot {
    /// A listener by name.
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.get(name)
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// A route table by name.
    pub fn route(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.routes.get(name)
    }

    /// Endpoints by EDS name.
    pub fn endpoints(&self, name: &str) -> Option<&Arc<EndpointSet>> {
        self.endpoints.get(name)
    }

    /// All listeners, in no order.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values()
    }

    /// All clusters, in no order.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    /// All route tables, in no order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<RouteTable>> {
        self.routes.values()
    }

    /// All endpoint sets, in no order.
    pub fn all_endpoints(&self) -> impl Iterator<Item = &Arc<EndpointSet>> {
        self.endpoints.values()
    }

    /// The listener that serves a connection which arrived at `at`: with `use_original_dst` the one
    /// for its original destination (address and port, then any address and the port), else, or if
    /// there is none, `at` itself.
    pub fn find_listener<'a>(
        &'a self,
        at: &'a Arc<Listener>,
        destination: SocketAddr,
    ) -> &'a Arc<Listener> {
        if !at.use_original_dst {
            return at;
        }
        self.find_original_dst(destination).unwrap_or(at)
    }

    /// The listener for an original destination, if there is one.
    pub fn find_original_dst(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let destination = meltemi_filters::conn::canonical_socket(destination);
        let any: IpAddr = match destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };

        self.by_destination
            .get(&destination)
            .or_else(|| {
                self.by_destination
                    .get(&SocketAddr::new(any, destination.port()))
            })
            // A listener on [::] serves IPv4 as well.
            .or_else(|| {
                let dual = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), destination.port());
                self.by_destination
                    .get(&dual)
                    .filter(|_| destination.is_ipv4())
            })
    }

    /// The filter chain for a connection: the listener of its original destination, then its match.
    pub fn select_filter_chain<'a>(
        &'a self,
        at: &'a Arc<Listener>,
        conn: &ConnInfo,
    ) -> Option<(&'a Arc<Listener>, &'a Arc<FilterChain>)> {
        let listener = self.find_listener(at, conn.local);
        listener.chains.select(conn).map(|chain| (listener, chain))
    }

    /// The next version of this snapshot. Every part that is not changed keeps its `Arc`.
    pub fn edit(&self) -> SnapshotBuilder {
        SnapshotBuilder {
            next: self.clone(),
            listeners_changed: false,
        }
    }
}

/// The next version of a snapshot.
#[derive(Debug)]
pub struct SnapshotBuilder {
    next: ProxySnapshot,
    listeners_changed: bool,
}

macro_rules! parts {
    ($($set:ident, $remove:ident, $retain:ident, $field:ident: $type:ty, $what:literal;)*) => {
        impl SnapshotBuilder {
            $(
                #[doc = concat!("Adds or replaces ", $what, ".")]
                pub fn $set(&mut self, value: Arc<$type>) -> &mut Self {
                    self.next.$field.insert(value.name.clone(), value);
                    self.listeners_changed |= stringify!($field) == "listeners";
                    self
                }

                #[doc = concat!("Removes ", $what, ".")]
                pub fn $remove(&mut self, name: &str) -> &mut Self {
                    let removed = self.next.$field.remove(name).is_some();
                    self.listeners_changed |= removed && stringify!($field) == "listeners";
                    self
                }

                #[doc = concat!("Removes each that is not wanted: ", $what, ".")]
                pub fn $retain(&mut self, keep: impl Fn(&str) -> bool) -> &mut Self {
                    let before = self.next.$field.len();
                    self.next.$field.retain(|name, _| keep(name));
                    self.listeners_changed |= self.next.$field.len() != before && stringify!($field) == "listeners";
                    self
                }
            )*
        }
    };
}

parts! {
    set_listener, remove_listener, retain_listeners, listeners: Listener, "a listener";
    set_cluster, remove_cluster, retain_clusters, clusters: Cluster, "a cluster";
    set_route, remove_route, retain_routes, routes: RouteTable, "a route table";
    set_endpoints, remove_endpoints, retain_endpoints, endpoints: EndpointSet, "a set of endpoints";
}

impl SnapshotBuilder {
    /// The snapshot as it will be.
    pub fn peek(&self) -> &ProxySnapshot {
        &self.next
    }

    /// Finishes it.
    pub fn build(mut self) -> ProxySnapshot {
        if self.listeners_changed {
            // Two listeners may claim an address while one replaces the other; the name decides,
            // the same way each time.
            let mut unbound: Vec<&Arc<Listener>> = self
                .next
                .listeners
                .values()
                .filter(|listener| !listener.bind_to_port)
                .collect();

            unbound.sort_by(|a, b| b.name.cmp(&a.name));
            let mut by_destination =
                HashMap::with_capacity_and_hasher(unbound.len(), FastHash::default());
            for listener in unbound {
                let addresses = [&listener.address]
                    .into_iter()
                    .chain(&listener.additional_addresses);
                for address in addresses.filter_map(Address::socket) {
                    by_destination.insert(address, listener.clone());
                }
            }

            self.next.by_destination = by_destination;
        }

        self.next
    }
}
