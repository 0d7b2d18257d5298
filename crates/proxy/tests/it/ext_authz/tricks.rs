//! Clients that try to get past the service, and answers of a service that would break messages.

use std::time::Duration;

use meltemi_proto::envoy::extensions::filters::http::ext_authz::v3 as proto;

use super::{body, clusters, filter, grpc, http, with, with_manager};
use crate::authorizers;
use crate::config::*;
use crate::differential::ask;
use crate::peers::Client;

const LONG: Duration = Duration::from_secs(300);

/// A listener `in` with this filter.
async fn running(config: &proto::ExtAuthz) -> Running {
    Running::with(
        clusters().await,
        vec![with("in", "/dev/stdout", vec![filter(config)])],
    )
    .await
}

/// The head of a GET with which the gRPC service answers in this way.
fn get(what: &str) -> String {
    format!("GET /in HTTP/1.1\nhost: svc\nx-ask: {what}\n\n")
}

#[tokio::test]
async fn a_request_that_cannot_be_put_to_the_service_never_passes() {
    // The service speaks HTTP/2, in which this path cannot be written, and all else fails open.
    let open = proto::ExtAuthz {
        failure_mode_allow: true,
        ..http()
    };
    let mut clusters = clusters().await;
    clusters.retain(|cluster| cluster.name != "http");
    clusters.push(http2(static_cluster("http", &[authorizers::grpc().await])));
    let running = Running::with(
        clusters,
        vec![with("in", "/dev/stdout", vec![filter(&open)])],
    )
    .await;
    let at = running.at("in").await;

    let (status, ..) = ask(at, "svc", "ordinary", "GET /in", "").await;
    assert_eq!(status, "200");
    for (case, host, request) in [
        ("path", "svc", "GET /in<"),
        ("quote", "svc", "GET /in`"),
        ("host", "a%40b", "GET /in"),
    ] {
        let (status, ..) = ask(at, host, case, request, "").await;
        assert_eq!(status, "403", "{case}");
    }
    let cause = running.log.line_with("case=path <").await;
    assert!(cause.contains("the request cannot be sent"), "{cause}");
}

#[tokio::test]
async fn a_body_is_checked_whatever_the_request_wants_to_become() {
    let whole = proto::ExtAuthz {
        with_request_body: body(10, false),
        ..grpc(LONG)
    };
    let running = running(&whole).await;
    let at = running.at("in").await;

    let upgrade = "POST /in\nconnection: upgrade\nupgrade: websocket";
    let (status, ..) = ask(at, "svc", "long", upgrade, "0123456789 and more").await;
    assert_eq!(status, "413");
    let (status, _, seen) = ask(at, "svc", "short", upgrade, "01234").await;
    assert_eq!(status, "200");
    assert!(
        seen.contains("body=\\\"01234\\\"") || seen.contains("body=\"01234\""),
        "{seen}"
    );
}

#[tokio::test]
async fn no_answer_of_a_service_shifts_the_responses_of_a_connection() {
    let running = running(&grpc(LONG)).await;

    for (what, status) in [("status-204", 204), ("status-304", 304)] {
        let mut client = Client::connect(running.at("in").await).await;
        client.send(get(what).replace('\n', "\r\n")).await;
        let mut next = client.read_head().await;
        assert!(
            next.starts_with(&format!("HTTP/1.1 {status} ")),
            "{what}: {next}"
        );
        client.send(get("allow").replace('\n', "\r\n")).await;
        next = client.read_head().await;
        assert!(next.starts_with("HTTP/1.1 200 "), "{what}: {next}");
    }

    // The upstream is asked with HEAD, and the client, which asked with POST, waits for a body.
    let mut client = Client::connect(running.at("in").await).await;
    for what in ["method-head", "allow"] {
        let request = get(what).replace("GET", "POST");
        let (head, _) = client.ask(&request).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{what}: {head}");
    }

    // And the other way round: a client that asked with HEAD waits for none.
    let mut client = Client::connect(running.at("in").await).await;
    for what in ["method-get", "allow"] {
        let request = get(what).replace("GET /in", "HEAD /in");
        client.send(request.replace('\n', "\r\n")).await;
        let head = client.read_head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{what}: {head}");
    }
}

#[tokio::test]
async fn no_answer_of_a_service_breaks_the_request_line() {
    let running = running(&grpc(LONG)).await;
    let at = running.at("in").await;

    let (status, _, seen) = ask(at, "svc", "pseudo", "GET /in\nx-ask: pseudo", "").await;
    assert_eq!(status, "200");
    assert!(
        seen.starts_with("up\nGET /in HTTP/1.1\n") && seen.contains("host: svc\n"),
        "{seen}"
    );
    let (status, ..) = ask(at, "svc", "long", "GET /in\nx-ask: long", "").await;
    assert_eq!(status, "403");
    let cause = running.log.line_with("case=long <").await;
    assert!(cause.contains("more than 64 KiB of headers"), "{cause}");
}

#[tokio::test]
async fn an_answer_that_is_no_final_response_is_a_failure() {
    let running = running(&http()).await;
    let at = running.at("in").await;
    for what in ["switch", "odd-status"] {
        let request = format!("GET /in\nx-ask: {what}");
        let (status, ..) = ask(at, "svc", what, &request, "").await;
        assert_eq!(status, "403", "{what}");
    }
    let (status, ..) = ask(at, "svc", "next", "GET /in", "").await;
    assert_eq!(status, "200", "the connection of the 101 is not used again");
}

#[tokio::test]
async fn a_check_ends_when_its_client_is_gone_whatever_the_client_has_sent() {
    let whole = proto::ExtAuthz {
        with_request_body: None,
        ..grpc(LONG)
    };
    let running = running(&whole).await;
    let get = "GET /in HTTP/1.1\r\nhost: svc\r\nx-ask: hang\r\n";
    let post = "POST /in HTTP/1.1\r\nhost: svc\r\nx-ask: hang\r\ncontent-length: 5\r\n";

    for (case, request) in [
        ("pipelined", format!("{get}x-case: pipelined\r\n\r\nG")),
        ("unsent", format!("{post}x-case: unsent\r\n\r\n")),
        ("unread", format!("{post}x-case: unread\r\n\r\n01234")),
    ] {
        let mut client = Client::connect(running.at("in").await).await;
        client.send(&request).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        // A reset, as of a process that was killed while bytes waited for it.
        meltemi_net::socket::reset_on_close(&client.stream);
        drop(client);
        let line = running.log.line_with(&format!("case={case} 0")).await;
        assert!(line.contains(" DC downstream_remote_disconnect "), "{line}");
    }
}

#[tokio::test]
async fn the_limits_of_a_stream_end_a_check() {
    let filters = vec![filter(&grpc(LONG))];
    let listener = with_manager("in", "/dev/stdout", filters, |manager| {
        manager.stream_idle_timeout = Some(duration(Duration::from_millis(200)));
    });
    let running = Running::with(clusters().await, vec![listener]).await;
    let at = running.at("in").await;
    let (status, ..) = ask(at, "svc", "idle", "GET /in\nx-ask: hang", "").await;
    assert_eq!(status, "504", "the client has sent all");
    let line = running.log.line_with("case=idle 504").await;
    assert!(line.contains(" SI stream_idle_timeout "), "{line}");
}
