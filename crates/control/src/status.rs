//! The status of every connected proxy, as the DTOs of `admin-api`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use meltemi_admin_api::{ProxyStatus, Rejection, SyncState, SyncStatus, TypeSync};
use meltemi_model::{Snapshot, WorkloadMode};
use meltemi_proto::type_url;
use meltemi_translate::{Proxy, ProxyKind};
use meltemi_types::printable;
use meltemi_xds::{ResourceStatus, TypeStatus};

use crate::metrics::reject_label;
use crate::push::{Connection, Connections};

/// All proxies, by id. The streams of one proxy (its own and its agent's) are one entry.
pub(crate) fn proxies(
    connections: &Connections,
    snapshot: &Snapshot,
    with_versions: bool,
) -> Vec<ProxyStatus> {
    let mut all: BTreeMap<String, ProxyStatus> = BTreeMap::new();
    for connection in connections.all() {
        let new = proxy(&connection, snapshot, with_versions);
        match all.get_mut(&new.id) {
            None => _ = all.insert(new.id.clone(), new),
            Some(held) => merge(held, new),
        }
    }
    all.into_values().collect()
}

fn merge(held: &mut ProxyStatus, mut new: ProxyStatus) {
    // The stream that carries clusters and listeners is the proxy's own; it names what people look
    // for.
    let weight = |status: &ProxyStatus| status.types.len();
    if weight(&new) > weight(held) {
        std::mem::swap(held, &mut new);
    }
    held.connected_at_ms = held.connected_at_ms.min(new.connected_at_ms);
    held.last_push_ms = held.last_push_ms.max(new.last_push_ms);
    held.state = held.state.max(new.state);
    for sync in new.types {
        if !held
            .types
            .iter()
            .any(|known| known.type_url == sync.type_url)
        {
            held.types.push(sync);
        }
    }

    held.rejections.append(&mut new.rejections);
}

fn proxy(connection: &Arc<Connection>, snapshot: &Snapshot, with_versions: bool) -> ProxyStatus {
    let proxy = &connection.proxy;
    let status = connection.session.status();
    let types: Vec<TypeSync> = status
        .iter()
        .map(|status| type_sync(status, with_versions))
        .collect();

    ProxyStatus {
        id: proxy.id.clone(),
        kind: kind(proxy.kind).to_owned(),
        name: proxy.name.clone(),
        namespace: proxy.namespace.clone(),
        workload: proxy.workload_name.clone(),
        service_account: proxy.service_account.clone(),
        ips: proxy.ips.iter().map(ToString::to_string).collect(),
        identity: connection
            .authenticated
            .identity
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        authenticated_by: connection.authenticated.proof.word().to_owned(),
        peer: connection.peer.clone(),
        variant: connection.variant.to_string(),
        user_agent: connection.user_agent.clone(),
        connected_at_ms: connection.connected_at_ms,
        last_push_ms: connection.last_push_ms.load(Relaxed),
        state: types
            .iter()
            .map(|sync| sync.state)
            .filter(|state| *state != SyncState::NotSent)
            .max()
            .unwrap_or(SyncState::NotSent),
        rejections: status.iter().flat_map(rejections).collect(),
        access_logs: access_logs(snapshot, proxy),
        diagnostics: connection.diagnostics(),
        types,
    }
}

/// Paths of the access logs of both sides of a proxy.
fn access_logs(snapshot: &Snapshot, proxy: &Proxy) -> Vec<String> {
    let modes = [WorkloadMode::Client, WorkloadMode::Server];
    let paths: BTreeSet<String> = modes
        .into_iter()
        .flat_map(|mode| snapshot.access_logs(&proxy.namespace, &proxy.labels, mode))
        .map(|log| log.path)
        .collect();
    paths.into_iter().collect()
}

fn kind(kind: ProxyKind) -> &'static str {
    match kind {
        ProxyKind::Sidecar => "sidecar",
        ProxyKind::Router => "router",
    }
}

fn type_sync(status: &TypeStatus, with_versions: bool) -> TypeSync {
    let state = if status
        .resources
        .values()
        .any(|resource| resource.nack.is_some())
    {
        SyncState::Rejected
    } else if status.resources.is_empty() && status.pushes == 0 {
        SyncState::NotSent
    } else if status.is_synced() {
        SyncState::Synced
    } else {
        SyncState::Stale
    };

    let versions = |status: &TypeStatus| {
        let text = |version: &Option<Arc<str>>| version.as_deref().map(ToOwned::to_owned);
        let one = |resource: &ResourceStatus| {
            [
                text(&resource.wanted),
                text(&resource.sent),
                text(&resource.acked),
            ]
        };

        status
            .resources
            .iter()
            .map(|(name, resource)| (name.clone(), one(resource)))
            .collect()
    };

    TypeSync {
        type_url: status.type_url.clone(),
        short: type_url::short(&status.type_url).to_owned(),
        state,
        wildcard: status.wildcard,
        names: status.names,
        resources: status
            .resources
            .values()
            .filter(|resource| resource.wanted.is_some())
            .count(),
        wanted: digest(status, |resource| &resource.wanted),
        sent: digest(status, |resource| &resource.sent),
        acked: digest(status, |resource| &resource.acked),
        pushes: status.pushes,
        acks: status.acks,
        nacks: status.nacks,
        versions: if with_versions {
            versions(status)
        } else {
            BTreeMap::new()
        },
    }
}

fn rejections(status: &TypeStatus) -> impl Iterator<Item = Rejection> {
    status.resources.iter().filter_map(|(name, resource)| {
        let nack = resource.nack.as_ref()?;
        Some(Rejection {
            type_url: status.type_url.clone(),
            short: type_url::short(&status.type_url).to_owned(),
            name: printable(name).into_owned(),
            version: nack.version.to_string(),
            reason: printable(&nack.reason).into_owned(),
        })
    })
}

/// A hash over names and versions; empty if there are none.
fn digest(status: &TypeStatus, version: impl Fn(&ResourceStatus) -> &Option<Arc<str>>) -> String {
    let mut hasher = DefaultHasher::new();
    let mut any = false;
    for (name, resource) in &status.resources {
        if let Some(version) = version(resource) {
            any = true;
            (name, version).hash(&mut hasher);
        }
    }

    if any {
        format!("{:016x}", hasher.finish())
    } else {
        String::new()
    }
}

/// In Istio's shape.
pub(crate) fn syncz(connections: &Connections, snapshot: &Snapshot) -> Vec<SyncStatus> {
    let merged = proxies(connections, snapshot, false);
    let all = connections.all();
    merged
        .into_iter()
        .map(|proxy| {
            let connection = all
                .iter()
                .find(|connection| connection.proxy.id == proxy.id);
            let of = |url: &str| {
                let sync = proxy.types.iter().find(|sync| sync.type_url == url);
                sync.map(|sync| (sync.sent.clone(), sync.acked.clone()))
                    .unwrap_or_default()
            };

            let (cluster_sent, cluster_acked) = of(type_url::CLUSTER);
            let (listener_sent, listener_acked) = of(type_url::LISTENER);
            let (route_sent, route_acked) = of(type_url::ROUTE);
            let (endpoint_sent, endpoint_acked) = of(type_url::ENDPOINT);
            let (extensionconfig_sent, extensionconfig_acked) = of(type_url::EXTENSION_CONFIG);

            SyncStatus {
                cluster_id: connection
                    .map(|connection| connection.proxy.cluster_id.clone())
                    .unwrap_or_default(),
                istio_version: connection
                    .map(|connection| connection.istio_version.clone())
                    .unwrap_or_default(),
                proxy: format!("{}.{}", proxy.name, proxy.namespace),
                proxy_type: proxy.kind,
                cluster_sent,
                cluster_acked,
                listener_sent,
                listener_acked,
                route_sent,
                route_acked,
                endpoint_sent,
                endpoint_acked,
                extensionconfig_sent,
                extensionconfig_acked,
            }
        })
        .collect()
}

/// How many proxies refuse something of each type now.
pub(crate) fn rejecting(connections: &Connections) -> Vec<(&'static str, usize)> {
    let mut counts: BTreeMap<&'static str, usize> =
        BTreeMap::from([("cds", 0), ("eds", 0), ("lds", 0), ("rds", 0)]);
    for connection in connections.all() {
        for status in connection.session.status() {
            if let Some(label) = reject_label(&status.type_url)
                && status
                    .resources
                    .values()
                    .any(|resource| resource.nack.is_some())
            {
                *counts.entry(label).or_default() += 1;
            }
        }
    }

    counts.into_iter().collect()
}
