//! How long a body may be that is sent again.

use meltemi_proto::google::protobuf::UInt64Value;

use super::*;

/// Fails once; the route's limit is in its path.
fn routes() -> Vec<route::Route> {
    let route = |path: &str, newer: Option<u64>, older: Option<u32>| {
        #[expect(deprecated, reason = "the older field counts as well")]
        route::Route {
            request_body_buffer_limit: newer.map(|value| UInt64Value { value }),
            per_request_buffer_limit_bytes: older.map(|value| UInt32Value { value }),
            ..tune(forward(path, "up"), |action| {
                action.retry_policy = Some(policy("5xx", 1))
            })
        }
    };

    vec![
        route("/newer", Some(1000), None),
        route("/older", None, Some(1000)),
        route("/raised", None, Some(4_000_000)),
        route("/both", Some(4_000_000), Some(1000)),
        route("/none", Some(0), None),
        route("/", None, None),
    ]
}

#[tokio::test]
async fn a_body_is_sent_again_up_to_the_limit_of_its_route() {
    const MIB: usize = 1024 * 1024;
    const FLAKY: &str = "POST /\nx-plan: 503,200";
    let cases = [
        case("short", FLAKY, 5, "200", 2),
        case("long", FLAKY, 100_000, "200", 2),
        case("default", FLAKY, MIB, "200", 2),
        case("too-long", FLAKY, MIB + 1, "503", 1),
        case("newer", "POST /newer\nx-plan: 503,200", 1000, "200", 2),
        case("newer-over", "POST /newer\nx-plan: 503,200", 1001, "503", 1),
        case("older", "POST /older\nx-plan: 503,200", 1000, "200", 2),
        case("older-over", "POST /older\nx-plan: 503,200", 1001, "503", 1),
        case("raised", "POST /raised\nx-plan: 503,200", 2 * MIB, "200", 2),
        case("both", "POST /both\nx-plan: 503,200", 2 * MIB, "200", 2),
        case("none", "POST /none\nx-plan: 503,200", 1, "503", 1),
        case("none-empty", "GET /none\nx-plan: 503,200", 0, "200", 2),
    ];

    let listener = |log: &str| listener("in", vec![http_chain(&trusting(log, routes()))]);
    let test = "a_body_is_sent_again_up_to_the_limit_of_its_route";
    compare(test, vec![planned().await], listener, &cases).await;
}

#[tokio::test]
async fn a_listener_limits_bodies_where_the_route_does_not() {
    let cases = [
        case("short", "POST /\nx-plan: 503,200", 1000, "200", 2),
        case("long", "POST /\nx-plan: 503,200", 3000, "503", 1),
        case("raised", "POST /raised\nx-plan: 503,200", 3000, "200", 2),
    ];

    let listener = |log: &str| proto::Listener {
        per_connection_buffer_limit_bytes: Some(UInt32Value { value: 1024 }),
        ..listener("in", vec![http_chain(&trusting(log, routes()))])
    };
    let test = "a_listener_limits_bodies_where_the_route_does_not";
    compare(test, vec![planned().await], listener, &cases).await;
}

#[tokio::test]
async fn a_body_that_was_not_kept_is_counted() {
    let manager = trusting("/dev/stdout", routes());
    let running = Running::start(crate::stats::administered());
    let listeners = vec![listener("in", vec![http_chain(&manager)])];
    running.apply(vec![planned().await], listeners).await;

    let at = running.at("in").await;
    for size in [1000, 1001] {
        let body = "x".repeat(size);
        let request = "POST /newer\nx-plan: 503,200";
        ask(at, "svc", "counted", request, &body).await;
    }

    let page = crate::stats::page(&running, "/stats").await;
    let line = "cluster.up.retry_or_shadow_abandoned: 1\n";
    assert!(page.contains(line), "{page}");
}
