//! Resources as they were received, what of them is warm, and the generation that follows.
//!
//! A resource that does not compile is refused by itself and its last good version goes on serving.
//! A cluster replaces its last version once its endpoints are there, a listener once its routes and
//! secrets are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use meltemi_filters::http::HttpFilter;
use meltemi_proto::Any;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use meltemi_proxy_config::bootstrap::Bootstrap;
use meltemi_proxy_config::cluster::{Cluster, Discovery};
use meltemi_proxy_config::endpoint::EndpointSet;
use meltemi_proxy_config::http::RouteSource;
use meltemi_proxy_config::listener::{FilterChain, Listener, Terminal};
use meltemi_proxy_config::route::RouteTable;
use meltemi_proxy_config::tls::{CommonTls, SecretRef};
use meltemi_proxy_config::{Compiler, ProxySnapshot, ServedCluster, SnapshotParts};

use super::checks;
pub use super::slots::{Origin, Received, Refused, Versions};
use super::slots::{
    Sent, Slot, Slots, Version, actives, newest, received, refused, set, used, waiting,
};
use crate::published::{ClusterEntry, Drained, Published};
use crate::upstream::live::{ClusterLive, Thresholds};
use crate::upstream::outlier::Outlier;

/// Everything that was received.
#[derive(Debug, Default)]
pub struct State {
    compiler: Compiler,
    listeners: Slots<Listener>,
    clusters: Slots<Cluster>,
    /// Route tables serve as soon as they arrive.
    routes: Slots<RouteTable>,
    endpoints: BTreeMap<Arc<str>, (Arc<EndpointSet>, Option<Received>)>,
    /// What names resolve to, by the cluster's address in memory, which it keeps for as long as it
    /// stands here.
    resolved: HashMap<usize, (Arc<Cluster>, Arc<EndpointSet>)>,
    entries: HashMap<Arc<str>, Arc<ClusterEntry>>,
    /// The configuration that was published last.
    snapshot: ProxySnapshot,
    generation: u64,
    /// The listeners that drain.
    pub draining: Option<Drained>,
}

/// What a batch of resources came to.
#[derive(Debug, Default)]
pub struct Applied {
    /// Resources that were refused: name and reason.
    pub refused: Vec<(String, String)>,
    /// Parts that are left out, over all resources.
    pub warnings: usize,
}

impl Applied {
    /// What a NACK says.
    pub fn nack(&self) -> Option<String> {
        if self.refused.is_empty() {
            return None;
        }
        let each: Vec<String> = self
            .refused
            .iter()
            .map(|(name, reason)| format!("{name}: {reason}"))
            .collect();
        Some(each.join("; "))
    }
}

/// A resource to apply: name, version, message.
pub type Named<'a> = (&'a str, &'a str, &'a Any);

impl State {
    /// Nothing received yet.
    pub fn new(compiler: Compiler) -> Self {
        Self {
            compiler,
            ..Self::default()
        }
    }

    /// Applies new and changed resources of one type from a server, then removals. Unknown types
    /// are refused.
    pub fn apply<'a>(
        &mut self,
        type_url: &str,
        set: impl IntoIterator<Item = Named<'a>>,
        removed: &[String],
    ) -> Applied {
        let mut applied = Applied::default();
        for (name, version, any) in set {
            let sent = Sent {
                name,
                version,
                any,
                origin: Origin::Dynamic,
            };
            let result = match type_url {
                CLUSTER => self.set_cluster(sent),
                ENDPOINT => self.set_endpoints(sent),
                LISTENER => self.set_listener(sent),
                ROUTE => self.set_route(sent),
                other => Err(format!("resources of type {other} are not served")),
            };

            match result {
                Ok(warnings) => applied.warnings += warnings,
                Err(reason) => applied.refused.push((name.to_owned(), reason)),
            }
        }

        for name in removed {
            self.remove(type_url, name);
        }

        applied
    }

    /// Takes over the static resources of a bootstrap, which has been compiled and checked.
    pub fn set_static(&mut self, bootstrap: Bootstrap) {
        for cluster in bootstrap.clusters {
            let name = cluster.value.name.clone();
            let compiled = Ok((cluster.value, cluster.warnings));
            let _ = set(
                &mut self.clusters,
                static_resource(&name, &cluster.message),
                compiled,
                Cluster::eq,
            );
        }

        for listener in bootstrap.listeners {
            let name = listener.value.name.clone();
            let compiled = Ok((listener.value, listener.warnings));
            let _ = set(
                &mut self.listeners,
                static_resource(&name, &listener.message),
                compiled,
                same_bytes_alone,
            );
        }
    }

    fn set_cluster(&mut self, sent: Sent<'_>) -> Result<usize, String> {
        let compiled = self
            .compiler
            .cluster_from(sent.any)
            .map_err(|rejection| rejection.to_string());
        let usable = compiled.and_then(|(cluster, warnings)| {
            checks::cluster(&cluster)?;
            Ok((cluster, warnings))
        });

        set(&mut self.clusters, sent, usable, Cluster::eq)
    }

    fn set_listener(&mut self, sent: Sent<'_>) -> Result<usize, String> {
        let compiled = self
            .compiler
            .listener_from(sent.any)
            .map_err(|rejection| rejection.to_string());
        let usable = compiled.and_then(|(listener, warnings)| {
            checks::listener(&listener)?;
            Ok((listener, warnings))
        });

        set(&mut self.listeners, sent, usable, same_bytes_alone)
    }

    fn set_route(&mut self, sent: Sent<'_>) -> Result<usize, String> {
        let slot = self.routes.entry(sent.name.into()).or_default();
        match self.compiler.route_from(sent.any) {
            Ok((value, warnings)) => {
                let count = warnings.len();
                let received = received(sent, warnings);
                slot.active = Some(Version { value, received });
                slot.refused = None;
                Ok(count)
            }
            Err(rejection) => {
                slot.refused = Some(refused(sent, &rejection.to_string()));
                Err(rejection.to_string())
            }
        }
    }

    fn set_endpoints(&mut self, sent: Sent<'_>) -> Result<usize, String> {
        match self.compiler.endpoints_from(sent.any) {
            Ok((endpoints, warnings)) => {
                let count = warnings.len();
                let received = received(sent, warnings);

                // The same endpoints again must not cost a balancer.
                let same = self
                    .endpoints
                    .get(sent.name)
                    .filter(|(before, _)| *before == endpoints);

                let endpoints = same.map_or(endpoints, |(before, _)| before.clone());
                self.endpoints
                    .insert(received.name.clone(), (endpoints, Some(received)));
                Ok(count)
            }
            Err(rejection) => Err(rejection.to_string()),
        }
    }

    fn remove(&mut self, type_url: &str, name: &str) {
        match type_url {
            CLUSTER => remove_dynamic(&mut self.clusters, name),
            LISTENER => remove_dynamic(&mut self.listeners, name),
            ROUTE => {
                // A listener that still names this table answers 404 and does not wait for it.
                let sent = Sent {
                    name,
                    version: "",
                    any: &Any::default(),
                    origin: Origin::Dynamic,
                };
                let slot = self.routes.entry(name.into()).or_default();
                slot.refused = None;
                slot.active = Some(Version {
                    value: Arc::new(RouteTable::empty(name)),
                    received: received(sent, Vec::new()),
                });
            }
            ENDPOINT => {
                // It does not exist: nobody need wait for it. Endpoints that were there stay, as
                // Envoy keeps them.
                let none = || (Arc::new(EndpointSet::empty(name)), None);
                self.endpoints.entry(name.into()).or_insert_with(none);
            }
            _ => {}
        }
    }

    /// The addresses that a cluster's names resolve to; answers for a version of it that is gone
    /// are nobody's.
    pub fn set_resolved(&mut self, cluster: &Arc<Cluster>, endpoints: EndpointSet) {
        let slot = self.clusters.get(&cluster.name);
        let is_used = slot.is_some_and(|slot| {
            slot.warming
                .iter()
                .chain(&slot.active)
                .any(|version| Arc::ptr_eq(&version.value, cluster))
        });

        if is_used
            && self
                .resolved(cluster)
                .is_none_or(|before| **before != endpoints)
        {
            self.resolved.insert(
                Arc::as_ptr(cluster).addr(),
                (cluster.clone(), Arc::new(endpoints)),
            );
        }
    }

    fn resolved(&self, cluster: &Arc<Cluster>) -> Option<&Arc<EndpointSet>> {
        self.resolved
            .get(&Arc::as_ptr(cluster).addr())
            .map(|(_, endpoints)| endpoints)
    }

    /// Clusters whose names must be kept resolved.
    pub fn to_resolve(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        newest(&self.clusters).filter(|cluster| {
            matches!(
                cluster.discovery,
                Discovery::StrictDns(..) | Discovery::LogicalDns(..)
            )
        })
    }

    /// EDS resources that clusters need.
    pub fn wanted_endpoints(&self) -> BTreeSet<Arc<str>> {
        used(&self.clusters)
            .filter_map(|cluster| cluster.eds().cloned())
            .collect()
    }

    /// RDS resources that listeners need.
    pub fn wanted_routes(&self) -> BTreeSet<Arc<str>> {
        used(&self.listeners)
            .flat_map(|listener| tables(listener))
            .collect()
    }

    /// Secrets that the configuration needs, from any source.
    pub fn wanted_secrets(&self) -> Vec<SecretRef> {
        let mut wanted: Vec<SecretRef> = Vec::new();
        let mut add = |terms: &CommonTls| {
            for secret in terms.secrets() {
                if !wanted.contains(secret) {
                    wanted.push(secret.clone());
                }
            }
        };

        for listener in used(&self.listeners) {
            for chain in listener.chains.iter() {
                if let Some(terms) = chain.transport.tls() {
                    add(&terms.common);
                }
            }
        }

        for cluster in used(&self.clusters) {
            for terms in cluster.transports().filter_map(|transport| transport.tls()) {
                add(&terms.common);
            }
        }

        wanted
    }

    /// Forgets endpoints and routes that no cluster or listener names any more.
    pub fn forget_unused(&mut self) {
        let endpoints = self.wanted_endpoints();
        self.endpoints.retain(|name, _| endpoints.contains(name));
        let routes = self.wanted_routes();
        self.routes
            .retain(|name, slot| slot.origin() == Origin::Static || routes.contains(name));
        let clusters: BTreeSet<usize> = used(&self.clusters)
            .map(|cluster| Arc::as_ptr(cluster).addr())
            .collect();
        self.resolved
            .retain(|address, _| clusters.contains(address));
    }

    /// Puts the next generation together from everything that is warm.
    pub fn publish(&mut self, has_secret: impl Fn(&str) -> bool) -> Published {
        let warm: Vec<Arc<str>> = waiting(&self.clusters)
            .filter(|(_, cluster)| self.cluster_awaits(cluster).is_none())
            .map(|(name, _)| name.clone())
            .collect();
        for name in warm {
            self.clusters.entry(name).and_modify(Slot::activate);
        }

        let warm: Vec<Arc<str>> = waiting(&self.listeners)
            .filter(|(_, listener)| self.listener_awaits(listener, &has_secret).is_none())
            .map(|(name, _)| name.clone())
            .collect();
        for name in warm {
            self.listeners.entry(name).and_modify(Slot::activate);
        }

        self.generation += 1;

        let clusters = self.cluster_entries();

        let served = |entry: &Arc<ClusterEntry>| ServedCluster {
            cluster: entry.cluster.clone(),
            endpoints: entry.endpoints.clone(),
        };
        self.snapshot = self.snapshot.next(SnapshotParts {
            listeners: actives(&self.listeners).cloned().collect(),
            clusters: clusters.values().map(served).collect(),
            routes: self
                .routes
                .iter()
                .filter_map(|(name, slot)| {
                    Some((name.clone(), slot.active.as_ref()?.value.clone()))
                })
                .collect(),
        });

        Published {
            generation: self.generation,
            snapshot: self.snapshot.clone(),
            clusters,
            draining: self.draining,
        }
    }

    fn cluster_entries(&mut self) -> HashMap<Arc<str>, Arc<ClusterEntry>> {
        let mut entries = HashMap::with_capacity(self.clusters.len());
        for cluster in actives(&self.clusters) {
            let name = &cluster.name;
            let nothing = || Arc::new(EndpointSet::default());
            let endpoints = match &cluster.discovery {
                Discovery::Static(endpoints) => endpoints.clone(),
                Discovery::Eds(eds) => self
                    .endpoints
                    .get(eds)
                    .map_or_else(nothing, |(endpoints, _)| endpoints.clone()),
                Discovery::StrictDns(..) | Discovery::LogicalDns(..) => {
                    self.resolved(cluster).cloned().unwrap_or_else(nothing)
                }
                Discovery::OriginalDst(_) => nothing(),
            };

            let before = self
                .entries
                .get(name)
                .filter(|entry| Arc::ptr_eq(&entry.cluster, cluster));

            let entry = match before {
                Some(entry)
                    if Arc::ptr_eq(&entry.endpoints, &endpoints)
                        || both_empty(&entry.endpoints, &endpoints) =>
                {
                    entry.clone()
                }
                Some(entry) => Arc::new(ClusterEntry::new(
                    cluster.clone(),
                    endpoints,
                    entry.live.clone(),
                )),
                None => {
                    let live = match self.entries.get(name) {
                        Some(entry) => live(cluster).after(&entry.live),
                        None => live(cluster),
                    };
                    Arc::new(ClusterEntry::new(
                        cluster.clone(),
                        endpoints,
                        Arc::new(live),
                    ))
                }
            };

            entries.insert(name.clone(), entry);
        }

        self.entries.clone_from(&entries);

        entries
    }

    /// What a cluster lacks before it can serve.
    fn cluster_awaits(&self, cluster: &Arc<Cluster>) -> Option<String> {
        let has_all = match &cluster.discovery {
            Discovery::Eds(name) => self.endpoints.contains_key(name),
            Discovery::StrictDns(..) | Discovery::LogicalDns(..) => {
                self.resolved.contains_key(&Arc::as_ptr(cluster).addr())
            }
            Discovery::Static(_) | Discovery::OriginalDst(_) => true,
        };

        (!has_all).then(|| "endpoints".to_owned())
    }

    /// What a listener lacks before it can serve.
    fn listener_awaits(
        &self,
        listener: &Listener,
        has_secret: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let has_table = |name: &Arc<str>| {
            let slot = self.routes.get(name);
            slot.is_some_and(|slot| slot.active.is_some())
        };
        let table = tables(listener).find(|name| !has_table(name));
        if let Some(table) = table {
            return Some(format!("routes {table:?}"));
        }

        let secret = listener
            .chains
            .iter()
            .flat_map(|chain| secrets_of(chain))
            .find(|secret| !has_secret(&secret.name))?;
        Some(format!("secret {:?}", &*secret.name))
    }

    /// Whether every listener and cluster can serve some version of itself. A listener that was
    /// refused from the start cannot, and a server that drops one that it sent so will make it so.
    pub fn is_warm(&self) -> bool {
        waiting(&self.clusters).next().is_none()
            && waiting(&self.listeners).next().is_none()
            && self.never_served().next().is_none()
    }

    /// Why the proxy is not ready yet, one line for each listener and cluster.
    pub fn not_ready(&self, has_secret: impl Fn(&str) -> bool) -> Vec<String> {
        let line = |kind: &str, name: &str, awaited: Option<String>| {
            let awaited = awaited.unwrap_or_else(|| "the next publication".to_owned());
            format!("{kind} {name:?} waits for {awaited}")
        };
        let clusters = waiting(&self.clusters)
            .map(|(name, cluster)| line("cluster", name, self.cluster_awaits(cluster)));
        let listeners = waiting(&self.listeners).map(|(name, listener)| {
            line(
                "listener",
                name,
                self.listener_awaits(listener, &has_secret),
            )
        });
        let refused = self
            .never_served()
            .map(|(name, refused)| format!("listener {name:?} was refused: {}", refused.reason));

        clusters.chain(listeners).chain(refused).collect()
    }

    /// What an operator has to know of a proxy that is ready, one line each: listeners that serve
    /// an older version, since the newest was refused, and listeners that deny tokens.
    pub fn caveats(&self) -> Vec<String> {
        let mut caveats = Vec::new();
        for (name, slot) in &self.listeners {
            let Some(active) = &slot.active else { continue };
            if let Some(refused) = &slot.refused {
                let reason = &refused.reason;
                caveats.push(format!(
                    "listener {name:?} serves an older version: the newest was refused: {reason}"
                ));
            }

            if denies_tokens(&active.value) {
                caveats.push(format!(
                    "listener {name:?} denies requests with a token: tokens are not checked yet (jwt_authn)"
                ));
            }
        }

        caveats
    }

    /// Listeners of which every version was refused.
    fn never_served(&self) -> impl Iterator<Item = (&Arc<str>, &Refused)> {
        self.listeners
            .iter()
            .filter(|(_, slot)| slot.active.is_none() && slot.warming.is_none())
            .filter_map(|(name, slot)| Some((name, slot.refused.as_ref()?)))
    }

    /// All versions of everything, by type, for dumps.
    pub fn versions(&self) -> Vec<(&'static str, Vec<Versions>)> {
        fn all<T>(slots: &Slots<T>) -> Vec<Versions> {
            slots
                .iter()
                .map(|(name, slot)| slot.versions(name))
                .collect()
        }

        let endpoints = self.endpoints.iter().filter_map(|(name, (_, received))| {
            Some(Versions {
                name: name.clone(),
                active: Some(received.clone()?),
                warming: None,
                refused: None,
            })
        });

        vec![
            (CLUSTER, all(&self.clusters)),
            (LISTENER, all(&self.listeners)),
            (ROUTE, all(&self.routes)),
            (ENDPOINT, endpoints.collect()),
        ]
    }
}

fn remove_dynamic<T>(slots: &mut Slots<T>, name: &str) {
    if slots
        .get(name)
        .is_some_and(|slot| slot.origin() == Origin::Dynamic)
    {
        slots.remove(name);
    }
}

fn both_empty(a: &EndpointSet, b: &EndpointSet) -> bool {
    a.endpoints.is_empty() && b.endpoints.is_empty()
}

fn tables(listener: &Listener) -> impl Iterator<Item = Arc<str>> + '_ {
    listener
        .chains
        .iter()
        .filter_map(|chain| match &chain.terminal {
            Terminal::Http(http) => match &http.routes {
                RouteSource::Rds(name) => Some(name.clone()),
                RouteSource::Inline(_) => None,
            },
            Terminal::Tcp(_) => None,
        })
}

fn denies_tokens(listener: &Listener) -> bool {
    listener.chains.iter().any(|chain| match &chain.terminal {
        Terminal::Http(http) => {
            let mut filters = http.filters.slots().map(|(_, slot)| &slot.filter);
            filters.any(|filter| matches!(filter, HttpFilter::JwtAuthn(_)))
        }
        Terminal::Tcp(_) => false,
    })
}

fn secrets_of(chain: &FilterChain) -> impl Iterator<Item = &SecretRef> {
    chain
        .transport
        .tls()
        .into_iter()
        .flat_map(|terms| terms.common.secrets())
}

fn static_resource<'a>(name: &'a str, any: &'a Any) -> Sent<'a> {
    Sent {
        name,
        version: "",
        any,
        origin: Origin::Static,
    }
}

/// Listeners are compared by their bytes, which the compiler has done. One that comes in other
/// bytes takes the place of an equal one, which costs its connections nothing: they go on under the
/// new one on the same terms.
fn same_bytes_alone(_: &Listener, _: &Listener) -> bool {
    false
}

fn live(cluster: &Cluster) -> ClusterLive {
    let thresholds = cluster.breakers.map(|breakers| Thresholds {
        connections: breakers.max_connections,
        pending: breakers.max_pending,
        requests: breakers.max_requests,
        retries: breakers.max_retries,
    });
    let outlier = cluster.outlier.clone().map(Outlier::new);
    ClusterLive::new(thresholds, outlier)
}

#[cfg(test)]
mod tests {
    use meltemi_proto::envoy::config::cluster::v3 as cluster;
    use meltemi_proto::envoy::config::core::v3 as core;
    use meltemi_proto::google::protobuf::{Struct, Value, value::Kind};

    use super::*;

    fn message(timeout: i64) -> cluster::Cluster {
        let text = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let fields = Struct {
            fields: (0..16)
                .map(|n| (format!("key{n}"), text("value")))
                .collect(),
        };

        cluster::Cluster {
            name: "c".to_owned(),
            connect_timeout: Some(meltemi_proto::google::protobuf::Duration {
                seconds: timeout,
                nanos: 0,
            }),
            metadata: Some(meltemi_proto::envoy::config::core::v3::Metadata {
                filter_metadata: [("istio".to_owned(), fields)].into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn served(state: &mut State, any: &Any) -> Arc<ClusterEntry> {
        assert_eq!(state.apply(CLUSTER, [("c", "", any)], &[]).nack(), None);
        state.publish(|_| true).clusters["c"].clone()
    }

    #[test]
    fn what_serves_keeps_its_endpoints_while_its_successor_waits() {
        use meltemi_proto::envoy::config::endpoint::v3 as endpoint;

        let mut state = State::default();
        let kind = |kind: cluster::cluster::DiscoveryType| {
            let assignment = endpoint::ClusterLoadAssignment {
                cluster_name: "c".to_owned(),
                ..Default::default()
            };

            meltemi_proto::pack(&cluster::Cluster {
                load_assignment: (kind == cluster::cluster::DiscoveryType::StrictDns)
                    .then_some(assignment),
                cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
                    kind as i32,
                )),
                ..message(1)
            })
        };

        let apply = |state: &mut State, type_url: &str, any: &Any| {
            assert_eq!(state.apply(type_url, [("c", "", any)], &[]).nack(), None);
        };

        let count = |state: &mut State| {
            state.forget_unused();
            state.publish(|_| true).clusters["c"]
                .endpoints
                .endpoints
                .len()
        };

        apply(
            &mut state,
            CLUSTER,
            &kind(cluster::cluster::DiscoveryType::Eds),
        );

        let address = core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: "10.0.0.1".to_owned(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(80)),
                ..Default::default()
            })),
        };

        let host = endpoint::LbEndpoint {
            host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
                endpoint::Endpoint {
                    address: Some(address),
                    ..Default::default()
                },
            )),
            ..Default::default()
        };

        let endpoints = endpoint::ClusterLoadAssignment {
            cluster_name: "c".to_owned(),
            endpoints: vec![endpoint::LocalityLbEndpoints {
                lb_endpoints: vec![host],
                ..Default::default()
            }],
            ..Default::default()
        };

        apply(&mut state, ENDPOINT, &meltemi_proto::pack(&endpoints));
        assert_eq!(count(&mut state), 1);
        apply(
            &mut state,
            CLUSTER,
            &kind(cluster::cluster::DiscoveryType::StrictDns),
        );

        assert_eq!(
            (count(&mut state), state.wanted_endpoints().len()),
            (1, 1),
            "the first answer is awaited"
        );

        // An answer is for the version that asked.
        let first = state.to_resolve().next().expect("names to resolve").clone();
        let mut again = kind(cluster::cluster::DiscoveryType::StrictDns);
        again = {
            let mut message: cluster::Cluster = meltemi_proto::unpack(&again).expect("a cluster");
            message.connect_timeout = Some(meltemi_proto::google::protobuf::Duration {
                seconds: 9,
                nanos: 0,
            });
            meltemi_proto::pack(&message)
        };

        apply(&mut state, CLUSTER, &again);
        state.set_resolved(&first, EndpointSet::default());
        assert_eq!(count(&mut state), 1);
        let second = state.to_resolve().next().expect("names to resolve").clone();
        state.set_resolved(&second, EndpointSet::default());
        assert_eq!((count(&mut state), state.wanted_endpoints().len()), (0, 0));
    }

    #[test]
    fn what_is_sent_again_keeps_what_lives_in_it() {
        let mut state = State::default();
        let one = meltemi_proto::pack(&message(1));
        let first = served(&mut state, &one);

        assert!(Arc::ptr_eq(&first, &served(&mut state, &one)));

        // Maps are written in any order: other bytes, the same cluster.
        let other = (0..1000)
            .map(|_| meltemi_proto::pack(&message(1)))
            .find(|any| *any != one)
            .expect("another order");

        assert!(Arc::ptr_eq(&first, &served(&mut state, &other)));
        let changed = served(&mut state, &meltemi_proto::pack(&message(2)));
        assert!(!Arc::ptr_eq(&first.cluster, &changed.cluster));
    }
}
