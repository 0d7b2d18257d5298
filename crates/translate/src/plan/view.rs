//! The snapshot as one proxy sees it: the only place that names its queries.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use meltemi_model::{
    AccessLog, AuthorizationPolicies, Destination, DestinationRule, EffectivePeerAuthentication,
    Endpoint, EndpointSet, Hostname, LocalityLb, MtlsMode, NamespacedName, OutboundPolicy, Service,
    ServicePort, SidecarScope, Snapshot, WorkloadMode,
};
use meltemi_types::{Diagnostic, Labels, ObjectRef, Severity, SpiffeId};

use super::Plan;
use super::cluster::{expected_identities, has_proxy, outbound_name};
use crate::authz::AuthzInput;
use crate::filters::{Abilities, PathRules};
use crate::proxy::{Proxy, ProxyKind};
use crate::route::InboundRetries;
use crate::secret::SecretInput;
use crate::traffic_policy::{MeshDefaults, keepalive_of};

/// What is looked up while planning for one proxy.
pub(crate) struct View<'a> {
    pub snapshot: &'a Snapshot,
    pub proxy: &'a Proxy,
    pub abilities: Abilities,
    pub scope: Arc<SidecarScope>,
    pub defaults: MeshDefaults,
    /// The mesh's own first.
    pub trust_domains: Vec<String>,
    /// What the peers' servers accept, by workload: many endpoints are of few workloads.
    accepted: RefCell<HashMap<NamespacedName, Arc<EffectivePeerAuthentication>>>,
}

impl<'a> View<'a> {
    pub fn new(snapshot: &'a Snapshot, proxy: &'a Proxy) -> Self {
        let mesh = &snapshot.mesh;
        let own = snapshot.trust_domain.to_string();
        let aliases = mesh
            .trust_domain_aliases
            .iter()
            .filter(|alias| **alias != own)
            .cloned();

        Self {
            snapshot,
            proxy,
            abilities: Abilities::of(proxy),
            scope: snapshot.sidecar_scope(&proxy.namespace, &proxy.labels),
            defaults: MeshDefaults {
                connect_timeout: mesh
                    .connect_timeout
                    .map(Into::into)
                    .filter(|timeout: &std::time::Duration| !timeout.is_zero())
                    .unwrap_or(std::time::Duration::from_secs(10)),
                keepalive: mesh.tcp_keepalive.as_ref().map(|keepalive| {
                    keepalive_of(&meltemi_model::Keepalive {
                        probes: Some(keepalive.probes).filter(|probes| *probes > 0),
                        time: keepalive.time.map(Into::into),
                        interval: keepalive.interval.map(Into::into),
                    })
                }),
            },
            trust_domains: std::iter::once(own.clone()).chain(aliases).collect(),
            accepted: RefCell::default(),
        }
    }

    pub fn labels(&self) -> &Labels {
        &self.proxy.labels
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

        // An ExternalName Service has no cluster of its own: what it stands for has.
        let host = self.snapshot.concrete_host(&destination.host);

        (
            outbound_name(port, &destination.subset, host.as_str()),
            port,
        )
    }

    pub fn endpoints(&self, service: &Service, port: &ServicePort) -> EndpointSet {
        self.snapshot.endpoints(&service.key, port.number)
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

    pub fn auto_mtls(&self) -> bool {
        self.snapshot.mesh.auto_mtls()
    }

    pub fn paths(&self) -> PathRules {
        use meltemi_api::mesh::NormalizationType as Steps;
        let steps = self.snapshot.mesh.path_normalization.normalization;
        PathRules {
            normalize: steps != Steps::None,
            merge_slashes: matches!(steps, Steps::MergeSlashes | Steps::DecodeAndMergeSlashes),
            unescape_slashes: steps == Steps::DecodeAndMergeSlashes,
        }
    }

    pub fn upgrades_to_h2(&self) -> bool {
        self.snapshot.mesh.h2_upgrade_policy == meltemi_api::networking::H2UpgradePolicy::Upgrade
    }

    /// MeshConfig.localityLbSetting.
    pub fn locality_lb(&self) -> Option<LocalityLb> {
        self.snapshot
            .mesh
            .locality_lb_setting
            .as_ref()
            .map(|setting| LocalityLb {
                enabled: setting.enabled,
                distribute: setting
                    .distribute
                    .iter()
                    .map(|rule| (rule.from.clone(), rule.to.clone()))
                    .collect(),
                failover: setting
                    .failover
                    .iter()
                    .map(|rule| (rule.from.clone(), rule.to.clone()))
                    .collect(),
                failover_priority: setting.failover_priority.clone(),
            })
    }

    /// The node that runs the proxy's own workload; empty if unknown.
    pub fn node(&self) -> String {
        let key = NamespacedName::new(&self.proxy.namespace, &self.proxy.name);
        self.snapshot
            .workload(&key)
            .map(|workload| workload.node.clone())
            .unwrap_or_default()
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
        }
    }

    pub fn access_logs(&self, mode: WorkloadMode) -> Vec<AccessLog> {
        self.snapshot
            .access_logs(&self.proxy.namespace, &self.proxy.labels, mode)
    }

    /// The access logs of listeners, for connections that find no chain.
    pub fn listener_logs(&self, mode: WorkloadMode) -> Vec<AccessLog> {
        if self.snapshot.mesh.disable_envoy_listener_log {
            Vec::new()
        } else {
            self.access_logs(mode)
        }
    }

    pub fn inbound_retries(&self) -> Option<InboundRetries> {
        match &self.snapshot.mesh.default_inbound_http_retry_policy {
            None => Some(InboundRetries::default()),
            Some(policy) if policy.attempts <= 0 => None,
            Some(policy) => Some(InboundRetries {
                attempts: u32::try_from(policy.attempts).unwrap_or_default(),
                retry_on: if policy.retry_on.is_empty() {
                    InboundRetries::default().retry_on
                } else {
                    policy.retry_on.clone()
                },
            }),
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
