//! External authorization with real services behind it, alone and beside Envoy.

mod tricks;

use std::time::Duration;

use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::envoy::config::rbac::v3 as rbac;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::http::ext_authz::v3 as proto;
use meltemi_proto::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
};
use meltemi_proto::envoy::r#type::matcher::v3 as matcher;
use meltemi_proto::envoy::r#type::v3::HttpStatus;
use meltemi_proto::google::protobuf::BoolValue;
use meltemi_proto::pack;

use crate::authorizers;
use crate::config::*;
use crate::differential::{Seen, ask, in_order, witness};
use crate::envoy::{self, Envoy};
use crate::peers::{self, Client};
use crate::stats::{administered, page};

const NAME: &str = "envoy.filters.http.ext_authz";

fn string(pattern: matcher::string_matcher::MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(pattern),
        ignore_case: false,
    }
}

fn list(names: &[&str]) -> Option<matcher::ListStringMatcher> {
    use matcher::string_matcher::MatchPattern::Exact;

    Some(matcher::ListStringMatcher {
        patterns: names
            .iter()
            .map(|name| string(Exact((*name).into())))
            .collect(),
    })
}

/// Asks the cluster `grpc`.
fn grpc(timeout: Duration) -> proto::ExtAuthz {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};

    proto::ExtAuthz {
        transport_api_version: core::ApiVersion::V3 as i32,
        services: Some(proto::ext_authz::Services::GrpcService(core::GrpcService {
            timeout: Some(duration(timeout)),
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: "grpc".into(),
                ..Default::default()
            })),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// Asks the cluster `http`.
fn http() -> proto::ExtAuthz {
    let service = proto::HttpService {
        server_uri: Some(core::HttpUri {
            uri: "http://authz.example".into(),
            timeout: Some(duration(Duration::from_secs(2))),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster("http".into())),
        }),
        path_prefix: "/check".into(),
        authorization_request: Some(proto::AuthorizationRequest {
            headers_to_add: vec![core::HeaderValue {
                key: "x-mesh".into(),
                value: "yes".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        authorization_response: Some(proto::AuthorizationResponse {
            allowed_upstream_headers: list(&["x-told", "x-over", "x-over-none"]),
            allowed_upstream_headers_to_append: list(&["x-append", "x-append-none"]),
            allowed_client_headers: list(&["x-why", "set-cookie"]),
            allowed_client_headers_on_success: list(&["x-added"]),
            ..Default::default()
        }),
        ..Default::default()
    };

    proto::ExtAuthz {
        services: Some(proto::ext_authz::Services::HttpService(service)),
        allowed_headers: list(&["x-ask", "x-given"]),
        ..grpc(Duration::ZERO)
    }
}

fn body(max: u32, allow_partial: bool) -> Option<proto::BufferSettings> {
    Some(proto::BufferSettings {
        max_request_bytes: max,
        allow_partial_message: allow_partial,
        pack_as_bytes: false,
    })
}

fn filter(config: &proto::ExtAuthz) -> HttpFilter {
    http_filter(NAME, pack(config))
}

/// A listener with filters before the router.
fn with(name: &str, log: &str, filters: Vec<HttpFilter>) -> Listener {
    with_manager(name, log, filters, |_| {})
}

/// The same, with changes to its connection manager.
fn with_manager(
    name: &str,
    log: &str,
    filters: Vec<HttpFilter>,
    change: impl FnOnce(&mut HttpConnectionManager),
) -> Listener {
    let mut off = forward("/off", "up");
    let disabled = proto::ExtAuthzPerRoute {
        r#override: Some(proto::ext_authz_per_route::Override::Disabled(true)),
    };
    off.typed_per_filter_config
        .insert(NAME.into(), pack(&disabled));

    let mut context = forward("/context", "up");
    let settings = proto::CheckSettings {
        context_extensions: [("route".to_owned(), "context".to_owned())].into(),
        ..Default::default()
    };
    let settings = proto::ExtAuthzPerRoute {
        r#override: Some(proto::ext_authz_per_route::Override::CheckSettings(
            settings,
        )),
    };
    context
        .typed_per_filter_config
        .insert(NAME.into(), pack(&settings));

    let mut other = forward("/other", "up");
    other.name = "other".into();
    let mut table = table("r", vec![off, context, other, forward("/in", "up")]);
    table.validate_clusters = Some(BoolValue { value: false });

    let mut manager = manager(inline(table));
    manager.http_filters.splice(0..0, filters);
    let format = "case=%REQ(X-CASE)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
                  route=%ROUTE_NAME% user=%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%\n";
    let ours = "case=%REQ(X-CASE)% <%CAUSE%>\n";
    manager.access_log = vec![log_as(log, format)];
    if log == "/dev/stdout" {
        manager.access_log.push(log_as(log, ours));
    }

    change(&mut manager);

    listener(name, vec![http_chain(&manager)])
}

async fn clusters() -> Vec<Cluster> {
    vec![
        static_cluster("up", &[witness("up").await]),
        http2(static_cluster("grpc", &[authorizers::grpc().await])),
        static_cluster("http", &[authorizers::http().await]),
    ]
}

/// The listeners of the comparison: a service and settings each.
fn listeners(log: &str) -> Vec<Listener> {
    let second = Duration::from_secs(1);
    let mut plain = grpc(second);
    plain.clear_route_cache = true;
    plain.status_on_error = Some(HttpStatus { code: 503 });
    let open = proto::ExtAuthz {
        failure_mode_allow: true,
        failure_mode_allow_header_add: true,
        ..grpc(Duration::from_millis(200))
    };
    let whole = proto::ExtAuthz {
        with_request_body: body(10, false),
        ..grpc(second)
    };
    let part = proto::ExtAuthz {
        with_request_body: body(4, true),
        ..grpc(second)
    };
    let http_body = proto::ExtAuthz {
        with_request_body: body(4, true),
        ..http()
    };

    vec![
        with("grpc", log, vec![filter(&plain)]),
        with("open", log, vec![filter(&open)]),
        with("whole", log, vec![filter(&whole)]),
        with("part", log, vec![filter(&part)]),
        with("http", log, vec![filter(&http())]),
        with("http-body", log, vec![filter(&http_body)]),
    ]
}

/// Listener, name, request, body.
const CASES: &[(&str, &str, &str, &str)] = &[
    ("grpc", "allow", "GET /in?a=1\nx-given: 1\nx-given: 2", ""),
    ("grpc", "allow-post", "POST /in", "body"),
    ("grpc", "allow-plain", "GET /in\nx-ask: plain", ""),
    ("grpc", "deny", "GET /in\nx-ask: deny", ""),
    ("grpc", "deny-more", "GET /in\nx-ask: deny-more", ""),
    (
        "grpc",
        "deny-grpc",
        "POST /in\nx-ask: deny-more\ncontent-type: application/grpc",
        "x",
    ),
    ("grpc", "error", "GET /in\nx-ask: error", ""),
    ("grpc", "fail", "GET /in\nx-ask: fail", ""),
    (
        "grpc",
        "headers",
        "GET /in\nx-ask: headers\nx-append: o\nx-absent: o\nx-over: o\nx-if-there: o\n\
         x-old-append: o\nx-old-set: o\nx-gone: o",
        "",
    ),
    ("grpc", "query", "GET /in?a=1&b=2&c=3\nx-ask: query", ""),
    ("grpc", "route", "GET /in\nx-ask: route", ""),
    ("grpc", "off", "GET /off\nx-ask: deny", ""),
    ("grpc", "context", "GET /context", ""),
    ("grpc", "no-route", "GET /nowhere\nx-ask: deny", ""),
    ("open", "open-hang", "GET /in\nx-ask: hang", ""),
    ("open", "open-fail", "GET /in\nx-ask: fail", ""),
    ("open", "open-deny", "GET /in\nx-ask: deny", ""),
    ("whole", "whole", "POST /in", "0123456789"),
    ("whole", "whole-too-long", "POST /in", "0123456789a"),
    ("whole", "whole-none", "GET /in", ""),
    ("part", "part", "POST /in", "012345"),
    ("part", "part-short", "POST /in", "012"),
    ("part", "part-deny", "POST /in\nx-ask: deny", "012345"),
    (
        "http",
        "http-allow",
        "GET /in?a=1\nx-given: 1\nx-hidden: 2\nauthorization: b",
        "",
    ),
    ("http", "http-deny", "GET /in\nx-ask: deny", ""),
    ("http", "http-deny-more", "GET /in\nx-ask: deny-more", ""),
    ("http", "http-error", "GET /in\nx-ask: error", ""),
    (
        "http",
        "http-headers",
        "GET /in\nx-ask: headers\nx-over: o\nx-append: o\nx-gone: o",
        "",
    ),
    ("http", "http-post", "POST /in", "body"),
    ("http-body", "http-part", "POST /in", "012345"),
    ("http-body", "http-short", "POST /in", "01"),
];

#[tokio::test]
async fn envoy_and_we_authorize_alike() {
    let Some(program) = envoy::program("envoy_and_we_authorize_alike") else {
        return;
    };
    let clusters = clusters().await;
    let log = "access.log";
    let theirs = Envoy::start(program, clusters.clone(), |folder| {
        listeners(&folder.join(log).display().to_string())
    })
    .await;
    let ours = Running::start(administered());
    ours.apply(clusters, listeners("/dev/stdout")).await;

    let mut different = Vec::new();
    for (at, case, request, body) in CASES {
        let start = format!("case={case} ");
        let (their, our) = (theirs.at(at).await, ours.at(at).await);
        let (status, headers, text) = ask(their, "svc.example", case, request, body).await;
        let envoy = Seen {
            status,
            headers,
            body: text,
            line: in_order(&theirs.line(log, &start).await),
        };

        let (status, headers, text) = ask(our, "svc.example", case, request, body).await;
        let we = Seen {
            status,
            headers,
            body: text,
            line: in_order(&ours.log.line_with(&start).await),
        };

        if envoy != we {
            different.push(format!("{case}:\nEnvoy {envoy:#?}\nwe    {we:#?}"));
        }
    }

    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );

    // Both count alike.
    let counters = |text: String| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| line.starts_with("http.test.ext_authz."));
        let mut lines: Vec<String> = lines
            .filter(|line| !line.ends_with(": 0"))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    let theirs = counters(theirs.admin("/stats?filter=ext_authz").await);
    assert_eq!(counters(page(&ours, "/stats").await), theirs);
}

#[tokio::test]
async fn a_request_waits_for_its_verdict_whatever_carries_it() {
    let running = Running::with(
        clusters().await,
        vec![with(
            "in",
            "/dev/stdout",
            vec![filter(&grpc(Duration::from_secs(2)))],
        )],
    )
    .await;
    let at = running.at("in").await;

    let (status, headers, _) = ask(at, "svc", "h1", "GET /in\nx-ask: deny-more", "").await;
    assert_eq!(
        (status.as_str(), headers["x-why"].as_str()),
        ("401", "because")
    );
    let line = running.log.line_with("case=h1 <").await;
    assert_eq!(line, "case=h1 <external authorization by grpc: denied>");

    let mut h2 = crate::http2::connect(at).await;
    for (verdict, wanted) in [("deny", 403), ("plain", 200)] {
        let request = ::http::Request::get("http://svc/in").header("x-ask", verdict);
        let request = request.body(()).expect("good");
        let (response, _) = h2.send_request(request, true).expect("sent");
        assert_eq!(response.await.expect("a response").status(), wanted);
    }
}

#[tokio::test]
async fn a_service_that_is_slow_or_gone_fails_closed_in_time() {
    let mut clusters = clusters().await;
    clusters.push(http2(static_cluster("nobody", &[peers::nobody().await])));
    let mut gone = grpc(Duration::from_secs(5));
    if let Some(proto::ext_authz::Services::GrpcService(service)) = &mut gone.services
        && let Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(target)) =
            &mut service.target_specifier
    {
        target.cluster_name = "nobody".into();
    }
    let running = Running::with(
        clusters,
        vec![
            with(
                "slow",
                "/dev/stdout",
                vec![filter(&grpc(Duration::from_millis(100)))],
            ),
            with("gone", "/dev/stdout", vec![filter(&gone)]),
        ],
    )
    .await;

    let slow = running.at("slow").await;
    let (status, ..) = ask(slow, "svc", "slow", "GET /in\nx-ask: hang", "").await;
    assert_eq!(status, "403");
    let line = running.log.line_with("case=slow 403").await;
    assert!(line.contains(" 403 UAEX ext_authz_error "), "{line}");

    // The service reads the same limit from `grpc-timeout` and may cancel the call first.
    let cause = running.log.line_with("case=slow <").await;
    let is_timeout = cause.contains("timeout") || cause.contains("gRPC status 1");
    assert!(cause.contains("by grpc: ") && is_timeout, "{cause}");

    let gone = running.at("gone").await;
    let (status, ..) = ask(gone, "svc", "gone", "GET /in", "").await;
    assert_eq!(status, "403");
    let cause = running.log.line_with("case=gone <").await;
    assert!(
        cause.contains("by nobody: ") && cause.contains("connect"),
        "{cause}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_check() {
    let running = Running::with(
        clusters().await,
        vec![with(
            "in",
            "/dev/stdout",
            vec![filter(&grpc(Duration::from_secs(300)))],
        )],
    )
    .await;
    let mut client = Client::connect(running.at("in").await).await;
    client
        .send("GET /in HTTP/1.1\r\nhost: svc\r\nx-case: left\r\nx-ask: hang\r\n\r\n")
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(client);

    let line = running.log.line_with("case=left 0").await;
    assert!(line.contains(" DC downstream_remote_disconnect "), "{line}");
}

/// Istio's way: an RBAC filter with shadow rules before it says which requests are checked.
#[tokio::test]
async fn shadow_rules_choose_what_is_checked() {
    let policy = rbac::Policy {
        permissions: vec![rbac::Permission {
            rule: Some(rbac::permission::Rule::Header(route::HeaderMatcher {
                name: "x-checked".into(),
                header_match_specifier: Some(
                    route::header_matcher::HeaderMatchSpecifier::PresentMatch(true),
                ),
                ..Default::default()
            })),
        }],
        principals: vec![rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Any(true)),
        }],
        ..Default::default()
    };
    let shadow = http_rbac::Rbac {
        shadow_rules: Some(rbac::Rbac {
            action: rbac::rbac::Action::Deny as i32,
            policies: [("istio-ext-authz-ns[a]-policy[p]-rule[0]".to_owned(), policy)].into(),
            ..Default::default()
        }),
        shadow_rules_stat_prefix: "istio_ext_authz_".into(),
        ..Default::default()
    };

    let mut authz = grpc(Duration::from_secs(2));
    authz.filter_enabled_metadata = Some(matcher::MetadataMatcher {
        filter: "envoy.filters.http.rbac".into(),
        path: vec![matcher::metadata_matcher::PathSegment {
            segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(
                "istio_ext_authz_shadow_effective_policy_id".into(),
            )),
        }],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(string(
                matcher::string_matcher::MatchPattern::Prefix("istio-ext-authz".into()),
            ))),
        }),
        invert: false,
    });

    let filters = vec![
        http_filter("envoy.filters.http.rbac", pack(&shadow)),
        filter(&authz),
    ];
    let listener = with("in", "/dev/stdout", filters);
    let running = Running::with(clusters().await, vec![listener]).await;
    let at = running.at("in").await;

    let (status, ..) = ask(at, "svc", "unchecked", "GET /in\nx-ask: deny", "").await;
    assert_eq!(status, "200");
    let (status, ..) = ask(
        at,
        "svc",
        "checked",
        "GET /in\nx-ask: deny\nx-checked: 1",
        "",
    )
    .await;
    assert_eq!(status, "403");
}
