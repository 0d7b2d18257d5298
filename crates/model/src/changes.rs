//! What differs between two snapshots, by value: text, order and positions of objects do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::{
    AuthorizationPolicy, DestinationRule, Gateway, NamespacedName, PeerAuthentication,
    RequestAuthentication, Service, ServiceKey, Sidecar, Telemetry, VirtualService, Workload,
};

/// The values that an object had: before and after a change. One of them if it came or went.
pub type Versions<T> = Vec<Arc<T>>;

/// Changed objects of one kind.
pub type Changed<T> = BTreeMap<NamespacedName, Versions<T>>;

/// What changed since the previous snapshot. Objects that no proxy's configuration depends on are
/// not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// There was no previous snapshot: everything is new.
    pub is_first: bool,
    /// The mesh's settings changed, so every object may mean something else.
    pub mesh: bool,
    /// ExternalName Services stand for other hosts or ports than before.
    pub aliases: bool,
    /// Services whose definition, or whose clusters, changed: added, gone, other ports or
    /// addresses, other identities of endpoints, or endpoints that stand in the cluster itself
    /// (DNS) or make listeners and names (headless).
    pub services: BTreeMap<ServiceKey, ServiceChange>,
    /// Services whose endpoints changed, and nothing else of them.
    pub endpoints: BTreeMap<ServiceKey, ServiceChange>,
    /// Pods and WorkloadEntries.
    pub workloads: Changed<Workload>,
    /// VirtualServices with their delegates merged; delegates themselves are not among them.
    pub virtual_services: Changed<VirtualService>,
    /// DestinationRules as written, before those of one host are merged.
    pub destination_rules: Changed<DestinationRule>,
    pub gateways: Changed<Gateway>,
    pub sidecars: Changed<Sidecar>,
    pub peer_authentications: Changed<PeerAuthentication>,
    /// AuthorizationPolicies.
    pub authorization_policies: Changed<AuthorizationPolicy>,
    pub request_authentications: Changed<RequestAuthentication>,
    pub telemetries: Changed<Telemetry>,
    /// Secrets whose credential changed. The values are left out: a change must not keep old keys.
    pub secrets: BTreeSet<NamespacedName>,
}

/// A service that changed, or whose endpoints did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceChange {
    /// The service before and after; once if only its endpoints changed.
    pub versions: Versions<Service>,
    /// Addresses that ServiceEntries list as its endpoints, before and after. A proxy with one of
    /// them serves the service.
    pub listed: BTreeSet<IpAddr>,
}

impl ChangeSet {
    /// A change that concerns every proxy in every respect.
    pub fn everything() -> Self {
        Self {
            is_first: true,
            ..Self::default()
        }
    }

    /// Whether no proxy's configuration can differ.
    pub fn is_empty(&self) -> bool {
        self.is_endpoints_only() && self.endpoints.is_empty() && self.workloads.is_empty()
    }

    /// Whether pushing endpoints is enough for every proxy, but those of `workloads` themselves.
    pub fn is_endpoints_only(&self) -> bool {
        let Self {
            is_first,
            mesh,
            aliases,
            services,
            endpoints: _,
            workloads: _,
            virtual_services,
            destination_rules,
            gateways,
            sidecars,
            peer_authentications,
            authorization_policies,
            request_authentications,
            telemetries,
            secrets,
        } = self;

        !(*is_first || *mesh || *aliases)
            && services.is_empty()
            && virtual_services.is_empty()
            && destination_rules.is_empty()
            && gateways.is_empty()
            && sidecars.is_empty()
            && peer_authentications.is_empty()
            && authorization_policies.is_empty()
            && request_authentications.is_empty()
            && telemetries.is_empty()
            && secrets.is_empty()
    }
}
