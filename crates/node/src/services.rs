//! DNS names, cluster IPs and endpoints of Kubernetes Services, for workloads without a sidecar and
//! for the relay.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use meltemi_api::{Kind, Spec};
use meltemi_dns::ServiceTarget;
use meltemi_model::{EndpointAddress, Health, Registry, Service, ServicePort, Snapshot, Tables};
use meltemi_redirect::rules::Transport;
use meltemi_redirect::{RuleSet, ServicePlan, ServiceRule};
use meltemi_store::World;
use meltemi_types::Protocol;
use tokio::sync::watch;

use crate::network::DOMAIN;

/// What a workload without a sidecar needs to reach Services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Services {
    /// Addresses by fully qualified name: cluster IPs, or the pods of a headless Service.
    pub(crate) names: HashMap<String, Vec<Ipv4Addr>>,
    /// Named ports by their names in DNS, `_PORT._tcp.SERVICE...`: the Service, or each ready
    /// endpoint of a headless one. Source: Kubernetes' DNS specification, 2.3.2 and 2.4.2.
    pub(crate) ports: HashMap<String, Vec<ServiceTarget>>,
    /// ExternalName Services: `spec.externalName` by fully qualified name.
    pub(crate) aliases: HashMap<String, String>,
    /// Endpoints by cluster IP and port.
    pub(crate) rules: Vec<ServiceRule>,
}

impl Services {
    /// Collects the Kubernetes Services. ServiceEntries are left out: on Kubernetes, too, they have
    /// no effect on workloads without a sidecar.
    pub(crate) fn from_snapshot(snapshot: &Snapshot, objects: &Tables) -> Self {
        let mut out = Self {
            aliases: aliases(objects),
            ..Self::default()
        };

        for service in snapshot
            .services()
            .filter(|service| service.registry == Registry::Kubernetes)
        {
            let own: Vec<IpAddr> = service
                .addresses
                .iter()
                .filter(|cidr| cidr.is_host())
                .map(|cidr| cidr.address())
                .collect();

            let mut named = own.clone();
            for port in &service.ports {
                let endpoints = endpoints(snapshot, service, port);
                out.name_port(service, port, &endpoints);
                if service.is_headless() {
                    named.extend(endpoints.iter().map(SocketAddr::ip));
                }
                let transport = if port.protocol == Protocol::Udp {
                    Transport::Udp
                } else {
                    Transport::Tcp
                };

                out.rules
                    .extend(own.iter().filter(|_| !endpoints.is_empty()).map(|address| {
                        ServiceRule {
                            address: *address,
                            port: port.number,
                            transport,
                            endpoints: endpoints.clone(),
                        }
                    }));
            }

            named.sort_unstable();
            named.dedup();
            let named = named.into_iter().filter_map(|ip| {
                if let IpAddr::V4(ip) = ip {
                    Some(ip)
                } else {
                    None
                }
            });

            let named: Vec<Ipv4Addr> = named.collect();
            if !named.is_empty() {
                out.names.insert(service.host().as_str().to_owned(), named);
            }
        }

        out
    }

    /// Adds the SRV records of a port with a name, and the names of a headless Service's endpoints
    /// that they lead to.
    fn name_port(&mut self, service: &Service, port: &ServicePort, endpoints: &[SocketAddr]) {
        if port.name.is_empty() {
            return;
        }
        let host = service.host().as_str();
        let protocol = match port.protocol {
            Protocol::Udp => "udp",
            _ => "tcp",
        };

        let targets = if service.is_headless() {
            let mut targets = Vec::new();
            for endpoint in endpoints {
                let IpAddr::V4(ip) = endpoint.ip() else {
                    continue;
                };
                // Kubernetes gives an endpoint without a hostname a name made of its address.
                let name = format!("{}.{host}", ip.to_string().replace('.', "-"));
                self.names.insert(name.clone(), vec![ip]);
                targets.push(ServiceTarget {
                    host: name,
                    port: endpoint.port(),
                });
            }
            targets
        } else {
            vec![ServiceTarget {
                host: host.to_owned(),
                port: port.number,
            }]
        };

        let name = format!("_{}._{protocol}.{host}", port.name.to_ascii_lowercase());
        if !targets.is_empty() {
            self.ports.insert(name, targets);
        }
    }

    /// The SRV records of a port by its name in DNS; `None` when no Service has such a port.
    pub(crate) fn port_targets(&self, name: &str) -> Option<Vec<ServiceTarget>> {
        self.ports.get(name).cloned()
    }

    /// Addresses of a Service by its name; `None` when no Service has the name.
    pub(crate) fn addresses(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        self.names.get(name).cloned()
    }

    /// Resolves an ExternalName Service to its target, following targets that are ExternalName
    /// Services themselves. `None` if `name` is not an ExternalName Service.
    pub(crate) fn alias_target(&self, name: &str) -> Option<String> {
        let mut target = self.aliases.get(name)?;
        // Aliases may form a cycle: follow 8 at most.
        for _ in 0..8 {
            match self.aliases.get(target) {
                Some(next) => target = next,
                None => break,
            }
        }
        Some(target.clone())
    }

    /// Chooses an endpoint for a cluster IP and port by the round-robin counter `turn`; `None` if
    /// `to` is not a Service's address.
    pub(crate) fn endpoint(&self, to: SocketAddr, turn: usize) -> Option<SocketAddr> {
        let matches = |rule: &&ServiceRule| {
            rule.address == to.ip() && rule.port == to.port() && rule.transport == Transport::Tcp
        };
        let endpoints = &self.rules.iter().find(matches)?.endpoints;
        endpoints.get(turn % endpoints.len().max(1)).copied()
    }

    /// The DNAT rules from cluster IPs to endpoints, for the namespace of a workload without a
    /// sidecar.
    pub(crate) fn rule_set(&self) -> RuleSet {
        ServicePlan {
            services: self.rules.clone(),
        }
        .rules()
    }
}

fn aliases(objects: &Tables) -> HashMap<String, String> {
    let name = |text: &str| text.trim_end_matches('.').to_ascii_lowercase();
    let services = objects
        .table(&Kind::Service)
        .iter()
        .filter_map(|(key, object)| match &object.spec {
            Spec::Service(spec)
                if spec.r#type == "ExternalName" && !spec.external_name.is_empty() =>
            {
                Some((
                    name(&format!("{}.{}.svc.{DOMAIN}", key.name, key.namespace)),
                    name(&spec.external_name),
                ))
            }
            _ => None,
        });

    services.collect()
}

/// The ready endpoints of a Service's port.
pub(crate) fn endpoints(
    snapshot: &Snapshot,
    service: &Service,
    port: &ServicePort,
) -> Vec<SocketAddr> {
    let all = snapshot.port_endpoints(&service.key, port);
    let usable = all
        .iter()
        .filter(|e| e.health == Health::Healthy || service.publish_not_ready);
    usable
        .filter_map(|endpoint| match endpoint.address {
            EndpointAddress::Ip(ip) => Some(SocketAddr::new(ip, endpoint.port)),
            _ => None,
        })
        .collect()
}

/// Keeps [`Services`] up to date with the configuration. Receivers wake only when the value
/// changed.
pub(crate) fn follow(mut worlds: watch::Receiver<Arc<World>>) -> watch::Receiver<Arc<Services>> {
    let collect = |world: &World| Services::from_snapshot(&world.snapshot, &world.tables);
    let (out, services) = watch::channel(Arc::new(collect(&worlds.borrow_and_update())));
    tokio::spawn(async move {
        while worlds.changed().await.is_ok() {
            let new = collect(&worlds.borrow_and_update());
            out.send_if_modified(|old| {
                let changed = **old != new;
                *old = Arc::new(new);
                changed
            });
        }
    });

    services
}

#[cfg(test)]
mod tests {
    use super::*;
    use meltemi_model::BuildOptions;

    #[test]
    fn names_aliases_and_endpoints_come_from_services_and_pods() {
        let yaml = r"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: reviews}, ports: [{name: tcp, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: old, namespace: shop}
spec: {type: ExternalName, externalName: reviews.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: older, namespace: shop}
spec: {type: ExternalName, externalName: old.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: world, namespace: shop}
spec: {type: ExternalName, externalName: WWW.example.org.}
---
apiVersion: v1
kind: Service
metadata: {name: circle, namespace: shop}
spec: {type: ExternalName, externalName: circle.shop.svc.cluster.local}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-0, namespace: shop, labels: {app: reviews}}
spec: {containers: [{name: reviews}]}
status: {phase: Running, podIP: 10.44.0.7, conditions: [{type: Ready, status: 'True'}]}
";

        let (objects, diagnostics) = meltemi_api::parse_documents("t.yaml", yaml);
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        let mut tables = Tables::default();
        for object in objects {
            tables.apply(Arc::new(object));
        }
        let services = Services::from_snapshot(
            &Snapshot::build(None, &tables, &BuildOptions::default()).snapshot,
            &tables,
        );

        assert_eq!(
            services.addresses("db.shop.svc.cluster.local").unwrap(),
            [Ipv4Addr::new(10, 44, 0, 7)]
        );

        let [rule] = &services.rules[..] else {
            panic!("{:?}", services.rules)
        };
        assert_eq!(
            services
                .addresses("reviews.shop.svc.cluster.local")
                .unwrap(),
            [rule.address.to_string().parse::<Ipv4Addr>().unwrap()]
        );

        assert_eq!(
            (rule.port, &rule.endpoints[..]),
            (80, &["10.44.0.7:9080".parse().unwrap()][..])
        );

        let service = |port| SocketAddr::new(rule.address, port);
        assert_eq!(
            services.endpoint(service(80), 7),
            Some("10.44.0.7:9080".parse().unwrap())
        );

        let targets = |name: &str| {
            let all = services.port_targets(&format!("{name}.shop.svc.cluster.local"));
            all.map(|all| {
                let all = all.into_iter().map(|target| (target.host, target.port));
                all.collect::<Vec<_>>()
            })
        };
        let endpoint = "10-44-0-7.db.shop.svc.cluster.local";
        assert_eq!(
            targets("_tcp._tcp.db"),
            Some(vec![(endpoint.to_owned(), 9080)])
        );
        assert_eq!(
            services.addresses(endpoint),
            Some(vec![Ipv4Addr::new(10, 44, 0, 7)])
        );
        assert_eq!(
            targets("_http._tcp.reviews"),
            Some(vec![("reviews.shop.svc.cluster.local".to_owned(), 80)])
        );
        assert_eq!(targets("_http._udp.reviews"), None);

        assert_eq!(services.endpoint(service(81), 7), None);
        assert_eq!(services.addresses("nobody.shop.svc.cluster.local"), None);
        let target = |name: &str| services.alias_target(&format!("{name}.shop.svc.cluster.local"));
        for (alias, meant) in [
            ("old", "reviews"),
            ("older", "reviews"),
            ("circle", "circle"),
        ] {
            assert_eq!(
                target(alias),
                Some(format!("{meant}.shop.svc.cluster.local")),
                "{alias}"
            );
        }

        assert_eq!(
            (target("world").as_deref(), target("reviews")),
            (Some("www.example.org"), None)
        );
    }
}
