//! Messages of unusual size: large uploads with early answers, large heads of answers, no host, no
//! room.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::*;
use crate::peers::{self, Client};

/// RFC 9112 §9.6: who sends a large body reads the answer when all of it has gone out.
#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let (_running, at) = simple(peers::nobody().await).await;
    let size = 4 * 1024 * 1024;
    let mut client = Client::connect(at).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n"
        ))
        .await;

    // As slowly as a network, so that the answer is there long before the end.
    for _ in 0..size / 65_536 {
        client
            .stream
            .write_all(&[b'x'; 65_536])
            .await
            .expect("the proxy reads on");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let mut answer = String::new();
    client
        .stream
        .read_to_string(&mut answer)
        .await
        .expect("no reset");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

/// Whoever pools connections does not send another request behind the rest of a long body.
#[tokio::test]
async fn an_early_answer_to_a_long_body_tells_that_the_connection_ends() {
    let (_running, at) = simple(peers::nobody().await).await;
    let ask = async |framing: &str, body: &[u8]| {
        let mut client = Client::connect(at).await;
        client
            .send(format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n"))
            .await;
        let (head, _) = client.receive().await.expect("an early answer");
        client.send(body).await;
        (head.contains("\r\nconnection: close\r\n"), client)
    };

    for framing in ["content-length: 100000", "transfer-encoding: chunked"] {
        let (closes, _) = ask(framing, b"").await;
        assert!(closes, "{framing}");
    }

    // A short one is read to its end, and the next request follows it.
    let (closes, mut client) = ask("content-length: 1000", &[b'x'; 1000]).await;
    assert!(!closes);
    let (head, _) = client.ask("GET / HTTP/1.1\nhost: a\n\n").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
}

#[tokio::test]
async fn answers_have_larger_heads_than_requests() {
    let up = peers::http_server(|head, _| {
        let size: usize = head
            .split(['/', ' '])
            .find_map(|word| word.parse().ok())
            .expect("a size");
        let field = "x".repeat(size);
        format!("HTTP/1.1 200 OK\r\nx-large: {field}\r\ncontent-length: 0\r\n\r\n").into_bytes()
    })
    .await;
    let (_running, at) = simple(up).await;
    for (size, status) in [(70_000, "200"), (90_000, "502")] {
        let (head, _) = peers::get(at, &format!("/{size}")).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{size}");
    }
}

/// RFC 9112 §3.2: a target without authority comes with an empty host.
#[tokio::test]
async fn an_empty_host_is_for_the_host_that_takes_all() {
    let up = peers::echo("up").await;
    let mut named = table("r", vec![forward("/", "up")]);
    named.virtual_hosts[0].domains = vec!["a.test".into()];
    let running = Running::with(
        vec![static_cluster("up", &[up])],
        vec![
            listener(
                "all",
                vec![http_chain(&manager(inline(table(
                    "r",
                    vec![forward("/", "up")],
                ))))],
            ),
            listener("named", vec![http_chain(&manager(inline(named)))]),
        ],
    )
    .await;

    for (name, status) in [("all", "200"), ("named", "404")] {
        let mut client = Client::connect(running.at(name).await).await;
        let (head, _) = client.ask("GET / HTTP/1.1\nhost:\n\n").await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {head}"
        );
    }
}

#[tokio::test]
async fn a_request_that_a_breaker_drops_says_so() {
    use meltemi_proto::envoy::config::cluster::v3 as cluster;
    use meltemi_proto::google::protobuf::UInt32Value;

    let mut full = static_cluster("up", &[peers::echo("up").await]);
    full.circuit_breakers = Some(cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_pending_requests: Some(UInt32Value { value: 0 }),
            ..Default::default()
        }],
        ..Default::default()
    });
    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let running = Running::with(vec![full], vec![listener("in", vec![http_chain(&manager)])]).await;

    let (head, _) = peers::get(running.at("in").await, "/").await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.contains("x-envoy-overloaded: true\r\n"),
        "{head}"
    );
}
