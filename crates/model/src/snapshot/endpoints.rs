//! Endpoints of services: workloads that a selector finds, and what ServiceEntries list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_types::{Selector, SpiffeId};

use super::services::ServiceTable;
use super::workloads::WorkloadTable;
use crate::{
    Endpoint, EndpointAddress, EndpointSet, Service, ServiceKey, ServicePort, TargetPort, Workload,
};

/// A port's number, and whether it takes datagrams: a TCP and a UDP port may share a number.
type PortKey = (u16, bool);

fn key_of(port: &ServicePort) -> PortKey {
    (port.number, port.is_udp())
}

/// Endpoint sets by service and port.
#[derive(Debug, Default)]
pub(crate) struct EndpointTable {
    by_service: BTreeMap<ServiceKey, Arc<BTreeMap<PortKey, EndpointSet>>>,
}

impl EndpointTable {
    pub fn of(&self, service: &ServiceKey, port: &ServicePort) -> Option<&EndpointSet> {
        self.by_service.get(service)?.get(&key_of(port))
    }

    /// The endpoints of the port for connections with this number.
    pub fn of_number(&self, service: &ServiceKey, number: u16) -> Option<&EndpointSet> {
        self.by_service.get(service)?.get(&(number, false))
    }

    pub fn identities(&self, service: &ServiceKey) -> BTreeSet<SpiffeId> {
        let sets = self
            .by_service
            .get(service)
            .into_iter()
            .flat_map(|ports| ports.values());
        sets.flat_map(|set| set.iter())
            .filter_map(|endpoint| endpoint.identity.clone())
            .collect()
    }

    /// Finds the endpoints of every service. Of services in a namespace where no workload changed,
    /// and that are themselves the same, the sets are taken over unseen.
    pub fn build(
        prev: Option<(&Self, &ServiceTable)>,
        services: &ServiceTable,
        workloads: &WorkloadTable,
        changed_namespaces: &BTreeSet<&str>,
    ) -> Self {
        let mut table = Self::default();
        let mut index: Option<(&str, LabelIndex<'_>)> = None;

        // By namespace, so that one index at a time is enough.
        let mut ordered: Vec<&Arc<Service>> = services.by_key.values().collect();

        ordered.sort_by(|a, b| a.key.namespace.cmp(&b.key.namespace));
        for service in ordered {
            let namespace = service.key.namespace.as_str();
            if let Some((prev, prev_services)) = prev
                && !changed_namespaces.contains(namespace)
                && prev_services
                    .by_key
                    .get(&service.key)
                    .is_some_and(|held| Arc::ptr_eq(held, service))
                && prev_services.listed.get(&service.key) == services.listed.get(&service.key)
                && let Some(held) = prev.by_service.get(&service.key)
            {
                table.by_service.insert(service.key.clone(), held.clone());
                continue;
            }

            if index.as_ref().is_none_or(|(of, _)| *of != namespace) {
                index = Some((
                    namespace,
                    LabelIndex::new(workloads.in_namespace(namespace)),
                ));
            }

            let selected = match (&service.selector, &index) {
                (Some(selector), Some((_, index))) => index.select(selector),
                _ => Vec::new(),
            };

            let held = prev.and_then(|(prev, _)| prev.by_service.get(&service.key));
            let ports: BTreeMap<PortKey, EndpointSet> = service
                .ports
                .iter()
                .map(|port| {
                    let listed = services
                        .listed
                        .get(&service.key)
                        .and_then(|ports| ports.get(&port.number));
                    let set = collect(service, port, &selected, listed.map_or(&[], Vec::as_slice));
                    let held = held
                        .and_then(|ports| ports.get(&key_of(port)))
                        .filter(|held| ***held == *set);
                    (key_of(port), held.cloned().unwrap_or_else(|| set.into()))
                })
                .collect();

            let same = held.filter(|held| {
                held.len() == ports.len()
                    && ports
                        .iter()
                        .all(|(port, set)| held.get(port).is_some_and(|h| Arc::ptr_eq(h, set)))
            });

            table.by_service.insert(
                service.key.clone(),
                same.cloned().unwrap_or_else(|| Arc::new(ports)),
            );
        }

        table
    }

    /// Services whose endpoints differ from `prev`.
    pub fn changed_since<'a>(&'a self, prev: &'a Self) -> impl Iterator<Item = &'a ServiceKey> {
        let newer = self.by_service.iter().filter(|(key, sets)| {
            prev.by_service
                .get(key)
                .is_none_or(|held| !Arc::ptr_eq(held, sets))
        });

        let gone = prev
            .by_service
            .keys()
            .filter(|key| !self.by_service.contains_key(key));

        newer.map(|(key, _)| key).chain(gone)
    }
}

fn collect(
    service: &Service,
    port: &ServicePort,
    selected: &[&Arc<Workload>],
    listed: &[Endpoint],
) -> Vec<Endpoint> {
    let of_workloads = selected
        .iter()
        .filter_map(|workload| endpoint_of(service, port, workload));
    let mut endpoints: Vec<Endpoint> = of_workloads.chain(listed.iter().cloned()).collect();
    endpoints.sort_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)));
    endpoints.dedup_by(|later, first| later.address == first.address && later.port == first.port);
    endpoints
}

fn endpoint_of(
    service: &Service,
    port: &ServicePort,
    workload: &Arc<Workload>,
) -> Option<Endpoint> {
    let address = workload.address.clone()?;

    // A name can be an endpoint only where the client asks DNS.
    if matches!(address, EndpointAddress::Dns(_)) && !service.resolution.is_dns() {
        return None;
    }

    // A WorkloadEntry maps ports by the service port's name; a Pod by the target's name.
    let by_port_name = (workload.workload_kind == "WorkloadEntry")
        .then(|| workload.port_named(&port.name))
        .flatten();
    let number = match (&address, by_port_name, &port.target) {
        (EndpointAddress::Unix(_), ..) => 0,
        (_, Some(number), _) => number,
        (_, None, TargetPort::Number(number)) => *number,
        (_, None, TargetPort::Name(name)) => workload.port_named(name)?,
    };

    let health = if service.publish_not_ready {
        crate::Health::Healthy
    } else {
        workload.health
    };

    Some(Endpoint {
        address,
        port: number,
        workload: Some(workload.clone()),
        labels: workload.labels.clone(),
        weight: workload.weight.max(1),
        locality: workload.locality.clone(),
        network: workload.network.clone(),
        health,
        tls_mode: workload.tls_mode,
        identity: workload.identity.clone(),
    })
}

/// Workloads of one namespace by label, so that a selector need not try all of them.
struct LabelIndex<'a> {
    by_label: BTreeMap<(&'a str, &'a str), Vec<&'a Arc<Workload>>>,
}

impl<'a> LabelIndex<'a> {
    fn new(workloads: &'a [Arc<Workload>]) -> Self {
        let mut by_label: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for workload in workloads {
            for (key, value) in workload.labels.iter() {
                by_label
                    .entry((key.as_str(), value.as_str()))
                    .or_default()
                    .push(workload);
            }
        }

        Self { by_label }
    }

    /// An empty selector selects nothing: a Service without selector has no workloads of its own.
    fn select(&self, selector: &Selector) -> Vec<&'a Arc<Workload>> {
        let candidates = selector.0.iter().map(|(key, value)| {
            self.by_label
                .get(&(key.as_str(), value.as_str()))
                .map_or(&[][..], Vec::as_slice)
        });

        let fewest = candidates.min_by_key(|list| list.len()).unwrap_or(&[]);
        fewest
            .iter()
            .copied()
            .filter(|workload| selector.selects(&workload.labels))
            .collect()
    }
}
