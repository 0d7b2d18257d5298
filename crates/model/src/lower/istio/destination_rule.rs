//! DestinationRule to the model's policies.

use std::collections::BTreeMap;

use meltemi_api::networking::{self as api};
use meltemi_api::{Object, Spec};
use meltemi_types::Keepalive;

use crate::lower::{Context, Findings, origin, port, positive, visibility};
use crate::{
    ClientTls, ClientTlsMode, ConnectionPool, ConsistentHash, DestinationRule, HashAlgorithm,
    HashKey, Hostname, LbPolicy, LoadBalancer, LocalityLb, OutlierDetection, Percent,
    PolicySettings, ProxyProtocol, RetryBudget, Subset, TrafficPolicy, Tunnel, Visibility, Warmup,
};

pub(crate) fn lower_destination_rule(
    context: &Context<'_>,
    object: &Object,
    findings: &mut Findings<'_>,
) -> DestinationRule {
    let empty = api::DestinationRule::default();
    let spec = if let Spec::DestinationRule(spec) = &object.spec {
        spec.as_ref()
    } else {
        &empty
    };

    let namespace = object.meta.namespace.as_str();
    let origin = origin(object);
    let workload_selector = spec
        .workload_selector
        .as_ref()
        .map(|selector| selector.match_labels.clone())
        .filter(|labels| !labels.is_empty());

    // A rule for some workloads is for those of its own namespace. Source: Istio
    // `setDestinationRules`.
    let export_to = match &workload_selector {
        Some(_) => Visibility::Namespaces([namespace.to_owned()].into()),
        None => visibility(
            &spec.export_to,
            &context.mesh.default_export_to.destination_rules,
            namespace,
        ),
    };

    DestinationRule {
        sources: vec![origin.name()],
        origin,
        host: Hostname::resolve(&spec.host, namespace, context.domain),
        export_to,
        workload_selector,
        policy: lower_policy(spec.traffic_policy.as_ref(), "spec.trafficPolicy", findings),
        subsets: spec
            .subsets
            .iter()
            .enumerate()
            .map(|(index, subset)| Subset {
                name: subset.name.clone(),
                labels: subset.labels.clone(),
                policy: lower_policy(
                    subset.traffic_policy.as_ref(),
                    &format!("spec.subsets[{index}].trafficPolicy"),
                    findings,
                ),
            })
            .collect(),
    }
}

fn lower_policy(
    written: Option<&api::TrafficPolicy>,
    field: &str,
    findings: &mut Findings<'_>,
) -> TrafficPolicy {
    let Some(written) = written else {
        return TrafficPolicy::default();
    };
    let mut block = |field: &str, lb: Option<&api::LoadBalancerSettings>| {
        lb.map(|lb| lower_load_balancer(lb, &format!("{field}.loadBalancer"), findings))
    };
    let ports: BTreeMap<u16, PolicySettings> = written
        .port_level_settings
        .iter()
        .enumerate()
        .filter_map(|(index, level)| {
            let number = port(level.port.as_ref()?.number)?;
            let settings = PolicySettings {
                load_balancer: block(
                    &format!("{field}.portLevelSettings[{index}]"),
                    level.load_balancer.as_ref(),
                ),
                connection_pool: level.connection_pool.as_ref().map(lower_connection_pool),
                outlier: level.outlier_detection.as_ref().map(lower_outlier),
                tls: level.tls.as_ref().map(lower_client_tls),
                ..PolicySettings::default()
            };

            Some((number, settings))
        })
        .collect();

    let settings = PolicySettings {
        load_balancer: block(field, written.load_balancer.as_ref()),
        connection_pool: written.connection_pool.as_ref().map(lower_connection_pool),
        outlier: written.outlier_detection.as_ref().map(lower_outlier),
        tls: written.tls.as_ref().map(lower_client_tls),
        tunnel: written.tunnel.as_ref().and_then(lower_tunnel),
        proxy_protocol: written
            .proxy_protocol
            .as_ref()
            .map(|protocol| match protocol.version {
                api::ProxyProtocolVersion::V1 => ProxyProtocol::V1,
                api::ProxyProtocolVersion::V2 => ProxyProtocol::V2,
            }),
        retry_budget: written.retry_budget.as_ref().map(|budget| RetryBudget {
            percent: Percent::from_percent(budget.percent.unwrap_or(20.0)),
            min_retry_concurrency: budget.min_retry_concurrency.unwrap_or(3),
            interval: budget.budget_interval.map(|interval| interval.0),
        }),
    };

    TrafficPolicy { settings, ports }
}

fn lower_load_balancer(
    written: &api::LoadBalancerSettings,
    field: &str,
    findings: &mut Findings<'_>,
) -> LoadBalancer {
    for (is_set, name) in [
        (written.backend_utilization.is_some(), "backendUtilization"),
        (
            written.zone_aware_lb_setting.is_some(),
            "zoneAwareLbSetting",
        ),
    ] {
        if is_set {
            findings.warn(
                "MEL0307",
                &format!("{field}.{name}"),
                format!("{name} is not supported yet and has no effect"),
                "use localityLbSetting or simple",
            );
        }
    }

    let policy = match (&written.consistent_hash, written.simple) {
        (Some(hash), _) => lower_hash(hash).map_or(LbPolicy::Default, LbPolicy::ConsistentHash),
        (None, None | Some(api::SimpleLb::Unspecified)) => LbPolicy::Default,
        (None, Some(api::SimpleLb::LeastConn | api::SimpleLb::LeastRequest)) => {
            LbPolicy::LeastRequest
        }
        (None, Some(api::SimpleLb::Random)) => LbPolicy::Random,
        (None, Some(api::SimpleLb::Passthrough)) => LbPolicy::Passthrough,
        (None, Some(api::SimpleLb::RoundRobin)) => LbPolicy::RoundRobin,
    };

    let warmup = match (&written.warmup, written.warmup_duration_secs) {
        (Some(warmup), _) => warmup.duration.map(|duration| Warmup {
            duration: duration.0,
            minimum: Percent::from_percent(warmup.minimum_percent.unwrap_or(10.0)),
            // `as` saturates and maps NaN to 0; validation asks for at least 1.
            aggression_thousandths: (warmup.aggression.unwrap_or(1.0) * 1000.0).round() as u32,
        }),
        (None, Some(duration)) => Some(Warmup {
            duration: duration.0,
            minimum: Percent::from_percent(10.0),
            aggression_thousandths: 1000,
        }),
        (None, None) => None,
    };

    LoadBalancer {
        policy,
        locality: written.locality_lb_setting.as_ref().map(lower_locality),
        warmup,
    }
}

fn lower_hash(written: &api::ConsistentHashLb) -> Option<ConsistentHash> {
    let key = if let Some(name) = &written.http_header_name {
        HashKey::Header(name.to_ascii_lowercase())
    } else if let Some(cookie) = &written.http_cookie {
        HashKey::Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl: cookie.ttl.map(|ttl| ttl.0),
            attributes: cookie
                .attributes
                .iter()
                .map(|attribute| (attribute.name.clone(), attribute.value.clone()))
                .collect(),
        }
    } else if let Some(name) = &written.http_query_parameter_name {
        HashKey::QueryParameter(name.clone())
    } else if written.use_source_ip == Some(true) {
        HashKey::SourceIp
    } else {
        return None;
    };

    let algorithm = match (&written.maglev, &written.ring_hash) {
        (Some(maglev), _) => HashAlgorithm::Maglev {
            table_size: Some(maglev.table_size).filter(|size| *size > 0),
        },
        (None, Some(ring)) => HashAlgorithm::Ring {
            minimum_size: if ring.minimum_ring_size == 0 {
                1024
            } else {
                ring.minimum_ring_size
            },
        },
        (None, None) => HashAlgorithm::Ring {
            minimum_size: if written.minimum_ring_size == 0 {
                1024
            } else {
                written.minimum_ring_size
            },
        },
    };

    Some(ConsistentHash { key, algorithm })
}

/// Also MeshConfig.localityLbSetting.
pub(crate) fn lower_locality(written: &api::LocalityLbSetting) -> LocalityLb {
    LocalityLb {
        enabled: written.enabled,
        distribute: written
            .distribute
            .iter()
            .map(|rule| (rule.from.clone(), rule.to.clone()))
            .collect(),
        failover: written
            .failover
            .iter()
            .map(|rule| (rule.from.clone(), rule.to.clone()))
            .collect(),
        failover_priority: written.failover_priority.clone(),
    }
}

/// Also MeshConfig.tcpKeepalive.
pub(crate) fn lower_keepalive(written: &api::TcpKeepalive) -> Keepalive {
    Keepalive {
        probes: Some(written.probes).filter(|probes| *probes > 0),
        time: written.time.map(|time| time.0),
        interval: written.interval.map(|interval| interval.0),
    }
}

/// Also Sidecar.inboundConnectionPool.
pub(crate) fn lower_connection_pool(written: &api::ConnectionPoolSettings) -> ConnectionPool {
    let mut pool = ConnectionPool::default();
    if let Some(tcp) = &written.tcp {
        pool.max_connections = positive(tcp.max_connections);
        pool.connect_timeout = tcp.connect_timeout.map(|timeout| timeout.0);
        pool.keepalive = tcp.tcp_keepalive.as_ref().map(lower_keepalive);
        pool.max_connection_duration = tcp.max_connection_duration.map(|duration| duration.0);
        pool.tcp_idle_timeout = tcp.idle_timeout.map(|timeout| timeout.0);
    }

    if let Some(http) = &written.http {
        pool.http1_max_pending_requests = positive(http.http1_max_pending_requests);
        pool.http2_max_requests = positive(http.http2_max_requests);
        pool.max_requests_per_connection = positive(http.max_requests_per_connection);
        pool.max_retries = positive(http.max_retries);
        pool.http_idle_timeout = http.idle_timeout.map(|timeout| timeout.0);
        pool.h2_upgrade = match http.h2_upgrade_policy {
            api::H2UpgradePolicy::Default => None,
            api::H2UpgradePolicy::DoNotUpgrade => Some(false),
            api::H2UpgradePolicy::Upgrade => Some(true),
        };

        pool.use_client_protocol = http.use_client_protocol;
        pool.max_concurrent_streams = positive(http.max_concurrent_streams);
        pool.http2_keepalive = http.http2_keep_alive.as_ref().and_then(|keepalive| {
            Some((
                keepalive.interval?.0,
                keepalive.timeout.map(|timeout| timeout.0),
            ))
        });
    }

    pool
}

fn lower_outlier(written: &api::OutlierDetection) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: written.consecutive5xx_errors,
        consecutive_gateway_errors: written
            .consecutive_gateway_errors
            .or_else(|| positive(written.consecutive_errors)),
        split_local_origin: written.split_external_local_origin_errors,
        consecutive_local_origin_failures: written.consecutive_local_origin_failures,
        interval: written.interval.map(|interval| interval.0),
        base_ejection_time: written.base_ejection_time.map(|time| time.0),
        max_ejection_percent: positive(written.max_ejection_percent).unwrap_or(0).min(100),
        min_health_percent: positive(written.min_health_percent).unwrap_or(0).min(100),
        error_codes: written
            .outlier_detection_http_error_codes
            .iter()
            .filter_map(|code| u16::try_from(*code).ok())
            .collect(),
    }
}

fn lower_client_tls(written: &api::ClientTlsSettings) -> ClientTls {
    ClientTls {
        mode: match written.mode {
            api::ClientTlsMode::Disable => ClientTlsMode::Disable,
            api::ClientTlsMode::Simple => ClientTlsMode::Simple,
            api::ClientTlsMode::Mutual => ClientTlsMode::Mutual,
            api::ClientTlsMode::IstioMutual => ClientTlsMode::IstioMutual,
        },
        client_certificate: written.client_certificate.clone(),
        private_key: written.private_key.clone(),
        ca_certificates: written.ca_certificates.clone(),
        ca_crl: written.ca_crl.clone(),
        credential_name: written.credential_name.clone(),
        subject_alt_names: written.subject_alt_names.clone(),
        sni: written.sni.clone(),
        insecure_skip_verify: written.insecure_skip_verify,
    }
}

fn lower_tunnel(written: &api::TunnelSettings) -> Option<Tunnel> {
    Some(Tunnel {
        uses_post: written.protocol.eq_ignore_ascii_case("POST"),
        target_host: written.target_host.clone(),
        target_port: port(written.target_port)?,
    })
}
