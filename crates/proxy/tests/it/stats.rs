//! What `/stats` counts under Envoy's names, as the tasks of Istio's documentation look for it.

use std::time::Duration;

use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::rbac::v3 as rbac;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::http::rbac::v3::Rbac;
use meltemi_proto::envoy::extensions::filters::network::rbac::v3 as network;
use meltemi_proto::google::protobuf::UInt32Value;
use meltemi_proto::pack;
use meltemi_proxy::ProxyOptions;

use crate::config::*;
use crate::peers::{self, Client};

/// A proxy with an admin interface.
pub fn administered() -> ProxyOptions {
    ProxyOptions {
        admin: Some(([127, 0, 0, 1], 0).into()),
        workers: 2,
        ..Default::default()
    }
}

/// A page of the admin interface.
pub async fn page(running: &Running, path: &str) -> String {
    let mut client = Client::connect(running.handle.admin_addresses()[0]).await;
    client
        .ask(&format!("GET {path} HTTP/1.1\nhost: localhost\n\n"))
        .await
        .1
}

fn retried(route: route::Route) -> route::Route {
    tune(route, |action| {
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "5xx".into(),
            num_retries: Some(UInt32Value { value: 1 }),
            retry_back_off: Some(route::retry_policy::RetryBackOff {
                base_interval: Some(duration(Duration::from_millis(1))),
                ..Default::default()
            }),
            ..Default::default()
        });
    })
}

/// Denies what has `x-deny`.
fn deny() -> Rbac {
    let has = rbac::permission::Rule::Header(route::HeaderMatcher {
        name: "x-deny".into(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::PresentMatch(
            true,
        )),
        ..Default::default()
    });

    let policy = rbac::Policy {
        permissions: vec![rbac::Permission { rule: Some(has) }],
        principals: vec![rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Any(true)),
        }],
        ..Default::default()
    };

    Rbac {
        rules: Some(rbac::Rbac {
            action: rbac::rbac::Action::Deny as i32,
            policies: [("denied".to_owned(), policy)].into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn served() -> (Running, std::net::SocketAddr) {
    let answer =
        |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes();
    let count = std::sync::atomic::AtomicUsize::new(0);
    let flaky = peers::http_server(move |head, _| {
        let is_first = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        answer(if head.contains(" /always") || is_first {
            "503 no"
        } else {
            "200 OK"
        })
    });

    let silent = peers::server(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });

    let mut full = static_cluster("full", &[peers::echo("full").await]);
    full.circuit_breakers = Some(cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_requests: Some(UInt32Value { value: 0 }),
            ..Default::default()
        }],
        ..Default::default()
    });

    let slow = tune(forward("/slow", "silent"), |action| {
        action.timeout = Some(duration(Duration::from_millis(20)))
    });
    let impatient = tune(forward("/impatient", "silent"), |action| {
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "reset".into(),
            num_retries: Some(UInt32Value { value: 1 }),
            per_try_timeout: Some(duration(Duration::from_millis(20))),
            ..Default::default()
        });
    });

    let routes = vec![
        slow,
        impatient,
        forward("/full", "full"),
        retried(forward("/", "flaky")),
    ];

    let mut manager = manager(inline(table("r", routes)));
    manager
        .http_filters
        .insert(0, http_filter("envoy.filters.http.rbac", pack(&deny())));
    let running = Running::start(administered());
    let clusters = vec![
        static_cluster("flaky", &[flaky.await]),
        static_cluster("silent", &[silent.await]),
        full,
    ];

    running
        .apply(clusters, vec![listener("in", vec![http_chain(&manager)])])
        .await;
    let at = running.at("in").await;

    (running, at)
}

#[tokio::test]
async fn retries_breakers_timeouts_and_policies_are_counted() {
    let (running, at) = served().await;
    for (path, status) in [
        ("/", 200),
        ("/always", 503),
        ("/full", 503),
        ("/slow", 504),
        ("/impatient", 504),
    ] {
        let (head, _) = peers::get(at, path).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {head}"
        );
    }

    let (head, _) = Client::connect(at)
        .await
        .ask("GET / HTTP/1.1\nhost: a\nx-deny: 1\n\n")
        .await;

    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    running.log.line_with("403 ").await;
    let stats = page(&running, "/stats").await;
    for line in [
        "cluster.flaky.upstream_rq_total: 4",
        "cluster.flaky.upstream_rq_completed: 2",
        "cluster.flaky.upstream_rq_200: 1",
        "cluster.flaky.upstream_rq_2xx: 1",
        "cluster.flaky.upstream_rq_503: 1",
        "cluster.flaky.upstream_rq_5xx: 1",
        "cluster.flaky.upstream_rq_4xx: 0",
        "cluster.flaky.upstream_rq_retry: 2",
        "cluster.flaky.upstream_rq_retry_success: 1",
        "cluster.flaky.upstream_rq_retry_limit_exceeded: 1",
        "cluster.flaky.upstream_rq_retry_overflow: 0",
        "cluster.flaky.upstream_cx_connect_fail: 0",
        "cluster.flaky.membership_total: 1",
        "cluster.flaky.membership_healthy: 1",
        "cluster.full.upstream_rq_pending_overflow: 1",
        "cluster.full.upstream_rq_503: 1",
        "cluster.full.upstream_rq_total: 0",
        "cluster.silent.upstream_rq_timeout: 1",
        "cluster.silent.upstream_rq_per_try_timeout: 2",
        "cluster.silent.upstream_rq_504: 2",
        "cluster.silent.upstream_rq_pending_total: 3",
        "cluster.silent.upstream_rq_active: 0",
        "http.test.rbac.allowed: 5",
        "http.test.rbac.denied: 1",
        "http.test.downstream_rq_total: 6",
        "http.test.downstream_rq_4xx: 1",
        "http.test.downstream_cx_total: 6",
    ] {
        assert!(
            stats.lines().any(|row| row == line),
            "{line} is not in\n{stats}"
        );
    }

    // A change of the cluster's configuration begins nothing anew.
    let mut changed = static_cluster("flaky", &[peers::echo("other").await]);
    changed.connect_timeout = Some(duration(Duration::from_secs(7)));
    running.apply(vec![changed], vec![]).await;
    peers::get(at, "/").await;
    let rows = page(&running, "/stats?filter=flaky.upstream_rq_(200|total|503)$").await;
    let wanted = ["200: 2", "503: 1", "total: 5"]
        .map(|rest| format!("cluster.flaky.upstream_rq_{rest}\n"))
        .concat();
    assert_eq!(rows, wanted);
}

#[tokio::test]
async fn statistics_come_in_three_formats_whole_or_in_part() {
    let (running, at) = served().await;
    peers::get(at, "/").await;
    running.log.line_with("200 ").await;

    // The connection ends, and is no longer active then.
    let mut open = true;
    while open {
        let rows = page(&running, "/stats?filter=^listener%5C.&usedonly").await;
        assert!(
            rows.ends_with("listener.127.0.0.1_0.downstream_cx_total: 1\n"),
            "{rows}"
        );
        open = rows.contains("downstream_cx_active: 1\n");
    }

    let json: serde_json::Value = serde_json::from_str(
        &page(
            &running,
            "/stats?format=json&filter=flaky.upstream_rq_retry$",
        )
        .await,
    )
    .expect("JSON");

    assert_eq!(
        json,
        serde_json::json!({ "stats": [{ "name": "cluster.flaky.upstream_rq_retry", "value": 1 }] })
    );

    let prometheus = page(
        &running,
        "/stats?format=prometheus&filter=flaky.*_rq_(2xx|200)$",
    )
    .await;

    assert_eq!(
        prometheus,
        "# TYPE envoy_cluster_upstream_rq counter\n\
         envoy_cluster_upstream_rq{cluster_name=\"flaky\",response_code=\"200\"} 1\n\
         # TYPE envoy_cluster_upstream_rq_xx counter\n\
         envoy_cluster_upstream_rq_xx{cluster_name=\"flaky\",response_code_class=\"2\"} 1\n"
    );

    let all = page(&running, "/stats?format=prometheus").await;
    let families: Vec<_> = all
        .lines()
        .filter(|line| line.starts_with("# TYPE "))
        .collect();

    let mut unique = families.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(
        families.len(),
        unique.len(),
        "a family stands once: {families:?}"
    );

    let used = page(&running, "/stats?format=prometheus&usedonly&filter=server").await;
    assert!(
        used.contains("envoy_server_live 1\n") && !used.lines().any(|line| line.ends_with(" 0")),
        "{used}"
    );
}

#[tokio::test]
async fn clusters_with_one_name_in_statistics_count_together() {
    let up = peers::echo("up").await;
    let named = |name: &str| cluster::Cluster {
        alt_stat_name: "outbound|80||a.svc;".to_owned(),
        ..static_cluster(name, &[up])
    };
    let table = table("r", vec![forward("/one", "one"), forward("/two", "two")]);
    let running = Running::start(administered());
    running
        .apply(
            vec![named("one"), named("two")],
            vec![listener("in", vec![http_chain(&manager(inline(table)))])],
        )
        .await;
    let at = running.at("in").await;
    peers::get(at, "/one").await;
    peers::get(at, "/two").await;

    let text = page(&running, "/stats?filter=upstream_rq_total").await;
    assert_eq!(text, "cluster.outbound|80||a.svc;.upstream_rq_total: 2\n");
    let series = page(
        &running,
        "/stats?format=prometheus&filter=upstream_rq_total",
    )
    .await;
    assert!(
        series.contains("envoy_cluster_upstream_rq_total{cluster_name=\"outbound|80||a.svc\"} 2"),
        "{series}"
    );
}

/// A policy for paths that begin so.
fn on_path(prefix: &str) -> rbac::Policy {
    use meltemi_proto::envoy::r#type::matcher::v3 as matcher;

    let path = matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(prefix.into())),
        ..Default::default()
    };
    rbac::Policy {
        permissions: vec![rbac::Permission {
            rule: Some(rbac::permission::Rule::UrlPath(matcher::PathMatcher {
                rule: Some(matcher::path_matcher::Rule::Path(path)),
            })),
        }],
        principals: vec![rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Any(true)),
        }],
        ..Default::default()
    }
}

fn rules(action: rbac::rbac::Action, policy: rbac::Policy) -> Option<rbac::Rbac> {
    Some(rbac::Rbac {
        action: action as i32,
        policies: [("ns[a]-policy[p]-rule[0]".to_owned(), policy)].into(),
        ..Default::default()
    })
}

/// As Envoy 1.40 counts the same requests under the same filters.
#[tokio::test]
async fn dry_runs_are_counted_and_deny_nothing() {
    use rbac::rbac::Action;

    let deny = Rbac {
        rules: rules(Action::Deny, on_path("/deny")),
        shadow_rules: rules(Action::Deny, on_path("/a")),
        shadow_rules_stat_prefix: "istio_dry_run_deny_".into(),
        ..Default::default()
    };
    let allow = Rbac {
        shadow_rules: rules(Action::Allow, on_path("/b")),
        shadow_rules_stat_prefix: "istio_dry_run_allow_".into(),
        ..Default::default()
    };
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    for (at, filter) in [deny, allow].iter().enumerate() {
        let filter = http_filter("envoy.filters.http.rbac", pack(filter));
        manager.http_filters.insert(at, filter);
    }

    // A condition on requests denies no connection, so the policy takes all of them.
    let mut anyone = on_path("/");
    anyone.permissions[0].rule = Some(rbac::permission::Rule::Any(true));
    let of_connections = network::Rbac {
        stat_prefix: "tcp.".into(),
        rules: rules(Action::Allow, anyone.clone()),
        shadow_rules: rules(Action::Deny, anyone),
        shadow_rules_stat_prefix: "istio_dry_run_deny_".into(),
        ..Default::default()
    };
    let mut tcp = tcp_chain("up");
    tcp.filters.insert(
        0,
        network_filter("envoy.filters.network.rbac", pack(&of_connections)),
    );

    let running = Running::start(administered());
    running
        .apply(
            vec![static_cluster("up", &[peers::echo("up").await])],
            vec![
                listener("in", vec![http_chain(&manager)]),
                listener("tcp", vec![tcp]),
            ],
        )
        .await;

    let (http, tcp) = (running.at("in").await, running.at("tcp").await);
    for (path, status) in [
        ("/", 200),
        ("/a", 200),
        ("/a", 200),
        ("/b", 200),
        ("/deny", 403),
    ] {
        let (head, _) = peers::get(http, path).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    for _ in 0..2 {
        peers::get(tcp, "/").await;
    }

    let stats = page(&running, "/stats?filter=rbac&usedonly").await;
    assert_eq!(
        stats,
        "http.test.rbac.allowed: 4\n\
         http.test.rbac.denied: 1\n\
         http.test.rbac.istio_dry_run_allow_.shadow_allowed: 1\n\
         http.test.rbac.istio_dry_run_allow_.shadow_denied: 3\n\
         http.test.rbac.istio_dry_run_deny_.shadow_allowed: 3\n\
         http.test.rbac.istio_dry_run_deny_.shadow_denied: 2\n\
         tcp.rbac.allowed: 2\n\
         tcp.rbac.istio_dry_run_deny_.shadow_denied: 2\n"
    );

    let prometheus = page(&running, "/stats/prometheus").await;
    for line in [
        "envoy_http_rbac{http_conn_manager_prefix=\"test\",authz_enforce_result=\"denied\"} 1",
        "envoy_http_rbac{http_conn_manager_prefix=\"test\",authz_dry_run_action=\"deny\",authz_dry_run_result=\"denied\"} 2",
        "envoy_http_rbac{http_conn_manager_prefix=\"test\",authz_dry_run_action=\"allow\",authz_dry_run_result=\"allowed\"} 1",
        "envoy_tcp_rbac{authz_dry_run_action=\"deny\",authz_dry_run_result=\"denied\"} 2",
    ] {
        assert!(
            prometheus.lines().any(|own| own == line),
            "{line}: {prometheus}"
        );
    }
}
