//! Destinations of TCP and TLS connections: the service itself, or what a VirtualService says.

use meltemi_model::{L4Route, WeightedDestination};

use super::View;
use super::cluster::destination_settings;
use crate::authz::AuthzInput;
use crate::filters::{Direction, TcpInput, TcpTarget};
use crate::traffic_policy::hashes_source;

/// A TCP proxy towards a cluster that is no service's.
pub(super) fn towards(view: &View<'_>, cluster: &str, direction: Direction) -> TcpInput {
    TcpInput {
        stat_prefix: cluster.to_owned(),
        direction,
        target: TcpTarget::Cluster(cluster.to_owned()),
        authz: AuthzInput::default(),
        abilities: view.abilities,
        logs: view.access_logs(meltemi_model::WorkloadMode::Client),
        idle_timeout: None,
        hash_source: false,
        upstream_alpn: Vec::new(),
    }
}

/// A TCP proxy towards the destinations of a route, or of a service as a route of one destination.
pub(super) fn destinations(
    view: &View<'_>,
    destinations: &[WeightedDestination],
    listener_port: u16,
    direction: Direction,
) -> TcpInput {
    let mut shares = Vec::new();
    let (mut idle_timeout, mut hash_source) = (None, false);
    for weighted in destinations.iter().filter(|weighted| weighted.weight > 0) {
        let (cluster, port) = view.cluster_of(&weighted.destination, listener_port);
        let settings = destination_settings(
            view,
            &weighted.destination.host,
            &weighted.destination.subset,
            port,
        );

        let pool = settings.connection_pool.as_ref();
        idle_timeout = idle_timeout.or(pool.and_then(|pool| pool.tcp_idle_timeout));
        hash_source |= hashes_source(&settings);
        shares.push((cluster, weighted.weight));
    }

    let (stat_prefix, target) = match shares.as_slice() {
        [] => (
            super::cluster::BLACK_HOLE.to_owned(),
            TcpTarget::Cluster(super::cluster::BLACK_HOLE.to_owned()),
        ),
        [(cluster, _)] => (cluster.clone(), TcpTarget::Cluster(cluster.clone())),
        _ => (shares[0].0.clone(), TcpTarget::Weighted(shares)),
    };

    let mut input = towards(view, "", direction);
    (input.stat_prefix, input.target) = (stat_prefix, target);
    (input.idle_timeout, input.hash_source) = (idle_timeout, hash_source);

    input
}

/// A TCP proxy for a route.
pub(super) fn route(
    view: &View<'_>,
    route: &L4Route,
    listener_port: u16,
    direction: Direction,
) -> TcpInput {
    destinations(view, &route.destinations, listener_port, direction)
}
