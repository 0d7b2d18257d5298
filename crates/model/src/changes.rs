//! What differs between two snapshots: whom a push concerns.

use std::collections::BTreeSet;

use meltemi_api::{Kind, ObjectKey};

use crate::{NamespacedName, ServiceKey};

/// What changed since the previous snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// There was no previous snapshot: everything is new.
    pub is_first: bool,
    /// The effective MeshConfig changed.
    pub mesh: bool,
    /// Objects added, replaced or gone.
    pub objects: BTreeSet<ObjectKey>,
    /// Services whose definition, or whose clusters, changed: added, gone, other ports or
    /// addresses, other identities of endpoints, or endpoints that stand in the cluster itself
    /// (DNS) or make listeners and names (headless).
    pub services: BTreeSet<ServiceKey>,
    /// Services whose endpoints changed, and nothing else of them.
    pub endpoints: BTreeSet<ServiceKey>,
    /// Workloads added, changed or gone.
    pub workloads: BTreeSet<NamespacedName>,
}

impl ChangeSet {
    /// Whether nothing that a proxy is sent can differ.
    pub fn is_empty(&self) -> bool {
        !self.is_first
            && !self.mesh
            && self.objects.is_empty()
            && self.services.is_empty()
            && self.endpoints.is_empty()
            && self.workloads.is_empty()
    }

    /// Whether pushing endpoints is enough for every proxy, but those of `workloads` themselves.
    pub fn is_endpoints_only(&self) -> bool {
        !self.is_first
            && !self.mesh
            && self.services.is_empty()
            && self
                .objects
                .iter()
                .all(|key| Self::only_feeds_services(&key.kind))
    }

    /// The kinds of the changed objects.
    pub fn kinds(&self) -> BTreeSet<Kind> {
        self.objects.iter().map(|key| key.kind.clone()).collect()
    }

    /// Merges a later change into this one, for pushes that wait.
    pub fn merge(&mut self, later: &Self) {
        let Self {
            is_first,
            mesh,
            objects,
            services,
            endpoints,
            workloads,
        } = later;

        self.is_first |= is_first;
        self.mesh |= mesh;
        self.objects.extend(objects.iter().cloned());
        self.services.extend(services.iter().cloned());
        self.endpoints.extend(endpoints.iter().cloned());
        self.workloads.extend(workloads.iter().cloned());
    }

    /// Kinds whose effect on others is wholly in `services`, `endpoints` and `workloads`, or that
    /// have none.
    fn only_feeds_services(kind: &Kind) -> bool {
        matches!(
            kind,
            Kind::Pod
                | Kind::WorkloadEntry
                | Kind::Service
                | Kind::ServiceEntry
                | Kind::Deployment
                | Kind::ServiceAccount
                | Kind::Namespace
                | Kind::WorkloadGroup
                | Kind::ConfigMap
                | Kind::Other(_)
        )
    }
}
