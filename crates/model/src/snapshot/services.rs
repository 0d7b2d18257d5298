//! The service table: lowered Services and ServiceEntries with addresses allocated and aliases
//! resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_api::Object;
use meltemi_types::{Diagnostic, Severity};

use super::options::BuildOptions;
use crate::allocate::allocate;
use crate::lower::service::LoweredService;
use crate::lower::service_entry::LoweredEntry;
use crate::lower::{Lowered, finding};
use crate::{
    Cidr, Endpoint, EndpointAddress, Health, Hostname, Registry, Resolution, Service, ServiceKey,
    ServicePort, TlsMode,
};
use meltemi_types::{Labels, Locality};

/// Every service, and the endpoints that ServiceEntries list themselves.
#[derive(Debug, Default)]
pub(crate) struct ServiceTable {
    /// By host, then namespace.
    pub by_key: BTreeMap<ServiceKey, Arc<Service>>,
    by_namespace: BTreeMap<String, Vec<Arc<Service>>>,
    /// Endpoints listed by the declaring ServiceEntry, by port number.
    pub listed: BTreeMap<ServiceKey, BTreeMap<u16, Vec<Endpoint>>>,
    allocated: BTreeMap<ServiceKey, IpAddr>,
    /// ExternalName Services whose target the mesh knows.
    aliases: BTreeMap<Hostname, Alias>,
    pub diagnostics: Vec<Diagnostic>,
}

/// What an ExternalName Service stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alias {
    /// A host that is no alias itself.
    pub target: Hostname,
    /// Its port, if it declares exactly one.
    pub port: Option<u16>,
}

/// A service that stands for another host: its object, itself, and the host as written.
type DeclaredAlias<'a> = (&'a Object, &'a LoweredService, &'a Hostname);

/// The services of all objects, before aliases and addresses.
#[derive(Default)]
struct Declared<'a> {
    drafts: BTreeMap<ServiceKey, Service>,
    /// The services that want an address from the mesh.
    wanting: BTreeSet<ServiceKey>,
    aliases: Vec<DeclaredAlias<'a>>,
}

fn declared_twice(object: &Object, key: &ServiceKey, first: &Service) -> Diagnostic {
    let message = format!(
        "host {} is declared by {} already; ports that it does not have are added, the rest is ignored",
        key.host, first.origin.object
    );

    finding(
        object,
        Severity::Warning,
        "MEL0310",
        "spec.hosts",
        message,
        "declare a host once in a namespace",
    )
}

fn alias_without_target(object: &Object, target: &Hostname) -> Diagnostic {
    let message = format!(
        "externalName {target} is no host that the mesh knows, so this name gets no routes"
    );

    finding(
        object,
        Severity::Info,
        "MEL0312",
        "spec.externalName",
        message,
        "declare a ServiceEntry for it",
    )
}

impl ServiceTable {
    /// What a host stands for, if it is an alias and no service of its own.
    pub fn alias(&self, host: &Hostname) -> Option<&Alias> {
        self.aliases
            .get(host)
            .filter(|_| self.of_host(host).next().is_none())
    }

    /// Whether every alias stands for the same host and port as in `other`.
    pub fn has_same_aliases(&self, other: &Self) -> bool {
        self.aliases == other.aliases
    }

    /// Whether an ExternalName Service has this name, perhaps hidden by a service of its own.
    pub fn names_alias(&self, host: &Hostname) -> bool {
        self.aliases.contains_key(host)
    }

    /// Whether services and aliases are those of `other`, the same allocations.
    pub fn has_same_services(&self, other: &Self) -> bool {
        self.by_key.len() == other.by_key.len()
            && self.aliases == other.aliases
            && self.by_key.iter().all(|(key, service)| {
                let held = other.by_key.get(key);
                held.is_some_and(|held| Arc::ptr_eq(held, service))
            })
    }

    /// The services with this host, by namespace.
    pub fn of_host(&self, host: &Hostname) -> impl Iterator<Item = &Arc<Service>> {
        let from = ServiceKey {
            host: host.clone(),
            namespace: String::new(),
        };
        self.by_key
            .range(from..)
            .map(|(_, service)| service)
            .take_while(move |service| service.key.host == *host)
    }

    /// The services that a namespace declares.
    pub fn in_namespace(&self, namespace: &str) -> &[Arc<Service>] {
        self.by_namespace.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// The services whose ServiceEntry lists endpoints.
    pub fn with_listed_endpoints(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.listed.keys().filter_map(|key| self.by_key.get(key))
    }

    pub fn build(
        prev: Option<&Self>,
        services: &Lowered<Vec<LoweredService>>,
        entries: &Lowered<LoweredEntry>,
        options: &BuildOptions,
    ) -> Self {
        let mut table = Self::default();
        let Declared {
            mut drafts,
            wanting,
            aliases,
        } = table.declare(services, entries);

        table.resolve_aliases(&aliases, &mut drafts);
        table.listed = listed_endpoints(entries, &drafts);
        table.allocate(prev, &mut drafts, &wanting, services, entries, options);
        table.keep(drafts, prev);

        table
    }

    /// Collects the services that objects declare. Of several declarations of one host in one
    /// namespace the first counts; later ones only add ports that it does not have.
    fn declare<'a>(
        &mut self,
        services: &'a Lowered<Vec<LoweredService>>,
        entries: &'a Lowered<LoweredEntry>,
    ) -> Declared<'a> {
        let of_services = services.entries.values().flat_map(|entry| {
            let lowered = entry.value.iter();
            lowered.map(|lowered| (entry.object.as_ref(), lowered))
        });

        let of_entries = entries.entries.values().flat_map(|entry| {
            let lowered = entry.value.services.iter();
            lowered.map(|lowered| (entry.object.as_ref(), lowered))
        });

        // Kubernetes Services go first, so that no ServiceEntry of the same namespace takes a host
        // away from one. Among ServiceEntries the oldest goes first.
        let mut of_entries: Vec<_> = of_entries.collect();
        of_entries.sort_by(|a, b| a.1.service.origin.age.cmp(&b.1.service.origin.age));

        let mut declared = Declared::default();
        for (object, lowered) in of_services.chain(of_entries) {
            let key = &lowered.service.key;
            if let Some(target) = &lowered.alias_of {
                declared.aliases.push((object, lowered, target));
                continue;
            }

            match declared.drafts.get_mut(key) {
                None => {
                    if lowered.wants_address {
                        declared.wanting.insert(key.clone());
                    }
                    declared.drafts.insert(key.clone(), lowered.service.clone());
                }
                Some(first) => {
                    self.diagnostics.push(declared_twice(object, key, first));
                    let ports = lowered.service.ports.iter();
                    let is_new = |port: &&ServicePort| {
                        let same = |held: &ServicePort| {
                            held.number == port.number && held.is_udp() == port.is_udp()
                        };
                        !first.ports.iter().any(same)
                    };
                    let more: Vec<_> = ports.filter(is_new).cloned().collect();
                    first.ports.extend(more);
                }
            }
        }

        declared
    }

    /// Gives each alias to the service that its chain of externalNames ends at. A target in a
    /// Kubernetes Service wins over one in a ServiceEntry.
    fn resolve_aliases(
        &mut self,
        aliases: &[DeclaredAlias<'_>],
        drafts: &mut BTreeMap<ServiceKey, Service>,
    ) {
        let next: BTreeMap<&Hostname, &Hostname> = aliases
            .iter()
            .map(|(_, lowered, target)| (lowered.service.host(), *target))
            .collect();

        for (object, lowered, written) in aliases {
            let concrete = follow(written, &next);
            let target = drafts
                .values_mut()
                .filter(|service| service.key.host == *concrete)
                .min_by_key(|service| service.registry);

            // Without a target DNS still answers the name; the mesh has no routes for it.
            let Some(target) = target else {
                self.diagnostics.push(alias_without_target(object, written));
                continue;
            };

            target.aliases.push(lowered.service.key.clone());
            let port = match lowered.service.ports.as_slice() {
                [only] => Some(only.number),
                _ => None,
            };
            let alias = Alias {
                target: concrete.clone(),
                port,
            };
            self.aliases.insert(lowered.service.host().clone(), alias);
        }
    }

    /// Puts the drafts into the table. A service that equals the previous snapshot's keeps that
    /// allocation, so that later stages see by a pointer comparison that nothing changed.
    fn keep(&mut self, drafts: BTreeMap<ServiceKey, Service>, prev: Option<&Self>) {
        for (key, draft) in drafts {
            let held = prev
                .and_then(|prev| prev.by_key.get(&key))
                .filter(|held| ***held == draft);
            let service = held.cloned().unwrap_or_else(|| Arc::new(draft));

            self.by_namespace
                .entry(key.namespace.clone())
                .or_default()
                .push(service.clone());
            self.by_key.insert(key, service);
        }
    }

    fn allocate(
        &mut self,
        prev: Option<&Self>,
        drafts: &mut BTreeMap<ServiceKey, Service>,
        wanting: &BTreeSet<ServiceKey>,
        services: &Lowered<Vec<LoweredService>>,
        entries: &Lowered<LoweredEntry>,
        options: &BuildOptions,
    ) {
        let taken: BTreeSet<IpAddr> = drafts
            .values()
            .flat_map(|service| &service.addresses)
            .filter(|cidr| cidr.is_host())
            .map(|cidr| cidr.address())
            .collect();

        let nothing = BTreeMap::new();
        let held = prev.map_or(&nothing, |prev| &prev.allocated);

        for (registry, pool) in [
            (Registry::Kubernetes, options.service_cidr),
            (Registry::ServiceEntry, options.service_entry_cidr),
        ] {
            let of_registry = |key: &&ServiceKey| {
                drafts
                    .get(key)
                    .is_some_and(|service| service.registry == registry)
            };

            let wanting: BTreeSet<ServiceKey> =
                wanting.iter().filter(of_registry).cloned().collect();
            for (key, ip) in allocate(pool, &wanting, held, &taken) {
                let Some(draft) = drafts.get_mut(&key) else {
                    continue;
                };
                match ip {
                    Some(ip) => {
                        draft.addresses = vec![Cidr::host(ip)];
                        draft.is_address_allocated = true;
                        self.allocated.insert(key, ip);
                    }
                    None => {
                        let name = draft.origin.name();
                        let object = match registry {
                            Registry::Kubernetes => {
                                services.entries.get(&name).map(|entry| &entry.object)
                            }
                            Registry::ServiceEntry => {
                                entries.entries.get(&name).map(|entry| &entry.object)
                            }
                        };

                        if let Some(object) = object {
                            let message = format!(
                                "no address is left in {pool} for {}; it is reached by its endpoints' addresses only",
                                key.host
                            );

                            self.diagnostics.push(finding(
                                object,
                                Severity::Warning,
                                "MEL0311",
                                "",
                                message,
                                "enlarge the address range, or write an address",
                            ));
                        }
                    }
                }
            }
        }
    }
}

/// The end of a chain of ExternalNames; of a circle, some name in it, which is nobody's. Source:
/// Istio `resolveServiceAliases`.
fn follow<'a>(first: &'a Hostname, next: &BTreeMap<&'a Hostname, &'a Hostname>) -> &'a Hostname {
    let steps = std::iter::successors(Some(first), |host| next.get(host).copied());
    steps.take(next.len() + 1).last().unwrap_or(first)
}

/// The endpoints that entries list, by service and port. DNS without endpoints: the host is its own
/// endpoint.
fn listed_endpoints(
    entries: &Lowered<LoweredEntry>,
    drafts: &BTreeMap<ServiceKey, Service>,
) -> BTreeMap<ServiceKey, BTreeMap<u16, Vec<Endpoint>>> {
    let mut listed: BTreeMap<ServiceKey, BTreeMap<u16, Vec<Endpoint>>> = BTreeMap::new();
    for entry in entries.values() {
        for lowered in &entry.services {
            let service = &lowered.service;

            // Selected endpoints come from workloads; both at once is refused by validation.
            if service.selector.is_some() || !drafts.contains_key(&service.key) {
                continue;
            }
            for (number, endpoints) in &entry.endpoints {
                let of_port = listed
                    .entry(service.key.clone())
                    .or_default()
                    .entry(*number)
                    .or_default();

                of_port.extend(endpoints.iter().cloned());
                let is_dns = matches!(
                    service.resolution,
                    Resolution::Dns | Resolution::DnsRoundRobin
                );

                if endpoints.is_empty() && is_dns && !service.host().is_wildcard() {
                    of_port.push(host_endpoint(service, *number));
                }
            }
        }
    }

    listed
}

fn host_endpoint(service: &Service, number: u16) -> Endpoint {
    let target = match service.port(number).map(|port| &port.target) {
        Some(crate::TargetPort::Number(target)) => *target,
        _ => number,
    };

    Endpoint {
        address: EndpointAddress::Dns(service.host().clone()),
        port: target,
        workload: None,
        labels: Labels::default(),
        weight: 1,
        locality: Locality::default(),
        network: String::new(),
        health: Health::Healthy,
        tls_mode: TlsMode::Disabled,
        identity: None,
    }
}
