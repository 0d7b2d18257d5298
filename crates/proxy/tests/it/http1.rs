//! HTTP/1.1 on both sides.

use std::time::Duration;

use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::google::protobuf::UInt32Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::*;
use crate::peers::{self, Client, get};

#[tokio::test]
async fn a_request_reaches_its_upstream_and_the_answer_comes_back() {
    let (running, at) = simple(peers::echo("up").await).await;
    let mut client = Client::connect(at).await;
    let (head, body) = client
        .ask("GET /a?b HTTP/1.1\nHost: reviews\nX-Y: z\n\n")
        .await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("server: istio-envoy\r\n") && head.contains("x-name: up\r\n"),
        "{head}"
    );

    assert!(head.contains("x-envoy-upstream-service-time: "), "{head}");
    assert!(
        body.contains("GET /a?b HTTP/1.1\r\nhost: reviews\r\nx-y: z\r\n"),
        "{body}"
    );

    assert!(
        body.contains("x-forwarded-proto: http\r\n") && body.contains("x-request-id: "),
        "{body}"
    );

    let (_, second) = client
        .ask("POST /b HTTP/1.1\nHost: reviews\nContent-Length: 3\n\nabc")
        .await;
    assert!(second.ends_with("\r\n\r\nabc"), "{second}");
    let line = running.log.line_with("/b ").await;
    assert!(line.starts_with("200 - via_upstream /b up "), "{line}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_bodies_in_chunks_pass() {
    let (_running, at) = simple(peers::echo("up").await).await;
    let mut client = Client::connect(at).await;
    let mut all = String::new();

    for n in 0..50 {
        all.push_str(&format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n"));
    }
    all.push_str(
        "POST /last HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    client.send(all).await;
    for n in 0..50 {
        let (_, body) = client.receive().await.expect("a response");
        assert!(String::from_utf8_lossy(&body).contains(&format!("GET /{n} HTTP")));
    }

    let (_, body) = client.receive().await.expect("a response");
    assert!(body.ends_with(b"abcde"));
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let (_running, at) = simple(
        peers::http_server(|_, body| {
            let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            for piece in body.chunks(50_000) {
                answer.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                answer.extend_from_slice(piece);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(b"0\r\n\r\n");
            answer
        })
        .await,
    )
    .await;

    let body: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let mut client = Client::connect(at).await;
    client
        .send(format!(
            "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
            body.len()
        ))
        .await;

    client.send(&body).await;
    let (head, answer) = client.receive().await.expect("a response");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert!(answer == body);
}

#[tokio::test]
async fn what_is_ambiguous_is_refused_and_the_connection_ends() {
    let (running, at) = simple(peers::echo("up").await).await;
    for (request, status) in [
        (
            "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n",
            "400",
        ),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", "426"),
        ("BAD\r\n\r\n", "400"),
    ] {
        let mut client = Client::connect(at).await;
        client.send(request).await;
        let (head, _) = client.receive().await.expect("an answer");
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {head}"
        );

        assert!(head.contains("connection: close"), "{head}");
        assert!(client.closed().await);
    }

    running
        .log
        .line_with(" DPE http1.content_length_and_chunked_not_allowed")
        .await;
}

#[tokio::test]
async fn local_replies_say_what_envoy_says() {
    let manager = manager(inline(table(
        "r",
        vec![
            forward("/down", "down"),
            forward("/none", "none"),
            forward("/missing", "missing"),
            route::Route {
                name: "direct".into(),
                r#match: forward("/direct", "x").r#match,
                action: Some(route::route::Action::DirectResponse(
                    route::DirectResponseAction {
                        status: 502,
                        ..Default::default()
                    },
                )),
                ..Default::default()
            },
            route::Route {
                name: "redirect".into(),
                r#match: forward("/redirect", "x").r#match,
                action: Some(route::route::Action::Redirect(route::RedirectAction {
                    host_redirect: "other".into(),
                    ..Default::default()
                })),
                ..Default::default()
            },
        ],
    )));

    let down = peers::nobody().await;
    let running = Running::with(
        vec![static_cluster("down", &[down]), static_cluster("none", &[])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let at = running.at("in").await;
    for (path, status, body, log) in [
        (
            "/down",
            "503",
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
            " UF upstream_reset_before_response_started{remote_connection_failure",
        ),
        (
            "/none",
            "503",
            "no healthy upstream",
            " UH no_healthy_upstream /none",
        ),
        ("/missing", "503", "", " NC cluster_not_found /missing"),
        ("/other", "404", "", " NR route_not_found /other"),
        ("/direct", "502", "", "502 - direct_response /direct"),
        ("/redirect", "301", "", "301 - direct_response /redirect"),
    ] {
        let (head, text) = get(at, path).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {head}"
        );
        assert!(text.starts_with(body), "{path}: {text}");
        running.log.line_with(log).await;
    }

    let (head, _) = get(at, "/redirect").await;
    assert!(
        head.contains("location: http://other/redirect\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn a_broken_upstream_is_a_502_or_503_and_its_connection_is_not_used_again() {
    let upstream = peers::server(|mut stream, number| async move {
        let mut waiting = Vec::new();
        while let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await {
            let answer: &[u8] = if head.contains("/split") {
                b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n"
            } else if head.contains("/gone") {
                return;
            } else if head.contains("/extra") {
                b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
            } else {
                &format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{number:02}").into_bytes()
            };

            let _ = stream.write_all(answer).await;
        }
    })
    .await;

    let (running, at) = simple(upstream).await;
    assert!(get(at, "/split").await.0.starts_with("HTTP/1.1 502 "));
    running.log.line_with("502 UPE ").await;
    let (head, body) = get(at, "/gone").await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && body.ends_with("reset reason: connection termination"),
        "{head}{body}"
    );

    running
        .log
        .line_with("503 UC upstream_reset_before_response_started{connection_termination}")
        .await;

    assert_eq!(get(at, "/extra").await.1, "a");
    let (_, first) = get(at, "/ok").await;
    assert_ne!(first, "evil");
    let (_, second) = get(at, "/ok").await;
    assert_eq!(first, second, "a connection that behaves is used again");
}

#[tokio::test]
async fn a_slow_upstream_is_a_504() {
    let upstream = peers::server(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        std::future::pending::<()>().await;
    })
    .await;

    let manager = manager(inline(table(
        "r",
        vec![tune(forward("/", "up"), |action| {
            action.timeout = Some(duration(Duration::from_millis(50)))
        })],
    )));

    let running = Running::with(
        vec![static_cluster("up", &[upstream])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let (head, body) = get(running.at("in").await, "/").await;
    assert!(
        head.starts_with("HTTP/1.1 504 ") && body == "upstream request timeout",
        "{head}{body}"
    );

    running.log.line_with("504 UT response_timeout").await;
}

fn retrying(on: &str, retries: u32) -> route::RetryPolicy {
    route::RetryPolicy {
        retry_on: on.into(),
        num_retries: Some(UInt32Value { value: retries }),
        ..Default::default()
    }
}

#[tokio::test]
async fn what_may_be_retried_is_retried_with_its_body() {
    let upstream = {
        let count = std::sync::atomic::AtomicUsize::new(0);
        peers::http_server(move |_, body| {
            if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 {
                return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec();
            }
            [
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(),
                body,
            ]
            .concat()
        })
        .await
    };

    let manager = manager(inline(table(
        "r",
        vec![tune(forward("/", "up"), |action| {
            action.retry_policy = Some(retrying("5xx", 2));
            // What `include_attempt_count_in_response` asks for sits on the virtual host.
        })],
    )));

    let running = Running::with(
        vec![static_cluster("up", &[upstream])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let at = running.at("in").await;
    let mut client = Client::connect(at).await;
    let (head, body) = client
        .ask("POST / HTTP/1.1\nhost: a\ncontent-length: 5\n\nhello")
        .await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && body == "hello",
        "{head}{body}"
    );
}

#[tokio::test]
async fn retries_end_with_the_last_answer_and_say_so() {
    let upstream =
        peers::http_server(|_, _| b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno".to_vec()).await;
    let manager = manager(inline(table(
        "r",
        vec![tune(forward("/", "up"), |action| {
            action.retry_policy = Some(retrying("503", 1))
        })],
    )));

    let running = Running::with(
        vec![static_cluster("up", &[upstream])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let (head, body) = get(running.at("in").await, "/").await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && body == "no",
        "{head}{body}"
    );

    running.log.line_with("503 URX via_upstream").await;
}

#[tokio::test]
async fn a_full_breaker_answers_at_once() {
    use meltemi_proto::envoy::config::cluster::v3 as cluster;

    let upstream = peers::server(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        std::future::pending::<()>().await;
    })
    .await;

    let mut up = static_cluster("up", &[upstream]);
    up.circuit_breakers = Some(cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_requests: Some(UInt32Value { value: 1 }),
            ..Default::default()
        }],
        ..Default::default()
    });

    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;
    let mut first = Client::connect(at).await;

    first.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = loop {
        // The first request may not have its place yet.
        let answer = tokio::time::timeout(Duration::from_millis(200), get(at, "/2")).await;
        if let Ok((head, _)) = answer {
            break head;
        }
    };

    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.contains("x-envoy-overloaded: true"),
        "{head}"
    );

    running.log.line_with("503 UO ").await;
}

#[tokio::test]
async fn expectations_are_answered_and_early_answers_do_not_desynchronise() {
    let (_running, at) = simple(peers::echo("up").await).await;
    let mut client = Client::connect(at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
        .await;
    let mut interim = [0; 25];
    client
        .stream
        .read_exact(&mut interim)
        .await
        .expect("an interim response");

    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.send("abc").await;
    let (_, body) = client.receive().await.expect("a response");
    assert!(body.ends_with(b"abc"));

    let direct = manager(inline(table("r", vec![])));
    let running = Running::with(vec![], vec![listener("in", vec![http_chain(&direct)])]).await;
    let mut client = Client::connect(running.at("in").await).await;

    client.send("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 27\r\n\r\nGET /evil HTTP/1.1\r\nhost: a").await;
    let (head, _) = client.receive().await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 404 "));
    let (head, _) = client.ask("GET /next HTTP/1.1\nhost: a\n\n").await;
    assert!(head.starts_with("HTTP/1.1 404 "));
    running.log.line_with("NR route_not_found /next").await;
}

#[tokio::test]
async fn a_websocket_becomes_a_tunnel() {
    let upstream = peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await else { return };
        assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
        let _ = stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\nhello")
            .await;
        let mut echo = [0; 64];
        while let Ok(n) = stream.read(&mut echo).await {
            if n == 0 || stream.write_all(&echo[..n]).await.is_err() {
                return;
            }
        }
    })
    .await;

    let (running, at) = simple(upstream).await;
    let mut client = Client::connect(at).await;
    let (head, _) = client
        .ask("GET /ws HTTP/1.1\nhost: a\nConnection: Upgrade\nUpgrade: websocket\n\n")
        .await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("connection: upgrade"),
        "{head}"
    );

    let (down, mut read) = (&mut client.stream, String::new());
    down.write_all(b" world").await.expect("written");
    down.shutdown().await.expect("half-closed");
    down.read_to_string(&mut read).await.expect("to the end");

    // "hello" may have been read with the head by the client's own buffer.
    assert!(read.ends_with(" world"), "{read}");
    running.log.line_with("101 - via_upstream /ws").await;
}

#[tokio::test]
async fn endpoints_that_fail_are_left_out() {
    use meltemi_proto::envoy::config::cluster::v3 as cluster;

    let bad =
        peers::http_server(|_, _| b"HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\nbad".to_vec())
            .await;
    let good =
        peers::http_server(|_, _| b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood".to_vec())
            .await;
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
    let mut answers = Vec::new();

    for _ in 0..20 {
        answers.push(get(at, "/").await.1);
    }
    assert_eq!(
        answers.iter().filter(|answer| *answer == "bad").count(),
        2,
        "{answers:?}"
    );
}

#[tokio::test]
async fn a_host_for_https_only_sends_others_there_before_any_route() {
    let mut routes = table("r", vec![forward("/", "up")]);
    routes.virtual_hosts[0].require_tls = route::virtual_host::TlsRequirementType::All as i32;
    let manager = manager(inline(routes));
    let up = static_cluster("up", &[peers::echo("up").await]);
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let (head, _) = get(running.at("in").await, "/a?b").await;

    assert!(
        head.starts_with("HTTP/1.1 301 ") && head.contains("location: https://example/a?b\r\n"),
        "{head}"
    );
}
