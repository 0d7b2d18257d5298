//! Services, endpoints and workloads.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_types::{Labels, SpiffeId};

use crate::{
    EndpointSet, Hostname, NamespacedName, Registry, Service, ServiceKey, ServicePort, Snapshot,
    TargetPort, Workload,
};

/// A service port that a workload serves, and the workload's own port behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceTarget {
    pub service: Arc<Service>,
    pub port: ServicePort,
    /// What the workload listens on.
    pub target_port: u16,
}

impl Snapshot {
    /// Every service, by host and namespace.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.by_key.values()
    }

    /// One service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.by_key.get(key)
    }

    /// The service that clients in `namespace` mean by `host`: their own namespace's, else the
    /// Kubernetes one, else the oldest of those that they may see. An ExternalName Service means
    /// the service that it names.
    pub fn service_for(&self, namespace: &str, host: &Hostname) -> Option<&Arc<Service>> {
        let host = self.concrete_host(host);
        let visible = || {
            self.services
                .of_host(host)
                .filter(|service| service.export_to.includes(namespace))
        };

        visible()
            .find(|service| service.namespace() == namespace)
            .or_else(|| visible().find(|service| service.registry == Registry::Kubernetes))
            .or_else(|| visible().min_by(|a, b| a.origin.age.cmp(&b.origin.age)))
    }

    /// Services that clients in `namespace` may see, by host; one for each host, chosen as
    /// [`Snapshot::service_for`] does.
    pub fn visible_services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let mut visible: Vec<Arc<Service>> = Vec::new();
        for service in self.services() {
            if visible
                .last()
                .is_some_and(|last| last.key.host == service.key.host)
            {
                continue;
            }
            visible.extend(self.service_for(namespace, &service.key.host).cloned());
        }

        visible
    }

    /// The endpoints of the port for connections with this number, unhealthy ones included; empty if
    /// there are none.
    pub fn endpoints(&self, service: &ServiceKey, number: u16) -> EndpointSet {
        let found = self.endpoints.of_number(service, number);
        found.cloned().unwrap_or_default()
    }

    /// The endpoints of a port of a service, as [`Snapshot::endpoints`].
    pub fn port_endpoints(&self, service: &ServiceKey, port: &ServicePort) -> EndpointSet {
        let found = self.endpoints.of(service, port);
        found.cloned().unwrap_or_default()
    }

    /// The identities that a service's endpoints may show, ordered.
    pub fn identities(&self, service: &ServiceKey) -> BTreeSet<SpiffeId> {
        self.endpoints.identities(service)
    }

    /// Where a gateway workload listens for a port that a Gateway names: the target ports of the
    /// Services before it, or the port itself. Source: Istio `MergeGateways`.
    pub fn gateway_ports(
        &self,
        namespace: &str,
        labels: &Labels,
        ips: &[IpAddr],
        port: u16,
    ) -> BTreeSet<u16> {
        let targets = self.service_targets(namespace, labels, ips);
        let mapped: BTreeSet<u16> = targets
            .iter()
            .filter(|target| target.port.number == port)
            .map(|target| target.target_port)
            .collect();

        if mapped.is_empty() {
            BTreeSet::from([port])
        } else {
            mapped
        }
    }

    /// Every workload, by namespace and name.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.by_name.values()
    }

    /// A workload by namespace and name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.workloads.by_name.get(name)
    }

    /// The workload with this address.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.by_ip.get(&ip)
    }

    /// The service ports that a proxy serves: those whose selector fits its labels, and
    /// ServiceEntries that list one of its addresses. By target port, then service. Works before
    /// the control plane knows the workload, except for target ports by name.
    pub fn service_targets(
        &self,
        namespace: &str,
        labels: &Labels,
        ips: &[IpAddr],
    ) -> Vec<ServiceTarget> {
        let workload = ips.iter().find_map(|ip| self.workload_at(*ip));
        let mut targets = Vec::new();
        for service in self.services.in_namespace(namespace) {
            if service
                .selector
                .as_ref()
                .is_some_and(|selector| selector.selects(labels))
            {
                targets.extend(service.ports.iter().filter_map(|port| {
                    let target_port = match &port.target {
                        TargetPort::Number(number) => *number,
                        TargetPort::Name(name) => workload?.port_named(name)?,
                    };
                    Some(ServiceTarget {
                        service: service.clone(),
                        port: port.clone(),
                        target_port,
                    })
                }));
            }
        }

        for service in self.services.with_listed_endpoints() {
            for port in &service.ports {
                let endpoints = self.port_endpoints(&service.key, port);
                let own = endpoints.iter().find(|endpoint| {
                    endpoint.workload.is_none()
                        && endpoint.address.ip().is_some_and(|ip| ips.contains(&ip))
                });

                targets.extend(own.map(|endpoint| ServiceTarget {
                    service: service.clone(),
                    port: port.clone(),
                    target_port: endpoint.port,
                }));
            }
        }

        targets.sort_by(|a, b| {
            (a.target_port, &a.service.origin.age, a.port.number).cmp(&(
                b.target_port,
                &b.service.origin.age,
                b.port.number,
            ))
        });

        targets
    }
}
