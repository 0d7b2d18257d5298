//! Streams that outlive what they were begun under: a client that leaves, terms that change, limits
//! of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::google::protobuf::UInt32Value;
use meltemi_proto::type_url::LISTENER;
use meltemi_proxy::ProxyOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::config::*;
use crate::hostile::soon;
use crate::http2::connect;
use crate::peers::{self, Client};

/// Over HTTP/2: heads at once, and nothing after them.
async fn silent_streams() -> SocketAddr {
    peers::server(|stream, _| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        let mut held = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let send = respond
                .send_response(Response::new(()), false)
                .expect("sent");
            held.push((request, send));
        }
    })
    .await
}

/// Over HTTP/1.1: a head and the first of many chunks.
async fn events() -> SocketAddr {
    peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        while peers::read_message(&mut stream, &mut waiting).await.is_some() {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            let _ = stream.write_all(&[&head[..], b"4\r\ntick\r\n"].concat()).await;
        }
    })
    .await
}

fn one_at_a_time(mut cluster: cluster::Cluster) -> cluster::Cluster {
    cluster.circuit_breakers = Some(cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_requests: Some(UInt32Value { value: 1 }),
            ..Default::default()
        }],
        ..Default::default()
    });
    cluster
}

/// Asks until the breaker has room: whoever had the only place has given it back.
async fn is_free(at: SocketAddr) {
    for _ in 0..1000 {
        let mut send = connect(at).await;
        let request = Request::get("http://svc/free").body(()).expect("good");
        let (response, _stream) = send.send_request(request, true).expect("sent");
        if response.await.expect("a response").status() == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    panic!("the place is never given back");
}

#[tokio::test]
async fn a_client_that_leaves_a_silent_stream_frees_all_that_it_held() {
    let upstreams = [
        http2(static_cluster("up", &[silent_streams().await])),
        static_cluster("up", &[events().await]),
    ];

    for up in upstreams {
        let manager = manager(inline(table("r", vec![forward("/", "up")])));
        let running = Running::with(
            vec![one_at_a_time(up)],
            vec![listener("in", vec![http_chain(&manager)])],
        )
        .await;

        let at = running.at("in").await;
        for closes in [false, true] {
            let stream = tokio::net::TcpStream::connect(at).await.expect("connects");
            let (mut send, connection) = h2::client::handshake(stream).await.expect("handshake");
            let driver = tokio::spawn(connection);
            let request =
                Request::post("http://svc/watch").header("content-type", "application/grpc");
            let (response, mut body) = send
                .send_request(request.body(()).expect("good"), false)
                .expect("sent");
            body.send_data(Bytes::from_static(b"watch"), true)
                .expect("sent");
            let response = response.await.expect("a head");
            assert_eq!(response.status(), 200);
            if closes {
                driver.abort();
            } else {
                body.send_reset(h2::Reason::CANCEL);
            }

            is_free(at).await;
            drop(response);
        }

        running
            .log
            .line_with("200 DC downstream_remote_disconnect /watch")
            .await;
    }
}

#[tokio::test]
async fn busy_connections_end_when_their_listener_has_gone_for_the_time_to_drain() {
    let manager = manager(inline(table(
        "r",
        vec![forward("/grpc", "grpc"), forward("/events", "events")],
    )));

    let clusters = vec![
        http2(static_cluster("grpc", &[silent_streams().await])),
        static_cluster("events", &[events().await]),
    ];

    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;
    let mut client = Client::connect(at).await;

    client.send("GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut tick = Vec::new();
    while !tick.ends_with(b"tick\r\n") {
        client.stream.read_buf(&mut tick).await.expect("a chunk");
    }
    let mut send = connect(at).await;
    let (response, _stream) = send
        .send_request(
            Request::post("http://svc/grpc").body(()).expect("good"),
            false,
        )
        .expect("sent");

    let mut body = response.await.expect("a head").into_body();
    running
        .handle
        .apply(LISTENER, vec![], vec!["in".into()])
        .await
        .expect("removed");

    soon(client.closed()).await;
    assert!(
        soon(body.data()).await.is_none_or(|piece| piece.is_err()),
        "the stream ends"
    );

    for path in ["/events", "/grpc"] {
        let line = running.log.line_with(&format!(" {path} ")).await;
        assert!(
            line.starts_with("200 LR connection_drained ")
                && line.contains("<filter chain changed: "),
            "{line}"
        );
    }

    crate::hostile::until("nobody is left", || running.handle.connections() == 0).await;
}

#[tokio::test]
async fn requests_without_an_answer_end_after_the_time_to_drain_too() {
    let asked = Arc::new(Notify::new());
    let begun = asked.clone();
    let silent = peers::server(move |mut stream, _| {
        let begun = begun.clone();
        async move {
            peers::read_message(&mut stream, &mut Vec::new()).await;
            begun.notify_one();
            std::future::pending::<()>().await;
        }
    })
    .await;

    let (running, at) = simple(silent).await;
    let mut client = Client::connect(at).await;
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    soon(asked.notified()).await;

    // What only drains has all the time that the process has; what is not accepted any more has
    // not.
    running.handle.drain().await;
    running
        .handle
        .apply(LISTENER, Vec::new(), vec!["in".into()])
        .await
        .expect("removed");

    let (head, _) = soon(client.receive()).await.expect("an answer");
    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.contains("connection: close\r\n"),
        "{head}"
    );

    let line = running
        .log
        .line_with("503 LR connection_drained /slow")
        .await;

    assert!(
        line.ends_with("<filter chain changed: filter chain http>"),
        "{line}"
    );

    assert!(soon(client.closed()).await);
}

#[tokio::test]
async fn whoever_is_answered_while_the_proxy_drains_is_told_that_this_was_the_last() {
    let answers = Arc::new(Notify::new());
    let asked = Arc::new(AtomicUsize::new(0));
    let (gate, count) = (answers.clone(), asked.clone());
    let upstream = peers::server(move |mut stream, _| {
        let (gate, count) = (gate.clone(), count.clone());
        async move {
            let mut waiting = Vec::new();
            while let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await {
                if head.starts_with("GET /slow") {
                    count.fetch_add(1, Ordering::Relaxed);
                    gate.notified().await;
                }
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await;
            }
        }
    })
    .await;

    let running = Running::start_with(ProxyOptions {
        drain_time: Duration::from_secs(3600),
        ..Default::default()
    });

    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    running
        .apply(
            vec![static_cluster("up", &[upstream])],
            vec![listener("in", vec![http_chain(&manager)])],
        )
        .await;

    let at = running.at("in").await;
    let mut idle = Client::connect(at).await;
    assert!(
        !idle
            .ask("GET / HTTP/1.1\nhost: a\n\n")
            .await
            .0
            .contains("connection: close")
    );

    let mut client = Client::connect(at).await;
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    crate::hostile::until("it was asked", || asked.load(Ordering::Relaxed) == 1).await;
    running.handle.drain().await;
    assert!(soon(idle.closed()).await);
    answers.notify_one();
    let (head, body) = soon(client.receive()).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200 ") && body == b"ok", "{head}");
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert!(soon(client.closed()).await);
}

/// Answers every request with a 101, and then keeps silent.
async fn silent_tunnels() -> SocketAddr {
    peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        if peers::read_message(&mut stream, &mut waiting).await.is_none() {
            return;
        }
        let head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n";
        let _ = stream.write_all(head).await;
        while stream.read_buf(&mut waiting).await.is_ok_and(|n| n > 0) {}
    })
    .await
}

const UPGRADE: &str = "connection: Upgrade\nupgrade: websocket\n\n";

#[tokio::test]
async fn tunnels_have_the_limits_of_their_route() {
    use meltemi_proto::envoy::config::route::v3::route_action::MaxStreamDuration;

    let limit = Some(duration(Duration::from_millis(100)));
    let idle = tune(forward("/idle", "up"), |action| action.idle_timeout = limit);
    let longest = tune(forward("/longest", "up"), |action| {
        action.max_stream_duration = Some(MaxStreamDuration {
            max_stream_duration: limit,
            ..Default::default()
        });
    });

    let manager = manager(inline(table("r", vec![idle, longest])));
    let up = static_cluster("up", &[silent_tunnels().await]);
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;
    let mut client = Client::connect(at).await;
    let (head, _) = client
        .ask(&format!("GET /idle HTTP/1.1\nhost: a\n{UPGRADE}"))
        .await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(soon(client.closed()).await);
    running
        .log
        .line_with("101 SI stream_idle_timeout /idle")
        .await;

    let mut client = Client::connect(at).await;
    client
        .ask(&format!("GET /longest HTTP/1.1\nhost: a\n{UPGRADE}"))
        .await;

    // One that talks all the time ends too.
    let (mut read, mut write) = client.stream.split();
    let talking = async {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::future::pending::<()>().await;
    };

    let mut end = [0; 1];
    tokio::select! {
        read = soon(read.read(&mut end)) => assert!(!read.is_ok_and(|n| n > 0)),
        () = talking => {}
    }

    running
        .log
        .line_with("101 - max_duration_timeout /longest")
        .await;
}

#[tokio::test]
async fn tunnels_end_with_the_terms_that_they_were_begun_under() {
    let (running, at) = simple(silent_tunnels().await).await;
    let mut client = Client::connect(at).await;
    client
        .ask(&format!("GET /ws HTTP/1.1\nhost: a\n{UPGRADE}"))
        .await;
    running
        .handle
        .apply(LISTENER, vec![], vec!["in".into()])
        .await
        .expect("removed");

    assert!(soon(client.closed()).await);
    let line = running.log.line_with(" /ws ").await;
    assert!(
        line.starts_with("101 LR connection_drained ") && line.contains("<filter chain changed: "),
        "{line}"
    );
}

/// gRPC over HTTP/1.1, as far as heads go.
#[tokio::test]
async fn endpoints_that_fail_in_the_words_of_grpc_are_left_out() {
    let bad = peers::http_server(|_, _| {
        b"HTTP/1.1 200 OK\r\ngrpc-status: 14\r\ncontent-length: 3\r\n\r\nbad".to_vec()
    });
    let good = peers::http_server(|_, _| {
        b"HTTP/1.1 200 OK\r\ngrpc-status: 5\r\ncontent-length: 4\r\n\r\ngood".to_vec()
    });
    let (bad, good) = (bad.await, good.await);
    let mut up = static_cluster("up", &[bad, good]);
    up.outlier_detection = Some(cluster::OutlierDetection {
        consecutive_5xx: Some(UInt32Value { value: 2 }),
        max_ejection_percent: Some(UInt32Value { value: 100 }),
        base_ejection_time: Some(duration(Duration::from_secs(600))),
        ..Default::default()
    });

    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;

    // What is no gRPC is judged by its status.
    for _ in 0..10 {
        peers::get(at, "/").await;
    }
    let mut answers = Vec::new();
    for _ in 0..20 {
        let request =
            "POST / HTTP/1.1\nhost: a\ncontent-type: application/grpc\ncontent-length: 0\n\n";
        answers.push(Client::connect(at).await.ask(request).await.1);
    }

    assert_eq!(
        answers.iter().filter(|answer| *answer == "bad").count(),
        2,
        "{answers:?}"
    );
}
