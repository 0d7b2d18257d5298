//! Objects with conflicting claims. Lowering decides which object wins; this file reports it.

use std::collections::{BTreeMap, BTreeSet};

use meltemi_types::{Diagnostic, ObjectRef};

use super::tell;
use crate::{GatewayRef, Hostname, Snapshot};

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    virtual_service_hosts(snapshot, found);
    gateway_hosts(snapshot, found);
    sidecars(snapshot, found);
    peer_authentications(snapshot, found);
}

/// Two VirtualServices for the same host on sidecars: the older one counts. On gateways their rules
/// would be merged in order of age, so there is no conflict.
fn virtual_service_hosts(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    let mut by_host: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for vs in snapshot
        .routes
        .by_gateway
        .get(&GatewayRef::Mesh)
        .into_iter()
        .flatten()
    {
        for host in &vs.hosts {
            by_host.entry(host).or_default().push(vs);
        }
    }

    for (host, claims) in by_host {
        for (index, vs) in claims.iter().enumerate() {
            let own = &vs.origin.object.namespace;

            // Only those that some sidecar would see together with this one.
            let rival = claims[..index].iter().find(|older| {
                older.export_to.includes(own)
                    || vs.export_to.includes(&older.origin.object.namespace)
            });

            let Some(older) = rival else { continue };
            let message = format!(
                "The VirtualServices {} and {} both define host {host} for the mesh gateway; the older one, {}, counts",
                older.origin.name(),
                vs.origin.name(),
                older.origin.name()
            );

            tell(
                snapshot,
                &vs.origin.object,
                "IST0109",
                "spec.hosts",
                message,
                "merge their rules into one VirtualService",
                found,
            );
        }
    }
}

/// A gateway that serves none of a VirtualService's hosts, and a host that none of its gateways
/// serves, are slips.
fn gateway_hosts(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    for vs in snapshot.virtual_services() {
        let namespace = vs.origin.object.namespace.as_str();
        let mut served = BTreeSet::new();

        // Where a host may be meant for sidecars, or for a gateway that is missing (which is told
        // already).
        let mut may_be_elsewhere = false;
        for reference in &vs.gateways {
            let known = if let GatewayRef::Gateway(name) = reference {
                snapshot.gateway(name)
            } else {
                None
            };

            let Some(gateway) = known else {
                may_be_elsewhere = true;
                continue;
            };

            let serves = |host: &&Hostname| {
                gateway.servers.iter().any(|server| {
                    !server
                        .intersect(namespace, std::slice::from_ref(*host))
                        .is_empty()
                })
            };

            let of_gateway: Vec<&Hostname> = vs.hosts.iter().filter(serves).collect();
            if of_gateway.is_empty() {
                let hosts = vs
                    .hosts
                    .iter()
                    .map(Hostname::as_str)
                    .collect::<Vec<_>>()
                    .join(" ");

                let message = format!(
                    "one or more host [{hosts}] defined in VirtualService {} not found in Gateway {reference}.",
                    vs.origin.name()
                );

                tell(
                    snapshot,
                    &vs.origin.object,
                    "IST0132",
                    "spec.hosts",
                    message,
                    "add the hosts to a server of the Gateway",
                    found,
                );
            }

            served.extend(of_gateway);
        }

        for host in vs
            .hosts
            .iter()
            .filter(|host| !may_be_elsewhere && !served.is_empty() && !served.contains(host))
        {
            let message = format!(
                "host {host} defined in VirtualService {} is not found in any of its Gateways",
                vs.origin.name()
            );

            tell(
                snapshot,
                &vs.origin.object,
                "IST0132",
                "spec.hosts",
                message,
                "add the host to a server of a Gateway",
                found,
            );
        }
    }
}

fn sidecars(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    let mut whole: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    let mut selecting: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for sidecar in snapshot.sidecars() {
        let of = if sidecar.selector.is_none() {
            &mut whole
        } else {
            &mut selecting
        };
        of.entry(sidecar.origin.object.namespace.as_str())
            .or_default()
            .push(sidecar);
    }

    for (namespace, list) in whole.iter_mut().filter(|(_, list)| list.len() > 1) {
        list.sort_by(|a, b| a.origin.age.cmp(&b.origin.age));
        for younger in &list[1..] {
            let message = format!(
                "The Sidecars [{}] in namespace {namespace:?} have no workload selector; the oldest counts",
                names(list.iter().map(|s| &s.origin.object))
            );

            tell(
                snapshot,
                &younger.origin.object,
                "IST0111",
                "spec.workloadSelector",
                message,
                "keep one, or give the others a selector",
                found,
            );
        }
    }

    for (namespace, list) in selecting.iter_mut().filter(|(_, list)| list.len() > 1) {
        list.sort_by(|a, b| a.origin.age.cmp(&b.origin.age));
        let selects = |sidecar: &crate::Sidecar, labels| {
            sidecar
                .selector
                .as_ref()
                .is_some_and(|selector| selector.selects(labels))
        };

        for (index, younger) in list.iter().enumerate().skip(1) {
            let shared = snapshot
                .workloads
                .in_namespace(namespace)
                .iter()
                .find_map(|workload| {
                    let older = list[..index].iter().find(|older| {
                        selects(older, &workload.labels) && selects(younger, &workload.labels)
                    })?;
                    Some((older, workload))
                });

            if let Some((older, workload)) = shared {
                let message = format!(
                    "The Sidecars {} and {} both select workload {}; the older one counts",
                    older.origin.name(),
                    younger.origin.name(),
                    workload.key()
                );

                tell(
                    snapshot,
                    &younger.origin.object,
                    "IST0110",
                    "spec.workloadSelector",
                    message,
                    "make the selectors disjoint",
                    found,
                );
            }
        }
    }
}

/// Several PeerAuthentications of one scope: the oldest counts.
fn peer_authentications(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    let mut scopes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for pa in snapshot.written_peer_authentications() {
        scopes
            .entry((
                pa.origin.object.namespace.as_str(),
                pa.selector.as_ref().map(|selector| &selector.0),
            ))
            .or_default()
            .push(pa);
    }

    for list in scopes.values_mut().filter(|list| list.len() > 1) {
        list.sort_by(|a, b| a.origin.age.cmp(&b.origin.age));
        for younger in &list[1..] {
            let message = format!(
                "{} has the same scope and is older, so this object has no effect",
                list[0].origin.object
            );

            tell(
                snapshot,
                &younger.origin.object,
                "MEL0330",
                "spec.selector",
                message,
                "keep one of them",
                found,
            );
        }
    }
}

fn names<'a>(objects: impl Iterator<Item = &'a ObjectRef>) -> String {
    objects
        .map(|object| object.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}
