//! Clusters: how endpoints are found, chosen, spoken to and given up on.

mod compile;
mod discovery;
mod load_balancing;
mod outlier;
mod upstream_http;

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::metadata::{Metadata, Value};
use meltemi_types::Keepalive;

use crate::address::Address;
use crate::tls::UpstreamTransport;
pub use discovery::{Discovery, Dns, DnsFamily, OriginalDst};
pub use outlier::{FailurePercentage, OutlierDetection, SuccessRate};
pub use upstream_http::{UpstreamHttp, UpstreamProtocol};

/// A cluster. Source: Envoy `config.cluster.v3.Cluster`.
#[derive(Debug)]
pub struct Cluster {
    /// The resource's name.
    pub name: Arc<str>,
    /// How endpoints are found.
    pub discovery: Discovery,
    /// How an endpoint is chosen; the over-provisioning factor comes with the endpoints.
    pub lb: meltemi_lb::Config,
    /// What consistent hashing hashes of an endpoint.
    pub hash_by_hostname: bool,
    /// A connection must be up by then. Default 5 s.
    pub connect_timeout: Duration,
    /// Circuit breakers: default priority, high priority.
    pub breakers: [Breakers; 2],
    /// Endpoints that fail are left out for a while.
    pub outlier: Option<OutlierDetection>,
    /// Which protocol is spoken.
    pub protocol: UpstreamProtocol,
    /// HTTP settings of connections.
    pub http: UpstreamHttp,
    /// How endpoints are spoken to that no match takes.
    pub transport: UpstreamTransport,
    /// How endpoints with such metadata (`envoy.transport_socket_match`) are spoken to; the first
    /// match is taken.
    pub transport_matches: Vec<TransportMatch>,
    /// The local address of connections.
    pub bind: Option<UpstreamBind>,
    /// Keepalive of connections.
    pub keepalive: Option<Keepalive>,
    /// Istio's exchange of peer metadata runs on its connections.
    pub exchanges_metadata: bool,
    /// Each downstream connection has upstream connections of its own.
    pub pool_per_downstream: bool,
    /// Static metadata; Istio names the service in it.
    pub metadata: Metadata,
}

/// Limits of one priority. Envoy's defaults are 1024, 1024, 1024, 3; Istio sets all to 4294967295.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breakers {
    /// Connections.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending: u32,
    /// Requests.
    pub max_requests: u32,
    /// Retries at a time.
    pub max_retries: u32,
    /// Retries as a share of active requests, in place of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
}

impl Default for Breakers {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        }
    }
}

/// Retries as a share of active requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Percent of active and pending requests. Default 20.
    pub percent: f64,
    /// So many are allowed in any case. Default 3.
    pub min_concurrency: u32,
}

impl RetryBudget {
    /// How many retries may be active.
    pub fn allowed(&self, active: u64) -> u64 {
        // `as` saturates.
        ((active as f64 * self.percent / 100.0) as u64).max(u64::from(self.min_concurrency))
    }
}

/// A transport for endpoints with certain metadata.
#[derive(Debug)]
pub struct TransportMatch {
    /// Its name: `tlsMode-istio`.
    pub name: Arc<str>,
    /// Every pair must be in the endpoint's `envoy.transport_socket_match`; none matches all
    /// endpoints.
    pub criteria: Vec<(Box<str>, Value)>,
    /// The transport.
    pub transport: UpstreamTransport,
}

/// The local side of connections to endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamBind {
    /// The address for endpoints of its family.
    pub source: Option<std::net::SocketAddr>,
    /// Further ones, for the other family.
    pub extra: Vec<std::net::SocketAddr>,
    /// The address need not be ours.
    pub freebind: bool,
}

impl UpstreamBind {
    /// The local address for a connection to this endpoint.
    pub fn source_for(&self, endpoint: std::net::SocketAddr) -> Option<std::net::SocketAddr> {
        self.source
            .iter()
            .chain(&self.extra)
            .find(|source| source.is_ipv4() == endpoint.is_ipv4())
            .copied()
    }
}

impl Cluster {
    /// The transport for an endpoint's metadata (`envoy.transport_socket_match` of the endpoint,
    /// else its locality's), and the match's name if one was taken.
    pub fn transport_for(&self, metadata: &Metadata) -> (&UpstreamTransport, Option<&Arc<str>>) {
        if self.transport_matches.is_empty() {
            return (&self.transport, None);
        }
        let own = metadata.filter("envoy.transport_socket_match");
        let admits = |matcher: &&TransportMatch| {
            matcher
                .criteria
                .iter()
                .all(|(key, wanted)| own.and_then(|own| own.field(key)) == Some(wanted))
        };

        match self.transport_matches.iter().find(admits) {
            Some(matcher) => (&matcher.transport, Some(&matcher.name)),
            None => (&self.transport, None),
        }
    }

    /// The EDS resource that it needs, if any.
    pub fn eds(&self) -> Option<&Arc<str>> {
        match &self.discovery {
            Discovery::Eds(name) => Some(name),
            _ => None,
        }
    }

    /// Every transport that it may use.
    pub fn transports(&self) -> impl Iterator<Item = &UpstreamTransport> {
        self.transport_matches
            .iter()
            .map(|matcher| &matcher.transport)
            .chain([&self.transport])
    }

    /// Addresses that are in the cluster itself, for discovery by DNS.
    pub fn names_to_resolve(&self) -> impl Iterator<Item = &Address> {
        let set = match &self.discovery {
            Discovery::StrictDns(set, _) | Discovery::LogicalDns(set, _) => Some(set),
            _ => None,
        };
        set.into_iter()
            .flat_map(|set| set.endpoints.iter().map(|endpoint| &endpoint.address))
    }
}
