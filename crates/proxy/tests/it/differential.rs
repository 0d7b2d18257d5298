//! The same resources and the same requests through stock Envoy and through us: the answer, what
//! the upstream saw, and the words of the log are the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::rbac::v3 as rbac;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::common::fault::v3 as fault_common;
use meltemi_proto::envoy::extensions::filters::http::cors::v3 as cors;
use meltemi_proto::envoy::extensions::filters::http::fault::v3 as fault;
use meltemi_proto::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use meltemi_proto::envoy::r#type::matcher::v3 as matcher;
use meltemi_proto::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use meltemi_proto::google::protobuf::{BoolValue, UInt32Value};
use meltemi_proto::{Any, pack};
use meltemi_proxy::ProxyOptions;
use route::header_matcher::HeaderMatchSpecifier;
use route::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use route::route::Action;
use route::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use route::route_match::PathSpecifier;

use crate::config::*;
use crate::envoy::{self, Envoy};
use crate::peers::{self, Client};

/// Request headers that upstreams do not repeat: a request id is random, and in place of a loopback
/// address Envoy appends one of the machine.
const VOLATILE: [&str; 2] = ["x-request-id", "x-forwarded-for"];
/// Response headers of which only the presence counts.
const PRESENT: [&str; 2] = ["date", "x-envoy-upstream-service-time"];

/// Answers with what it saw, one header a line, sorted.
pub async fn witness(name: &'static str) -> SocketAddr {
    peers::http_server(move |head, body| {
        let mut lines = head.trim_end().split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let is_shown = |line: &&str| {
            // Envoy says that an OPTIONS request has no body; there is no need to.
            *line != "content-length: 0" && !VOLATILE.iter().any(|name| line.starts_with(name))
        };

        let mut fields: Vec<&str> = lines.filter(is_shown).collect();
        fields.sort_unstable();
        let text = format!(
            "{name}\n{first}\n{}\n{}",
            fields.join("\n"),
            String::from_utf8_lossy(body)
        );

        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-drop: me\r\nserver: app\r\n\r\n",
            text.len()
        );

        [head, text].concat().into_bytes()
    })
    .await
}

fn exact(path: &str) -> PathSpecifier {
    PathSpecifier::Path(path.into())
}

fn prefix(path: &str) -> PathSpecifier {
    PathSpecifier::Prefix(path.into())
}

fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: pattern.into(),
        ..Default::default()
    }
}

fn string(text: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(text.into())),
        ..Default::default()
    }
}

fn header(name: &str, value: &str) -> route::HeaderMatcher {
    route::HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string(value))),
        ..Default::default()
    }
}

/// A route that is named as its path.
fn on(path: PathSpecifier, action: Action) -> route::Route {
    let name = match &path {
        PathSpecifier::Path(path) | PathSpecifier::Prefix(path) => path.clone(),
        _ => "regex".to_owned(),
    };

    route::Route {
        name,
        r#match: Some(route::RouteMatch {
            path_specifier: Some(path),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    }
}

fn to(cluster: &str) -> Action {
    to_with(cluster, |_| {})
}

fn to_with(cluster: &str, change: impl FnOnce(&mut route::RouteAction)) -> Action {
    let mut action = route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    };
    change(&mut action);
    Action::Route(action)
}

fn if_match(mut route: route::Route, change: impl FnOnce(&mut route::RouteMatch)) -> route::Route {
    change(route.r#match.as_mut().expect("every route has one"));
    route
}

fn per_filter(mut route: route::Route, filter: &str, config: Any) -> route::Route {
    route.typed_per_filter_config.insert(filter.into(), config);
    route
}

fn always() -> Option<FractionalPercent> {
    Some(FractionalPercent {
        numerator: 100,
        denominator: DenominatorType::Hundred as i32,
    })
}

fn set(name: &str, value: &str, overwrite: bool) -> core::HeaderValueOption {
    use core::header_value_option::HeaderAppendAction as Append;

    let action = if overwrite {
        Append::OverwriteIfExistsOrAdd
    } else {
        Append::AppendIfExistsOrAdd
    };

    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action: action as i32,
        ..Default::default()
    }
}

fn policy(header: &str) -> rbac::Policy {
    rbac::Policy {
        permissions: vec![rbac::Permission {
            rule: Some(rbac::permission::Rule::Header(route::HeaderMatcher {
                name: header.into(),
                header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
                ..Default::default()
            })),
        }],
        principals: vec![rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Any(true)),
        }],
        ..Default::default()
    }
}

fn authorization(action: rbac::rbac::Action, name: &str, header: &str) -> http_rbac::Rbac {
    http_rbac::Rbac {
        rules: Some(rbac::Rbac {
            action: action as i32,
            policies: [(name.to_owned(), policy(header))].into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn direct(status: u32, body: &str) -> Action {
    let body = (!body.is_empty()).then(|| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(body.into())),
        ..Default::default()
    });
    Action::DirectResponse(route::DirectResponseAction {
        status,
        body,
        ..Default::default()
    })
}

fn redirect(change: impl FnOnce(&mut route::RedirectAction)) -> Action {
    let mut action = route::RedirectAction::default();
    change(&mut action);
    Action::Redirect(action)
}

fn cors_policy() -> cors::CorsPolicy {
    cors::CorsPolicy {
        allow_origin_string_match: vec![string("http://good.example")],
        allow_methods: "GET, PUT".into(),
        allow_headers: "x-one".into(),
        expose_headers: "x-two".into(),
        max_age: "600".into(),
        allow_credentials: Some(BoolValue { value: true }),
        ..Default::default()
    }
}

fn routes() -> Vec<route::Route> {
    use cluster_names::{BAD, DOWN, FULL, LIMITED, NONE, ONE, OVERLOADED, RESET, SILENT, TWO};

    let weights = |one: u32, two: u32| {
        let weight = |name: &str, weight: u32| route::weighted_cluster::ClusterWeight {
            name: name.into(),
            weight: Some(UInt32Value { value: weight }),
            ..Default::default()
        };

        let clusters = vec![weight(ONE, one), weight(TWO, two)];
        let weighted = route::WeightedCluster {
            clusters,
            ..Default::default()
        };

        to_with("", |action| {
            action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(weighted))
        })
    };

    let query = |name: &str, value: &str| route::QueryParameterMatcher {
        name: name.into(),
        query_parameter_match_specifier: Some(
            route::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(string(
                value,
            )),
        ),
    };

    let retrying = |on: &str| {
        let policy = route::RetryPolicy {
            retry_on: on.into(),
            num_retries: Some(UInt32Value { value: 2 }),
            ..Default::default()
        };
        move |action: &mut route::RouteAction| action.retry_policy = Some(policy)
    };

    let seconds = |n: u64| duration(Duration::from_secs(n));
    let per_try = |n: u64| route::RetryPolicy {
        retry_on: "connect-failure".into(),
        per_try_timeout: Some(seconds(n)),
        ..Default::default()
    };

    #[expect(deprecated, reason = "Istio sends these fields")]
    let grpc = |max: Option<u64>, offset: Option<u64>| {
        move |action: &mut route::RouteAction| {
            action.timeout = Some(duration(Duration::from_secs(77)));
            action.max_grpc_timeout = max.map(|max| duration(Duration::from_secs(max)));
            action.grpc_timeout_offset = offset.map(|offset| duration(Duration::from_secs(offset)));
        }
    };

    let aborts = fault::HttpFault {
        abort: Some(fault::FaultAbort {
            percentage: always(),
            error_type: Some(fault::fault_abort::ErrorType::HttpStatus(555)),
            ..Default::default()
        }),
        delay: Some(fault_common::FaultDelay {
            percentage: always(),
            fault_delay_secifier: Some(fault_common::fault_delay::FaultDelaySecifier::FixedDelay(
                duration(Duration::from_millis(1)),
            )),
        }),
        ..Default::default()
    };

    let allow = http_rbac::RbacPerRoute {
        rbac: Some(authorization(
            rbac::rbac::Action::Allow,
            "ns[a]-policy[ok]-rule[0]",
            "x-ok",
        )),
    };

    let mut headers = on(exact("/operations"), to(ONE));
    headers.request_headers_to_add = vec![
        set("x-added", "by route", false),
        set("x-given", "and more", false),
        set("x-set", "anew", true),
        set("x-about", "%REQ(:PATH)% %PROTOCOL% 100%%", true),
    ];

    headers.request_headers_to_remove = vec!["x-gone".into()];
    headers.response_headers_to_add = vec![
        set("x-answer", "%RESPONSE_CODE%", false),
        set("x-drop", "set", true),
    ];

    headers.response_headers_to_remove = vec!["x-envoy-upstream-service-time".into()];

    // What the proxy answers itself has the route's headers, too.
    let answered = |path: &str, action: Action| {
        let mut route = on(exact(path), action);
        // Not %RESPONSE_CODE%: Envoy does not know it yet, and writes 0.
        route.response_headers_to_add = vec![
            set("x-answer", "of the proxy", false),
            set("content-type", "text/x-own", true),
        ];
        route
    };

    let of_stream = |max: Option<u64>, offset: Option<u64>, longest: Option<u64>| {
        move |action: &mut route::RouteAction| {
            let millis = |n: u64| duration(Duration::from_millis(n));
            action.timeout = Some(duration(Duration::from_secs(77)));
            action.max_stream_duration = Some(route::route_action::MaxStreamDuration {
                max_stream_duration: longest.map(millis),
                grpc_timeout_header_max: max.map(millis),
                grpc_timeout_header_offset: offset.map(millis),
            });
        }
    };

    vec![
        answered("/answered/down", to(DOWN)),
        answered("/answered/missing", to("no-such-cluster")),
        answered("/answered/here", direct(418, "short and stout")),
        answered("/answered/denied", to(ONE)),
        answered(
            "/answered/deadline",
            to_with(SILENT, of_stream(Some(100), None, None)),
        ),
        on(
            exact("/stream/grpc"),
            to_with(ONE, of_stream(Some(30_000), Some(2_000), None)),
        ),
        on(
            exact("/stream/free"),
            to_with(ONE, of_stream(Some(0), None, None)),
        ),
        on(
            exact("/stream/age"),
            to_with(SILENT, of_stream(None, None, Some(100))),
        ),
        on(exact("/exact"), to(ONE)),
        on(
            prefix("/old/"),
            to_with(ONE, |action| action.prefix_rewrite = "/new/".into()),
        ),
        if_match(
            on(
                prefix("/"),
                to_with(TWO, |action| {
                    action.regex_rewrite = Some(matcher::RegexMatchAndSubstitute {
                        pattern: Some(regex("^/re/([0-9]+)")),
                        substitution: "/number/\\1/".into(),
                    });
                }),
            ),
            |m| m.path_specifier = Some(PathSpecifier::SafeRegex(regex("/re/[0-9]+(/.*)?"))),
        ),
        if_match(on(prefix("/header"), to(TWO)), |m| {
            m.headers = vec![header("x-env", "canary")]
        }),
        on(prefix("/header"), to(ONE)),
        if_match(on(prefix("/query"), to(TWO)), |m| {
            m.query_parameters = vec![query("v", "2")]
        }),
        on(prefix("/query"), to(ONE)),
        if_match(on(prefix("/method"), to(TWO)), |m| {
            m.headers = vec![header(":method", "POST")]
        }),
        on(prefix("/method"), to(ONE)),
        if_match(on(prefix("/Case"), to(TWO)), |m| {
            m.case_sensitive = Some(BoolValue { value: false })
        }),
        if_match(on(prefix("/sep"), to(TWO)), |m| {
            m.path_specifier = Some(PathSpecifier::PathSeparatedPrefix("/sep".into()));
        }),
        on(
            exact("/host"),
            to_with(ONE, |action| {
                action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(
                    "other.example".into(),
                ));
                action.append_x_forwarded_host = true;
            }),
        ),
        headers,
        on(
            exact("/redirect/all"),
            redirect(|action| {
                action.host_redirect = "new.example".into();
                action.scheme_rewrite_specifier = Some(SchemeRewriteSpecifier::HttpsRedirect(true));
                action.path_rewrite_specifier =
                    Some(PathRewriteSpecifier::PathRedirect("/there?x=y".into()));
                action.response_code = RedirectResponseCode::TemporaryRedirect as i32;
            }),
        ),
        on(
            prefix("/redirect/prefix"),
            redirect(|action| {
                action.path_rewrite_specifier =
                    Some(PathRewriteSpecifier::PrefixRewrite("/moved".into()));
                action.response_code = RedirectResponseCode::Found as i32;
                action.strip_query = true;
            }),
        ),
        on(
            exact("/redirect/port"),
            redirect(|action| {
                action.port_redirect = 8443;
                action.scheme_rewrite_specifier =
                    Some(SchemeRewriteSpecifier::SchemeRedirect("https".into()));
            }),
        ),
        on(exact("/direct"), direct(200, "at once")),
        on(exact("/teapot"), direct(418, "")),
        on(exact("/weights/one"), weights(100, 0)),
        on(exact("/weights/two"), weights(0, 100)),
        per_filter(
            on(exact("/fault"), to(ONE)),
            "envoy.filters.http.fault",
            pack(&aborts),
        ),
        per_filter(
            on(exact("/only"), to(ONE)),
            "envoy.filters.http.rbac",
            pack(&allow),
        ),
        per_filter(
            on(exact("/cors"), to(ONE)),
            "envoy.filters.http.cors",
            pack(&cors_policy()),
        ),
        on(exact("/retry/status"), to_with(BAD, retrying("5xx"))),
        on(exact("/retry/reset"), to_with(RESET, retrying("reset"))),
        on(
            exact("/retry/overloaded"),
            to_with(OVERLOADED, retrying("5xx")),
        ),
        on(
            exact("/retry/limited"),
            to_with(LIMITED, retrying("5xx,gateway-error")),
        ),
        on(
            exact("/retry/limited/asked"),
            to_with(LIMITED, retrying("envoy-ratelimited")),
        ),
        on(exact("/grpc/max"), to_with(ONE, grpc(Some(30), Some(2)))),
        on(exact("/grpc/free"), to_with(ONE, grpc(Some(0), None))),
        on(exact("/grpc/none"), to_with(ONE, grpc(None, None))),
        on(
            exact("/grpc/try"),
            to_with(ONE, |action| {
                grpc(Some(30), None)(action);
                action.retry_policy = Some(per_try(20));
            }),
        ),
        on(exact("/expected"), to(ONE)),
        on(
            exact("/expected/try"),
            to_with(ONE, |action| action.retry_policy = Some(per_try(5))),
        ),
        on(
            exact("/expected/long"),
            to_with(ONE, |action| action.retry_policy = Some(per_try(60))),
        ),
        on(exact("/none"), to(NONE)),
        on(exact("/missing"), to("no-such-cluster")),
        on(exact("/down"), to(DOWN)),
        on(exact("/reset"), to(RESET)),
        on(exact("/full"), to(FULL)),
        on(
            exact("/slow"),
            to_with(SILENT, |action| {
                action.timeout = Some(duration(Duration::from_millis(100)))
            }),
        ),
        on(
            exact("/slow/try"),
            to_with(SILENT, |action| {
                action.retry_policy = Some(route::RetryPolicy {
                    retry_on: "connect-failure".into(),
                    per_try_timeout: Some(duration(Duration::from_millis(50))),
                    ..Default::default()
                });
            }),
        ),
    ]
}

mod cluster_names {
    pub const ONE: &str = "one";
    pub const TWO: &str = "two";
    pub const BAD: &str = "bad";
    pub const NONE: &str = "none";
    pub const DOWN: &str = "down";
    pub const RESET: &str = "reset";
    pub const FULL: &str = "full";
    pub const SILENT: &str = "silent";
    pub const OVERLOADED: &str = "overloaded";
    pub const LIMITED: &str = "limited";
}

/// A proxy that says why it refuses.
async fn refusing(why: &'static str) -> SocketAddr {
    peers::http_server(move |_, _| {
        format!("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n{why}: true\r\n\r\nbusy").into_bytes()
    })
    .await
}

async fn clusters() -> Vec<cluster::Cluster> {
    use cluster_names::*;

    let bad =
        peers::http_server(|_, _| b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy".to_vec())
            .await;
    let reset = peers::server(|mut stream, _| async move {
        peers::read_message(&mut stream, &mut Vec::new()).await;
    })
    .await;

    let silent = peers::server(|mut stream, _| async move {
        peers::read_message(&mut stream, &mut Vec::new()).await;
        std::future::pending::<()>().await;
    })
    .await;

    let mut full = static_cluster(FULL, &[witness("full").await]);
    full.circuit_breakers = Some(cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_pending_requests: Some(UInt32Value { value: 0 }),
            max_requests: Some(UInt32Value { value: 0 }),
            ..Default::default()
        }],
        ..Default::default()
    });

    vec![
        static_cluster(ONE, &[witness("one").await]),
        static_cluster(TWO, &[witness("two").await]),
        static_cluster(BAD, &[bad]),
        static_cluster(OVERLOADED, &[refusing("x-envoy-overloaded").await]),
        static_cluster(LIMITED, &[refusing("x-envoy-ratelimited").await]),
        static_cluster(NONE, &[]),
        static_cluster(DOWN, &[peers::nobody().await]),
        static_cluster(RESET, &[reset]),
        full,
        static_cluster(SILENT, &[silent]),
    ]
}

fn in_front(log: &str) -> meltemi_proto::envoy::config::listener::v3::Listener {
    let narrow = route::VirtualHost {
        name: "narrow".into(),
        domains: vec!["narrow.example".into(), "*.narrow.example".into()],
        routes: vec![on(exact("/here"), direct(200, "narrow"))],
        ..Default::default()
    };

    let any = route::VirtualHost {
        name: "any".into(),
        domains: vec!["*".into()],
        routes: routes(),
        include_request_attempt_count: true,
        include_attempt_count_in_response: true,
        ..Default::default()
    };

    let table = route::RouteConfiguration {
        name: "table".into(),
        virtual_hosts: vec![narrow, any],
        validate_clusters: Some(BoolValue { value: false }),
        ..Default::default()
    };

    let mut manager = manager(inline(table));
    let denied = authorization(
        rbac::rbac::Action::Deny,
        "ns[a]-policy[no]-rule[0]",
        "x-deny",
    );

    manager.http_filters.splice(
        0..0,
        [
            http_filter("envoy.filters.http.cors", pack(&cors::Cors::default())),
            http_filter("envoy.filters.http.rbac", pack(&denied)),
            http_filter(
                "envoy.filters.http.fault",
                pack(&fault::HttpFault::default()),
            ),
        ],
    );

    manager.normalize_path = Some(BoolValue { value: true });
    manager.merge_slashes = true;
    manager.use_remote_address = Some(BoolValue { value: true });
    let format = "case=%REQ(X-CASE)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% route=%ROUTE_NAME% \
                  cluster=%UPSTREAM_CLUSTER% received=%BYTES_RECEIVED% sent=%BYTES_SENT%\n";
    manager.access_log = vec![log_as(log, format)];

    listener("in", vec![http_chain(&manager)])
}

/// Name, request without its host and case, body.
const CASES: &[(&str, &str, &str)] = &[
    ("exact", "GET /exact?a=b", ""),
    ("exact-is-not-a-prefix", "GET /exact/more", ""),
    ("prefix-rewrite", "GET /old/path?q", ""),
    ("regex-rewrite", "GET /re/42/x?q", ""),
    ("regex-is-whole", "GET /re/x", ""),
    ("header", "GET /header\nx-env: canary", ""),
    ("header-other", "GET /header\nx-env: production", ""),
    ("query", "GET /query?u=1&v=2", ""),
    ("query-other", "GET /query?v=22", ""),
    ("method", "POST /method", "body"),
    ("method-other", "GET /method", ""),
    ("case", "GET /cAsE/x", ""),
    ("separated", "GET /sep/x", ""),
    ("separated-itself", "GET /sep?x", ""),
    ("separated-not", "GET /separate", ""),
    ("host-rewrite", "GET /host", ""),
    (
        "header-operations",
        "GET /operations\nx-given: 1\nx-set: old\nx-gone: 1",
        "",
    ),
    ("redirect-all", "GET /redirect/all?a", ""),
    ("redirect-prefix", "GET /redirect/prefix/x?a", ""),
    ("redirect-port", "GET /redirect/port", ""),
    ("direct", "GET /direct", ""),
    ("direct-empty", "GET /teapot", ""),
    ("weights-one", "GET /weights/one", ""),
    ("weights-two", "GET /weights/two", ""),
    ("fault", "GET /fault", ""),
    ("rbac-deny", "GET /exact\nx-deny: 1", ""),
    ("rbac-allow", "GET /only\nx-ok: 1", ""),
    ("rbac-not-allowed", "GET /only", ""),
    (
        "cors-preflight",
        "OPTIONS /cors\norigin: http://good.example\naccess-control-request-method: PUT",
        "",
    ),
    (
        "cors-preflight-other",
        "OPTIONS /cors\norigin: http://bad.example\naccess-control-request-method: PUT",
        "",
    ),
    ("cors", "GET /cors\norigin: http://good.example", ""),
    ("retry-status", "GET /retry/status", ""),
    ("retry-reset", "GET /retry/reset", ""),
    ("retry-overloaded", "GET /retry/overloaded", ""),
    ("retry-limited", "GET /retry/limited", ""),
    ("retry-limited-asked", "GET /retry/limited/asked", ""),
    (
        "grpc-timeout",
        "POST /grpc/max\ncontent-type: application/grpc\ngrpc-timeout: 20S",
        "x",
    ),
    (
        "grpc-timeout-none",
        "POST /grpc/max\ncontent-type: application/grpc",
        "x",
    ),
    (
        "grpc-timeout-zero",
        "POST /grpc/max\ncontent-type: application/grpc\ngrpc-timeout: 0S",
        "x",
    ),
    (
        "grpc-timeout-long",
        "POST /grpc/max\ncontent-type: application/grpc\ngrpc-timeout: 100S",
        "x",
    ),
    (
        "grpc-timeout-below-offset",
        "POST /grpc/max\ncontent-type: application/grpc\ngrpc-timeout: 1S",
        "x",
    ),
    (
        "grpc-timeout-offset",
        "POST /grpc/max\ncontent-type: application/grpc\ngrpc-timeout: 2S",
        "x",
    ),
    (
        "grpc-timeout-nonsense",
        "POST /grpc/max\ncontent-type: application/grpc\ngrpc-timeout: 9z",
        "x",
    ),
    (
        "grpc-timeout-nanos",
        "POST /grpc/max\ncontent-type: application/grpc\ngrpc-timeout: 99999999n",
        "x",
    ),
    (
        "grpc-timeout-of-no-grpc",
        "POST /grpc/max\ngrpc-timeout: 20S",
        "x",
    ),
    (
        "grpc-timeout-free",
        "POST /grpc/free\ncontent-type: application/grpc\ngrpc-timeout: 40000H",
        "x",
    ),
    (
        "grpc-timeout-free-none",
        "POST /grpc/free\ncontent-type: application/grpc",
        "x",
    ),
    (
        "grpc-timeout-free-zero",
        "POST /grpc/free\ncontent-type: application/grpc\ngrpc-timeout: 0m",
        "x",
    ),
    (
        "grpc-timeout-ignored",
        "POST /grpc/none\ncontent-type: application/grpc\ngrpc-timeout: 20S",
        "x",
    ),
    (
        "grpc-timeout-per-try",
        "POST /grpc/try\ncontent-type: application/grpc\ngrpc-timeout: 25S",
        "x",
    ),
    ("answered-down", "GET /answered/down", ""),
    (
        "answered-down-grpc",
        "POST /answered/down\ncontent-type: application/grpc",
        "",
    ),
    ("answered-missing", "GET /answered/missing", ""),
    ("answered-here", "GET /answered/here", ""),
    ("answered-denied", "GET /answered/denied\nx-deny: 1", ""),
    (
        "stream-deadline",
        "POST /answered/deadline\ncontent-type: application/grpc\ngrpc-timeout: 90S",
        "x",
    ),
    (
        "stream-deadline-of-no-grpc",
        "GET /answered/deadline\ngrpc-timeout: 50m",
        "",
    ),
    ("stream-age", "GET /stream/age", ""),
    (
        "stream-grpc",
        "POST /stream/grpc\ncontent-type: application/grpc\ngrpc-timeout: 20S",
        "x",
    ),
    (
        "stream-grpc-long",
        "POST /stream/grpc\ncontent-type: application/grpc\ngrpc-timeout: 100S",
        "x",
    ),
    (
        "stream-grpc-none",
        "POST /stream/grpc\ncontent-type: application/grpc",
        "x",
    ),
    (
        "stream-grpc-free",
        "POST /stream/free\ncontent-type: application/grpc\ngrpc-timeout: 40000H",
        "x",
    ),
    ("expected", "GET /expected", ""),
    ("expected-per-try", "GET /expected/try", ""),
    ("expected-per-try-long", "GET /expected/long", ""),
    ("no-endpoint", "GET /none", ""),
    (
        "no-endpoint-grpc",
        "POST /none\ncontent-type: application/grpc",
        "x",
    ),
    ("no-cluster", "GET /missing", ""),
    ("no-route", "GET /nowhere", ""),
    ("refused", "GET /down", ""),
    ("reset", "GET /reset", ""),
    ("breaker", "GET /full", ""),
    ("timeout", "GET /slow", ""),
    ("timeout-per-try", "GET /slow/try", ""),
    ("dots", "GET /x/../exact", ""),
    ("slashes", "GET //x///..//exact", ""),
    (
        "upgrade",
        "GET /exact\nconnection: upgrade\nupgrade: spdy",
        "",
    ),
];

/// What a client and the log say of one request.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub status: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub line: String,
}

/// A line with its flags in order: Envoy prints them as they came.
pub fn in_order(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    if let Some(flags) = words.get_mut(2) {
        let mut each: Vec<&str> = flags.split(',').collect();
        each.sort_unstable();
        *flags = each.join(",");
    }
    words.join(" ")
}

pub async fn ask(
    at: SocketAddr,
    host: &str,
    case: &str,
    request: &str,
    body: &str,
) -> (String, BTreeMap<String, String>, String) {
    let (first, more) = request.split_once('\n').unwrap_or((request, ""));
    let more = if more.is_empty() {
        String::new()
    } else {
        format!("{more}\n")
    };

    let length = if body.is_empty() {
        String::new()
    } else {
        format!("content-length: {}\n", body.len())
    };

    let text = format!("{first} HTTP/1.1\nhost: {host}\nx-case: {case}\n{more}{length}\n{body}");
    let (head, body) = Client::connect(at).await.ask(&text).await;
    let mut lines = head.trim_end().split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or_default()
        .to_owned();

    let mut headers = BTreeMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if name == "connection" {
            // After an answer of its own Envoy closes where we read on to the end of the request.
            continue;
        }

        let value = if PRESENT.contains(&name) {
            "(present)"
        } else {
            value
        };

        headers
            .entry(name.to_owned())
            .and_modify(|all: &mut String| *all = format!("{all}|{value}"))
            .or_insert(value.to_owned());
    }

    (status, headers, body)
}

#[tokio::test]
async fn envoy_and_we_answer_alike() {
    let Some(program) = envoy::program("envoy_and_we_answer_alike") else {
        return;
    };
    let clusters = clusters().await;
    let log = "access.log";
    let theirs = Envoy::start(program, clusters.clone(), |folder| {
        vec![in_front(&folder.join(log).display().to_string())]
    })
    .await;

    let ours = Running::start(ProxyOptions::default());
    ours.apply(clusters, vec![in_front("/dev/stdout")]).await;
    let (their_address, our_address) = (theirs.at("in").await, ours.at("in").await);
    let hosts = [
        ("authority", "narrow.example:80"),
        ("authority-wildcard", "x.narrow.example"),
        ("authority-case", "NARROW.example"),
        ("authority-dot", "narrow.example."),
        ("authority-dot-port", "narrow.example.:80"),
        ("authority-dot-wildcard", "x.narrow.example."),
    ];

    let by_host = hosts
        .iter()
        .map(|(case, host)| (*case, *host, "GET /here", ""));
    let by_host_not = [("authority-no-route", "narrow.example", "GET /exact", "")];
    let others = CASES
        .iter()
        .map(|(case, request, body)| (*case, "svc.example", *request, *body));
    let mut different = Vec::new();
    for (case, host, request, body) in by_host.chain(by_host_not).chain(others) {
        let start = format!("case={case} ");
        let (status, headers, text) = ask(their_address, host, case, request, body).await;
        let envoy = Seen {
            status,
            headers,
            body: text,
            line: in_order(&theirs.line(log, &start).await),
        };

        let (status, headers, text) = ask(our_address, host, case, request, body).await;
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
}
