//! Upstreams that break the protocol: the client gets an answer of the proxy's own, and the
//! connection is not used again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::google::protobuf::UInt32Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::*;
use super::{App, Bystander, soon};
use crate::config::*;
use crate::peers::{self, Client};

/// A proxy with `/evil` on one upstream and the rest on an application.
async fn beside(
    app: &App,
    evil: meltemi_proto::envoy::config::cluster::v3::Cluster,
) -> (Running, Bystander) {
    let manager = manager(inline(table(
        "r",
        vec![forward("/evil", "evil"), forward("/", "up")],
    )));
    let clusters = vec![static_cluster("up", &[app.at]), evil];
    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let bystander = Bystander::at(running.at("in").await).await;
    (running, bystander)
}

/// Path, what the upstream answers, the status for the client; `None`: the answer breaks off.
fn answers() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let ok = "HTTP/1.1 200 OK\r\n";
    vec![
        (
            "/evil/fold",
            format!("{ok}x: a\r\n b\r\ncontent-length: 0\r\n\r\n").into(),
            Some("502"),
        ),
        (
            "/evil/bare-cr",
            format!("{ok}x: a\rb\r\ncontent-length: 0\r\n\r\n").into(),
            Some("502"),
        ),
        (
            "/evil/nul",
            format!("{ok}x: a\0b\r\ncontent-length: 0\r\n\r\n").into(),
            Some("502"),
        ),
        (
            "/evil/blank",
            format!("{ok}x : a\r\ncontent-length: 0\r\n\r\n").into(),
            Some("502"),
        ),
        (
            "/evil/lengths",
            format!("{ok}content-length: 0\r\ncontent-length: 1\r\n\r\n").into(),
            Some("502"),
        ),
        (
            "/evil/signed",
            format!("{ok}content-length: +1\r\n\r\na").into(),
            Some("502"),
        ),
        (
            "/evil/both",
            format!("{ok}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n").into(),
            Some("502"),
        ),
        (
            "/evil/coding",
            format!("{ok}transfer-encoding: gzip\r\n\r\n").into(),
            Some("502"),
        ),
        (
            "/evil/status",
            "HTTP/1.1 99 Low\r\n\r\n".into(),
            Some("502"),
        ),
        (
            "/evil/status-word",
            "HTTP/1.1 OK\r\n\r\n".into(),
            Some("502"),
        ),
        (
            "/evil/version",
            "HTTP/3.0 200 OK\r\n\r\n".into(),
            Some("502"),
        ),
        ("/evil/http2", preface(&[]), Some("502")),
        ("/evil/not-http", b"\0\xff\xfe".repeat(100), Some("502")),
        (
            "/evil/large",
            format!("{ok}x: {}\r\n\r\n", "y".repeat(1 << 20)).into(),
            Some("502"),
        ),
        (
            "/evil/many",
            format!("{ok}{}\r\n", "x: y\r\n".repeat(10_000)).into(),
            Some("502"),
        ),
        (
            "/evil/interim",
            "HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000).into(),
            Some("502"),
        ),
        (
            "/evil/switch",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n".into(),
            Some("502"),
        ),
        (
            "/evil/half-a-head",
            "HTTP/1.1 200 OK\r\ncontent-le".into(),
            Some("502"),
        ),
        ("/evil/nothing", Vec::new(), Some("503")),
        (
            "/evil/short",
            format!("{ok}content-length: 10\r\n\r\nabc").into(),
            None,
        ),
        (
            "/evil/chunk",
            format!("{ok}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n").into(),
            None,
        ),
        (
            "/evil/no-last-chunk",
            format!("{ok}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").into(),
            None,
        ),
    ]
}

#[tokio::test]
async fn broken_answers_are_the_proxys_own_errors() {
    let evil = peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await else {
            return;
        };
        let path = head.split(' ').nth(1).expect("a path");
        if let Some((_, answer, _)) = answers().into_iter().find(|(name, ..)| *name == path) {
            let _ = stream.write_all(&answer).await;
        }
    })
    .await;

    let app = App::start().await;
    let (_running, mut bystander) = beside(&app, static_cluster("evil", &[evil])).await;
    let mut wrong = Vec::new();

    for (path, _, status) in answers() {
        let mut client = Client::connect(bystander.at).await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let answer = soon(client.receive()).await;
        let got = answer.as_ref().and_then(|(head, _)| head.split(' ').nth(1));
        if got != status {
            wrong.push(format!("{path}: {answer:?}"));
        }
        if status.is_none() {
            assert!(
                soon(client.closed()).await,
                "{path}: or the client waits for the rest"
            );
        }
    }

    assert!(wrong.is_empty(), "{wrong:#?}");
    bystander.is_served().await;
}

/// As Envoy: whoever asked sees that the upstream began to answer, and that the rest is missing.
#[tokio::test]
async fn a_body_that_breaks_at_once_leaves_its_head() {
    let evil = peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await else {
            return;
        };
        let answer = match head.contains("/evil/chunk") {
            true => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            false => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n",
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;

    let app = App::start().await;
    let (_running, bystander) = beside(&app, static_cluster("evil", &[evil])).await;
    for path in ["/evil/chunk", "/evil/short"] {
        let mut client = Client::connect(bystander.at).await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let head = soon(client.read_head()).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        assert!(soon(client.closed()).await, "{path}");
    }
}

#[tokio::test]
async fn bytes_after_an_answer_are_nobodys_answer() {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let book = seen.clone();
    let evil = peers::server(move |mut stream, number| {
        let book = book.clone();
        async move {
            let mut waiting = Vec::new();
            while peers::read_message(&mut stream, &mut waiting).await.is_some() {
                assert!(book.lock().expect("no writer panics").insert(number), "connection {number} was used again");
                let poisoned =
                    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
                let _ = stream.write_all(poisoned.as_bytes()).await;
            }
        }
    })
    .await;

    let app = App::start().await;
    let (_running, mut bystander) = beside(&app, static_cluster("evil", &[evil])).await;
    for _ in 0..20 {
        assert_eq!(peers::get(bystander.at, "/evil").await.1, "ok");
    }
    bystander.is_served().await;
    assert_eq!(seen.lock().expect("no writer panics").len(), 20);
}

/// An HTTP/2 server that answers the first request of a connection with these frames and then waits
/// for the end.
pub async fn h2(answer: Vec<u8>) -> SocketAddr {
    let answer = Arc::new(answer);
    peers::server(move |mut stream, _| {
        let answer = answer.clone();
        async move {
            let mut seen = Vec::new();
            let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;

            // The preface, SETTINGS and a HEADERS frame.
            while !has_headers(&seen) {
                if !stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                    return;
                }
            }

            let _ = stream.write_all(&answer).await;
            while stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                seen.clear();
            }
        }
    })
    .await
}

fn has_headers(seen: &[u8]) -> bool {
    let mut rest = seen.get(24..).unwrap_or_default();
    while rest.len() >= 9 {
        if rest[3] == HEADERS {
            return true;
        }
        let length = rest[..3].iter().fold(0, |n, b| n << 8 | usize::from(*b));
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

fn ok(stream: u32, flags: u8, more: &[(&str, &str)]) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | flags,
        stream,
        &[block(&[(":status", "200")]), block(more)].concat(),
    )
}

#[tokio::test]
async fn broken_answers_over_http2_are_the_proxys_own_errors() {
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "no status",
            frame(HEADERS, END_HEADERS | END, 1, &block(&[("x", "y")])),
            &["502", "503"],
        ),
        (
            "a status of letters",
            frame(HEADERS, END_HEADERS | END, 1, &block(&[(":status", "abc")])),
            &["502", "503"],
        ),
        (
            "a connection field",
            ok(1, END, &[("connection", "close")]),
            &["502", "503"],
        ),
        (
            "a line feed",
            ok(1, END, &[("x", "y\r\nz: a")]),
            &["502", "503"],
        ),
        (
            "an upper-case name",
            ok(1, END, &[("X", "y")]),
            &["502", "503"],
        ),
        (
            "a blank after a value",
            ok(1, END, &[("x", "y ")]),
            &["502"],
        ),
        (
            "two equal lengths",
            [
                ok(1, 0, &[("content-length", "3"), ("content-length", "3")]),
                frame(DATA, END, 1, b"abc"),
            ]
            .concat(),
            &["502", "503"],
        ),
        ("no head", frame(DATA, END, 1, b"abc"), &["502", "503"]),
        (
            "interim heads without end",
            {
                let early = frame(HEADERS, END_HEADERS, 1, &block(&[(":status", "103")]));
                early.repeat(1000)
            },
            &["502"],
        ),
        (
            "a pushed stream",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            &["502", "503"],
        ),
        (
            "a broken header block",
            frame(HEADERS, END_HEADERS | END, 1, &[0xff; 20]),
            &["502", "503"],
        ),
        (
            "a goodbye",
            frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]),
            &["503"],
        ),
        (
            "an error",
            frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2]),
            &["502", "503"],
        ),
        (
            "CONTINUATION without end",
            {
                let mut all = frame(HEADERS, END, 1, &block(&[(":status", "200")]));
                (0..1000).for_each(|_| all.extend(frame(CONTINUATION, 0, 1, b"")));
                all
            },
            &["502", "503"],
        ),
        (
            "a head that grows",
            {
                let mut head = block(&[(":status", "200")]);
                head.extend(remembered(b"x", &[b'y'; 4000]));
                head.extend([0x80 | 62; 10_000]);
                frame(HEADERS, END_HEADERS | END, 1, &head)
            },
            &["502", "503"],
        ),
    ];

    let app = App::start().await;
    let mut wrong = Vec::new();
    for (name, answer, statuses) in cases {
        let (_running, mut bystander) =
            beside(&app, http2(static_cluster("evil", &[h2(answer).await]))).await;
        let answer = tokio::time::timeout(
            std::time::Duration::from_secs(5),
            peers::get(bystander.at, "/evil"),
        )
        .await;

        let (head, body) = answer.unwrap_or_else(|_| ("never".to_owned(), String::new()));
        if !statuses
            .iter()
            .any(|status| head.starts_with(&format!("HTTP/1.1 {status} ")))
        {
            wrong.push(format!("{name}: {head}{body}"));
        }

        bystander.is_served().await;
    }

    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn broken_bodies_over_http2_break_off() {
    let cases = [
        (
            "shorter than said",
            [
                ok(1, 0, &[("content-length", "10")]),
                frame(DATA, END, 1, b"abc"),
            ]
            .concat(),
        ),
        (
            "longer than said",
            [
                ok(1, 0, &[("content-length", "2")]),
                frame(DATA, END, 1, b"abc"),
            ]
            .concat(),
        ),
        (
            "reset",
            [
                ok(1, 0, &[]),
                frame(DATA, 0, 1, b"abc"),
                frame(RST_STREAM, 0, 1, &[0, 0, 0, 2]),
            ]
            .concat(),
        ),
        (
            "trailers with a blank before a value",
            [
                ok(1, 0, &[]),
                frame(DATA, 0, 1, b"abc"),
                frame(HEADERS, END_HEADERS | END, 1, &block(&[("x", " y")])),
            ]
            .concat(),
        ),
        ("beyond the window", {
            let mut all = ok(1, 0, &[]);
            (0..2000).for_each(|_| all.extend(frame(DATA, 0, 1, &[0; 16_384])));
            all
        }),
    ];

    let app = App::start().await;
    for (name, answer) in cases {
        let (_running, mut bystander) =
            beside(&app, http2(static_cluster("evil", &[h2(answer).await]))).await;
        let mut client = Client::connect(bystander.at).await;
        client.send("GET /evil HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut all = Vec::new();

        // To the end of the connection: a reset, or what is visibly not whole.
        let end = soon(client.stream.read_to_end(&mut all)).await;
        let text = String::from_utf8_lossy(&all);

        assert!(
            end.is_err() || !text.ends_with("0\r\n\r\n"),
            "{name}: {text}"
        );

        bystander.is_served().await;
    }
}

#[tokio::test]
async fn what_has_no_body_brings_none_over_http2_either() {
    let poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let app = App::start().await;
    for (method, status) in [("GET", "204"), ("GET", "304"), ("HEAD", "200")] {
        let head = frame(HEADERS, END_HEADERS, 1, &block(&[(":status", status)]));
        let answer = [head, frame(DATA, END, 1, poison)].concat();
        let (_running, mut bystander) =
            beside(&app, http2(static_cluster("evil", &[h2(answer).await]))).await;
        let mut client = Client::connect(bystander.at).await;
        client
            .send(format!("{method} /evil HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let (head, _) = soon(client.receive()).await.expect("an answer");
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method} {status}: {head}"
        );

        // On the same connection the next answer is that of the next request.
        client.send("GET /next HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let (_, body) = soon(client.receive()).await.expect("an answer");
        let body = String::from_utf8_lossy(&body);
        assert!(body.starts_with("GET /next "), "{method} {status}: {body}");
        bystander.is_served().await;
    }
}

#[tokio::test]
async fn an_upstream_that_takes_no_streams_is_passed_by() {
    // Says goodbye, then forbids all streams.
    let full = h2([
        frame(GOAWAY, 0, 0, &[0; 8]),
        frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]),
    ]
    .concat())
    .await;

    let good = peers::server(|stream, _| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let response = http::Response::builder()
                .header("x-name", "good")
                .body(())
                .expect("good");
            let _ = respond.send_response(response, true);
        }
    })
    .await;

    let app = App::start().await;
    let retrying = tune(forward("/evil", "evil"), |action| {
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "refused-stream,reset,connect-failure".into(),
            num_retries: Some(UInt32Value { value: 3 }),
            retry_host_predicate: vec![route::retry_policy::RetryHostPredicate {
                name: "envoy.retry_host_predicates.previous_hosts".into(),
                ..Default::default()
            }],
            host_selection_retry_max_attempts: 5,
            ..Default::default()
        });
    });

    let manager = manager(inline(table("r", vec![retrying, forward("/", "up")])));
    let evil = http2(static_cluster("evil", &[full, good]));
    let clusters = vec![static_cluster("up", &[app.at]), evil];
    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut bystander = Bystander::at(running.at("in").await).await;

    for _ in 0..20 {
        let (head, body) = soon(peers::get(bystander.at, "/evil")).await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains("x-name: good"),
            "{head}{body}"
        );
    }

    bystander.is_served().await;

    // With nobody else it is an answer with a cause.
    let alone = http2(static_cluster(
        "evil",
        &[h2(frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0])).await],
    ));

    let (running, mut bystander) = beside(&app, alone).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Client::connect(bystander.at).await;
        client.send("GET /evil HTTP/1.1\r\nhost: a\r\n\r\n").await;
        clients.push(client);
    }

    bystander.is_served().await;
    drop(clients);
    super::until("nobody waits", || running.handle.connections() == 1).await;
}
