//! The comparison of two snapshots. A build keeps the allocation of what stayed the same, so that
//! comparing pointers is comparing values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Snapshot;
use super::services::ServiceTable;
use crate::lower::Lowered;
use crate::{
    ChangeSet, Changed, NamespacedName, Resolution, ServiceChange, ServiceKey, VirtualService,
};

pub(super) fn changes(prev: &Snapshot, next: &Snapshot) -> ChangeSet {
    let (old, new) = (&prev.lowered, &next.lowered);
    let (services, endpoints) = changed_services(prev, next);

    ChangeSet {
        is_first: false,
        mesh: prev.options != next.options || !Arc::ptr_eq(&prev.mesh, &next.mesh),
        aliases: changed_aliases(&prev.services, &next.services, &services),
        services,
        endpoints,
        workloads: changed(&prev.workloads.by_name, &next.workloads.by_name),
        virtual_services: changed_routes(prev, next),
        destination_rules: changed_objects(&old.destination_rules, &new.destination_rules),
        gateways: changed_objects(&old.gateways, &new.gateways),
        sidecars: changed_objects(&old.sidecars, &new.sidecars),
        peer_authentications: changed_objects(&old.peer_authentications, &new.peer_authentications),
        authorization_policies: changed_objects(
            &old.authorization_policies,
            &new.authorization_policies,
        ),
        request_authentications: changed_objects(
            &old.request_authentications,
            &new.request_authentications,
        ),
        telemetries: changed_objects(&old.telemetries, &new.telemetries),
        secrets: changed_objects(&old.secrets, &new.secrets)
            .into_keys()
            .collect(),
    }
}

/// The entries of two tables that are not the same allocation, with their values.
fn changed<K: Ord + Clone, T>(
    old: &BTreeMap<K, Arc<T>>,
    new: &BTreeMap<K, Arc<T>>,
) -> BTreeMap<K, Vec<Arc<T>>> {
    let mut changed = BTreeMap::new();
    for (key, value) in new {
        let held = old.get(key);
        if !held.is_some_and(|held| Arc::ptr_eq(held, value)) {
            changed.insert(
                key.clone(),
                held.into_iter().chain([value]).cloned().collect(),
            );
        }
    }

    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
    changed.extend(gone.map(|(key, value)| (key.clone(), vec![value.clone()])));

    changed
}

fn changed_objects<T>(old: &Arc<Lowered<T>>, new: &Arc<Lowered<T>>) -> Changed<T> {
    if Arc::ptr_eq(old, new) {
        return Changed::new();
    }

    let values = |lowered: &Lowered<T>| -> BTreeMap<NamespacedName, Arc<T>> {
        let entries = lowered.entries.iter();
        entries
            .map(|(name, entry)| (name.clone(), entry.value.clone()))
            .collect()
    };

    changed(&values(old), &values(new))
}

fn changed_routes(prev: &Snapshot, next: &Snapshot) -> Changed<VirtualService> {
    if Arc::ptr_eq(&prev.routes, &next.routes) {
        return Changed::new();
    }

    let by_name = |snapshot: &Snapshot| -> BTreeMap<NamespacedName, Arc<VirtualService>> {
        snapshot
            .virtual_services()
            .map(|vs| (vs.origin.name(), vs.clone()))
            .collect()
    };

    changed(&by_name(prev), &by_name(next))
}

type ServiceChanges = BTreeMap<ServiceKey, ServiceChange>;

/// Services that changed, and those of which only the endpoints did.
fn changed_services(prev: &Snapshot, next: &Snapshot) -> (ServiceChanges, ServiceChanges) {
    let (mut services, mut endpoints) = (ServiceChanges::new(), ServiceChanges::new());
    if !Arc::ptr_eq(&prev.services, &next.services) {
        for (key, versions) in changed(&prev.services.by_key, &next.services.by_key) {
            let listed = listed_addresses(prev, next, &key);
            services.insert(key, ServiceChange { versions, listed });
        }
    }

    if Arc::ptr_eq(&prev.endpoints, &next.endpoints) {
        return (services, endpoints);
    }
    for key in next.endpoints.changed_since(&prev.endpoints) {
        if services.contains_key(key) {
            continue;
        }

        let change = ServiceChange {
            versions: next.service(key).into_iter().cloned().collect(),
            listed: listed_addresses(prev, next, key),
        };
        let set = if reaches_clusters(prev, next, key) {
            &mut services
        } else {
            &mut endpoints
        };

        set.insert(key.clone(), change);
    }

    (services, endpoints)
}

fn listed_addresses(prev: &Snapshot, next: &Snapshot, key: &ServiceKey) -> BTreeSet<IpAddr> {
    let listed = [prev, next]
        .into_iter()
        .filter_map(|snapshot| snapshot.services.listed.get(key));
    listed
        .flat_map(|ports| ports.values().flatten())
        .filter_map(|endpoint| endpoint.address.ip())
        .collect()
}

/// Whether other endpoints of a service mean other clusters, listeners or names, not just other
/// load assignments.
fn reaches_clusters(prev: &Snapshot, next: &Snapshot, key: &ServiceKey) -> bool {
    let is_client_side = next
        .service(key)
        .is_some_and(|service| service.resolution == Resolution::ClientSide);
    !is_client_side || prev.endpoints.identities(key) != next.endpoints.identities(key)
}

/// Whether some host stands for another one than before. A service hides an alias of the same name.
fn changed_aliases(old: &ServiceTable, new: &ServiceTable, services: &ServiceChanges) -> bool {
    !old.has_same_aliases(new)
        || services
            .keys()
            .any(|key| old.names_alias(&key.host) || new.names_alias(&key.host))
}
