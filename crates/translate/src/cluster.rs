//! Clusters: the input that a cluster is made of, and the one builder.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use meltemi_model::{
    ConnectionPool, HashAlgorithm, LbPolicy, OutlierDetection, ProxyProtocol, RetryBudget, Warmup,
};
use meltemi_proto::{Any, pack, value_of};
use meltemi_types::Keepalive;

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

/// The settings of a DestinationRule that make a cluster, the mesh's defaults filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct ClusterPolicy {
    pub lb: LbPolicy,
    /// Locality weights count: a `distribute` setting is in force.
    pub locality_weighted: bool,
    pub warmup: Option<Warmup>,
    /// `connect_timeout` and `keepalive` are the effective ones.
    pub pool: ConnectionPool,
    pub outlier: Option<OutlierDetection>,
    pub proxy_protocol: Option<ProxyProtocol>,
    pub retry_budget: Option<RetryBudget>,
}

/// Builds a cluster from its input alone.
pub(crate) fn build_cluster(input: &ClusterInput) -> Any {
    pack(&cluster_message(input))
}

// DNS refresh fields: Envoy prefers `cluster_type` now, yet takes these; Istio sends them.
#[expect(deprecated, reason = "Envoys of every version read the older field")]
fn cluster_message(input: &ClusterInput) -> cluster::Cluster {
    use cluster::cluster::{
        ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, EdsClusterConfig,
        LbPolicy as Algorithm,
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

    // Below `minHealthPercent` of healthy endpoints ejections are disregarded.
    let panic_percent = policy
        .outlier
        .as_ref()
        .map_or(0, |outlier| outlier.min_health_percent.min(100));

    let mut message = cluster::Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
        connect_timeout: policy.pool.connect_timeout.and_then(duration),
        circuit_breakers: Some(breakers(&policy.pool, policy.retry_budget.as_ref())),
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
        upstream_connection_options: policy.pool.keepalive.as_ref().map(|keepalive| {
            cluster::UpstreamConnectionOptions {
                tcp_keepalive: Some(tcp_keepalive(keepalive)),
                ..Default::default()
            }
        }),
        common_lb_config: Some(cluster::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(types::v3::Percent {
                value: f64::from(panic_percent),
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
        (_, DiscoveryType::OriginalDst) => Algorithm::ClusterProvided,
        // Envoy refuses PASSTHROUGH on anything but ORIGINAL_DST.
        (LbPolicy::Default | LbPolicy::LeastRequest | LbPolicy::Passthrough, _) => {
            Algorithm::LeastRequest
        }
        (LbPolicy::RoundRobin, _) => Algorithm::RoundRobin,
        (LbPolicy::Random, _) => Algorithm::Random,
        (LbPolicy::ConsistentHash(hash), _) => match hash.algorithm {
            HashAlgorithm::Ring { .. } => Algorithm::RingHash,
            HashAlgorithm::Maglev { .. } => Algorithm::Maglev,
        },
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
            slow_start_window: duration(warmup.duration),
            aggression: Some(core::RuntimeDouble {
                default_value: f64::from(warmup.aggression_thousandths) / 1000.0,
                // Envoy refuses an empty one.
                runtime_key: "upstream.warmup_aggression".to_owned(),
            }),
            min_weight_percent: Some(types::v3::Percent {
                value: warmup.minimum.percent(),
            }),
        });

    match &policy.lb {
        LbPolicy::Default | LbPolicy::LeastRequest => slow_start.map(|slow_start| {
            LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                slow_start_config: Some(slow_start),
                ..Default::default()
            })
        }),
        LbPolicy::RoundRobin => slow_start.map(|slow_start| {
            LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
                slow_start_config: Some(slow_start),
            })
        }),
        LbPolicy::ConsistentHash(hash) => Some(match hash.algorithm {
            HashAlgorithm::Ring { minimum_size } => LbConfig::RingHashLbConfig(RingHashLbConfig {
                minimum_ring_size: u64v(minimum_size),
                ..Default::default()
            }),
            HashAlgorithm::Maglev { table_size } => LbConfig::MaglevLbConfig(MaglevLbConfig {
                table_size: table_size.and_then(u64v),
            }),
        }),
        LbPolicy::Random | LbPolicy::Passthrough => None,
    }
}

fn breakers(pool: &ConnectionPool, budget: Option<&RetryBudget>) -> cluster::CircuitBreakers {
    let limit = |value: &Option<u32>| u32v(value.unwrap_or(UNLIMITED));
    cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_connections: limit(&pool.max_connections),
            max_pending_requests: limit(&pool.http1_max_pending_requests),
            max_requests: limit(&pool.http2_max_requests),
            max_retries: limit(&pool.max_retries),
            retry_budget: budget.map(
                |budget| cluster::circuit_breakers::thresholds::RetryBudget {
                    budget_percent: Some(types::v3::Percent {
                        value: budget.percent.percent(),
                    }),
                    budget_interval: budget.interval.and_then(duration),
                    min_retry_concurrency: u32v(budget.min_retry_concurrency),
                },
            ),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn outlier(input: &OutlierDetection) -> cluster::OutlierDetection {
    let OutlierDetection {
        consecutive_5xx,
        consecutive_gateway_errors,
        split_local_origin,
        consecutive_local_origin_failures,
        interval,
        base_ejection_time,
        max_ejection_percent,
        // The cluster's panic threshold.
        min_health_percent: _,
        // Analysis warns that they are not supported.
        error_codes: _,
    } = input;

    // Source: Istio; without the split Envoy counts local failures as 5xx.
    let local_origin_failures =
        consecutive_local_origin_failures.filter(|count| *split_local_origin && *count > 0);

    // Each detector that is set is enforced; 0 switches it off.
    let enforce =
        |value: &Option<u32>| value.and_then(|value| u32v(if value > 0 { 100 } else { 0 }));

    // Envoy takes no 0 here: the enforcement of 0 has already switched the detector off.
    let count = |value: &Option<u32>| value.filter(|value| *value > 0).and_then(u32v);

    cluster::OutlierDetection {
        consecutive_5xx: count(consecutive_5xx),
        enforcing_consecutive_5xx: enforce(consecutive_5xx),
        consecutive_gateway_failure: count(consecutive_gateway_errors),
        enforcing_consecutive_gateway_failure: enforce(consecutive_gateway_errors),
        split_external_local_origin_errors: *split_local_origin,
        consecutive_local_origin_failure: count(&local_origin_failures),
        enforcing_consecutive_local_origin_failure: enforce(&local_origin_failures),
        // Ejection by success rate is nothing that a DestinationRule asks for; Envoy has it on.
        enforcing_success_rate: u32v(0),
        enforcing_local_origin_success_rate: split_local_origin.then(|| u32v(0)).flatten(),
        interval: interval.and_then(duration),
        base_ejection_time: base_ejection_time.and_then(duration),
        max_ejection_percent: Some(*max_ejection_percent)
            .filter(|percent| *percent > 0)
            .and_then(|percent| u32v(percent.min(100))),
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

    let ConnectionPool {
        max_connection_duration,
        max_concurrent_streams,
        http2_keepalive,
        ..
    } = &policy.pool;

    // 0 is unlimited, which is Envoy's default and which it does not take as a value.
    let max_requests_per_connection = policy
        .pool
        .max_requests_per_connection
        .filter(|limit| *limit > 0);
    let max_concurrent_streams = max_concurrent_streams.filter(|limit| *limit > 0);
    let idle_timeout = policy
        .pool
        .http_idle_timeout
        .or(policy.pool.tcp_idle_timeout);

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
            // Without a timeout of its own, as long as the interval.
            timeout: duration(timeout.unwrap_or(interval)),
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
