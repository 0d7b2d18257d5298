//! What the headers of a request from inside ask of its retries, and what responses ask.

use meltemi_proto::envoy::extensions::filters::http::router::v3::Router;
use meltemi_proto::pack;

use super::*;

fn routes() -> Vec<route::Route> {
    let with = |path: &str, policy: route::RetryPolicy| {
        tune(forward(path, "up"), |action| {
            action.retry_policy = Some(policy)
        })
    };
    let status = route::HeaderMatcher {
        name: ":status".into(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::RangeMatch(
            meltemi_proto::envoy::r#type::v3::Int64Range {
                start: 404,
                end: 405,
            },
        )),
        ..Default::default()
    };

    let mut adding = forward("/adding", "up");
    adding.request_headers_to_add = vec![core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: "x-envoy-retry-on".into(),
            value: "5xx".into(),
            ..Default::default()
        }),
        ..Default::default()
    }];
    let quick = tune(forward("/quick", "silent"), |action| {
        action.timeout = Some(duration(Duration::from_millis(50)))
    });

    vec![
        adding,
        quick,
        with("/reset", policy("reset", 1)),
        with("/5xx", policy("5xx", 2)),
        with("/codes", policy("retriable-status-codes", 1)),
        with("/headers", policy("retriable-headers", 1)),
        with(
            "/status",
            route::RetryPolicy {
                retriable_headers: vec![status],
                ..policy("retriable-headers", 1)
            },
        ),
        forward("/", "up"),
    ]
}

async fn clusters() -> Vec<cluster::Cluster> {
    let silent = peers::server(|mut stream, _| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    vec![planned().await, static_cluster("silent", &[silent.await])]
}

#[tokio::test]
async fn a_request_from_inside_asks_for_its_retries() {
    let cases = [
        case("none", "GET /\nx-plan: 503,200", 0, "503", 1),
        case(
            "on",
            "GET /\nx-plan: 503,200\nx-envoy-retry-on: 5xx",
            0,
            "200",
            2,
        ),
        case("by-route", "GET /adding\nx-plan: 503,200", 0, "200", 2),
        case(
            "body",
            "POST /\nx-plan: 503,200\nx-envoy-retry-on: 5xx",
            9,
            "200",
            2,
        ),
        case(
            "more",
            "GET /\nx-plan: 503,503,503,200\nx-envoy-retry-on: 5xx\nx-envoy-max-retries: 3",
            0,
            "200",
            4,
        ),
        case(
            "most-alone",
            "GET /\nx-plan: 503,200\nx-envoy-max-retries: 3",
            0,
            "503",
            1,
        ),
        case(
            "most",
            "GET /5xx\nx-plan: 503\nx-envoy-max-retries: 0",
            0,
            "503",
            1,
        ),
        case(
            "most-bad",
            "GET /5xx\nx-plan: 503\nx-envoy-max-retries: -1",
            0,
            "503",
            3,
        ),
        case(
            "words",
            "GET /\nx-plan: 503,200\nx-envoy-retry-on: foo, 5xx",
            0,
            "200",
            2,
        ),
        case(
            "added",
            "GET /reset\nx-plan: 503,200\nx-envoy-retry-on: 5xx",
            0,
            "200",
            2,
        ),
        case(
            "grpc",
            "GET /\nx-plan: 200,200\nx-say: grpc-status=14\nx-envoy-retry-grpc-on: unavailable",
            0,
            "200",
            2,
        ),
        case(
            "grpc-as-http",
            "GET /\nx-plan: 200,200\nx-say: grpc-status=14\nx-envoy-retry-on: unavailable",
            0,
            "200",
            1,
        ),
        case(
            "codes",
            "GET /codes\nx-plan: 410,200\nx-envoy-retriable-status-codes: abc,409, 410",
            0,
            "200",
            2,
        ),
        case(
            "names",
            "GET /headers\nx-plan: 200,200\nx-say: x-again=1\n\
             x-envoy-retriable-header-names: x-other, X-Again",
            0,
            "200",
            2,
        ),
        case("status", "GET /status\nx-plan: 404,200", 0, "200", 2),
        case("status-other", "GET /status\nx-plan: 405,200", 0, "405", 1),
        case("timeout", "GET /quick", 0, "504", 1),
        case(
            "timeout-204",
            "GET /quick\nx-envoy-upstream-rq-timeout-alt-response: 1",
            0,
            "204",
            1,
        ),
        // None of them goes on to the upstream, whatever they say.
        case(
            "removed",
            "GET /\nx-envoy-hedge-on-per-try-timeout: 1\nx-envoy-upstream-alt-stat-name: 1\n\
             x-envoy-retry-on: 1\nx-envoy-retry-grpc-on: 1\nx-envoy-max-retries: 1\n\
             x-envoy-retriable-status-codes: 1\nx-envoy-retriable-header-names: 1\n\
             x-envoy-upstream-rq-timeout-alt-response: 1\nx-envoy-internal: 1",
            0,
            "200",
            1,
        ),
    ];

    let test = "a_request_from_inside_asks_for_its_retries";
    let plain = |log: &str| listener("in", vec![http_chain(&trusting(log, routes()))]);
    compare(test, clusters().await, plain, &cases).await;

    // A router that writes none of Envoy's headers reads and removes them all the same.
    let quiet = |log: &str| {
        let router = Router {
            suppress_envoy_headers: true,
            ..Default::default()
        };
        let manager = hcm::HttpConnectionManager {
            http_filters: vec![http_filter("envoy.filters.http.router", pack(&router))],
            ..trusting(log, routes())
        };
        listener("in", vec![http_chain(&manager)])
    };
    compare(test, clusters().await, quiet, &cases).await;
}

#[tokio::test]
async fn a_stranger_asks_for_nothing() {
    let all = "GET /\nx-plan: 503,200\nx-envoy-hedge-on-per-try-timeout: 1\n\
               x-envoy-upstream-alt-stat-name: 1\nx-envoy-retry-on: 5xx\n\
               x-envoy-retry-grpc-on: internal\nx-envoy-max-retries: 1\n\
               x-envoy-retriable-status-codes: 503\nx-envoy-retriable-header-names: x-a\n\
               x-envoy-upstream-rq-timeout-alt-response: 1\nx-envoy-internal: 1\n\
               x-envoy-force-trace: 1\nx-envoy-ip-tags: 1\n\
               x-envoy-downstream-service-cluster: 1\nx-envoy-downstream-service-node: 1";
    let cases = [
        case("all", all, 0, "503", 1),
        case(
            "time",
            "GET /quick\nx-envoy-upstream-rq-timeout-alt-response: 1",
            0,
            "504",
            1,
        ),
    ];

    for (is_edge, test) in [
        (true, "a_stranger_asks_for_nothing: at the edge"),
        (false, "a_stranger_asks_for_nothing: further in"),
    ] {
        let strange = |log: &str| {
            let manager = hcm::HttpConnectionManager {
                internal_address_config: inside("192.0.2.0"),
                use_remote_address: Some(BoolValue { value: is_edge }),
                ..trusting(log, routes())
            };
            listener("in", vec![http_chain(&manager)])
        };
        compare(test, clusters().await, strange, &cases).await;
    }
}

#[tokio::test]
async fn a_response_says_when_to_come_again() {
    use route::retry_policy::{RateLimitedRetryBackOff, ResetHeader};

    let limited = tune(forward("/", "up"), |action| {
        action.retry_policy = Some(route::RetryPolicy {
            rate_limited_retry_back_off: Some(RateLimitedRetryBackOff {
                reset_headers: vec![ResetHeader {
                    name: "retry-after".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..policy("5xx", 1)
        });
    });
    let manager = trusting("/dev/stdout", vec![limited]);
    let listeners = vec![listener("in", vec![http_chain(&manager)])];
    let running = Running::with(vec![planned().await], listeners).await;

    let at = running.at("in").await;
    for (asked, is_long) in [("x=1", false), ("retry-after=1", true)] {
        let began = std::time::Instant::now();
        let request = format!("GET /\nx-plan: 503,200\nx-say: {asked}");
        let (status, ..) = ask(at, "svc", "again", &request, "").await;
        assert_eq!(status, "200");
        assert_eq!(
            began.elapsed() >= Duration::from_secs(1),
            is_long,
            "{asked}"
        );
    }
}

/// The first endpoint fails always; a retry goes elsewhere if the policy says so.
#[tokio::test]
async fn a_retry_leaves_out_endpoints_by_their_metadata_and_priorities_that_failed() {
    use meltemi_proto::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
    use meltemi_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
    use route::retry_policy::{
        RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
    };

    let failing =
        peers::http_server(|_, _| b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_vec());
    let endpoints = [failing.await, peers::echo("other").await];
    let metadata = core::Metadata {
        filter_metadata: [(
            "envoy.lb".to_owned(),
            meltemi_proto::google::protobuf::Struct {
                fields: [(
                    "stage".to_owned(),
                    meltemi_proto::google::protobuf::Value {
                        kind: Some(meltemi_proto::google::protobuf::value::Kind::StringValue(
                            "canary".to_owned(),
                        )),
                    },
                )]
                .into(),
            },
        )]
        .into(),
        ..Default::default()
    };

    let mut marked = static_cluster("marked", &endpoints);
    let localities = |cluster: &mut cluster::Cluster| {
        let assignment = cluster.load_assignment.as_mut().expect("static");
        std::mem::take(&mut assignment.endpoints)
    };
    let mut both = localities(&mut marked);
    both[0].lb_endpoints[0].metadata = Some(metadata.clone());
    marked.load_assignment.as_mut().expect("static").endpoints = both;

    let mut ranked = static_cluster("ranked", &endpoints[..1]);
    let mut first = localities(&mut ranked);
    let mut second = localities(&mut static_cluster("ranked", &endpoints[1..]));
    second[0].priority = 1;
    first.append(&mut second);
    ranked.load_assignment.as_mut().expect("static").endpoints = first;

    let omit = RetryHostPredicate {
        name: "omit".into(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(
            &OmitHostMetadataConfig {
                metadata_match: Some(metadata),
            },
        ))),
    };
    let previous = RetryPriority {
        name: "previous".into(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(pack(
            &PreviousPrioritiesConfig {
                update_frequency: 1,
            },
        ))),
    };
    let routes = vec![
        tune(forward("/marked", "marked"), |action| {
            action.retry_policy = Some(route::RetryPolicy {
                retry_host_predicate: vec![omit],
                host_selection_retry_max_attempts: 50,
                ..policy("5xx", 1)
            });
        }),
        tune(forward("/ranked", "ranked"), |action| {
            action.retry_policy = Some(route::RetryPolicy {
                retry_priority: Some(previous),
                ..policy("5xx", 1)
            });
        }),
    ];

    let manager = trusting("/dev/stdout", routes);
    let listeners = vec![listener("in", vec![http_chain(&manager)])];
    let running = Running::with(vec![marked, ranked], listeners).await;
    let at = running.at("in").await;
    for path in ["/marked", "/ranked"].repeat(10) {
        let (status, ..) = ask(at, "svc", "elsewhere", &format!("GET {path}"), "").await;
        assert_eq!(status, "200", "{path}");
    }
}
