//! DestinationRule: how a client's proxy treats a host, once routing has chosen it.

use std::collections::BTreeMap;

use meltemi_types::Selector;

use crate::duration::Duration;
use crate::schema::{message, words};
use crate::shared::{PortSelector, WorkloadSelector};

message! {
    /// Policies and subsets of a host.
    pub struct DestinationRule {
        /// A host of the service registry; `*.` prefixes allowed.
        host: String = "host" [required],
        /// For all ports and subsets.
        traffic_policy: Option<TrafficPolicy> = "trafficPolicy",
        /// Named parts of the host's endpoints.
        subsets: Vec<Subset> = "subsets",
        /// Namespaces that see this: `.`, `*`, or names. Empty is MeshConfig's default.
        export_to: Vec<String> = "exportTo",
        /// The clients that this is for; absent is all.
        workload_selector: Option<WorkloadSelector> = "workloadSelector",
    }

    /// Endpoints with certain labels.
    pub struct Subset {
        /// Name that routes use.
        name: String = "name" [required],
        /// Labels of the endpoints; empty is all of them.
        labels: Selector = "labels",
        /// Overrides the host's policy, field by field.
        traffic_policy: Option<TrafficPolicy> = "trafficPolicy",
    }

    /// How to talk to endpoints.
    pub struct TrafficPolicy {
        /// Which endpoint.
        load_balancer: Option<LoadBalancerSettings> = "loadBalancer",
        /// How many connections and requests.
        connection_pool: Option<ConnectionPoolSettings> = "connectionPool",
        /// When an endpoint is left alone.
        outlier_detection: Option<OutlierDetection> = "outlierDetection",
        /// TLS towards endpoints; absent is automatic mutual TLS.
        tls: Option<ClientTlsSettings> = "tls",
        /// Per port: replaces the whole policy of that port.
        port_level_settings: Vec<PortTrafficPolicy> = "portLevelSettings",
        /// Through an HTTP proxy.
        tunnel: Option<TunnelSettings> = "tunnel",
        /// PROXY protocol towards endpoints.
        proxy_protocol: Option<ProxyProtocol> = "proxyProtocol",
        /// How many retries at a time.
        retry_budget: Option<RetryBudget> = "retryBudget",
    }

    /// A policy for one port.
    pub struct PortTrafficPolicy {
        /// Which port of the service.
        port: Option<PortSelector> = "port",
        /// Which endpoint.
        load_balancer: Option<LoadBalancerSettings> = "loadBalancer",
        /// How many connections and requests.
        connection_pool: Option<ConnectionPoolSettings> = "connectionPool",
        /// When an endpoint is left alone.
        outlier_detection: Option<OutlierDetection> = "outlierDetection",
        /// TLS towards endpoints.
        tls: Option<ClientTlsSettings> = "tls",
    }

    /// Which endpoint serves.
    pub struct LoadBalancerSettings {
        /// A plain algorithm; absent, with no other, is `LEAST_REQUEST`.
        simple: Option<SimpleLb> = "simple",
        /// By hash, for affinity.
        consistent_hash: Option<ConsistentHashLb> = "consistentHash",
        /// By load reports of the endpoints.
        backend_utilization: Option<BackendUtilization> = "backendUtilization",
        /// By locality.
        locality_lb_setting: Option<LocalityLbSetting> = "localityLbSetting",
        /// By zone, in proportion to capacity.
        zone_aware_lb_setting: Option<ZoneAwareLbSetting> = "zoneAwareLbSetting",
        /// Deprecated: `warmup.duration`.
        warmup_duration_secs: Option<Duration> = "warmupDurationSecs",
        /// New endpoints get traffic gradually.
        warmup: Option<WarmupConfiguration> = "warmup",
    }

    /// Affinity by hash: one of header, cookie, address or parameter; one of ring or table.
    pub struct ConsistentHashLb {
        /// Hash of a request header.
        http_header_name: Option<String> = "httpHeaderName",
        /// Hash of a cookie, which is made if a TTL is given.
        http_cookie: Option<HttpCookie> = "httpCookie",
        /// Hash of the caller's address.
        use_source_ip: Option<bool> = "useSourceIp",
        /// Hash of a query parameter.
        http_query_parameter_name: Option<String> = "httpQueryParameterName",
        /// On a ring.
        ring_hash: Option<RingHash> = "ringHash",
        /// In a Maglev table.
        maglev: Option<MagLev> = "maglev",
        /// Deprecated: `ringHash.minimumRingSize`.
        minimum_ring_size: u64 = "minimumRingSize",
    }

    /// A cookie for affinity.
    pub struct HttpCookie {
        name: String = "name" [required],
        /// Path of a made cookie.
        path: String = "path",
        /// Life of a made cookie, 0 for a session's; absent: never made.
        ttl: Option<Duration> = "ttl",
        /// Further attributes of a made cookie.
        attributes: Vec<CookieAttribute> = "attributes",
    }

    /// An attribute of a cookie.
    pub struct CookieAttribute {
        name: String = "name" [required],
        /// Value; empty for a flag.
        value: String = "value",
    }

    pub struct RingHash {
        /// Points on the ring; 0 is 1024.
        minimum_ring_size: u64 = "minimumRingSize",
    }

    /// A Maglev table.
    pub struct MagLev {
        /// Prime; 0 is 65537.
        table_size: u64 = "tableSize",
    }

    /// Weights from endpoints' ORCA load reports.
    pub struct BackendUtilization {
        /// How strongly errors count.
        error_utilization_penalty_percent: Option<u32> = "errorUtilizationPenaltyPercent",
        /// Which metrics count.
        metric_names: Vec<String> = "metricNamesForComputingUtilization",
        /// When a report is too old.
        weight_expiration_period: Option<Duration> = "weightExpirationPeriod",
        /// How long a new endpoint has no weight.
        weight_stabilization_period: Option<Duration> = "weightStabilizationPeriod",
        /// How often weights change.
        weight_update_period: Option<Duration> = "weightUpdatePeriod",
    }

    /// Preference among localities: one of distribute, failover or failoverPriority.
    pub struct LocalityLbSetting {
        /// Absent is MeshConfig's.
        enabled: Option<bool> = "enabled",
        /// Fixed shares.
        distribute: Vec<LocalityDistribute> = "distribute",
        /// Where to when a region fails.
        failover: Vec<LocalityFailover> = "failover",
        /// Labels in order of importance.
        failover_priority: Vec<String> = "failoverPriority",
    }

    /// Fixed shares for callers of a locality.
    pub struct LocalityDistribute {
        /// The caller's locality, `region/zone/subzone` with `*`.
        from: String = "from",
        /// Percent by locality; the sum is 100.
        to: BTreeMap<String, u32> = "to",
    }

    /// Where to when a region fails.
    pub struct LocalityFailover {
        /// The failing region.
        from: String = "from",
        /// The region instead.
        to: String = "to",
    }

    /// Preference for the own zone, in proportion to its capacity.
    pub struct ZoneAwareLbSetting {
        /// Whether it is on.
        enabled: Option<bool> = "enabled",
        /// Where to when a region fails.
        failover: Vec<LocalityFailover> = "failover",
        /// Labels in order of importance.
        failover_priority: Vec<String> = "failoverPriority",
        /// Below so many endpoints it is off.
        min_cluster_size: Option<u32> = "minClusterSize",
    }

    /// A slow start.
    pub struct WarmupConfiguration {
        /// How long.
        duration: Option<Duration> = "duration" [required],
        /// Share at the beginning, in percent; absent is 10.
        minimum_percent: Option<f64> = "minimumPercent",
        /// Shape of the curve; absent is 1, a line.
        aggression: Option<f64> = "aggression",
    }

    /// Limits of connections and requests.
    pub struct ConnectionPoolSettings {
        /// For every connection.
        tcp: Option<TcpSettings> = "tcp",
        /// For HTTP.
        http: Option<HttpSettings> = "http",
    }

    /// Limits of connections.
    pub struct TcpSettings {
        /// Connections to all endpoints together; 0 is no limit.
        max_connections: i32 = "maxConnections",
        /// Absent is MeshConfig's.
        connect_timeout: Option<Duration> = "connectTimeout",
        /// Kernel probes.
        tcp_keepalive: Option<TcpKeepalive> = "tcpKeepalive",
        /// A connection's longest life.
        max_connection_duration: Option<Duration> = "maxConnectionDuration",
        /// Absent is one hour; 0 is never.
        idle_timeout: Option<Duration> = "idleTimeout",
    }

    /// Kernel probes; absent values are the system's.
    pub struct TcpKeepalive {
        /// Probes without answer until the connection is dead.
        probes: u32 = "probes",
        /// Idle time before the first.
        time: Option<Duration> = "time",
        /// Time between them.
        interval: Option<Duration> = "interval",
    }

    /// Limits of requests; 0 is no limit.
    pub struct HttpSettings {
        /// Requests that wait for a connection.
        http1_max_pending_requests: i32 = "http1MaxPendingRequests",
        /// Requests at a time.
        http2_max_requests: i32 = "http2MaxRequests",
        /// Requests until a connection is closed.
        max_requests_per_connection: i32 = "maxRequestsPerConnection",
        /// Retries at a time.
        max_retries: i32 = "maxRetries",
        /// Absent is one hour.
        idle_timeout: Option<Duration> = "idleTimeout",
        /// HTTP/1.1 to HTTP/2.
        h2_upgrade_policy: H2UpgradePolicy = "h2UpgradePolicy",
        /// Upstream speaks what downstream spoke.
        use_client_protocol: bool = "useClientProtocol",
        /// Streams of an HTTP/2 connection.
        max_concurrent_streams: i32 = "maxConcurrentStreams",
        /// HTTP/2 PING.
        http2_keep_alive: Option<Http2KeepAlive> = "http2KeepAlive",
    }

    /// HTTP/2 PING.
    pub struct Http2KeepAlive {
        /// How often.
        interval: Option<Duration> = "interval",
        /// When the answer is too late.
        timeout: Option<Duration> = "timeout",
    }

    /// When an endpoint is left alone.
    pub struct OutlierDetection {
        /// Deprecated: `consecutive5xxErrors` of gateway errors.
        consecutive_errors: i32 = "consecutiveErrors",
        /// 502, 503, 504 in a row; 0 switches it off.
        consecutive_gateway_errors: Option<u32> = "consecutiveGatewayErrors",
        /// 5xx in a row; absent is 5, 0 switches it off.
        consecutive5xx_errors: Option<u32> = "consecutive5xxErrors",
        /// Whether failures of our own side are counted apart.
        split_external_local_origin_errors: bool = "splitExternalLocalOriginErrors",
        /// Such failures in a row.
        consecutive_local_origin_failures: Option<u32> = "consecutiveLocalOriginFailures",
        /// Time between sweeps; absent is 10 s.
        interval: Option<Duration> = "interval",
        /// First ejection; absent is 30 s.
        base_ejection_time: Option<Duration> = "baseEjectionTime",
        /// At most so many; 0 is 10.
        max_ejection_percent: i32 = "maxEjectionPercent",
        /// Below so many healthy ones, ejection is ignored.
        min_health_percent: i32 = "minHealthPercent",
        /// Status codes that count as errors.
        outlier_detection_http_error_codes: Vec<u32> = "outlierDetectionHttpErrorCodes",
    }

    /// TLS towards endpoints.
    pub struct ClientTlsSettings {
        /// Which kind.
        mode: ClientTlsMode = "mode",
        /// File of the client's certificate.
        client_certificate: String = "clientCertificate",
        /// File of the client's key.
        private_key: String = "privateKey",
        /// File of the roots.
        ca_certificates: String = "caCertificates",
        /// File of revocations.
        ca_crl: String = "caCrl",
        /// Secret with keys and roots; gateways and selected sidecars only.
        credential_name: String = "credentialName",
        /// Accepted names in the server's certificate.
        subject_alt_names: Vec<String> = "subjectAltNames",
        /// Server name to send.
        sni: String = "sni",
        /// Trust any certificate.
        insecure_skip_verify: Option<bool> = "insecureSkipVerify",
    }

    /// Through an HTTP proxy.
    pub struct TunnelSettings {
        /// CONNECT (also empty) or POST.
        protocol: String = "protocol",
        /// What the proxy connects to.
        target_host: String = "targetHost" [required],
        /// What the proxy connects to.
        target_port: u32 = "targetPort" [required],
    }

    /// PROXY protocol towards endpoints.
    pub struct ProxyProtocol {
        version: ProxyProtocolVersion = "version",
    }

    /// How many retries at a time.
    pub struct RetryBudget {
        /// Share of active requests; absent is 20.
        percent: Option<f64> = "percent",
        /// Always allowed; absent is 3.
        min_retry_concurrency: Option<u32> = "minRetryConcurrency",
        /// Over which time requests are counted.
        budget_interval: Option<Duration> = "budgetInterval",
    }
}

words! {
    /// Plain algorithms.
    pub enum SimpleLb {
        /// As `LEAST_REQUEST`.
        Unspecified = "UNSPECIFIED",
        /// Deprecated: as `LEAST_REQUEST`.
        LeastConn = "LEAST_CONN",
        /// Any.
        Random = "RANDOM",
        /// The address that the caller asked for.
        Passthrough = "PASSTHROUGH",
        /// In turn.
        RoundRobin = "ROUND_ROBIN",
        /// Fewest requests of two.
        LeastRequest = "LEAST_REQUEST",
    }

    /// HTTP/1.1 to HTTP/2.
    pub enum H2UpgradePolicy {
        /// MeshConfig's.
        Default = "DEFAULT",
        /// Never.
        DoNotUpgrade = "DO_NOT_UPGRADE",
        /// Always.
        Upgrade = "UPGRADE",
    }

    /// Which kind of TLS.
    pub enum ClientTlsMode {
        /// None.
        Disable = "DISABLE",
        /// Without a client certificate.
        Simple = "SIMPLE",
        /// With one's own certificate.
        Mutual = "MUTUAL",
        /// With the workload's certificate.
        IstioMutual = "ISTIO_MUTUAL",
    }

    /// Of the PROXY protocol.
    pub enum ProxyProtocolVersion {
        /// Text.
        V1 = "V1",
        /// Binary.
        V2 = "V2",
    }
}
