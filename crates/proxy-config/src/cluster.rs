//! Clusters: how endpoints are found, chosen, spoken to and given up on.

mod compile;

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::metadata::{Metadata, Value};

use crate::address::Address;
use crate::endpoint::EndpointSet;
use crate::http::Http2Options;
use crate::listener::Keepalive;
use crate::tls::UpstreamTransport;

/// A cluster. Source: Envoy `config.cluster.v3.Cluster`.
#[derive(Debug)]
pub struct Cluster {
    /// The resource's name.
    pub name: Arc<str>,
    /// The name in metrics, if it differs.
    pub alt_stat_name: Option<Arc<str>>,
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
    /// Active health checks.
    pub health_checks: Vec<HealthCheck>,
    /// Which protocol is spoken.
    pub protocol: UpstreamProtocol,
    /// HTTP settings of connections.
    pub http: UpstreamHttp,
    /// How endpoints are spoken to that no match takes.
    pub transport: UpstreamTransport,
    /// How endpoints with such metadata (`envoy.transport_socket_match`) are spoken to; the first match is taken.
    pub transport_matches: Vec<TransportMatch>,
    /// The local address of connections.
    pub bind: Option<UpstreamBind>,
    /// Keepalive of connections.
    pub keepalive: Option<Keepalive>,
    /// Bytes a connection may buffer. Default 1 MiB.
    pub buffer_limit: u32,
    /// Istio's exchange of peer metadata runs on its connections.
    pub exchanges_metadata: bool,
    /// Connections close when their endpoint is ejected or fails its checks.
    pub close_on_health_failure: bool,
    /// Endpoints that are gone are gone, even if they are still well.
    pub ignore_health_on_removal: bool,
    /// Each downstream connection has upstream connections of its own.
    pub pool_per_downstream: bool,
    /// Static metadata; Istio names the service in it.
    pub metadata: Metadata,
}

/// How endpoints are found.
#[derive(Debug)]
pub enum Discovery {
    /// Written in the cluster.
    Static(Arc<EndpointSet>),
    /// An EDS resource of this name.
    Eds(Arc<str>),
    /// Every address that the names have.
    StrictDns(Arc<EndpointSet>, Dns),
    /// One address that the name has, asked anew for new connections.
    LogicalDns(Arc<EndpointSet>, Dns),
    /// Where the connection was going.
    OriginalDst(OriginalDst),
}

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// How often. Default 5 s.
    pub refresh: Duration,
    /// As often as answers say.
    pub respect_ttl: bool,
    /// After failures: first and longest pause.
    pub failure_refresh: (Duration, Duration),
    /// Which kinds of addresses.
    pub family: DnsFamily,
}

/// Which kinds of addresses are looked up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum DnsFamily {
    /// IPv6, or IPv4 if there is none.
    #[default]
    Auto,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4, or IPv6 if there is none.
    V4Preferred,
    /// Both.
    All,
}

/// `original_dst_lb_config`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginalDst {
    /// A header that names the destination instead (`x-envoy-original-dst-host`).
    pub header: Option<Box<str>>,
    /// Another port than the original one.
    pub port: Option<u16>,
    /// Metadata that names the destination instead: filter and path.
    pub metadata_key: Option<MetadataKey>,
}

/// Where in metadata a value is: filter and path.
pub type MetadataKey = (Box<str>, Box<[Box<str>]>);

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
    /// Connections to one endpoint.
    pub max_connections_per_host: Option<u32>,
}

impl Default for Breakers {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            max_connections_per_host: None,
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

/// `OutlierDetection`, with Envoy's defaults filled in. Enforcing shares are percent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Consecutive 5xx (5).
    pub consecutive_5xx: u32,
    /// How often an ejection that these call for happens (100).
    pub enforcing_5xx: u32,
    /// Consecutive 502, 503, 504 (5).
    pub consecutive_gateway: u32,
    /// (0).
    pub enforcing_gateway: u32,
    /// Failures to connect and the like count apart from answers.
    pub split_local: bool,
    /// Consecutive failures of that kind (5).
    pub consecutive_local: u32,
    /// (100).
    pub enforcing_local: u32,
    /// How often ejections end and rates are looked at (10 s).
    pub interval: Duration,
    /// An ejection lasts so long times their number (30 s).
    pub base_ejection: Duration,
    /// But no longer than this (300 s, or the base if that is longer).
    pub max_ejection: Duration,
    /// Added at random.
    pub jitter: Duration,
    /// At most so many percent of the endpoints are out (10).
    pub max_ejection_percent: u32,
    /// One endpoint may always be ejected.
    pub always_eject_one: bool,
    /// By success rate: enforced (100), endpoints needed (5), requests needed (100), deviations times 1000 (1900).
    pub success_rate: SuccessRate,
    /// By failure percentage: threshold (85), enforced (0), endpoints needed (5), requests needed (50).
    pub failure_percentage: FailurePercentage,
}

/// Ejection of what is worse than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// Percent of ejections that happen.
    pub enforcing: u32,
    /// Endpoints with enough requests that must be there.
    pub minimum_hosts: u32,
    /// Requests in an interval that are enough.
    pub request_volume: u32,
    /// Standard deviations below the mean, times 1000.
    pub stdev_factor: u32,
}

/// Ejection of what fails too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailurePercentage {
    /// Percent of requests.
    pub threshold: u32,
    /// Percent of ejections that happen.
    pub enforcing: u32,
    /// Endpoints with enough requests that must be there.
    pub minimum_hosts: u32,
    /// Requests in an interval that are enough.
    pub request_volume: u32,
}

/// An active health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// An answer must be there by then.
    pub timeout: Duration,
    /// How often.
    pub interval: Duration,
    /// Failures until an endpoint is unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes until it is healthy.
    pub healthy_threshold: u32,
    /// What is asked.
    pub kind: HealthCheckKind,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheckKind {
    /// A connection.
    Tcp,
    /// GET of a path; the host, and statuses that are well (ranges, the end excluded).
    Http {
        /// The path.
        path: Box<str>,
        /// The host; the cluster's name if empty.
        host: Box<str>,
        /// 200 if empty.
        expected: Vec<(u16, u16)>,
        /// Over HTTP/2.
        http2: bool,
    },
    /// `grpc.health.v1.Health` of a service.
    Grpc {
        /// The service.
        service: Box<str>,
        /// The authority.
        authority: Box<str>,
    },
}

/// Which protocol is spoken to endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge in plaintext.
    Http2,
    /// What the downstream speaks.
    Downstream,
    /// What ALPN says.
    Auto,
}

/// HTTP settings of connections to endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamHttp {
    /// An idle connection is closed after so long; `None`: never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// A connection is closed after so long.
    pub max_connection_duration: Option<Duration>,
    /// A stream ends after so long.
    pub max_stream_duration: Option<Duration>,
    /// A connection takes so many requests; 0: any number.
    pub max_requests_per_connection: u32,
    /// Fields that a response head may have. Default 100.
    pub max_head_fields: u32,
    /// HTTP/2.
    pub http2: Http2Options,
    /// Send the request's host as SNI.
    pub auto_sni: bool,
    /// The peer's certificate must be for it.
    pub auto_san_validation: bool,
    /// Take it from this header instead of the host.
    pub auto_sni_header: Option<Box<str>>,
}

impl Default for UpstreamHttp {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: 0,
            max_head_fields: 100,
            http2: Http2Options::default(),
            auto_sni: false,
            auto_san_validation: false,
            auto_sni_header: None,
        }
    }
}

/// A transport for endpoints with certain metadata.
#[derive(Debug)]
pub struct TransportMatch {
    /// Its name: `tlsMode-istio`.
    pub name: Arc<str>,
    /// Every pair must be in the endpoint's `envoy.transport_socket_match`; none matches all endpoints.
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
    /// Socket options: level, name, integer value.
    pub socket_options: Vec<(i32, i32, i32)>,
}

impl UpstreamBind {
    /// The local address for a connection to this endpoint.
    pub fn source_for(&self, endpoint: std::net::SocketAddr) -> Option<std::net::SocketAddr> {
        self.source.iter().chain(&self.extra).find(|source| source.is_ipv4() == endpoint.is_ipv4()).copied()
    }
}

impl Cluster {
    /// The transport for an endpoint's metadata (`envoy.transport_socket_match` of the endpoint, else its locality's),
    /// and the match's name if one was taken.
    pub fn transport_for(&self, metadata: &Metadata) -> (&UpstreamTransport, Option<&Arc<str>>) {
        if self.transport_matches.is_empty() {
            return (&self.transport, None);
        }
        let own = metadata.filter("envoy.transport_socket_match");
        let admits = |matcher: &&TransportMatch| {
            matcher.criteria.iter().all(|(key, wanted)| own.and_then(|own| own.field(key)) == Some(wanted))
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
        self.transport_matches.iter().map(|matcher| &matcher.transport).chain([&self.transport])
    }

    /// Addresses that are in the cluster itself, for discovery by DNS.
    pub fn names_to_resolve(&self) -> impl Iterator<Item = &Address> {
        let set = match &self.discovery {
            Discovery::StrictDns(set, _) | Discovery::LogicalDns(set, _) => Some(set),
            _ => None,
        };
        set.into_iter().flat_map(|set| set.endpoints.iter().map(|endpoint| &endpoint.address))
    }
}
