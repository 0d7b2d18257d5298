//! Routes and gateways.

use std::sync::Arc;

use meltemi_types::Labels;

use crate::{
    Destination, Gateway, GatewayRef, Hostname, NamespacedName, Server, Service, Snapshot,
    VirtualService,
};

impl Snapshot {
    /// Every VirtualService with its delegates merged, oldest first; delegates themselves are not
    /// among them.
    pub fn virtual_services(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.routes.all.iter()
    }

    /// What a proxy of `namespace` applies for a gateway (or as a sidecar, [`GatewayRef::Mesh`]),
    /// in the order in which they win where hosts are the same: private to the namespace, exported
    /// to it by name, public; each oldest first. Source: Istio `VirtualServicesForGateway`.
    pub fn virtual_services_for(
        &self,
        gateway: &GatewayRef,
        namespace: &str,
    ) -> Vec<Arc<VirtualService>> {
        let all = self
            .routes
            .by_gateway
            .get(gateway)
            .map_or(&[][..], Vec::as_slice);

        let rank = |vs: &VirtualService| match &vs.export_to {
            export if !export.includes(namespace) => None,
            crate::Visibility::Public => Some(2),
            export if export.is_private_to(&vs.origin.object.namespace) => Some(0),
            crate::Visibility::Namespaces(_) => Some(1),
        };

        let mut ranked: Vec<_> = all.iter().filter_map(|vs| Some((rank(vs)?, vs))).collect();
        ranked.sort_by_key(|(rank, _)| *rank);

        ranked.into_iter().map(|(_, vs)| vs.clone()).collect()
    }

    /// The VirtualServices that a server of a gateway serves, each with the hosts that it serves of
    /// them; `namespace` is the gateway proxy's.
    pub fn virtual_services_of_server(
        &self,
        gateway: &Gateway,
        server: &Server,
        namespace: &str,
    ) -> Vec<(Arc<VirtualService>, Vec<Hostname>)> {
        let bound = self.virtual_services_for(&GatewayRef::Gateway(gateway.name()), namespace);
        let served = bound.into_iter().map(|vs| {
            let hosts = server.intersect(&vs.origin.object.namespace, &vs.hosts);
            (vs, hosts)
        });
        served.filter(|(_, hosts)| !hosts.is_empty()).collect()
    }

    /// The Gateways that a proxy serves, oldest first. An empty selector selects every gateway
    /// proxy, of every namespace.
    pub fn gateways_for(&self, labels: &Labels) -> Vec<Arc<Gateway>> {
        let mut served: Vec<_> = self
            .gateways()
            .filter(|gateway| gateway.selector.selects(labels))
            .cloned()
            .collect();
        served.sort_by(|a, b| a.origin.age.cmp(&b.origin.age));
        served
    }

    /// A Gateway by namespace and name.
    pub fn gateway(&self, name: &NamespacedName) -> Option<&Arc<Gateway>> {
        self.lowered
            .gateways
            .entries
            .get(name)
            .map(|entry| &entry.value)
    }

    /// The port that a destination means if `service` is its host's: its own, else the service's
    /// only one, else the only one of an ExternalName that stands for the service, else the
    /// listener's. Source: Istio `GetDestinationCluster`.
    pub fn destination_port(
        &self,
        destination: &Destination,
        service: Option<&Service>,
        listener_port: u16,
    ) -> u16 {
        match (
            destination.port,
            service.map(|service| service.ports.as_slice()),
        ) {
            (Some(port), _) => port,
            (None, Some([only])) => only.number,
            (None, _) => {
                let alias = self.services.alias(&destination.host);
                alias.and_then(|alias| alias.port).unwrap_or(listener_port)
            }
        }
    }

    /// Whether a host is an ExternalName Service's that declares the port that it means.
    pub(crate) fn alias_has_one_port(&self, host: &Hostname) -> bool {
        self.services
            .alias(host)
            .is_some_and(|alias| alias.port.is_some())
    }

    /// What a host stands for: itself, unless it is an ExternalName Service's.
    pub fn concrete_host<'a>(&'a self, host: &'a Hostname) -> &'a Hostname {
        self.services
            .alias(host)
            .map_or(host, |alias| &alias.target)
    }
}
