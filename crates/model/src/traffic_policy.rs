//! Destination rules: how a client balances, pools, ejects and encrypts.

use std::collections::BTreeMap;
use std::time::Duration;

use meltemi_types::{Keepalive, Selector};

use crate::{Hostname, NamespacedName, Origin, Percent, Visibility};

/// The policy of clients towards one host: one DestinationRule, or several of one namespace merged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DestinationRule {
    /// The oldest object it was made of.
    pub origin: Origin,
    /// Every object it was made of, oldest first.
    pub sources: Vec<NamespacedName>,
    /// The full name, perhaps a wildcard.
    pub host: Hostname,
    /// Who applies it.
    pub export_to: Visibility,
    /// Only clients with these labels (of the rule's own namespace); `None` for all.
    pub workload_selector: Option<Selector>,
    /// For the host as a whole.
    pub policy: TrafficPolicy,
    /// Named parts of the host.
    pub subsets: Vec<Subset>,
}

impl DestinationRule {
    /// The named part.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.name == name)
    }

    /// What holds for one port, and one subset if named: the host's policy, each block replaced by
    /// the subset's where it has one, and port-level settings in place of all blocks. Source: Istio
    /// `MergeTrafficPolicy`.
    pub fn effective(&self, subset: Option<&str>, port: u16) -> PolicySettings {
        let merged = merge_policy(PolicySettings::default(), &self.policy, port);
        match subset.and_then(|name| self.subset(name)) {
            Some(subset) => merge_policy(merged, &subset.policy, port),
            None => merged,
        }
    }
}

fn merge_policy(base: PolicySettings, over: &TrafficPolicy, port: u16) -> PolicySettings {
    let settings = over.settings.clone();
    let mut merged = PolicySettings {
        load_balancer: settings.load_balancer.or(base.load_balancer),
        connection_pool: settings.connection_pool.or(base.connection_pool),
        outlier: settings.outlier.or(base.outlier),
        tls: settings.tls.or(base.tls),
        tunnel: settings.tunnel.or(base.tunnel),
        proxy_protocol: settings.proxy_protocol.or(base.proxy_protocol),
        retry_budget: settings.retry_budget.or(base.retry_budget),
    };

    if let Some(level) = over.ports.get(&port) {
        // Port-level settings replace the host's settings: an absent field is the default, not the
        // host's value.
        merged.load_balancer = level.load_balancer.clone();
        merged.connection_pool = level.connection_pool.clone();
        merged.outlier = level.outlier.clone();
        merged.tls = level.tls.clone();

        // Port-level settings have no such fields. Source: Istio `shadowCopyPortTrafficPolicy`.
        merged.proxy_protocol = None;
        merged.retry_budget = None;
        merged.tunnel = None;
    }

    merged
}

/// DestinationRule.subsets[].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subset {
    pub name: String,
    /// Which endpoints.
    pub labels: Selector,
    /// What differs from the host's policy.
    pub policy: TrafficPolicy,
}

/// Settings, and those of single ports that replace them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TrafficPolicy {
    /// For all ports.
    pub settings: PolicySettings,
    /// For single ports.
    pub ports: BTreeMap<u16, PolicySettings>,
}

/// One block each, `None` where nothing is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PolicySettings {
    pub load_balancer: Option<LoadBalancer>,
    pub connection_pool: Option<ConnectionPool>,
    pub outlier: Option<OutlierDetection>,
    pub tls: Option<ClientTls>,
    pub tunnel: Option<Tunnel>,
    pub proxy_protocol: Option<ProxyProtocol>,
    pub retry_budget: Option<RetryBudget>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LoadBalancer {
    /// The algorithm.
    pub policy: LbPolicy,
    /// localityLbSetting; `None` is the mesh's.
    pub locality: Option<LocalityLb>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
}

/// Which endpoint next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum LbPolicy {
    /// Nothing written: Istio's default, least request.
    #[default]
    Default,
    /// LEAST_REQUEST, and the deprecated LEAST_CONN.
    LeastRequest,
    /// ROUND_ROBIN.
    RoundRobin,
    Random,
    /// PASSTHROUGH: the connection's original destination.
    Passthrough,
    ConsistentHash(ConsistentHash),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConsistentHash {
    /// The source of the hash.
    pub key: HashKey,
    /// How the hash picks.
    pub algorithm: HashAlgorithm,
}

/// What a consistent hash is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// A request header.
    Header(String),
    /// A cookie, made by the proxy if a lifetime is given.
    Cookie {
        name: String,
        /// Its path; empty if unset.
        path: String,
        /// Its lifetime; zero is a session cookie.
        ttl: Option<Duration>,
        /// More attributes of a cookie that the proxy makes.
        attributes: Vec<(String, String)>,
    },
    /// The client's address.
    SourceIp,
    QueryParameter(String),
}

/// How a hash picks an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HashAlgorithm {
    /// A ring with at least this many points (1024 by default).
    Ring { minimum_size: u64 },
    /// Maglev with a table of this size; `None` is Envoy's 65537.
    Maglev {
        /// A prime.
        table_size: Option<u64>,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LocalityLb {
    /// `None` is enabled.
    pub enabled: Option<bool>,
    /// From a locality (`region/zone/*`), shares in percent to others.
    pub distribute: Vec<(String, BTreeMap<String, u32>)>,
    /// From a region to the next.
    pub failover: Vec<(String, String)>,
    /// Labels, most significant first.
    pub failover_priority: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Warmup {
    /// How long.
    pub duration: Duration,
    /// Share at the start; 10 % by default.
    pub minimum: Percent,
    /// Exponent in thousandths; 1000 is linear.
    pub aggression_thousandths: u32,
}

/// connectionPool: `None` everywhere is Istio's default, no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ConnectionPool {
    /// tcp.maxConnections.
    pub max_connections: Option<u32>,
    /// tcp.connectTimeout.
    pub connect_timeout: Option<Duration>,
    /// tcp.tcpKeepalive.
    pub keepalive: Option<Keepalive>,
    /// tcp.maxConnectionDuration.
    pub max_connection_duration: Option<Duration>,
    /// tcp.idleTimeout.
    pub tcp_idle_timeout: Option<Duration>,
    /// http.http1MaxPendingRequests.
    pub http1_max_pending_requests: Option<u32>,
    /// http.http2MaxRequests.
    pub http2_max_requests: Option<u32>,
    /// http.maxRequestsPerConnection.
    pub max_requests_per_connection: Option<u32>,
    /// http.maxRetries.
    pub max_retries: Option<u32>,
    /// http.idleTimeout.
    pub http_idle_timeout: Option<Duration>,
    /// http.h2UpgradePolicy; `None` is the mesh's.
    pub h2_upgrade: Option<bool>,
    /// http.useClientProtocol.
    pub use_client_protocol: bool,
    /// http.maxConcurrentStreams.
    pub max_concurrent_streams: Option<u32>,
    /// http.http2KeepAlive: interval and timeout of PING.
    pub http2_keepalive: Option<(Duration, Option<Duration>)>,
}

/// outlierDetection: a detector that is not written does not eject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct OutlierDetection {
    /// consecutive5xxErrors; `None` is not written (Istio's default is then 5), 0 disables.
    pub consecutive_5xx: Option<u32>,
    /// consecutiveGatewayErrors; `None` or 0 disables.
    pub consecutive_gateway_errors: Option<u32>,
    pub split_local_origin: bool,
    pub consecutive_local_origin_failures: Option<u32>,
    /// Between sweeps.
    pub interval: Option<Duration>,
    /// First ejection's length.
    pub base_ejection_time: Option<Duration>,
    /// At most this share is ejected; 0 is not written.
    pub max_ejection_percent: u32,
    /// Below this share of healthy endpoints ejection is disregarded.
    pub min_health_percent: u32,
    /// outlierDetectionHttpErrorCodes: statuses that count as errors; empty is 500 and above.
    pub error_codes: Vec<u16>,
}

/// tls: how the client encrypts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientTls {
    /// With what.
    pub mode: ClientTlsMode,
    /// File of the certificate chain.
    pub client_certificate: String,
    /// File of its key.
    pub private_key: String,
    /// File of the roots; empty is the system's.
    pub ca_certificates: String,
    /// File of revocations.
    pub ca_crl: String,
    /// Secret with all of them (gateways, and sidecars that may read it).
    pub credential_name: String,
    /// Accepted names of the server; empty is decided by mode.
    pub subject_alt_names: Vec<String>,
    /// Server name to ask for; empty is decided by mode.
    pub sni: String,
    /// No verification at all; `None` if not written.
    pub insecure_skip_verify: Option<bool>,
}

/// tls.mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientTlsMode {
    /// Plaintext.
    Disable,
    /// Verify the server only.
    Simple,
    /// Show the given certificate.
    Mutual,
    /// Show the mesh identity.
    IstioMutual,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tunnel {
    /// POST instead of CONNECT.
    pub uses_post: bool,
    /// Host of the request.
    pub target_host: String,
    /// Port of the request.
    pub target_port: u16,
}

/// proxyProtocol.version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryBudget {
    /// Share of active requests; 20 % by default.
    pub percent: Percent,
    /// Always allowed; 3 by default.
    pub min_retry_concurrency: u32,
    /// Window, if written.
    pub interval: Option<Duration>,
}
