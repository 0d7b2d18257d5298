//! Upstreams that end a connection under a request: it is sent again only whole, and only where
//! nothing of it has arrived, or where it is safe that it arrives twice.

use std::net::SocketAddr;
use std::time::Duration;

use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::google::protobuf::UInt32Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::frames::*;
use super::soon;
use crate::config::*;
use crate::peers::{self, Client};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Tells of every head that arrives. The first connection serves one request, reads the second, and
/// ends.
async fn forgetful() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (book, arrived) = mpsc::unbounded_channel();
    let at = peers::server(move |mut stream, number| {
        let book = book.clone();
        async move {
            let mut waiting = Vec::new();
            if number == 0 {
                peers::read_message(&mut stream, &mut waiting).await;
                let _ = stream.write_all(OK).await;
                if let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await {
                    let _ = book.send(head);
                }
                return;
            }

            // Does not wait for the body: whatever is sent again is answered.
            while !waiting.windows(4).any(|w| w == b"\r\n\r\n") {
                if !stream.read_buf(&mut waiting).await.is_ok_and(|n| n > 0) {
                    return;
                }
            }

            let _ = book.send(String::from_utf8_lossy(&waiting).into_owned());
            let _ = stream.write_all(OK).await;
            while stream.read_buf(&mut waiting).await.is_ok_and(|n| n > 0) {}
        }
    })
    .await;

    (at, arrived)
}

#[tokio::test]
async fn a_body_that_was_not_kept_is_not_left_out_of_a_second_attempt() {
    let cases = [
        (
            "PUT /length HTTP/1.1\nhost: a\ncontent-length: 5\n\nhello",
            "503",
        ),
        (
            "DELETE /length HTTP/1.1\nhost: a\ncontent-length: 5\n\nhello",
            "503",
        ),
        (
            "PUT /chunks HTTP/1.1\nhost: a\ntransfer-encoding: chunked\n\n5\nhello\n0\n\n",
            "503",
        ),
        (
            "POST /nothing HTTP/1.1\nhost: a\ncontent-length: 0\n\n",
            "503",
        ),
        // What is idempotent on paper may act twice.
        (
            "PUT /nothing HTTP/1.1\nhost: a\ncontent-length: 0\n\n",
            "503",
        ),
        ("DELETE /nothing HTTP/1.1\nhost: a\n\n", "503"),
        ("GET /nothing HTTP/1.1\nhost: a\n\n", "200"),
    ];

    for (request, status) in cases {
        let (up, mut arrived) = forgetful().await;
        let (_running, at) = simple(up).await;
        let mut client = Client::connect(at).await;

        assert_eq!(client.ask("GET / HTTP/1.1\nhost: a\n\n").await.1, "ok");
        let (head, body) = soon(client.ask(request)).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {head}{body}"
        );

        let times = std::iter::from_fn(|| arrived.try_recv().ok()).count();
        assert_eq!(times, if status == "200" { 2 } else { 1 }, "{request}");
    }
}

/// Serves one request on its first connection, reads another, says `last` and ends after `pause`.
/// All other connections repeat the head of each request.
async fn ending(pause: Duration, last: &'static [u8]) -> SocketAddr {
    peers::server(move |mut stream, number| async move {
        let mut waiting = Vec::new();
        if number == 0 {
            peers::read_message(&mut stream, &mut waiting).await;
            let _ = stream.write_all(OK).await;
            peers::read_message(&mut stream, &mut waiting).await;
            let _ = stream.write_all(last).await;
            tokio::time::sleep(pause).await;
            meltemi_net::socket::reset_on_close(&stream);
            return;
        }

        while let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await {
            let length = head.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{head}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_stale_connection_costs_an_attempt_and_what_the_application_may_have_seen_is_not_resent()
{
    let (at_once, later) = (Duration::ZERO, Duration::from_millis(300));
    let resets = |retries: u32| route::RetryPolicy {
        retry_on: "reset".into(),
        num_retries: Some(UInt32Value { value: retries }),
        ..Default::default()
    };

    for (name, method, pause, last, policy, status) in [
        ("stale", "GET", at_once, &b""[..], None, "200"),
        ("by policy", "GET", at_once, b"", Some(resets(1)), "200"),
        ("no retries", "GET", at_once, b"", Some(resets(0)), "503"),
        ("unsafe", "DELETE", at_once, b"", None, "503"),
        ("late", "GET", later, b"", None, "503"),
        ("half a head", "GET", at_once, b"HTTP/1.1 2", None, "503"),
        (
            "hints",
            "GET",
            at_once,
            b"HTTP/1.1 103 Hints\r\n\r\n",
            None,
            "503",
        ),
    ] {
        let up = ending(pause, last).await;
        let mut routes = table("r", vec![forward("/", "up")]);
        routes.virtual_hosts[0].include_request_attempt_count = true;
        routes.virtual_hosts[0].retry_policy = policy;
        let manager = manager(inline(routes));
        let running = Running::with(
            vec![static_cluster("up", &[up])],
            vec![listener("in", vec![http_chain(&manager)])],
        )
        .await;

        let mut client = Client::connect(running.at("in").await).await;
        assert_eq!(client.ask("GET / HTTP/1.1\nhost: a\n\n").await.1, "ok");
        let request = format!("{method} / HTTP/1.1\nhost: a\n\n");
        let (head, body) = soon(client.ask(&request)).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {head}{body}"
        );
        let counted = body.contains("x-envoy-attempt-count: 2\r\n");
        assert_eq!(counted, status == "200", "{name}: {body}");
    }
}

#[tokio::test]
async fn a_request_of_which_a_part_has_arrived_is_not_sent_again() {
    let app = TcpListener::bind("127.0.0.1:0").await.expect("binds");

    // The policy of inbound routes where nothing is said.
    let retrying = tune(forward("/", "up"), |action| {
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "reset-before-request".into(),
            num_retries: Some(UInt32Value { value: 2 }),
            ..Default::default()
        });
    });

    let manager = manager(inline(table("r", vec![retrying])));
    let up = static_cluster("up", &[app.local_addr().expect("bound")]);
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;

    // The reset and the rest of the body come together: which of them is noticed first differs from
    // round to round.
    for round in 0..300 {
        let mut client = Client::connect(at).await;
        client
            .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nfirst")
            .await;
        let (mut up, _) = soon(app.accept()).await.expect("asked");
        let mut seen = Vec::new();
        while !seen.ends_with(b"first") {
            assert!(soon(up.read_buf(&mut seen)).await.is_ok_and(|n| n > 0));
        }
        meltemi_net::socket::reset_on_close(&up);
        if round % 2 == 0 {
            drop(up);
            client.send("later").await;
        } else {
            client.send("later").await;
            drop(up);
        }

        let answer = soon(async {
            tokio::select! {
                answer = client.receive() => answer,
                _ = app.accept() => panic!("round {round}: sent again"),
            }
        })
        .await;

        let (head, _) = answer.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 503 "), "round {round}: {head}");
    }
}

/// The kinds and flags of whole frames after the preface.
fn frames_in(seen: &[u8]) -> Vec<(u8, u8)> {
    let (mut rest, mut found) = (seen.get(24..).unwrap_or_default(), Vec::new());
    while rest.len() >= 9 {
        let length = rest[..3].iter().fold(0, |n, b| n << 8 | usize::from(*b));
        let Some(after) = rest.get(9 + length..) else {
            break;
        };
        found.push((rest[3], rest[4]));
        rest = after;
    }

    found
}

#[tokio::test]
async fn a_goodbye_costs_no_request() {
    let (heard, mut goodbye_heard) = mpsc::unbounded_channel();
    let up = peers::server(move |mut stream, number| {
        let heard = heard.clone();
        async move {
            if number > 0 {
                let Ok(mut connection) = h2::server::handshake(stream).await else {
                    return;
                };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let response = http::Response::builder()
                        .header("x-name", "next")
                        .body(())
                        .expect("good");
                    let _ = respond.send_response(response, true);
                }

                return;
            }

            let mut seen = Vec::new();
            let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
            while !frames_in(&seen).iter().any(|(kind, _)| *kind == HEADERS) {
                assert!(stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0));
            }

            // A response that does not end, a goodbye to everybody else, and a question that is
            // answered after both.
            let answer = frame(HEADERS, END_HEADERS, 1, &block(&[(":status", "200")]));
            let goodbye = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
            let _ = stream
                .write_all(&[answer, goodbye, frame(PING, 0, 0, &[7; 8])].concat())
                .await;
            while !frames_in(&seen).contains(&(PING, END)) {
                assert!(stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0));
            }
            let _ = heard.send(());
            while stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {}
        }
    })
    .await;

    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let up = http2(static_cluster("up", &[up]));
    let options = meltemi_proxy::ProxyOptions {
        admin: Some(([127, 0, 0, 1], 0).into()),
        ..Default::default()
    };

    let running = Running::start(options);
    running
        .apply(vec![up], vec![listener("in", vec![http_chain(&manager)])])
        .await;
    let at = running.at("in").await;
    let mut long = Client::connect(at).await;
    long.send("GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await;
    soon(goodbye_heard.recv()).await.expect("said");

    // A body does not matter: nothing of it was read.
    let (head, _) = soon(
        Client::connect(at)
            .await
            .ask("POST /next HTTP/1.1\nhost: a\ncontent-length: 2\n\nhi"),
    )
    .await;

    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.contains("x-name: next"),
        "{head}"
    );

    running.log.line_with("200 - via_upstream /next").await;
    running.handle.ready().await;
    let mut admin = Client::connect(running.handle.admin_addresses()[0]).await;
    let (_, page) = admin
        .ask("GET /clusters HTTP/1.1\nhost: localhost\n\n")
        .await;
    assert!(
        page.contains("::rq_error::0\n") && page.contains("::rq_total::2\n"),
        "nobody is to blame: {page}"
    );
}

/// Serves HTTP/2 and refuses the first streams; tells of each that comes.
async fn refusing(first: usize) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    let (book, arrived) = mpsc::unbounded_channel();
    let at = peers::server(move |stream, _| {
        let book = book.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            let mut refused = 0;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let _ = book.send(());
                if refused < first {
                    refused += 1;
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    let response = http::Response::new(());
                    let _ = respond.send_response(response, true);
                }
            }
        }
    })
    .await;

    (at, arrived)
}

/// RFC 9113 §8.7: nothing of a refused stream was processed, so that even a POST may go again. Its
/// body is not kept for that.
#[tokio::test]
async fn a_refused_stream_is_sent_again_once_or_as_often_as_the_policy_says() {
    // A policy that names the failure has its own number of attempts, and none is added to them.
    let policy = |retries| route::RetryPolicy {
        retry_on: "refused-stream".into(),
        num_retries: Some(UInt32Value { value: retries }),
        ..Default::default()
    };
    for (refusals, policy, status, attempts) in [
        (1, None, "200", 2),
        (2, None, "503", 2),
        (1, Some(policy(1)), "200", 2),
        (2, Some(policy(1)), "503", 2),
        (2, Some(policy(2)), "200", 3),
        (1, Some(policy(0)), "503", 1),
    ] {
        let (up, mut arrived) = refusing(refusals).await;
        let route = tune(forward("/", "up"), |action| action.retry_policy = policy);
        let manager = manager(inline(table("r", vec![route])));
        let running = Running::with(
            vec![http2(static_cluster("up", &[up]))],
            vec![listener("in", vec![http_chain(&manager)])],
        )
        .await;

        let mut client = Client::connect(running.at("in").await).await;
        let request = "POST / HTTP/1.1\nhost: a\ncontent-length: 0\n\n";
        let (head, _) = soon(client.ask(request)).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let seen = std::iter::from_fn(|| arrived.try_recv().ok()).count();
        assert_eq!(seen, attempts, "{refusals} refusals");
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_wait_for_another_attempt() {
    let (book, mut arrived) = mpsc::unbounded_channel();
    let busy = peers::http_server(move |_, _| {
        let _ = book.send(());
        b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_vec()
    })
    .await;

    let hour = duration(Duration::from_secs(3600));
    let retrying = tune(forward("/", "up"), |action| {
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "5xx".into(),
            num_retries: Some(UInt32Value { value: 1000 }),
            retry_back_off: Some(route::retry_policy::RetryBackOff {
                base_interval: Some(hour),
                max_interval: Some(hour),
            }),
            ..Default::default()
        });
    });

    let manager = manager(inline(table("r", vec![retrying])));
    let clusters = vec![static_cluster("up", &[busy])];
    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut client = Client::connect(running.at("in").await).await;

    client.send("GET /left HTTP/1.1\r\nhost: a\r\n\r\n").await;
    soon(arrived.recv()).await.expect("asked");
    drop(client);
    running
        .log
        .line_with("downstream_remote_disconnect /left up ")
        .await;
}
