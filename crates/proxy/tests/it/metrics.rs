//! Istio's standard metrics over real exchanges.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use meltemi_proto::envoy::config::core::v3::TrafficDirection;
use meltemi_proto::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStats;
use meltemi_proto::istio::StatsConfig;
use meltemi_proto::pack;

use crate::config::*;
use crate::http2::connect;
use crate::peers::{self, Client};

/// Answers every call with two messages, one of them in pieces.
async fn grpc_server() -> SocketAddr {
    peers::server(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.expect("handshake");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(piece)) = body.data().await {
                    let _ = body.flow_control().release_capacity(piece.len());
                }
                let response = Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .expect("good");

                let mut send = respond.send_response(response, false).expect("sent");
                for piece in [&b"\0\0\0\0\x03abc\0\0"[..], b"\0\0\x05he", b"llo"] {
                    send.send_data(Bytes::from_static(piece), false)
                        .expect("sent");
                }

                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().expect("a value"));
                send.send_trailers(trailers).expect("sent");
            });
        }
    })
    .await
}

fn value(metrics: &str, family: &str) -> Option<u64> {
    let line = metrics
        .lines()
        .find(|line| line.starts_with(&format!("{family}{{")))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test]
async fn messages_of_grpc_are_counted_both_ways() {
    let mut manager = manager(inline(table(
        "r",
        vec![forward("/web", "web"), forward("/", "up")],
    )));

    let grpc = GrpcStats {
        emit_filter_state: true,
        ..Default::default()
    };

    manager
        .http_filters
        .insert(0, http_filter("istio.stats", pack(&StatsConfig::default())));
    manager
        .http_filters
        .insert(0, http_filter("envoy.filters.http.grpc_stats", pack(&grpc)));
    let up = http2(static_cluster("up", &[grpc_server().await]));
    let web = static_cluster("web", &[peers::echo("web").await]);
    let running = Running::with(
        vec![up, web],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let at = running.at("in").await;
    let mut send = connect(at).await;
    let request =
        Request::post("http://svc/pkg.Service/Method").header("content-type", "application/grpc");
    let (response, mut body) = send
        .send_request(request.body(()).expect("good"), false)
        .expect("sent");

    // Three messages: an empty one, one in two pieces, one that follows in the same piece.
    for (piece, is_last) in [
        (&b"\0\0\0\0\0"[..], false),
        (b"\x01\0\0\0\x04ab", false),
        (b"cd\0\0\0\0\x01x", true),
    ] {
        body.send_data(Bytes::from_static(piece), is_last)
            .expect("sent");
    }

    let mut stream = response.await.expect("a response").into_body();
    while let Some(piece) = stream.data().await {
        let _ = stream
            .flow_control()
            .release_capacity(piece.expect("data").len());
    }

    running
        .log
        .line_with("200 - via_upstream /pkg.Service/Method up 18")
        .await;

    let metrics = running.handle.metrics();
    assert_eq!(
        value(&metrics, "istio_request_messages_total"),
        Some(3),
        "{metrics}"
    );

    assert_eq!(
        value(&metrics, "istio_response_messages_total"),
        Some(2),
        "{metrics}"
    );

    // Whoever answers a call with something else has sent no message; a plain request counts
    // nowhere.
    let mut client = Client::connect(at).await;
    let call = "POST /web HTTP/1.1\nhost: a\ncontent-type: application/grpc\ncontent-length: 5\n\n\0\0\0\0\0";
    assert!(client.ask(call).await.0.starts_with("HTTP/1.1 200 "));
    client
        .ask("POST /web/plain HTTP/1.1\nhost: a\ncontent-length: 5\n\n\0\0\0\0\0")
        .await;
    running.log.line_with(" /web/plain ").await;
    let metrics = running.handle.metrics();
    let all = |family: &str| {
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with(&format!("{family}{{")));
        lines
            .map(|line| {
                line.rsplit_once(' ')
                    .expect("a value")
                    .1
                    .parse::<u64>()
                    .expect("a number")
            })
            .sum::<u64>()
    };

    assert_eq!(
        (
            all("istio_request_messages_total"),
            all("istio_response_messages_total")
        ),
        (4, 2),
        "{metrics}"
    );
}

#[tokio::test]
async fn unknown_destinations_are_named_by_the_host_that_was_asked_for() {
    for (disabled, service) in [(false, "example.org:8080"), (true, "unknown")] {
        let mut manager = manager(inline(table("r", vec![forward("/", "PassthroughCluster")])));
        let stats = StatsConfig {
            disable_host_header_fallback: disabled,
            ..Default::default()
        };

        manager
            .http_filters
            .insert(0, http_filter("istio.stats", pack(&stats)));
        let mut outbound = listener("out", vec![http_chain(&manager)]);
        outbound.traffic_direction = TrafficDirection::Outbound as i32;
        let up = static_cluster("PassthroughCluster", &[peers::echo("up").await]);
        let running = Running::with(vec![up], vec![outbound]).await;
        let mut client = Client::connect(running.at("out").await).await;

        client
            .ask("GET /x HTTP/1.1\nhost: example.org:8080\n\n")
            .await;
        client
            .ask("GET /y HTTP/1.1\nhost: example.org:8080\n\n")
            .await;
        running.log.line_with(" /y ").await;
        let metrics = running.handle.metrics();
        let wanted = format!(
            "destination_service=\"{service}\",destination_service_name=\"PassthroughCluster\""
        );
        let line = metrics
            .lines()
            .find(|line| line.starts_with("istio_requests_total{") && line.contains(&wanted));
        assert!(line.is_some_and(|line| line.ends_with("} 2")), "{metrics}");
    }
}
