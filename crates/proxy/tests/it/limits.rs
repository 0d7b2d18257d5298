//! Whoever is slow or silent is answered, or let go, when its time is up.

use std::net::SocketAddr;
use std::time::Duration;

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use meltemi_proto::google::protobuf::{UInt32Value, UInt64Value};
use meltemi_proto::pack;
use meltemi_proxy::ProxyOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::*;
use crate::peers::{self, Client};

const SHORT: Duration = Duration::from_millis(50);

async fn silent() -> SocketAddr {
    peers::server(|mut stream, _| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await
}

async fn with(
    upstream: SocketAddr,
    change: impl FnOnce(&mut HttpConnectionManager),
) -> (Running, SocketAddr) {
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    change(&mut manager);
    let running = Running::with(
        vec![static_cluster("up", &[upstream])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;
    let at = running.at("in").await;
    (running, at)
}

async fn is_answered(
    at: SocketAddr,
    request: &str,
    status: &str,
    body: &str,
    running: &Running,
    line: &str,
) {
    let mut client = Client::connect(at).await;
    client.send(request).await;
    let (head, text) = client.receive().await.expect("an answer");
    let text = String::from_utf8_lossy(&text);
    assert!(
        head.starts_with(&format!("HTTP/1.1 {status} ")) && text == body,
        "{head}{text}"
    );

    running.log.line_with(line).await;

    if status == "408" {
        assert!(head.contains("connection: close"), "{head}");
        assert!(client.closed().await);
    }
}

#[tokio::test]
async fn a_head_has_its_time() {
    let (running, at) = with(silent().await, |m| {
        m.request_headers_timeout = Some(duration(SHORT))
    })
    .await;

    let line = "408 - request_header_timeout - - 22 <request headers timeout of http>";
    is_answered(
        at,
        "GET / HTTP/1.1\r\nhost:",
        "408",
        "request header timeout",
        &running,
        line,
    )
    .await;

    // Without a limit of its own it has the stream's.
    let (running, at) = with(silent().await, |m| {
        m.stream_idle_timeout = Some(duration(SHORT))
    })
    .await;

    let line = "408 - stream_idle_timeout - - 14 <stream idle timeout of http>";
    is_answered(
        at,
        "GET / HTTP/1.1\r\nhost:",
        "408",
        "stream timeout",
        &running,
        line,
    )
    .await;
}

#[tokio::test]
async fn a_request_has_its_time() {
    let (running, at) = with(silent().await, |m| {
        m.request_timeout = Some(duration(SHORT))
    })
    .await;
    let request = "POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc";
    let line = "408 - request_overall_timeout /slow up 15 <request timeout of to-up>";
    is_answered(at, request, "408", "request timeout", &running, line).await;

    // The head is part of the request.
    let line = "408 - request_overall_timeout - - 15 <request timeout of http>";
    let request = "POST /slow HTTP/1.1\r\nhost:";
    is_answered(at, request, "408", "request timeout", &running, line).await;
}

#[tokio::test]
async fn durations_count_from_the_first_byte_of_a_head() {
    let upstream = peers::http_server(|_, _| b"HTTP/1.1 204 No Content\r\n\r\n".to_vec());
    let (running, at) = with(upstream.await, |m| {
        m.access_log = vec![log_as("/dev/stdout", "took %DURATION%\n")];
    })
    .await;
    let pause = Duration::from_millis(200);

    let mut client = Client::connect(at).await;
    client.send("GET /late HTTP/1.1\r\nhost:").await;
    tokio::time::sleep(pause).await;
    client.send(" a\r\n\r\n").await;
    let (head, _) = client.receive().await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 204 "), "{head}");

    let line = running.log.line_with("took ").await;
    let took: u128 = line["took ".len()..].trim().parse().expect("milliseconds");
    assert!(took >= pause.as_millis(), "{line}");
}

#[tokio::test]
async fn silence_ends_a_stream_and_the_status_says_whose_it_was() {
    let (running, at) = with(silent().await, |m| {
        m.stream_idle_timeout = Some(duration(SHORT))
    })
    .await;

    let line = "504 SI stream_idle_timeout /upstream up 14 <stream idle timeout of to-up>";
    is_answered(
        at,
        "GET /upstream HTTP/1.1\r\nhost: a\r\n\r\n",
        "504",
        "stream timeout",
        &running,
        line,
    )
    .await;

    let request = "POST /client HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc";
    let line = "408 SI stream_idle_timeout /client up 14 <stream idle timeout of to-up>";
    is_answered(at, request, "408", "stream timeout", &running, line).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go() {
    let endless = peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        peers::read_message(&mut stream, &mut waiting).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
            .await;
        while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
    })
    .await;

    let (running, at) = with(endless, |m| m.stream_idle_timeout = Some(duration(SHORT))).await;
    let mut client = Client::connect(at).await;
    client
        .send("GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let line = running.log.line_with("/endless").await;
    assert!(line.starts_with("200 SI stream_idle_timeout "), "{line}");
}

#[tokio::test]
async fn silence_in_an_attempt_moves_on_to_the_next() {
    let up = peers::server(|mut stream, number| async move {
        let mut waiting = Vec::new();
        while let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await {
            if number == 0 || head.contains("/never") {
                std::future::pending::<()>().await;
            }
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;

    let retrying = tune(forward("/", "up"), |action| {
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "5xx".into(),
            num_retries: Some(UInt32Value { value: 1 }),
            per_try_idle_timeout: Some(duration(SHORT)),
            ..Default::default()
        });
    });

    let manager = manager(inline(table("r", vec![retrying])));
    let running = Running::with(
        vec![static_cluster("up", &[up])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let at = running.at("in").await;
    let (head, body) = peers::get(at, "/second").await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && body == "ok",
        "{head}{body}"
    );

    let (head, body) = peers::get(at, "/never").await;
    assert!(
        head.starts_with("HTTP/1.1 504 ") && body == "upstream request timeout",
        "{head}{body}"
    );

    let line =
        "504 URX,UT upstream_per_try_idle_timeout /never up 24 <per-try idle timeout of to-up>";
    running.log.line_with(line).await;
}

fn lives_no_longer() -> core::HttpProtocolOptions {
    core::HttpProtocolOptions {
        max_connection_duration: Some(duration(Duration::from_nanos(1))),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_downstream_connection_lives_its_time() {
    let (_running, at) = with(peers::echo("up").await, |m| {
        m.common_http_protocol_options = Some(lives_no_longer())
    })
    .await;

    let mut client = Client::connect(at).await;

    // Either the request came first and is the last one, or the connection ended first.
    let _ = client
        .stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;

    if let Some((head, _)) = client.receive().await {
        assert!(head.contains("connection: close"), "{head}");
    }
    assert!(client.closed().await);
    let stream = tokio::net::TcpStream::connect(at).await.expect("connects");
    let (_send, connection) = h2::client::handshake(stream).await.expect("handshake");

    // GOAWAY without an error.
    connection.await.expect("ends in order");
}

#[tokio::test]
async fn an_upstream_connection_lives_its_time() {
    let numbered = peers::server(|mut stream, number| async move {
        let mut waiting = Vec::new();
        while peers::read_message(&mut stream, &mut waiting)
            .await
            .is_some()
        {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{number:02}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;

    let mut up = static_cluster("up", &[numbered]);
    let options = meltemi_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions {
        common_http_protocol_options: Some(lives_no_longer()),
        ..Default::default()
    };

    up.typed_extension_protocol_options.insert(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(),
        pack(&options),
    );

    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut client = Client::connect(running.at("in").await).await;

    for number in ["00", "01", "02"] {
        assert_eq!(client.ask("GET / HTTP/1.1\nhost: a\n\n").await.1, number);
    }
}

#[tokio::test]
async fn a_connection_limit_is_one_for_all_workers() {
    const MOST: usize = 5;

    let mut chain = http_chain(&manager(inline(table("r", vec![forward("/", "up")]))));
    let limit = ConnectionLimit {
        stat_prefix: "few".into(),
        max_connections: Some(UInt64Value { value: MOST as u64 }),
        ..Default::default()
    };

    chain.filters.insert(
        0,
        network_filter("envoy.filters.network.connection_limit", pack(&limit)),
    );

    let running = Running::start(ProxyOptions {
        workers: 4,
        ..Default::default()
    });

    let up = static_cluster("up", &[peers::echo("up").await]);
    running
        .apply(vec![up], vec![listener("in", vec![chain])])
        .await;
    let at = running.at("in").await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut held = Vec::new();

    // Enough for every worker to be asked, wherever the kernel sends them.
    for n in 0..40 {
        let mut client = Client::connect(at).await;
        // The refused are closed, perhaps before this.
        let _ = client.stream.write_all(request.as_bytes()).await;
        match client.receive().await {
            Some(_) => held.push(client),
            None => assert!(held.len() == MOST, "refused as number {n}"),
        }
    }

    assert_eq!(held.len(), MOST);

    // A place that is given back is there for whoever comes next, at any worker.
    held.pop();

    loop {
        let mut client = Client::connect(at).await;
        let _ = client.stream.write_all(request.as_bytes()).await;
        if client.receive().await.is_some() {
            break;
        }
    }
}
