//! The names that a workload's DNS resolver answers itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use meltemi_types::Labels;

use crate::{EndpointAddress, Health, Hostname, Registry, Resolution, Service, Snapshot};

/// One name with its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NameEntry {
    /// The full name, perhaps a wildcard.
    pub host: Hostname,
    /// The addresses; never empty.
    pub ips: Vec<IpAddr>,
    /// Who declared it.
    pub registry: Registry,
    /// Kubernetes only: the Service's name and namespace, from which shorter forms are made.
    pub short: Option<(String, String)>,
}

impl Snapshot {
    /// The name table of a proxy, by name: services with an address, headless ones with their
    /// endpoints, and the pods of headless ones that have a hostname of their own. Source: Istio
    /// `BuildNameTable`.
    pub fn name_table(&self, namespace: &str, labels: &Labels) -> Vec<NameEntry> {
        let scope = self.sidecar_scope(namespace, labels);
        let mut names = BTreeMap::new();
        for service in &scope.services {
            self.name_service(service, &mut names);
        }
        names.into_values().collect()
    }

    fn name_service(&self, service: &Service, names: &mut BTreeMap<Hostname, NameEntry>) {
        let is_kubernetes = service.registry == Registry::Kubernetes;
        let mut ips: Vec<IpAddr> = service
            .addresses
            .iter()
            .filter(|cidr| cidr.is_host())
            .map(|cidr| cidr.address())
            .collect();

        if ips.is_empty() && service.is_headless() {
            for port in &service.ports {
                for endpoint in self
                    .port_endpoints(&service.key, port)
                    .iter()
                    .filter(|endpoint| {
                        endpoint.health == Health::Healthy || service.publish_not_ready
                    })
                {
                    let EndpointAddress::Ip(ip) = endpoint.address else {
                        continue;
                    };
                    if !ips.contains(&ip) {
                        ips.push(ip);
                    }
                    let Some((pod, subdomain)) = endpoint
                        .workload
                        .as_ref()
                        .and_then(|workload| workload.pod_dns.as_ref())
                    else {
                        continue;
                    };

                    if *subdomain == service.name {
                        let host = Hostname::new(&format!("{pod}.{}", service.host()));
                        let short = Some((
                            format!("{pod}.{}", service.name),
                            service.namespace().to_owned(),
                        ));

                        names.entry(host.clone()).or_insert(NameEntry {
                            host,
                            ips: vec![ip],
                            registry: service.registry,
                            short,
                        });
                    }
                }
            }

            ips.sort();
        }

        // Without address there is nothing to say: wildcards and resolution NONE are left to the
        // upstream resolver.
        if ips.is_empty()
            || (service.resolution == Resolution::DynamicDns && service.host().is_wildcard())
        {
            return;
        }

        let mut insert = |host: &Hostname, short| {
            names.insert(
                host.clone(),
                NameEntry {
                    host: host.clone(),
                    ips: ips.clone(),
                    registry: service.registry,
                    short,
                },
            );
        };

        insert(
            service.host(),
            is_kubernetes.then(|| (service.name.clone(), service.namespace().to_owned())),
        );

        for alias in &service.aliases {
            let name = alias
                .host
                .as_str()
                .split('.')
                .next()
                .unwrap_or_default()
                .to_owned();
            insert(&alias.host, Some((name, alias.namespace.clone())));
        }
    }
}
