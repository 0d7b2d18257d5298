//! Whom a change concerns: what the configuration of one proxy depends on, and whether a change
//! reaches any of it.
//!
//! The answer errs on one side only. A proxy that is not touched would be sent exactly what it has;
//! a proxy that is touched may turn out to need nothing. The rules follow what translation asks the
//! snapshot for, query by query; a new query needs its rule here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_types::{Labels, Selector};

use crate::{
    ChangeSet, DestinationRule, Gateway, GatewayRef, Hostname, NamespacedName, Origin,
    PeerAuthentication, PolicyTarget, Provider, Service, ServiceChange, Sidecar, SidecarScope,
    Snapshot, Telemetry, VirtualService, Workload,
};

/// What a proxy says of itself, as far as its configuration depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyFacts {
    /// A gateway, not the sidecar of a workload.
    pub is_gateway: bool,
    /// Its workload's namespace.
    pub namespace: String,
    /// Its workload's name.
    pub name: String,
    /// Its workload's labels: selectors of objects are asked about them.
    pub labels: Labels,
    /// Its workload's addresses.
    pub ips: Vec<IpAddr>,
}

/// What the configuration of one proxy was made of, as of one snapshot.
#[derive(Debug, Clone)]
pub struct ProxyScope {
    facts: ProxyFacts,
    root_namespace: String,
    sidecar: Arc<SidecarScope>,
    /// The Gateways that it serves; empty for sidecars.
    gateways: BTreeSet<GatewayRef>,
    /// Hosts of the authorizers that its CUSTOM policies name, whether or not the mesh has them.
    authorizers: BTreeSet<Hostname>,
}

impl Snapshot {
    /// The scope of a proxy. It stays right across changes that do not touch it.
    pub fn proxy_scope(&self, facts: ProxyFacts) -> ProxyScope {
        let gateways = if facts.is_gateway {
            self.gateways_for(&facts.labels)
        } else {
            Vec::new()
        };

        ProxyScope {
            root_namespace: self.root_namespace().to_owned(),
            sidecar: self.sidecar_scope(&facts.namespace, &facts.labels),
            gateways: gateways
                .iter()
                .map(|gateway| GatewayRef::Gateway(gateway.name()))
                .collect(),
            authorizers: self.authorizer_hosts(&facts.namespace, &facts.labels),
            facts,
        }
    }

    fn authorizer_hosts(&self, namespace: &str, labels: &Labels) -> BTreeSet<Hostname> {
        let policies = self.authorization_policies(namespace, labels);
        let providers = policies
            .custom
            .iter()
            .filter_map(|custom| self.mesh.providers.get(&custom.provider));

        providers
            .filter_map(|provider| match provider {
                Provider::Authorizer(authorizer) => Some(authorizer.service.host.clone()),
                Provider::Faulty(_) | Provider::OtherKind => None,
            })
            .collect()
    }
}

/// Whether a change may alter what a proxy is sent. `scope` is of the snapshot that the proxy's
/// configuration was made of, or of a later one from which no change touched the proxy.
pub fn touches(changes: &ChangeSet, scope: &ProxyScope) -> bool {
    let ChangeSet {
        is_first,
        mesh,
        aliases,
        services,
        endpoints,
        workloads,
        virtual_services,
        destination_rules,
        gateways,
        sidecars,
        peer_authentications,
        authorization_policies,
        request_authentications,
        telemetries,
        secrets,
    } = changes;

    *is_first
        || *mesh
        // Routes name hosts that may be aliases, wherever the service behind them is visible.
        || *aliases
        || services.values().any(|change| scope.uses_service(change))
        || endpoints.values().any(|change| scope.uses_service(change))
        || any(workloads.values(), |workload| scope.is_at(workload))
        || any(virtual_services.values(), |vs| scope.applies_routes(vs))
        || any(destination_rules.values(), |rule| scope.applies_rule(rule))
        || any(gateways.values(), |gateway| scope.serves(gateway))
        || any(sidecars.values(), |sidecar| scope.is_selected_by_sidecar(sidecar))
        || any(peer_authentications.values(), |policy| scope.heeds(policy))
        || any(authorization_policies.values(), |policy| scope.enforces(&policy.origin, &policy.target))
        || any(request_authentications.values(), |own| scope.enforces(&own.origin, &own.target))
        || any(telemetries.values(), |telemetry| scope.reports_by(telemetry))
        || secrets.iter().any(|secret| scope.reads_secret(secret))
}

/// Whether any version of any object fits.
fn any<'a, T: 'a>(
    changed: impl Iterator<Item = &'a Vec<Arc<T>>>,
    fits: impl Fn(&T) -> bool,
) -> bool {
    changed.flatten().any(|version| fits(version))
}

impl ProxyScope {
    /// The proxy calls the service, or serves it.
    fn uses_service(&self, change: &ServiceChange) -> bool {
        let ServiceChange { versions, listed } = change;
        self.facts.ips.iter().any(|ip| listed.contains(ip))
            || versions.iter().any(|version| {
                self.may_call(version)
                    || self.is_selected_by_service(version)
                    // Policies deny while their authorizer's host is not exactly one service,
                    // whoever may see it.
                    || self.authorizers.contains(version.host())
            })
    }

    fn may_call(&self, service: &Service) -> bool {
        service.export_to.includes(&self.facts.namespace)
            && (self.facts.is_gateway || self.sidecar.imports(service))
    }

    /// The proxy serves this service, so it has inbound listeners for it whether it may see it or
    /// not.
    fn is_selected_by_service(&self, service: &Service) -> bool {
        let selector = service.selector.as_ref();
        service.namespace() == self.facts.namespace
            && selector.is_some_and(|selector| selector.selects(&self.facts.labels))
    }

    /// The workload is the proxy's own: it has its name (the node is read by name) or an address
    /// (target ports by name are read by address).
    fn is_at(&self, workload: &Workload) -> bool {
        let is_named =
            workload.namespace == self.facts.namespace && workload.name == self.facts.name;
        is_named || workload.ips.iter().any(|ip| self.facts.ips.contains(ip))
    }

    fn applies_routes(&self, routes: &VirtualService) -> bool {
        if !routes.export_to.includes(&self.facts.namespace) {
            return false;
        }

        let of_gateway = routes
            .gateways
            .iter()
            .any(|gateway| self.gateways.contains(gateway));
        // At a gateway, routes of sidecars only widen what a Sidecar narrows: the names that it
        // resolves.
        let heeds_sidecars = !self.facts.is_gateway || self.sidecar.sidecar.is_some();
        let of_sidecar = heeds_sidecars
            && routes.gateways.contains(&GatewayRef::Mesh)
            && self.sidecar.imports_routes(routes);

        of_gateway || of_sidecar
    }

    /// The rule is one of those that decide for a service that the proxy calls: it is of the
    /// proxy's namespace, of the service's, or of the root namespace.
    fn applies_rule(&self, rule: &DestinationRule) -> bool {
        let declared_in = rule.origin.object.namespace.as_str();
        let is_own = declared_in == self.facts.namespace;
        if !is_own && !rule.export_to.includes(&self.facts.namespace) {
            return false;
        }

        // Which services a gateway calls is in no scope.
        self.facts.is_gateway
            || self.sidecar.all_services().any(|service| {
                (is_own || declared_in == self.root_namespace || declared_in == service.namespace())
                    && service.host().is_within(&rule.host)
            })
    }

    fn serves(&self, gateway: &Gateway) -> bool {
        self.facts.is_gateway && gateway.selector.selects(&self.facts.labels)
    }

    fn is_selected_by_sidecar(&self, sidecar: &Sidecar) -> bool {
        self.is_selected(&sidecar.origin, sidecar.selector.as_ref())
    }

    /// The policy decides what the proxy accepts, or what peers accept that it calls: clients use
    /// plaintext towards servers that switch mutual TLS off. Workloads behind a service are of the
    /// service's namespace.
    fn heeds(&self, policy: &PeerAuthentication) -> bool {
        let declared_in = policy.origin.object.namespace.as_str();
        self.is_selected(&policy.origin, policy.selector.as_ref())
            || self.facts.is_gateway
            || self
                .sidecar
                .all_services()
                .any(|service| service.selector.is_some() && service.namespace() == declared_in)
    }

    fn enforces(&self, origin: &Origin, target: &PolicyTarget) -> bool {
        let declared_in = origin.object.namespace.as_str();
        let is_near = declared_in == self.facts.namespace || declared_in == self.root_namespace;

        is_near
            && match target {
                PolicyTarget::All => true,
                PolicyTarget::Workloads(selector) => selector.selects(&self.facts.labels),
                PolicyTarget::References(_) => false,
            }
    }

    fn reports_by(&self, telemetry: &Telemetry) -> bool {
        !telemetry.is_attached && self.is_selected(&telemetry.origin, telemetry.selector.as_ref())
    }

    /// Gateways read the secrets of their own namespace; sidecars only for ingress listeners.
    fn reads_secret(&self, secret: &NamespacedName) -> bool {
        secret.namespace == self.facts.namespace
            && (self.facts.is_gateway
                || self
                    .sidecar
                    .sidecar
                    .as_deref()
                    .is_some_and(|sidecar| !sidecar.ingress.is_empty()))
    }

    /// An object selects the proxy: of its namespace, unless it selects others there, or of the
    /// root namespace without selector.
    fn is_selected(&self, origin: &Origin, selector: Option<&Selector>) -> bool {
        let declared_in = origin.object.namespace.as_str();
        match selector {
            None => declared_in == self.facts.namespace || declared_in == self.root_namespace,
            Some(selector) => {
                declared_in == self.facts.namespace && selector.selects(&self.facts.labels)
            }
        }
    }
}
