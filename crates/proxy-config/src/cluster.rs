//! Clusters: how endpoints are found, chosen, spoken to and given up on.

mod algorithms;
mod compile;
mod discovery;
mod load_balancing;
mod outlier;
mod policies;
mod subsets;
mod upstream_http;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::metadata::{Metadata, Value};
use meltemi_types::Keepalive;

use crate::tls::UpstreamTransport;
pub use discovery::{Discovery, Dns, DnsFamily, OriginalDst};
pub use outlier::{FailurePercentage, OutlierDetection, SuccessRate};
pub use upstream_http::{UpstreamHttp, UpstreamProtocol};

/// A cluster. Source: Envoy `config.cluster.v3.Cluster`.
#[derive(Debug, PartialEq)]
pub struct Cluster {
    /// The resource's name.
    pub name: Arc<str>,
    /// The name in statistics: `alt_stat_name`, or else the resource's. Clusters may share one.
    pub stat_name: Arc<str>,
    /// How endpoints are found.
    pub discovery: Discovery,
    /// How an endpoint is chosen. The over-provisioning factor in it is unused: it comes with the
    /// endpoints.
    pub lb: meltemi_lb::Config,
    /// Consistent hashing hashes the host names of endpoints, not their addresses.
    pub hash_by_hostname: bool,
    /// The time within which a connection must be established. Default 5 s.
    pub connect_timeout: Duration,
    /// Circuit breakers of default priority, and of high priority.
    pub breakers: [Breakers; 2],
    /// When an endpoint that fails is ejected; `None`: never.
    pub outlier: Option<OutlierDetection>,
    /// The version of HTTP that its endpoints are spoken to in.
    pub protocol: UpstreamProtocol,
    /// HTTP settings of connections.
    pub http: UpstreamHttp,
    /// The transport of endpoints that none of `transport_matches` takes.
    pub transport: UpstreamTransport,
    /// Transports of endpoints with certain metadata; the first that matches is taken.
    pub transport_matches: Vec<TransportMatch>,
    /// The local address of connections; `None` leaves it to the system.
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

/// Circuit breakers of one priority. Envoy's defaults are 1024, 1024, 1024, 3; Istio sets all to
/// 4294967295.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breakers {
    /// The most connections.
    pub max_connections: u32,
    /// The most requests that wait for a connection.
    pub max_pending: u32,
    /// The most requests in flight.
    pub max_requests: u32,
    /// The most retries in flight.
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
    /// The share of active and pending requests, in percent. Default 20.
    pub percent: f64,
    /// The number of retries that are allowed however few requests are active. Default 3.
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
#[derive(Debug, PartialEq)]
pub struct TransportMatch {
    /// Its name, for example `tlsMode-istio`.
    pub name: Arc<str>,
    /// Keys and values that an endpoint must have in its `envoy.transport_socket_match`. Without
    /// any, every endpoint matches.
    pub criteria: Vec<(Box<str>, Value)>,
    /// The transport of these endpoints.
    pub transport: UpstreamTransport,
}

/// The local side of connections to endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamBind {
    /// The local address of connections to endpoints of the same address family.
    pub source: Option<SocketAddr>,
    /// Further local addresses, for the other family.
    pub extra: Vec<SocketAddr>,
}

impl UpstreamBind {
    /// The local address for a connection to this endpoint.
    pub fn source_for(&self, endpoint: SocketAddr) -> Option<SocketAddr> {
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

    /// The name of the EDS resource that it needs, if it needs one.
    pub fn eds(&self) -> Option<&Arc<str>> {
        match &self.discovery {
            Discovery::Eds(name) => Some(name),
            _ => None,
        }
    }

    /// Every transport that its endpoints may have.
    pub fn transports(&self) -> impl Iterator<Item = &UpstreamTransport> {
        self.transport_matches
            .iter()
            .map(|matcher| &matcher.transport)
            .chain([&self.transport])
    }
}
