//! What a DestinationRule settles of a cluster: limits, timeouts, outliers, hashes, dialects,
//! transport security.

use meltemi_proto::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, OutlierDetection,
    circuit_breakers::{Thresholds, thresholds::RetryBudget},
    cluster::{
        LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, SlowStartConfig,
    },
};
use meltemi_proto::envoy::config::core::v3::{
    Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, KeepaliveSettings, RuntimeDouble,
    TcpKeepalive, transport_socket,
};
use meltemi_proto::envoy::config::route::v3::route::Action;
use meltemi_proto::envoy::config::route::v3::route_action::{
    HashPolicy,
    hash_policy::{
        ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
    },
};
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::{
    UpstreamTlsContext, common_tls_context::ValidationContextType,
    subject_alt_name_matcher::SanType,
};
use meltemi_proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions, http_protocol_options::UpstreamProtocolOptions,
    http_protocol_options::explicit_http_config::ProtocolConfig,
};
use meltemi_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use meltemi_proto::envoy::r#type::v3::Percent;
use meltemi_proto::unpack;

use super::{
    WEB, caller, cluster, cluster_under, destination_rule, host, mesh_config, millis, translated,
    u32v, u64v,
};

const UNLIMITED: u32 = u32::MAX;

fn thresholds(of: &Cluster) -> Thresholds {
    let Some(CircuitBreakers { thresholds, .. }) = &of.circuit_breakers else {
        panic!("no breakers")
    };
    assert_eq!(thresholds.len(), 1);
    thresholds[0]
}

fn http(of: &Cluster) -> HttpProtocolOptions {
    unpack(&of.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"])
        .expect("options")
}

#[test]
fn every_limit_has_its_place() {
    let limited = cluster_under(
        "{connectionPool: {tcp: {maxConnections: 11}, http: {http1MaxPendingRequests: 12, http2MaxRequests: 13, maxRetries: 14}}, retryBudget: {percent: 25.5, minRetryConcurrency: 15, budgetInterval: 16s}}",
    );
    let wanted = Thresholds {
        max_connections: u32v(11),
        max_pending_requests: u32v(12),
        max_requests: u32v(13),
        max_retries: u32v(14),
        retry_budget: Some(RetryBudget {
            budget_percent: Some(Percent { value: 25.5 }),
            budget_interval: millis(16_000),
            min_retry_concurrency: u32v(15),
        }),
        ..Default::default()
    };

    assert_eq!(thresholds(&limited), wanted);
    let open = Thresholds {
        max_connections: u32v(UNLIMITED),
        max_pending_requests: u32v(UNLIMITED),
        max_requests: u32v(UNLIMITED),
        max_retries: u32v(UNLIMITED),
        ..Default::default()
    };

    assert_eq!(thresholds(&cluster(&translated(&caller(), ""), WEB)), open);
}

#[test]
fn timeouts_and_keepalive_of_connections() {
    let of = |policy: &str, mesh: &str| {
        let translated = translated(
            &caller(),
            &format!("{}---\n{}", destination_rule(policy), mesh_config(mesh)),
        );
        cluster(&translated, WEB)
    };

    let keepalive = |cluster: &Cluster| {
        cluster
            .upstream_connection_options
            .and_then(|one| one.tcp_keepalive)
    };

    let written = "{connectionPool: {tcp: {connectTimeout: 1.5s, tcpKeepalive: {probes: 3, time: 7200s, interval: 75s}}}}";
    let own = of(written, "connectTimeout: 4s");
    assert_eq!(own.connect_timeout, millis(1500));
    let wanted = TcpKeepalive {
        keepalive_probes: u32v(3),
        keepalive_time: u32v(7200),
        keepalive_interval: u32v(75),
    };

    assert_eq!(keepalive(&own), Some(wanted));
    let none = of("{}", "connectTimeout: 4s");
    assert_eq!(
        (none.connect_timeout, keepalive(&none)),
        (millis(4000), None)
    );

    // Each for itself over the mesh's.
    let part = of(
        "{connectionPool: {tcp: {tcpKeepalive: {time: 60s}}}}",
        "tcpKeepalive: {probes: 9, time: 10s}",
    );

    let wanted = TcpKeepalive {
        keepalive_probes: u32v(9),
        keepalive_time: u32v(60),
        keepalive_interval: None,
    };

    assert_eq!(keepalive(&part), Some(wanted));
    assert_eq!(cluster_under("{}").connect_timeout, millis(10_000));
}

#[test]
fn pools_of_http_connections() {
    let of = |fields: &str| http(&cluster_under(&format!("{{connectionPool: {fields}}}")));
    let common = of(
        "{tcp: {maxConnectionDuration: 30s}, http: {maxRequestsPerConnection: 17, idleTimeout: 18s}}",
    );
    let wanted = CommonOptions {
        max_requests_per_connection: u32v(17),
        idle_timeout: millis(18_000),
        max_connection_duration: millis(30_000),
        ..Default::default()
    };

    assert_eq!(common.common_http_protocol_options, Some(wanted));
    let idle = |fields: &str| {
        of(fields)
            .common_http_protocol_options
            .and_then(|common| common.idle_timeout)
    };

    assert_eq!(idle("{tcp: {idleTimeout: 5s}}"), millis(5_000));
    assert_eq!(
        idle("{tcp: {idleTimeout: 5s}, http: {idleTimeout: 6s}}"),
        millis(6_000)
    );

    let upgraded = of(
        "{http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 19, http2KeepAlive: {interval: 20s, timeout: 21s}}}",
    );
    let Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) =
        upgraded.upstream_protocol_options
    else {
        panic!("not explicit")
    };

    let wanted = Http2ProtocolOptions {
        max_concurrent_streams: u32v(19),
        connection_keepalive: Some(KeepaliveSettings {
            interval: millis(20_000),
            timeout: millis(21_000),
            ..Default::default()
        }),
        ..Default::default()
    };

    assert_eq!(
        explicit.protocol_config,
        Some(ProtocolConfig::Http2ProtocolOptions(wanted))
    );
}

/// `h1`, `h2`, or `as-client`.
fn dialect(port: u16, pool: &str, mesh: &str) -> &'static str {
    let rule = destination_rule(&format!("{{connectionPool: {{http: {{{pool}}}}}}}"));
    let translated = translated(&caller(), &format!("{rule}---\n{}", mesh_config(mesh)));
    let cluster = cluster(
        &translated,
        &format!("outbound|{port}||web.shop.svc.cluster.local"),
    );

    if cluster.typed_extension_protocol_options.is_empty() {
        return "h1";
    }

    match http(&cluster).upstream_protocol_options {
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => "as-client",
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => "h2",
                _ => "h1",
            }
        }
        _ => panic!("no dialect"),
    }
}

#[test]
fn dialects_of_declared_and_sniffed_ports() {
    const MAX: &str = "maxRetries: 1";

    for (port, pool, mesh, wanted) in [
        (80, MAX, "h2UpgradePolicy: DO_NOT_UPGRADE", "h1"),
        (80, MAX, "h2UpgradePolicy: UPGRADE", "h2"),
        (
            80,
            "h2UpgradePolicy: UPGRADE",
            "h2UpgradePolicy: DO_NOT_UPGRADE",
            "h2",
        ),
        (
            80,
            "h2UpgradePolicy: DO_NOT_UPGRADE",
            "h2UpgradePolicy: UPGRADE",
            "h1",
        ),
        (
            80,
            "useClientProtocol: true",
            "h2UpgradePolicy: UPGRADE",
            "as-client",
        ),
        (82, MAX, "h2UpgradePolicy: DO_NOT_UPGRADE", "h2"),
        (
            82,
            "useClientProtocol: true",
            "h2UpgradePolicy: DO_NOT_UPGRADE",
            "as-client",
        ),
        (83, MAX, "h2UpgradePolicy: UPGRADE", "as-client"),
        (
            83,
            "h2UpgradePolicy: UPGRADE",
            "h2UpgradePolicy: DO_NOT_UPGRADE",
            "h2",
        ),
        (84, MAX, "h2UpgradePolicy: UPGRADE", "h1"),
    ] {
        assert_eq!(
            dialect(port, pool, mesh),
            wanted,
            "port {port}, {pool}, {mesh}"
        );
    }
}

#[test]
fn outlier_detection() {
    let of = |fields: &str| cluster_under(&format!("{{outlierDetection: {{{fields}}}}}"));
    let cluster = of(
        "consecutive5xxErrors: 3, consecutiveGatewayErrors: 4, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 5, interval: 6s, baseEjectionTime: 7s, maxEjectionPercent: 8, minHealthPercent: 9",
    );
    let wanted = OutlierDetection {
        consecutive_5xx: u32v(3),
        enforcing_consecutive_5xx: u32v(100),
        consecutive_gateway_failure: u32v(4),
        enforcing_consecutive_gateway_failure: u32v(100),
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: u32v(5),
        enforcing_consecutive_local_origin_failure: u32v(100),
        interval: millis(6_000),
        base_ejection_time: millis(7_000),
        max_ejection_percent: u32v(8),
        enforcing_success_rate: u32v(0),
        enforcing_local_origin_success_rate: u32v(0),
        ..Default::default()
    };

    assert_eq!(cluster.outlier_detection, Some(wanted));
    let panic = |cluster: Cluster| {
        cluster
            .common_lb_config
            .and_then(|common| common.healthy_panic_threshold)
    };

    assert_eq!(panic(cluster), Some(Percent { value: 9.0 }));
    assert_eq!(panic(of("interval: 1s")), Some(Percent { value: 0.0 }));

    // 0 switches a detector off; what is not written stays Envoy's.
    let off = of("consecutive5xxErrors: 0")
        .outlier_detection
        .expect("detection");
    assert_eq!(
        (
            off.enforcing_consecutive_5xx,
            off.enforcing_consecutive_gateway_failure
        ),
        (u32v(0), None)
    );

    assert_eq!(cluster_under("{}").outlier_detection, None);
}

#[test]
fn simple_balancers_and_warmup() {
    let of = |lb: &str| {
        let cluster = cluster_under(&format!("{{loadBalancer: {lb}}}"));
        (
            LbPolicy::try_from(cluster.lb_policy).expect("known"),
            cluster.lb_config,
        )
    };

    for (simple, wanted) in [
        ("ROUND_ROBIN", LbPolicy::RoundRobin),
        ("LEAST_REQUEST", LbPolicy::LeastRequest),
        ("LEAST_CONN", LbPolicy::LeastRequest),
        ("RANDOM", LbPolicy::Random),
        ("PASSTHROUGH", LbPolicy::ClusterProvided),
    ] {
        assert_eq!(
            of(&format!("{{simple: {simple}}}")),
            (wanted, None),
            "{simple}"
        );
    }

    let slow = SlowStartConfig {
        slow_start_window: millis(60_000),
        aggression: Some(RuntimeDouble {
            default_value: 1.5,
            runtime_key: "upstream.warmup_aggression".to_owned(),
        }),
        min_weight_percent: Some(Percent { value: 20.0 }),
    };

    let wanted = LeastRequestLbConfig {
        slow_start_config: Some(slow),
        ..Default::default()
    };

    let found =
        of("{simple: LEAST_REQUEST, warmup: {duration: 60s, minimumPercent: 20, aggression: 1.5}}");
    assert_eq!(
        found,
        (
            LbPolicy::LeastRequest,
            Some(LbConfig::LeastRequestLbConfig(wanted))
        )
    );
}

#[test]
fn consistent_hashes() {
    let of = |hash: &str| {
        let rule = destination_rule(&format!("{{loadBalancer: {{consistentHash: {{{hash}}}}}}}"));
        let translated = translated(&caller(), &rule);
        let Some(Action::Route(action)) = host(&translated, "80", "web.shop.svc.cluster.local")
            .routes
            .swap_remove(0)
            .action
        else {
            panic!("no route")
        };

        let keys = action.hash_policy.into_iter().map(
            |HashPolicy {
                 terminal,
                 policy_specifier,
             }| {
                assert!(!terminal);
                policy_specifier.expect("a key")
            },
        );

        let cluster = cluster(&translated, WEB);
        (
            keys.collect::<Vec<_>>(),
            LbPolicy::try_from(cluster.lb_policy).expect("known"),
            cluster.lb_config,
        )
    };

    let ring = |size| {
        (
            LbPolicy::RingHash,
            Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
                minimum_ring_size: u64v(size),
                ..Default::default()
            })),
        )
    };

    let maglev = |size: Option<u64>| {
        let table_size = size.and_then(u64v);
        (
            LbPolicy::Maglev,
            Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size })),
        )
    };

    let cookie = |ttl, path: &str, attributes| {
        PolicySpecifier::Cookie(Cookie {
            name: "user".to_owned(),
            ttl,
            path: path.to_owned(),
            attributes,
        })
    };

    let same_site = vec![CookieAttribute {
        name: "SameSite".to_owned(),
        value: "Lax".to_owned(),
    }];

    let query = PolicySpecifier::QueryParameter(QueryParameter {
        name: "User".to_owned(),
    });

    for (written, key, (policy, config)) in [
        (
            "httpHeaderName: x-user",
            PolicySpecifier::Header(Header {
                header_name: "x-user".to_owned(),
                regex_rewrite: None,
            }),
            ring(1024),
        ),
        (
            "httpCookie: {name: user, ttl: 3600s, path: /a}",
            cookie(millis(3_600_000), "/a", Vec::new()),
            ring(1024),
        ),
        (
            "httpCookie: {name: user, ttl: 0s}",
            cookie(millis(0), "", Vec::new()),
            ring(1024),
        ),
        (
            "httpCookie: {name: user, attributes: [{name: SameSite, value: Lax}]}",
            cookie(None, "", same_site),
            ring(1024),
        ),
        (
            "httpQueryParameterName: User, ringHash: {minimumRingSize: 4096}",
            query.clone(),
            ring(4096),
        ),
        (
            "useSourceIp: true, minimumRingSize: 2048",
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
            ring(2048),
        ),
        (
            "httpQueryParameterName: User, maglev: {tableSize: 65537}",
            query.clone(),
            maglev(Some(65537)),
        ),
        (
            "httpQueryParameterName: User, maglev: {}",
            query,
            maglev(None),
        ),
    ] {
        assert_eq!(of(written), (vec![key], policy, config), "{written}");
    }
}

/// The names of which a server must show one.
fn names(cluster: &Cluster) -> Vec<String> {
    let socket = match &cluster.transport_socket {
        Some(socket) => socket,
        None => cluster.transport_socket_matches[0]
            .transport_socket
            .as_ref()
            .expect("a socket"),
    };

    let Some(transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        panic!("no config")
    };
    let context: UpstreamTlsContext = unpack(config).expect("TLS");
    let Some(ValidationContextType::CombinedValidationContext(combined)) = context
        .common_tls_context
        .and_then(|common| common.validation_context_type)
    else {
        panic!("not validated")
    };

    let wanted = combined
        .default_validation_context
        .expect("a context")
        .match_typed_subject_alt_names;

    let mut names: Vec<_> = wanted
        .into_iter()
        .filter_map(|one| match one.matcher?.match_pattern? {
            MatchPattern::Exact(name) => Some((name, one.san_type)),
            other => panic!("{other:?}"),
        })
        .map(|(name, kind)| {
            format!(
                "{}{name}",
                if kind == SanType::Dns as i32 {
                    "DNS:"
                } else {
                    ""
                }
            )
        })
        .collect();

    names.sort();

    names
}

#[test]
fn a_service_entrys_names_are_added_to_its_endpoints_identities() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ours, namespace: shop}\nspec:\n  hosts: [ours.example]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  workloadSelector: {labels: {app: web}}\n  subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/elsewhere']\n";
    let of = |more: &str| {
        let translated = translated(&caller(), &format!("{entry}---\n{more}"));
        names(&cluster(&translated, "outbound|80||ours.example"))
    };

    let both = [
        "spiffe://cluster.local/ns/shop/sa/elsewhere",
        "spiffe://cluster.local/ns/shop/sa/web",
    ];

    assert_eq!(of(""), both);
    let rule = |tls: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: ours, namespace: shop}}\nspec: {{host: ours.example, trafficPolicy: {{tls: {tls}}}}}\n"
        )
    };

    assert_eq!(of(&rule("{mode: ISTIO_MUTUAL}")), both);
    assert_eq!(
        of(&rule(
            "{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/x/sa/y']}"
        )),
        ["spiffe://cluster.local/ns/x/sa/y"]
    );

    let aliased = of(&mesh_config("trustDomainAliases: [old.local]"));
    assert!(
        aliased.contains(&"spiffe://old.local/ns/shop/sa/elsewhere".to_owned()),
        "{aliased:?}"
    );
}

#[test]
fn settings_of_a_port_replace_the_whole_policy() {
    let port = "portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]";
    let cluster = cluster_under(&format!(
        "{{retryBudget: {{percent: 20}}, proxyProtocol: {{version: V2}}, {port}}}"
    ));

    let breakers = cluster.circuit_breakers.expect("breakers");
    assert_eq!(breakers.thresholds[0].retry_budget, None);
    assert!(
        !format!("{:?}", cluster.transport_socket_matches).contains("proxy_protocol")
            && !format!("{:?}", cluster.transport_socket).contains("proxy_protocol")
    );
}

#[test]
fn connections_to_original_destinations_close_after_five_idle_minutes() {
    for name in ["PassthroughCluster", "InboundPassthroughCluster"] {
        let cluster = cluster(&translated(&caller(), ""), name);
        let options: HttpProtocolOptions = unpack(
            cluster
                .typed_extension_protocol_options
                .values()
                .next()
                .expect("options"),
        )
        .expect("options");
        let common = options
            .common_http_protocol_options
            .expect("common options");
        assert_eq!(common.idle_timeout, millis(300_000), "{name}");
    }
}
