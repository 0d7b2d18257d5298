//! What a sidecar knows: its Sidecar object applied to the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use meltemi_types::Labels;

use crate::{
    EgressListener, GatewayRef, HttpAction, OutboundPolicy, ScopedEgress, Service, Sidecar,
    SidecarScope, Snapshot, VirtualService,
};

impl Snapshot {
    /// The Sidecar of a workload: one that selects it, else its namespace's, else the root
    /// namespace's; the oldest of each.
    pub fn sidecar_for(&self, namespace: &str, labels: &Labels) -> Option<&Arc<Sidecar>> {
        let oldest = |fits: &dyn Fn(&Sidecar) -> bool| {
            self.sidecars()
                .filter(|sidecar| fits(sidecar))
                .min_by(|a, b| a.origin.age.cmp(&b.origin.age))
        };

        let is_in = |sidecar: &Sidecar, ns: &str| sidecar.origin.object.namespace == ns;
        oldest(&|sidecar| {
            is_in(sidecar, namespace)
                && sidecar
                    .selector
                    .as_ref()
                    .is_some_and(|selector| selector.selects(labels))
        })
        .or_else(|| oldest(&|sidecar| is_in(sidecar, namespace) && sidecar.selector.is_none()))
        .or_else(|| {
            oldest(&|sidecar| is_in(sidecar, self.root_namespace()) && sidecar.selector.is_none())
        })
    }

    /// What a sidecar knows. Worked out once for each namespace and Sidecar, then shared.
    pub fn sidecar_scope(&self, namespace: &str, labels: &Labels) -> Arc<SidecarScope> {
        let sidecar = self.sidecar_for(namespace, labels);
        let key = (
            namespace.to_owned(),
            sidecar.map(|sidecar| sidecar.origin.name()),
        );

        // A poisoned cache holds whole entries only, since they are made before they are inserted.
        let cached = self
            .scopes
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();

        if let Some(scope) = cached {
            return scope;
        }
        let scope = Arc::new(self.build_scope(namespace, sidecar));

        self.scopes
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(key)
            .or_insert(scope)
            .clone()
    }

    fn build_scope(&self, namespace: &str, sidecar: Option<&Arc<Sidecar>>) -> SidecarScope {
        let written = sidecar.map_or(&[][..], |sidecar| sidecar.egress.as_slice());
        let egress: Vec<ScopedEgress> = if written.is_empty() {
            vec![ScopedEgress {
                listener: None,
                services: self.visible_services(namespace),
                virtual_services: self.virtual_services_for(&GatewayRef::Mesh, namespace),
            }]
        } else {
            written
                .iter()
                .map(|listener| self.scope_listener(namespace, listener))
                .collect()
        };

        let mut services: BTreeMap<_, Arc<Service>> = BTreeMap::new();
        for service in egress.iter().flat_map(|listener| &listener.services) {
            // The whole service, not the one narrowed to a listener's port.
            if let Some(service) = self.service(&service.key) {
                services
                    .entry(service.key.host.clone())
                    .or_insert_with(|| service.clone());
            }
        }

        // An imported route works only if the proxy also knows the services that it leads to.
        let mut destinations = BTreeSet::new();
        for host in egress
            .iter()
            .flat_map(|listener| &listener.virtual_services)
            .flat_map(|vs| destination_hosts(vs))
        {
            let host = self.concrete_host(host);
            destinations.insert(host.clone());
            if !services.contains_key(host)
                && let Some(service) = self.service_for(namespace, host)
            {
                services.insert(host.clone(), service.clone());
            }
        }

        let default = OutboundPolicy {
            mode: self.mesh.outbound_mode,
            egress_proxy: None,
        };

        SidecarScope {
            sidecar: sidecar.cloned(),
            namespace: namespace.to_owned(),
            egress,
            services: services.into_values().collect(),
            destinations,
            outbound_policy: sidecar
                .and_then(|sidecar| sidecar.outbound_policy.clone())
                .unwrap_or(default),
        }
    }

    fn scope_listener(&self, namespace: &str, listener: &EgressListener) -> ScopedEgress {
        let mut services: Vec<Arc<Service>> = Vec::new();
        let visible = self.services().filter(|service| {
            service.export_to.includes(namespace)
                && listener.imports(service.namespace(), service.host())
        });
        for service in visible {
            match services
                .last_mut()
                .filter(|last| last.key.host == service.key.host)
            {
                None => services.push(service.clone()),
                // One for each host: the proxy's own namespace's wins.
                Some(last) if service.namespace() == namespace => *last = service.clone(),
                Some(_) => {}
            }
        }

        if let Some(port) = listener.port.as_ref().filter(|port| port.number != 0) {
            services = services
                .iter()
                .filter_map(|service| narrow(service, port.number))
                .collect();
        }

        let virtual_services = self.virtual_services_for(&GatewayRef::Mesh, namespace);

        ScopedEgress {
            listener: Some(listener.clone()),
            services,
            virtual_services: virtual_services
                .into_iter()
                .filter(|vs| listener.imports_routes(vs))
                .collect(),
        }
    }
}

/// The service with the one port that a listener serves.
fn narrow(service: &Arc<Service>, number: u16) -> Option<Arc<Service>> {
    let port = service.port(number)?;
    if service.ports.len() == 1 {
        return Some(service.clone());
    }
    Some(Arc::new(Service {
        ports: vec![port.clone()],
        ..Service::clone(service)
    }))
}

/// Every host that the routes of a VirtualService lead to.
pub(crate) fn destination_hosts(vs: &VirtualService) -> impl Iterator<Item = &crate::Hostname> {
    let http = vs.http.iter().flat_map(|route| {
        let forward = match &route.action {
            HttpAction::Forward(destinations) => destinations.as_slice(),
            HttpAction::Redirect(_) | HttpAction::DirectResponse(_) => &[],
        };
        let mirrors = route.mirrors.iter().map(|mirror| &mirror.destination.host);
        forward
            .iter()
            .map(|weighted| &weighted.destination.host)
            .chain(mirrors)
    });

    let l4 = vs.tls.iter().chain(&vs.tcp).flat_map(|route| {
        route
            .destinations
            .iter()
            .map(|weighted| &weighted.destination.host)
    });

    http.chain(l4)
}
