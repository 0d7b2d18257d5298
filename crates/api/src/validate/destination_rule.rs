//! DestinationRule.

use meltemi_types::{breaks_line, is_dns_label, plain_value_fault, target_fault};

use super::rules::*;
use crate::networking::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, DestinationRule,
    H2UpgradePolicy, HttpCookie, HttpSettings, LoadBalancerSettings, LocalityFailover,
    LocalityLbSetting, OutlierDetection, PortTrafficPolicy, SimpleLb, Subset, TcpSettings,
    TrafficPolicy, TunnelSettings, ZoneAwareLbSetting,
};
use crate::schema::{Report, shorten};

pub(super) fn check(spec: &DestinationRule, namespace: &str, at: &mut Report) {
    let DestinationRule {
        host,
        traffic_policy,
        subsets,
        export_to,
        workload_selector,
    } = spec;

    at.field("host", |at| check_wildcard_host(host, at));
    at.some("trafficPolicy", traffic_policy, check_policy);
    let mut names = Once::new();
    at.field("subsets", |at| {
        for (index, subset) in subsets.iter().enumerate() {
            at.index(index, |at| {
                check_subset(subset, at);
                if !names.insert(&subset.name) {
                    at.field("name", |at| {
                        at.error(
                            DUPLICATE,
                            format!("duplicate subset names: {}", subset.name),
                            "rename one of them",
                        )
                    });
                }
            });
        }
    });

    let of = match workload_selector {
        Some(_) => Exported::ForWorkloads,
        None => Exported::Other,
    };
    check_export_to(export_to, namespace, of, at);
    check_selector("workloadSelector", workload_selector, at);

    if workload_selector
        .as_ref()
        .is_some_and(|selector| selector.match_labels.is_empty())
    {
        at.field("workloadSelector", |at| {
            at.warn(
                DOUBTFUL,
                "workloadSelector specified without labels",
                "add matchLabels, or remove it",
            )
        });
    }
}

fn check_subset(subset: &Subset, at: &mut Report) {
    let Subset {
        name,
        labels,
        traffic_policy,
    } = subset;

    if !is_dns_label(&name.to_ascii_lowercase()) {
        let message = if name.is_empty() {
            "subset name cannot be empty".to_owned()
        } else {
            format!("subset name is invalid: {:?}", shorten(name))
        };
        at.field("name", |at| {
            at.error(INVALID, message, "write a DNS label, for example v1")
        });
    }

    check_labels("labels", &labels.0, at);
    at.some("trafficPolicy", traffic_policy, check_policy);
}

fn check_policy(policy: &TrafficPolicy, at: &mut Report) {
    let TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        port_level_settings,
        tunnel,
        proxy_protocol,
        retry_budget,
    } = policy;

    if tunnel.is_some() && proxy_protocol.is_some() {
        at.error(
            CONFLICT,
            "tunnel and proxyProtocol must not be set together",
            "keep one of them",
        );
    }

    if *policy == TrafficPolicy::default() {
        at.error(
            MISSING,
            "traffic policy must have at least one field",
            "add a field, or remove trafficPolicy",
        );
    }

    at.some("loadBalancer", load_balancer, check_load_balancer);
    at.some("connectionPool", connection_pool, check_pool);
    at.some("outlierDetection", outlier_detection, check_outlier);
    at.some("tls", tls, check_tls);
    at.each("portLevelSettings", port_level_settings, check_port_policy);
    at.some(
        "tunnel",
        tunnel,
        |TunnelSettings {
             protocol,
             target_host,
             target_port,
         },
         at| {
            if !matches!(protocol.as_str(), "" | "CONNECT" | "POST") {
                at.field("protocol", |at| {
                    at.error(
                        INVALID,
                        "tunnel protocol must be \"CONNECT\" or \"POST\"",
                        "write CONNECT or POST",
                    )
                });
            }

            at.field("targetHost", |at| {
                if !is_ip(target_host) {
                    check_host(target_host, at);
                }
            });

            at.field("targetPort", |at| check_port(*target_port, at));
        },
    );

    at.some("retryBudget", retry_budget, |budget, at| {
        check_duration_or_off("budgetInterval", budget.budget_interval, at);
        if budget
            .percent
            .is_some_and(|percent| !(0.0..=100.0).contains(&percent))
        {
            at.field("percent", |at| {
                at.error(INVALID, "percent must be in range 0..100", "write 0 to 100")
            });
        }
    });
}

fn check_port_policy(settings: &PortTrafficPolicy, at: &mut Report) {
    let PortTrafficPolicy {
        port,
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
    } = settings;

    match port {
        None => at.field("port", |at| {
            at.error(
                MISSING,
                "portLevelSettings must specify a port",
                "add port.number",
            )
        }),
        Some(port) => at.field("port", |at| {
            at.field("number", |at| check_port(port.number, at))
        }),
    }

    let blank = PortTrafficPolicy {
        port: port.clone(),
        ..PortTrafficPolicy::default()
    };
    if *settings == blank {
        at.error(
            MISSING,
            "port traffic policy must have at least one field",
            "add a field beside port, or remove the item",
        );
    }

    at.some("loadBalancer", load_balancer, check_load_balancer);
    at.some("connectionPool", connection_pool, check_pool);
    at.some("outlierDetection", outlier_detection, check_outlier);
    at.some("tls", tls, check_tls);
}

fn check_load_balancer(settings: &LoadBalancerSettings, at: &mut Report) {
    let LoadBalancerSettings {
        simple,
        consistent_hash,
        backend_utilization,
        locality_lb_setting,
        zone_aware_lb_setting,
        warmup_duration_secs,
        warmup,
    } = settings;

    let chosen = usize::from(simple.is_some())
        + usize::from(consistent_hash.is_some())
        + usize::from(backend_utilization.is_some());
    if chosen > 1 {
        at.error(
            CONFLICT,
            "only one of simple, consistentHash or backendUtilization can be set",
            "keep one of them",
        );
    }

    at.some("consistentHash", consistent_hash, check_hash);
    at.some("localityLbSetting", locality_lb_setting, check_locality);
    if let Some(zone) = zone_aware_lb_setting {
        if locality_lb_setting.is_some() {
            at.error(
                CONFLICT,
                "only one of localityLbSetting or zoneAwareLbSetting can be set",
                "keep one of them",
            );
        }

        at.field("zoneAwareLbSetting", |at| check_zone_aware(zone, at));
        if zone.min_cluster_size == Some(0) {
            at.field("zoneAwareLbSetting", |at| {
                at.error(
                    INVALID,
                    "minClusterSize must be at least 1",
                    "write 1 or more",
                )
            });
        }
    }

    check_duration("warmupDurationSecs", *warmup_duration_secs, at);
    if warmup_duration_secs.is_some() || warmup.is_some() {
        let suits = consistent_hash.is_none()
            && matches!(
                simple,
                None | Some(
                    SimpleLb::Unspecified
                        | SimpleLb::RoundRobin
                        | SimpleLb::LeastRequest
                        | SimpleLb::LeastConn
                )
            );

        if !suits {
            at.error(
                CONFLICT,
                "warmup is only supported with ROUND_ROBIN and LEAST_REQUEST",
                "choose one of these, or remove the warm-up",
            );
        }

        if warmup_duration_secs.is_some() && warmup.is_some() {
            at.error(
                CONFLICT,
                "only one of warmupDurationSecs or warmup can be set",
                "keep warmup",
            );
        }
    }

    at.some("warmup", warmup, |warmup, at| {
        check_duration("duration", warmup.duration, at);
        if warmup
            .minimum_percent
            .is_some_and(|percent| !(0.0..=100.0).contains(&percent))
        {
            at.field("minimumPercent", |at| {
                at.error(
                    INVALID,
                    "minimumPercent must be in range 0..100",
                    "write 0 to 100",
                )
            });
        }

        if warmup.aggression.is_some_and(|aggression| aggression < 1.0) {
            at.field("aggression", |at| {
                at.error(
                    INVALID,
                    "aggression should be greater than or equal to 1",
                    "write 1 or more",
                )
            });
        }
    });
}

fn check_hash(hash: &ConsistentHashLb, at: &mut Report) {
    let ConsistentHashLb {
        http_header_name,
        http_cookie,
        use_source_ip,
        http_query_parameter_name,
        ring_hash,
        maglev,
        minimum_ring_size,
    } = hash;

    let keys = usize::from(http_header_name.is_some())
        + usize::from(http_cookie.is_some())
        + usize::from(use_source_ip.is_some())
        + usize::from(http_query_parameter_name.is_some());

    let remedy = "keep one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
    match keys {
        0 => at.error(
            MISSING,
            "consistentHash must say what is hashed",
            "add one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName",
        ),
        1 => {}
        _ => at.error(
            CONFLICT,
            "only one of httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName can be set",
            remedy,
        ),
    }

    for (key, name) in [
        ("httpHeaderName", http_header_name),
        ("httpQueryParameterName", http_query_parameter_name),
    ] {
        let Some(name) = name else { continue };
        if name.is_empty() {
            at.field(key, |at| {
                at.error(INVALID, format!("{key} must not be empty"), "write a name")
            });
        } else if key == "httpHeaderName" && !is_header_name(name.trim_start_matches(':')) {
            at.field(key, |at| {
                at.error(
                    INVALID,
                    format!("header name {:?} is not a valid header name", shorten(name)),
                    "letters, digits, - _ and .",
                )
            });
        }
    }

    at.some("httpCookie", http_cookie, check_cookie);
    if ring_hash.is_some() && maglev.is_some() {
        at.error(
            CONFLICT,
            "only one of ringHash or maglev can be set",
            "keep one of them",
        );
    }

    if *minimum_ring_size > 0 && (ring_hash.is_some() || maglev.is_some()) {
        at.field("minimumRingSize", |at| {
            at.error(
                CONFLICT,
                "minimumRingSize can be defined in either ConsistentHashLB or the RingHash",
                "keep that of ringHash",
            );
        });
    }

    if ring_hash
        .as_ref()
        .is_some_and(|ring| ring.minimum_ring_size > 8 << 20)
        || *minimum_ring_size > 8 << 20
    {
        at.error(
            INVALID,
            "minimumRingSize must be at most 8388608",
            "use a smaller ring",
        );
    }

    at.some("maglev", maglev, |maglev, at| {
        if maglev.table_size >= 5_000_011 || !is_prime(maglev.table_size) {
            at.field("tableSize", |at| {
                at.error(
                    INVALID,
                    "tableSize must be a prime number less than 5000011 for maglev",
                    "write for example 65537",
                );
            });
        }
    });
}

fn check_cookie(cookie: &HttpCookie, at: &mut Report) {
    if cookie.name.is_empty() {
        at.field("name", |at| {
            at.error(MISSING, "name required for HttpCookie", "name the cookie")
        });
    }

    check_duration_or_off("ttl", cookie.ttl, at);
    check_head_text("name", &cookie.name, target_fault, at);
    check_head_text("path", &cookie.path, plain_value_fault, at);
    let mut seen = Once::new();
    for attribute in &cookie.attributes {
        if !attribute.name.is_empty() && !seen.insert(&attribute.name) {
            at.field("attributes", |at| {
                at.error(
                    DUPLICATE,
                    format!(
                        "duplicate cookie attribute name: {}",
                        shorten(&attribute.name)
                    ),
                    "remove one of them",
                )
            });
        }
    }

    at.each("attributes", &cookie.attributes, |attribute, at| {
        check_head_text("name", &attribute.name, target_fault, at);
        check_head_text("value", &attribute.value, plain_value_fault, at);
        if attribute.name.is_empty() {
            at.field("name", |at| {
                at.error(
                    MISSING,
                    "name required for a cookie's attribute",
                    "name the attribute",
                )
            });
        }
    });
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

fn check_locality(locality: &LocalityLbSetting, at: &mut Report) {
    let LocalityLbSetting {
        enabled: _,
        distribute,
        failover,
        failover_priority,
    } = locality;

    if !distribute.is_empty() && !failover.is_empty() {
        at.error(
            CONFLICT,
            "can not simultaneously specify 'distribute' and 'failover'",
            "keep one of distribute and failover",
        );
    }
    if !failover.is_empty()
        && let Some(label) = failover_priority.iter().find(|label| is_place(label))
    {
        let message = format!(
            "can not simultaneously set 'failover' and topology label '{label}' in 'failover_priority'"
        );
        at.error(CONFLICT, message, "keep one of them");
    }

    let from: Vec<&str> = distribute.iter().map(|one| one.from.as_str()).collect();
    at.field("distribute", |at| check_places(&from, at));
    at.each("distribute", distribute, |distribute, at| {
        at.field("to", |at| {
            let to: Vec<&str> = distribute.to.keys().map(String::as_str).collect();
            check_places(&to, at);

            let weights = distribute.to.values();
            let total: u64 = weights.map(|weight| u64::from(*weight)).sum();
            if total != 100 {
                at.error(
                    INVALID,
                    format!("total locality weight {total} != 100"),
                    "make the shares sum up to 100",
                );
            }

            for (region, weight) in &distribute.to {
                if *weight == 0 {
                    at.field(region, |at| {
                        at.error(
                            INVALID,
                            "locality weight must be in range [1, 100]",
                            "remove this locality",
                        )
                    });
                }
            }
        });
    });

    check_failover(failover, at);
}

/// Labels that say where a workload runs.
fn is_place(label: &str) -> bool {
    matches!(
        label,
        "topology.kubernetes.io/region"
            | "topology.kubernetes.io/zone"
            | "topology.istio.io/subzone"
    )
}

/// Localities `region/zone/subzone`, the last part perhaps `*`; none may hold another. Source: Istio
/// `validateLocalities`.
fn check_places(places: &[&str], at: &mut Report) {
    let parts = |place: &str| -> Vec<String> {
        let parts = place.splitn(3, '/').map(str::to_owned);
        parts.take_while(|part| part != "*").collect()
    };

    let mut seen: Vec<(Vec<String>, &str)> = Vec::new();
    for place in places {
        let wildcards = place.matches('*').count();
        if wildcards > 1 || (wildcards == 1 && !place.ends_with('*')) {
            at.error(
                INVALID,
                format!(
                    "locality {:?} wildcard '*' number can not exceed 1 and must be in the end",
                    shorten(place)
                ),
                "write for example us-west/*",
            );
        } else if place.splitn(3, '/').any(str::is_empty) {
            at.error(
                INVALID,
                format!(
                    "locality {:?} must not contain empty region/zone/subzone info",
                    shorten(place)
                ),
                "write region, region/zone or region/zone/subzone",
            );
        }

        let own = parts(place);
        let overlaps = |held: &Vec<String>| {
            let shorter = held.len().min(own.len());
            held[..shorter] == own[..shorter]
        };
        if let Some((_, other)) = seen.iter().find(|(held, _)| overlaps(held)) {
            at.error(
                CONFLICT,
                format!("locality {:?} overlaps with {other:?}", shorten(place)),
                "remove one of them",
            );
        }
        seen.push((own, place));
    }
}

/// The regions are ordered by failover alone: places within a region are the proxies' own matter.
fn check_zone_aware(zone: &ZoneAwareLbSetting, at: &mut Report) {
    at.each("failoverPriority", &zone.failover_priority, |label, at| {
        if is_place(label) {
            at.error(
                CONFLICT,
                format!(
                    "'failover_priority' for zone aware lb must not use topology label '{label}'"
                ),
                "remove the label",
            );
        }
    });
    check_failover(&zone.failover, at);
}

fn check_failover(failover: &[LocalityFailover], at: &mut Report) {
    at.each("failover", failover, |failover, at| {
        if failover.from == failover.to {
            at.error(
                CONFLICT,
                "locality lb failover settings must specify different regions",
                "name another region in to",
            );
        }

        for (key, region) in [("from", &failover.from), ("to", &failover.to)] {
            if region.contains(['*', '/']) {
                at.field(key, |at| {
                    at.error(
                        INVALID,
                        "locality lb failover region must not contain '*' or '/'",
                        "write a region alone",
                    )
                });
            }
        }
    });
}

pub(super) fn check_pool(pool: &ConnectionPoolSettings, at: &mut Report) {
    let ConnectionPoolSettings { tcp, http } = pool;
    if tcp.is_none() && http.is_none() {
        at.error(
            MISSING,
            "connection pool must have at least one field",
            "add tcp or http, or remove connectionPool",
        );
    }

    at.some("tcp", tcp, |tcp, at| {
        let TcpSettings {
            max_connections,
            connect_timeout,
            tcp_keepalive,
            max_connection_duration,
            idle_timeout,
        } = tcp;

        check_duration_or_off("idleTimeout", *idle_timeout, at);

        check_not_negative("maxConnections", "max connections", *max_connections, at);
        check_duration("connectTimeout", *connect_timeout, at);
        check_duration("maxConnectionDuration", *max_connection_duration, at);
        at.some("tcpKeepalive", tcp_keepalive, |keepalive, at| {
            check_duration("time", keepalive.time, at);
            check_duration("interval", keepalive.interval, at);
        });
    });

    at.some("http", http, |http, at| {
        let HttpSettings {
            http1_max_pending_requests,
            http2_max_requests,
            max_requests_per_connection,
            max_retries,
            idle_timeout,
            h2_upgrade_policy,
            use_client_protocol,
            max_concurrent_streams,
            http2_keep_alive,
        } = http;

        check_not_negative(
            "http1MaxPendingRequests",
            "http1 max pending requests",
            *http1_max_pending_requests,
            at,
        );

        check_not_negative(
            "http2MaxRequests",
            "http2 max requests",
            *http2_max_requests,
            at,
        );

        check_not_negative(
            "maxRequestsPerConnection",
            "max requests per connection",
            *max_requests_per_connection,
            at,
        );

        check_not_negative("maxRetries", "max retries", *max_retries, at);
        check_not_negative(
            "maxConcurrentStreams",
            "max concurrent streams",
            *max_concurrent_streams,
            at,
        );

        check_duration("idleTimeout", *idle_timeout, at);
        if *use_client_protocol && *h2_upgrade_policy == H2UpgradePolicy::Upgrade {
            at.field("useClientProtocol", |at| {
                at.error(
                    CONFLICT,
                    "use client protocol must not be true when H2UpgradePolicy is UPGRADE",
                    "keep one of them",
                );
            });
        }

        at.some("http2KeepAlive", http2_keep_alive, |keepalive, at| {
            for (key, value) in [
                ("interval", keepalive.interval),
                ("timeout", keepalive.timeout),
            ] {
                if value.is_none() {
                    at.field(key, |at| {
                        at.error(
                            MISSING,
                            format!("http2 keepalive {key} is required"),
                            "write interval and timeout",
                        )
                    });
                }
            }
            check_duration("interval", keepalive.interval, at);
            check_duration("timeout", keepalive.timeout, at);
        });
    });
}

fn check_not_negative(key: &str, what: &str, value: i32, at: &mut Report) {
    if value < 0 {
        at.field(key, |at| {
            at.error(
                INVALID,
                format!("{what} must be non-negative"),
                "write 0 or more",
            )
        });
    }
}

fn check_outlier(outlier: &OutlierDetection, at: &mut Report) {
    let OutlierDetection {
        consecutive_errors,
        consecutive_gateway_errors: _,
        consecutive5xx_errors: _,
        split_external_local_origin_errors,
        consecutive_local_origin_failures,
        interval,
        base_ejection_time,
        max_ejection_percent,
        min_health_percent,
        outlier_detection_http_error_codes,
    } = outlier;

    if *consecutive_errors != 0 {
        at.field("consecutiveErrors", |at| {
            at.warn(
                WITHOUT_EFFECT,
                "outlier detection consecutive errors is deprecated",
                "use consecutiveGatewayErrors or consecutive5xxErrors",
            );
        });
    }

    if !split_external_local_origin_errors
        && consecutive_local_origin_failures.is_some_and(|failures| failures > 0)
    {
        at.field("consecutiveLocalOriginFailures", |at| {
            at.error(
                CONFLICT,
                "outlier detection consecutive local origin failures is specified, but split external local origin errors is set to false",
                "set splitExternalLocalOriginErrors to true",
            );
        });
    }

    check_duration("interval", *interval, at);
    check_duration("baseEjectionTime", *base_ejection_time, at);
    for (key, percent) in [
        ("maxEjectionPercent", *max_ejection_percent),
        ("minHealthPercent", *min_health_percent),
    ] {
        if !(0..=100).contains(&percent) {
            at.field(key, |at| {
                at.error(
                    INVALID,
                    format!("percentage {percent} is not in range 0..100"),
                    "write 0 to 100",
                )
            });
        }
    }

    at.each(
        "outlierDetectionHttpErrorCodes",
        outlier_detection_http_error_codes,
        |code, at| {
            if !(100..=599).contains(code) {
                at.error(
                    INVALID,
                    format!("HTTP status {code} is not in range 100-599"),
                    "write a status",
                );
            }
        },
    );
}

/// In bytes. Source: Envoy `UpstreamTlsContext.sni`.
const MAX_SNI: usize = 255;

fn check_tls(tls: &ClientTlsSettings, at: &mut Report) {
    let ClientTlsSettings {
        mode,
        client_certificate,
        private_key,
        ca_certificates,
        ca_crl,
        credential_name,
        subject_alt_names,
        sni,
        insecure_skip_verify,
    } = tls;

    if sni.len() > MAX_SNI || breaks_line(sni) {
        at.field("sni", |at| {
            at.error(
                INVALID,
                format!("a server name has at most {MAX_SNI} bytes, and no control characters"),
                "write a host name",
            )
        });
    }

    let verifies = !ca_certificates.is_empty() || !subject_alt_names.is_empty();
    let skips_in_vain = match mode {
        ClientTlsMode::Simple => verifies || !credential_name.is_empty(),
        ClientTlsMode::Mutual => verifies,
        _ => false,
    };
    if *insecure_skip_verify == Some(true) && skips_in_vain {
        at.error(
            CONFLICT,
            "cannot specify CaCertificates or SubjectAltNames if InsecureSkipVerify is set true",
            "remove insecureSkipVerify",
        );
    }

    if matches!(mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) && !credential_name.is_empty()
    {
        let files = [client_certificate, ca_certificates, private_key, ca_crl];
        if files.iter().any(|path| !path.is_empty()) {
            at.error(
                CONFLICT,
                "cannot specify client certificates or CA certificate If credentialName is set",
                "keep credentialName or the files",
            );
        }
        return;
    }

    match mode {
        ClientTlsMode::Mutual => {
            if client_certificate.is_empty() {
                at.field("clientCertificate", |at| {
                    at.error(
                        MISSING,
                        "client certificate required for mutual tls",
                        "add it, or credentialName",
                    )
                });
            }

            if private_key.is_empty() {
                at.field("privateKey", |at| {
                    at.error(
                        MISSING,
                        "private key required for mutual tls",
                        "add it, or credentialName",
                    )
                });
            }
        }
        ClientTlsMode::IstioMutual
            if !client_certificate.is_empty()
                || !private_key.is_empty()
                || !ca_certificates.is_empty() =>
        {
            at.warn(
                WITHOUT_EFFECT,
                "ISTIO_MUTUAL uses the workload's certificate, not these files",
                "remove the files, or use MUTUAL",
            );
        }
        _ => {}
    }
}
