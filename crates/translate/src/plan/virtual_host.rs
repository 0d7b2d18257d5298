//! The route tables of a sidecar: which host's requests go by which routes.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::{Hostname, OutboundMode, ScopedEgress, Service, VirtualService};

use super::cluster::PASSTHROUGH;
use super::{View, http_route};
use crate::route::{RouteInput, RouteTableInput, VirtualHostInput};

/// The table of one HTTP port: a virtual host for each service and each host of a VirtualService,
/// then the fall-back.
pub(super) fn port_table(
    view: &View<'_>,
    number: u16,
    scopes: &[&ScopedEgress],
) -> RouteTableInput {
    let mut hosts = Hosts::new(view, number);
    for egress in scopes {
        hosts.add_virtual_services(&egress.virtual_services, &egress.services);
        for service in &egress.services {
            hosts.add_service(service);
        }
    }

    hosts.add_fallback();

    RouteTableInput {
        name: number.to_string(),
        hosts: hosts.list,
        ignore_port: true,
    }
}

/// The table of one sniffed service: whatever host the request names, it came to this service's
/// address.
pub(super) fn service_table(
    view: &View<'_>,
    name: &str,
    egress: &ScopedEgress,
    service: &Arc<Service>,
    number: u16,
) -> RouteTableInput {
    let context = view.mesh_context(number);
    let routes = egress
        .virtual_services
        .iter()
        .filter(|vs| vs.hosts.iter().any(|host| service.host().is_within(host)))
        .map(|vs| http_route::rules(view, vs, &context, false))
        .find(|routes| !routes.is_empty())
        .unwrap_or_else(|| vec![http_route::default_route(view, service, number)]);

    let host = VirtualHostInput {
        name: format!("{}:{number}", service.host()),
        domains: vec!["*".to_owned()],
        routes,
        require_tls: false,
    };

    RouteTableInput {
        name: name.to_owned(),
        hosts: vec![Arc::new(host)],
        ignore_port: true,
    }
}

/// A host of a VirtualService on one port.
struct Claim<'a> {
    host: &'a Hostname,
    /// The place of the VirtualService in the list of those that apply.
    by: usize,
    /// The services that the host stands for, without those that a more specific host has taken.
    services: Vec<&'a Arc<Service>>,
    /// Whether it stands for any service, taken or not.
    matches_service: bool,
}

/// The hosts of all VirtualServices, the most specific first, with the services of the port that
/// each stands for.
fn claims<'a>(
    bound: &[(&'a Arc<VirtualService>, Vec<RouteInput>)],
    here: &[&'a Arc<Service>],
) -> Vec<Claim<'a>> {
    let mut hosts: Vec<(&Hostname, usize)> = Vec::new();
    for (by, (vs, _)) in bound.iter().enumerate() {
        hosts.extend(vs.hosts.iter().map(|host| (host, by)));
    }

    // Stable: of equal hosts the first VirtualService stays first.
    hosts.sort_by_key(|(host, _)| (host.is_wildcard(), std::cmp::Reverse(host.as_str().len())));

    let mut taken = BTreeSet::new();
    let mut claims = Vec::new();
    for (host, by) in hosts {
        let matched: Vec<_> = here
            .iter()
            .copied()
            .filter(|service| service.host().is_within(host))
            .collect();

        claims.push(Claim {
            host,
            by,
            matches_service: !matched.is_empty(),
            services: matched
                .into_iter()
                .filter(|service| taken.insert(service.host().clone()))
                .collect(),
        });
    }

    claims
}

/// Virtual hosts of one table, each domain once.
struct Hosts<'a, 'v> {
    view: &'a View<'v>,
    port: u16,
    list: Vec<Arc<VirtualHostInput>>,
    names: BTreeSet<String>,
    domains: BTreeSet<String>,
}

impl<'a, 'v> Hosts<'a, 'v> {
    fn new(view: &'a View<'v>, port: u16) -> Self {
        Self {
            view,
            port,
            list: Vec::new(),
            names: BTreeSet::new(),
            domains: BTreeSet::new(),
        }
    }

    /// The most specific host of any VirtualService decides: exact names first, then the longer
    /// wildcard.
    ///
    /// A host that no service has is served on port 80, and on the ports of the services that the
    /// same VirtualService names; a wildcard that matches a service stands for services alone.
    /// Source: Istio `buildSidecarVirtualHostsForVirtualService`.
    fn add_virtual_services(&mut self, all: &[Arc<VirtualService>], services: &[Arc<Service>]) {
        let here: Vec<&Arc<Service>> = services
            .iter()
            .filter(|service| service.port(self.port).is_some())
            .collect();

        let mut bound = Vec::new();
        for vs in all.iter().filter(|vs| !vs.http.is_empty()) {
            let routes =
                http_route::rules(self.view, vs, &self.view.mesh_context(self.port), false);
            if !routes.is_empty() {
                bound.push((vs, routes));
            }
        }

        let claims = claims(&bound, &here);
        let mut serves_others = vec![self.port == 80; bound.len()];
        for claim in &claims {
            let is_http = claim
                .services
                .iter()
                .any(|service| self.serves_http(service));
            serves_others[claim.by] |= is_http;
        }

        for claim in claims {
            let routes = &bound[claim.by].1;
            for service in claim.services {
                if self.serves_http(service) {
                    self.add(service.host(), Some(service), routes.clone());
                }
            }

            if !claim.matches_service && serves_others[claim.by] {
                self.add(claim.host, None, routes.clone());
            }
        }
    }

    fn serves_http(&self, service: &Service) -> bool {
        service
            .port(self.port)
            .is_some_and(|port| port.protocol.is_http() || port.protocol.is_sniffed())
    }

    fn add_service(&mut self, service: &Arc<Service>) {
        if self.serves_http(service) {
            let route = http_route::default_route(self.view, service, self.port);
            self.add(service.host(), Some(service), vec![route]);
        }
    }

    fn add(&mut self, host: &Hostname, service: Option<&Arc<Service>>, routes: Vec<RouteInput>) {
        let name = format!("{host}:{}", self.port);
        if self.names.contains(&name) {
            return;
        }
        let mut domains = http_route::domains(self.view, host, service.map(Arc::as_ref));
        if let Some(service) = service {
            for alias in &service.aliases {
                domains.extend(http_route::domains(self.view, &alias.host, None));
            }
        }

        domains.retain(|domain| self.domains.insert(domain.clone()));
        if domains.is_empty() {
            return;
        }
        self.names.insert(name.clone());
        self.list.push(Arc::new(VirtualHostInput {
            name,
            domains,
            routes,
            require_tls: false,
        }));
    }

    fn add_fallback(&mut self) {
        if !self.domains.insert("*".to_owned()) {
            return;
        }
        let policy = self.view.outbound_policy();
        let (name, route) = match (policy.mode, &policy.egress_proxy) {
            (OutboundMode::RegistryOnly, _) => (
                "block_all",
                RouteInput::Refuse {
                    name: "block_all".to_owned(),
                    status: 502,
                },
            ),
            (_, Some(proxy)) => (
                "allow_any",
                RouteInput::Passthrough {
                    cluster: self.view.cluster_of(proxy, self.port).0,
                },
            ),
            (_, None) => (
                "allow_any",
                RouteInput::Passthrough {
                    cluster: PASSTHROUGH.to_owned(),
                },
            ),
        };

        self.list.push(Arc::new(VirtualHostInput {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            require_tls: false,
        }));
    }
}
