//! Clusters: the input that a cluster is made of, and the one builder.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use meltemi_proto::{Any, pack, value_of};

use crate::endpoint::{LocalityGroup, load_assignment};
use crate::envoy::extensions::upstreams::http::v3 as upstream_http;
use crate::envoy::value::{
    address, ads, duration, extension, list_value, metadata, seconds, struct_value, text_struct,
    u32v, u64v,
};
use crate::envoy::{cluster, core, types, wkt};
use crate::filters::metadata_exchange;
use crate::tls::{UpstreamTls, apply_upstream_tls};

/// No limit, as Istio writes it: circuit breakers are open unless a DestinationRule closes them.
const UNLIMITED: u32 = u32::MAX;

/// Everything that a cluster is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClusterInput {
    /// `outbound|port|subset|host`, `inbound|port||`, or a special name.
    pub name: String,
    pub discovery: Discovery,
    pub policy: ClusterPolicy,
    pub http: UpstreamHttp,
    pub tls: UpstreamTls,
    /// The services it stands for, into metadata `istio.services`: telemetry names the destination
    /// by it.
    pub services: Vec<ServiceRef>,
    /// The subset's name, into metadata `istio.subset`.
    pub subset: Option<String>,
    /// The source address of upstream connections.
    pub bind_source: Option<IpAddr>,
}

/// How the cluster finds its endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Discovery {
    Eds,
    StrictDns(Vec<LocalityGroup>),
    LogicalDns(Vec<LocalityGroup>),
    /// Endpoints that never change and are no service's: an inbound cluster to a stated address.
    Static(Vec<LocalityGroup>),
    OriginalDst,
}

/// A service's identity for telemetry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ServiceRef {
    pub host: String,
    pub name: String,
    pub namespace: String,
}

/// The upstream's HTTP dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum UpstreamHttp {
    /// Plain TCP, or HTTP/1.1 by default.
    Default,
    Http2,
    /// Whatever the downstream spoke: for sniffed ports.
    UseDownstream,
}

/// What a DestinationRule may say about a cluster, with Istio's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClusterPolicy {
    pub connect_timeout: Duration,
    pub lb: Lb,
    /// Locality weights count: a `distribute` setting is in force.
    pub locality_weighted: bool,
    /// Seconds over which a new endpoint's share grows, with the starting share in percent and
    /// 1000ths of aggression.
    pub warmup: Option<Warmup>,
    pub breakers: Breakers,
    pub outlier: Option<Outlier>,
    pub panic_percent: u32,
    pub keepalive: Option<Keepalive>,
    pub pool: HttpPool,
    pub tcp_idle_timeout: Option<Duration>,
    pub proxy_protocol: Option<ProxyProtocol>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Lb {
    LeastRequest,
    RoundRobin,
    Random,
    RingHash { minimum_size: u64 },
    Maglev { table_size: Option<u64> },
    ClusterProvided,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Warmup {
    pub window: Duration,
    pub minimum_percent: u32,
    pub aggression_permille: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Breakers {
    pub max_connections: Option<u32>,
    pub max_pending_requests: Option<u32>,
    pub max_requests: Option<u32>,
    pub max_retries: Option<u32>,
    pub retry_budget: Option<RetryBudget>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RetryBudget {
    pub percent_permille: u32,
    pub min_concurrency: u32,
    pub interval: Option<Duration>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Outlier {
    pub consecutive_5xx: Option<u32>,
    pub consecutive_gateway: Option<u32>,
    pub split_local_origin: bool,
    pub consecutive_local_origin: Option<u32>,
    pub interval: Option<Duration>,
    pub base_ejection: Option<Duration>,
    pub max_ejection_percent: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Keepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct HttpPool {
    pub max_requests_per_connection: Option<u32>,
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_concurrent_streams: Option<u32>,
    pub http2_keepalive: Option<(Duration, Duration)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ProxyProtocol {
    V1,
    V2,
}

impl ClusterPolicy {
    /// Istio's defaults under the mesh's connect timeout.
    pub fn defaults(connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            lb: Lb::LeastRequest,
            locality_weighted: false,
            warmup: None,
            breakers: Breakers::default(),
            outlier: None,
            panic_percent: 0,
            keepalive: None,
            pool: HttpPool::default(),
            tcp_idle_timeout: None,
            proxy_protocol: None,
        }
    }
}

/// Builds a cluster from its input alone.
pub(crate) fn build_cluster(input: &ClusterInput) -> Any {
    pack(&cluster_message(input))
}

// DNS refresh fields: Envoy prefers `cluster_type` now, yet takes these; Istio sends them.
#[allow(deprecated)]
fn cluster_message(input: &ClusterInput) -> cluster::Cluster {
    use cluster::cluster::{
        ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbPolicy,
    };

    let ClusterInput {
        name,
        discovery,
        policy,
        http,
        tls,
        services,
        subset,
        bind_source,
    } = input;

    let (kind, assignment) = match discovery {
        Discovery::Eds => (DiscoveryType::Eds, None),
        Discovery::StrictDns(groups) => (DiscoveryType::StrictDns, Some(groups)),
        Discovery::LogicalDns(groups) => (DiscoveryType::LogicalDns, Some(groups)),
        Discovery::Static(groups) => (DiscoveryType::Static, Some(groups)),
        Discovery::OriginalDst => (DiscoveryType::OriginalDst, None),
    };

    let mut message = cluster::Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
        connect_timeout: duration(policy.connect_timeout),
        circuit_breakers: Some(breakers(&policy.breakers)),
        outlier_detection: policy.outlier.as_ref().map(outlier),
        load_assignment: assignment.map(|groups| load_assignment(name, groups)),
        metadata: metadata_of(services, subset.as_deref(), tls),
        upstream_bind_config: bind_source.map(|source| core::BindConfig {
            source_address: match address(&source.to_string(), 0).address {
                Some(core::address::Address::SocketAddress(socket)) => Some(socket),
                _ => None,
            },
            ..Default::default()
        }),
        upstream_connection_options: policy.keepalive.as_ref().map(|keepalive| {
            cluster::UpstreamConnectionOptions {
                tcp_keepalive: Some(tcp_keepalive(keepalive)),
                ..Default::default()
            }
        }),
        common_lb_config: Some(cluster::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(types::v3::Percent {
                value: f64::from(policy.panic_percent),
            }),
            locality_config_specifier: policy.locality_weighted.then(|| {
                use cluster::cluster::common_lb_config::{
                    LocalityConfigSpecifier, LocalityWeightedLbConfig,
                };
                LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})
            }),
            ..Default::default()
        }),
        ..Default::default()
    };

    match discovery {
        Discovery::Eds => {
            message.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: ads(),
                service_name: name.clone(),
            });
        }
        Discovery::StrictDns(_) | Discovery::LogicalDns(_) => {
            message.dns_lookup_family = DnsLookupFamily::V4Only as i32;
            message.dns_refresh_rate = seconds(60);
            message.respect_dns_ttl = true;
        }
        Discovery::Static(_) | Discovery::OriginalDst => {}
    }

    message.lb_policy = match (&policy.lb, kind) {
        (_, DiscoveryType::OriginalDst) => LbPolicy::ClusterProvided,
        (Lb::LeastRequest, _) => LbPolicy::LeastRequest,
        (Lb::RoundRobin, _) => LbPolicy::RoundRobin,
        (Lb::Random, _) => LbPolicy::Random,
        (Lb::RingHash { .. }, _) => LbPolicy::RingHash,
        (Lb::Maglev { .. }, _) => LbPolicy::Maglev,
        // A passthrough policy on anything but ORIGINAL_DST is refused by Envoy.
        (Lb::ClusterProvided, _) => LbPolicy::LeastRequest,
    } as i32;

    message.lb_config = lb_config(policy);
    apply_http(&mut message, *http, policy, tls);
    apply_upstream_tls(&mut message, tls, policy.proxy_protocol);
    if tls.exchanges_peers() {
        message.filters.push(cluster::Filter {
            name: "istio.metadata_exchange".to_owned(),
            typed_config: Some(pack(&metadata_exchange())),
            ..Default::default()
        });
    }

    message
}

fn lb_config(policy: &ClusterPolicy) -> Option<cluster::cluster::LbConfig> {
    use cluster::cluster::{
        LbConfig, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig,
    };

    let slow_start = policy
        .warmup
        .map(|warmup| cluster::cluster::SlowStartConfig {
            slow_start_window: duration(warmup.window),
            aggression: Some(core::RuntimeDouble {
                default_value: f64::from(warmup.aggression_permille) / 1000.0,
                // Envoy refuses an empty one.
                runtime_key: "upstream.warmup_aggression".to_owned(),
            }),
            min_weight_percent: Some(types::v3::Percent {
                value: f64::from(warmup.minimum_percent),
            }),
        });

    match &policy.lb {
        Lb::LeastRequest => slow_start.map(|slow_start| {
            LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                slow_start_config: Some(slow_start),
                ..Default::default()
            })
        }),
        Lb::RoundRobin => slow_start.map(|slow_start| {
            LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
                slow_start_config: Some(slow_start),
            })
        }),
        Lb::RingHash { minimum_size } => Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: u64v(*minimum_size),
            ..Default::default()
        })),
        Lb::Maglev { table_size } => Some(LbConfig::MaglevLbConfig(MaglevLbConfig {
            table_size: table_size.and_then(u64v),
        })),
        Lb::Random | Lb::ClusterProvided => None,
    }
}

fn breakers(input: &Breakers) -> cluster::CircuitBreakers {
    let Breakers {
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
    } = input;

    let limit = |value: &Option<u32>| u32v(value.unwrap_or(UNLIMITED));
    cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_connections: limit(max_connections),
            max_pending_requests: limit(max_pending_requests),
            max_requests: limit(max_requests),
            max_retries: limit(max_retries),
            retry_budget: retry_budget.as_ref().map(|budget| {
                cluster::circuit_breakers::thresholds::RetryBudget {
                    budget_percent: Some(types::v3::Percent {
                        value: f64::from(budget.percent_permille) / 10.0,
                    }),
                    budget_interval: budget.interval.and_then(duration),
                    min_retry_concurrency: u32v(budget.min_concurrency),
                }
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn outlier(input: &Outlier) -> cluster::OutlierDetection {
    let Outlier {
        consecutive_5xx,
        consecutive_gateway,
        split_local_origin,
        consecutive_local_origin,
        interval,
        base_ejection,
        max_ejection_percent,
    } = input;

    // Each detector that is set is enforced; 0 switches it off.
    let enforce =
        |value: &Option<u32>| value.and_then(|value| u32v(if value > 0 { 100 } else { 0 }));

    // Envoy takes no 0 here: the enforcement of 0 has already switched the detector off.
    let count = |value: &Option<u32>| value.filter(|value| *value > 0).and_then(u32v);

    cluster::OutlierDetection {
        consecutive_5xx: count(consecutive_5xx),
        enforcing_consecutive_5xx: enforce(consecutive_5xx),
        consecutive_gateway_failure: count(consecutive_gateway),
        enforcing_consecutive_gateway_failure: enforce(consecutive_gateway),
        split_external_local_origin_errors: *split_local_origin,
        consecutive_local_origin_failure: count(consecutive_local_origin),
        enforcing_consecutive_local_origin_failure: enforce(consecutive_local_origin),
        // Ejection by success rate is nothing that a DestinationRule asks for; Envoy has it on.
        enforcing_success_rate: u32v(0),
        enforcing_local_origin_success_rate: split_local_origin.then(|| u32v(0)).flatten(),
        interval: interval.and_then(duration),
        base_ejection_time: base_ejection.and_then(duration),
        max_ejection_percent: max_ejection_percent.and_then(u32v),
        ..Default::default()
    }
}

fn tcp_keepalive(input: &Keepalive) -> core::TcpKeepalive {
    let whole = |value: Option<Duration>| {
        value.and_then(|value| u32v(u32::try_from(value.as_secs()).unwrap_or(u32::MAX)))
    };
    core::TcpKeepalive {
        keepalive_probes: input.probes.and_then(u32v),
        keepalive_time: whole(input.time),
        keepalive_interval: whole(input.interval),
    }
}

/// Protocol options, only where something differs from Envoy's defaults.
fn apply_http(
    message: &mut cluster::Cluster,
    http: UpstreamHttp,
    policy: &ClusterPolicy,
    tls: &UpstreamTls,
) {
    use upstream_http::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    };

    let HttpPool {
        max_requests_per_connection,
        idle_timeout,
        max_connection_duration,
        max_concurrent_streams,
        http2_keepalive,
    } = &policy.pool;

    let auto_sni = tls.auto_sni();
    let has_common = max_requests_per_connection.is_some()
        || idle_timeout.is_some()
        || max_connection_duration.is_some();
    if http == UpstreamHttp::Default && !has_common && auto_sni.is_none() {
        return;
    }
    let http1 = core::Http1ProtocolOptions::default();
    let http2 = core::Http2ProtocolOptions {
        // Envoy's default of 100 is too low for a data path. Source: Istio `http2ProtocolOptions`.
        max_concurrent_streams: u32v(max_concurrent_streams.unwrap_or(1_073_741_824)),
        connection_keepalive: http2_keepalive.map(|(interval, timeout)| core::KeepaliveSettings {
            interval: duration(interval),
            timeout: duration(timeout),
            ..Default::default()
        }),
        ..Default::default()
    };

    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };

    let options = upstream_http::HttpProtocolOptions {
        common_http_protocol_options: has_common.then(|| core::HttpProtocolOptions {
            idle_timeout: idle_timeout.and_then(duration),
            max_connection_duration: max_connection_duration.and_then(duration),
            max_requests_per_connection: max_requests_per_connection.and_then(u32v),
            ..Default::default()
        }),
        upstream_http_protocol_options: auto_sni.map(|check_name| {
            core::UpstreamHttpProtocolOptions {
                auto_sni: true,
                auto_san_validation: check_name,
                override_auto_sni_header: String::new(),
            }
        }),
        upstream_protocol_options: Some(match http {
            UpstreamHttp::Default => explicit(ProtocolConfig::HttpProtocolOptions(http1)),
            UpstreamHttp::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
            UpstreamHttp::UseDownstream => {
                UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                    http_protocol_options: Some(http1),
                    http2_protocol_options: Some(http2),
                    http3_protocol_options: None,
                })
            }
        }),
        ..Default::default()
    };

    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let packed = extension(name, &options).typed_config.unwrap_or_default();
    message
        .typed_extension_protocol_options
        .insert(name.to_owned(), packed);
}

fn metadata_of(
    services: &[ServiceRef],
    subset: Option<&str>,
    tls: &UpstreamTls,
) -> Option<core::Metadata> {
    let mut fields = wkt::Struct::default();
    if !services.is_empty() {
        let services = services.iter().map(|service| {
            let ServiceRef {
                host,
                name,
                namespace,
            } = service;

            struct_value(text_struct([
                ("host", host),
                ("name", name),
                ("namespace", namespace),
            ]))
        });

        fields
            .fields
            .insert("services".to_owned(), list_value(services.collect()));
    }

    if let Some(subset) = subset {
        fields.fields.insert("subset".to_owned(), value_of(subset));
    }
    if tls.is_foreign() {
        // The peer is no proxy of the mesh: its ALPN is not to be replaced by the mesh's. Source:
        // Istio's alpn filter.
        fields
            .fields
            .insert("alpn_override".to_owned(), value_of("false"));
    }

    metadata(BTreeMap::from([("istio", fields)]))
}
