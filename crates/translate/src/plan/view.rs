//! The snapshot as one proxy sees it: its scope, and the queries that several plans share.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_model::{
    AccessLog, AuthorizationPolicies, Destination, DestinationRule, EffectivePeerAuthentication,
    Endpoint, EndpointSet, GatewayRef, Hostname, MeshSettings, MtlsMode, NamespacedName,
    OutboundPolicy, RouteContext, Service, ServicePort, SidecarScope, Snapshot, TlsMode,
    WorkloadMode,
};
use meltemi_types::{Diagnostic, Labels, ObjectRef, Severity, SpiffeId};

use super::Plan;
use crate::authz::AuthzInput;
use crate::cluster_name::outbound_name;
use crate::filters::Abilities;
use crate::proxy::{Proxy, ProxyKind};
use crate::secret::SecretInput;

/// The snapshot as one proxy sees it, with the lookups that planning needs.
pub(crate) struct View<'a> {
    pub snapshot: &'a Snapshot,
    pub proxy: &'a Proxy,
    pub abilities: Abilities,
    pub scope: Arc<SidecarScope>,
    /// The mesh's own first.
    pub trust_domains: Vec<String>,
    /// What the peers' servers accept, by workload: many endpoints are of few workloads.
    accepted: RefCell<HashMap<NamespacedName, Arc<EffectivePeerAuthentication>>>,
}

impl<'a> View<'a> {
    pub fn new(snapshot: &'a Snapshot, proxy: &'a Proxy) -> Self {
        let mesh = &snapshot.mesh;
        let own = mesh.trust_domain.to_string();
        let aliases = mesh.trust_domain_aliases.iter().cloned();

        Self {
            snapshot,
            proxy,
            abilities: Abilities::of(proxy),
            scope: snapshot.sidecar_scope(&proxy.namespace, &proxy.labels),
            trust_domains: std::iter::once(own).chain(aliases).collect(),
            accepted: RefCell::default(),
        }
    }

    pub fn mesh(&self) -> &MeshSettings {
        &self.snapshot.mesh
    }

    pub fn labels(&self) -> &Labels {
        &self.proxy.labels
    }

    /// The conditions under which a sidecar's routes for a port apply: gateway `mesh`, and the
    /// proxy's own namespace and labels.
    pub fn mesh_context(&self, port: u16) -> RouteContext<'_> {
        RouteContext {
            namespace: &self.proxy.namespace,
            labels: self.labels(),
            gateway: &GatewayRef::Mesh,
            port,
        }
    }

    /// The services that the proxy may call, by host. A gateway calls whatever it may see.
    pub fn services(&self) -> Vec<Arc<Service>> {
        match self.proxy.kind {
            ProxyKind::Sidecar => self.scope.services.clone(),
            ProxyKind::Router => self.snapshot.visible_services(&self.proxy.namespace),
        }
    }

    pub fn service(&self, host: &Hostname) -> Option<Arc<Service>> {
        match self.proxy.kind {
            ProxyKind::Sidecar => self
                .scope
                .service(self.snapshot.concrete_host(host))
                .cloned(),
            ProxyKind::Router => self
                .snapshot
                .service_for(&self.proxy.namespace, host)
                .cloned(),
        }
    }

    pub fn destination_rule(&self, host: &Hostname) -> Option<Arc<DestinationRule>> {
        let service = self.service(host)?;
        self.snapshot
            .destination_rule(&self.proxy.namespace, &self.proxy.labels, &service)
    }

    /// The cluster that a route's destination means.
    pub fn cluster_of(&self, destination: &Destination, listener_port: u16) -> (String, u16) {
        let service = self.service(&destination.host);
        let port = self
            .snapshot
            .destination_port(destination, service.as_deref(), listener_port);

        // An ExternalName Service has no cluster of its own; its target has one.
        let host = self.snapshot.concrete_host(&destination.host);

        (
            outbound_name(port, &destination.subset, host.as_str()),
            port,
        )
    }

    pub fn endpoints(&self, service: &Service, port: &ServicePort) -> EndpointSet {
        self.snapshot.port_endpoints(&service.key, port)
    }

    /// Names of which the servers of a service show one: the endpoints' identities, and what a
    /// ServiceEntry adds. Source: Istio `addServiceAccounts`.
    pub fn identities(&self, service: &Service) -> Vec<String> {
        let named = service.subject_alt_names.iter();
        let (spiffe, others): (Vec<_>, Vec<_>) =
            named.partition(|name| name.parse::<SpiffeId>().is_ok());
        let spiffe = spiffe.into_iter().filter_map(|name| name.parse().ok());
        let found = self
            .snapshot
            .identities(&service.key)
            .into_iter()
            .chain(spiffe);

        let mut all = expected_identities(found, &self.trust_domains);
        all.extend(others.into_iter().cloned());
        all.sort();
        all.dedup();

        all
    }

    /// Whether a client may use the mesh's TLS towards an endpoint: it has a proxy, and its policy
    /// does not switch it off.
    pub fn takes_mutual_tls(&self, endpoint: &Endpoint) -> bool {
        if !has_proxy(endpoint.tls_mode) {
            return false;
        }
        let Some(workload) = &endpoint.workload else {
            return true;
        };
        let mut accepted = self.accepted.borrow_mut();
        let policy = accepted.entry(workload.key()).or_insert_with(|| {
            Arc::new(
                self.snapshot
                    .peer_authentication(&workload.namespace, &workload.labels),
            )
        });

        policy.of_port(endpoint.port) != MtlsMode::Disable
    }

    /// The node that runs the proxy's own workload; empty if unknown.
    pub fn node(&self) -> String {
        let key = NamespacedName::new(&self.proxy.namespace, &self.proxy.name);
        self.snapshot
            .workload(&key)
            .map(|workload| workload.node.clone())
            .unwrap_or_default()
    }

    /// The address that stands for every address that the proxy's calls go to. Source: Istio
    /// `getWildcardsAndLocalHost`.
    pub fn wildcard(&self) -> &'static str {
        let ips = &self.proxy.ips;
        match !ips.is_empty() && ips.iter().all(IpAddr::is_ipv6) {
            true => "::",
            false => "0.0.0.0",
        }
    }

    pub fn outbound_policy(&self) -> &OutboundPolicy {
        &self.scope.outbound_policy
    }

    pub fn peer_authentication(&self) -> EffectivePeerAuthentication {
        self.snapshot
            .peer_authentication(&self.proxy.namespace, &self.proxy.labels)
    }

    pub fn authz(&self) -> AuthzInput {
        let policies: AuthorizationPolicies = self
            .snapshot
            .authorization_policies(&self.proxy.namespace, &self.proxy.labels);
        AuthzInput {
            policies,
            trust_domains: self.trust_domains.clone(),
            tokens: self
                .snapshot
                .token_rules(&self.proxy.namespace, &self.proxy.labels),
        }
    }

    pub fn access_logs(&self, mode: WorkloadMode) -> Vec<AccessLog> {
        self.snapshot
            .access_logs(&self.proxy.namespace, &self.proxy.labels, mode)
    }

    /// The access logs of listeners, for connections that find no chain.
    pub fn listener_logs(&self, mode: WorkloadMode) -> Vec<AccessLog> {
        if self.mesh().access_logs.omits_listeners {
            Vec::new()
        } else {
            self.access_logs(mode)
        }
    }

    /// A gateway's client credential, as a secret of its namespace that travels with the
    /// configuration.
    pub fn credential(&self, name: &str, plan: &mut Plan) -> Option<String> {
        if name.is_empty() || self.proxy.kind != ProxyKind::Router {
            return None;
        }
        self.add_secrets(name, "", plan).then(|| secret_name(name))
    }

    /// Puts the secrets that a credential name stands for into the plan: `name` and `name-cacert`.
    /// Answers whether there is any.
    pub fn add_secrets(&self, name: &str, ca_name: &str, plan: &mut Plan) -> bool {
        let of = |name: &str| {
            let (namespace, name) = match bare_name(name).split_once('/') {
                Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
                None => (self.proxy.namespace.clone(), bare_name(name).to_owned()),
            };

            // A gateway reads secrets of its own namespace and no other.
            if namespace != self.proxy.namespace {
                return None;
            }
            self.snapshot
                .credential(&NamespacedName::new(namespace, name))
        };

        let mut add = |input: SecretInput| {
            if !plan.secrets.contains(&input) {
                plan.secrets.push(input);
            }
        };

        let held = of(name);
        if let Some((chain, key)) = held
            .as_ref()
            .and_then(|held| Some((held.certificate_chain.clone()?, held.private_key.clone()?)))
        {
            add(SecretInput::Certificate {
                name: secret_name(name),
                chain,
                key,
            });
        }

        let roots_name = if ca_name.is_empty() {
            format!("{}-cacert", bare_name(name))
        } else {
            ca_name.to_owned()
        };

        let roots = of(&roots_name)
            .filter(|held| held.ca.is_some())
            .or_else(|| held.clone());
        if let Some((ca, crl)) = roots.and_then(|held| Some((held.ca?, held.crl))) {
            let name = if ca_name.is_empty() {
                format!("{}-cacert", secret_name(name))
            } else {
                secret_name(ca_name)
            };
            add(SecretInput::Roots { name, ca, crl });
        }

        held.is_some()
    }

    /// A finding of the translation, about an object.
    pub fn warning(
        &self,
        object: &ObjectRef,
        code: &str,
        field: &str,
        message: &str,
        remedy: &str,
    ) -> Diagnostic {
        Diagnostic {
            code: code.to_owned(),
            severity: Severity::Warning,
            object: object.clone(),
            field: field.to_owned(),
            position: Default::default(),
            message: message.to_owned(),
            remedy: remedy.to_owned(),
        }
    }
}

/// `kubernetes://name`, the name of a secret on the wire.
pub(crate) fn secret_name(credential: &str) -> String {
    format!("kubernetes://{}", bare_name(credential))
}

fn bare_name(credential: &str) -> &str {
    credential
        .strip_prefix("kubernetes://")
        .unwrap_or(credential)
}

/// Whether an endpoint terminates the mesh's TLS by its own label.
fn has_proxy(mode: TlsMode) -> bool {
    mode == TlsMode::Istio
}

/// Identities as a client expects them: each under every trust domain of the mesh.
fn expected_identities(
    found: impl Iterator<Item = SpiffeId>,
    trust_domains: &[String],
) -> Vec<String> {
    let mut all = BTreeSet::new();
    for identity in found {
        all.insert(identity.to_string());
        for alias in trust_domains.iter().skip(1) {
            all.insert(format!(
                "spiffe://{alias}/ns/{}/sa/{}",
                identity.namespace(),
                identity.service_account()
            ));
        }
    }

    all.into_iter().collect()
}
