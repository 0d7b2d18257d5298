//! HTTP/2 on either side or both.

use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;

use crate::config::*;
use crate::peers;

pub async fn connect(at: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(at).await.expect("connects");
    let (send, connection) = h2::client::handshake(stream).await.expect("handshake");
    tokio::spawn(connection);
    send
}

async fn body_of(mut stream: h2::RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece.expect("data");
        let _ = stream.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    (all, stream.trailers().await.expect("trailers or none"))
}

/// Echoes bodies and ends with trailers.
async fn h2_server() -> SocketAddr {
    peers::server(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.expect("handshake");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let path = request.uri().path().to_owned();
                let response = Response::builder()
                    .header("x-path", path)
                    .header("content-type", "application/grpc");
                let mut send = respond
                    .send_response(response.body(()).expect("good"), false)
                    .expect("sent");
                let (body, _) = body_of(request.into_body()).await;
                send.send_data(body.into(), false).expect("sent");
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().expect("a value"));
                send.send_trailers(trailers).expect("sent");
            });
        }
    })
    .await
}

#[tokio::test]
async fn grpc_passes_with_its_trailers() {
    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let up = http2(static_cluster("up", &[h2_server().await]));
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut send = connect(running.at("in").await).await;
    let request = Request::post("http://svc/pkg.Service/Method")
        .header("te", "trailers")
        .header("content-type", "application/grpc");
    let (response, mut body) = send
        .send_request(request.body(()).expect("good"), false)
        .expect("sent");

    // A conversation: the response begins before the request has ended.
    let response = response.await.expect("a response");
    assert_eq!(response.headers()["x-path"], "/pkg.Service/Method");
    assert_eq!(response.headers()["server"], "istio-envoy");
    body.send_data(Bytes::from(vec![7; 100_000]), true)
        .expect("sent");
    let (data, trailers) = body_of(response.into_body()).await;
    assert_eq!(data.len(), 100_000);
    assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
    running
        .log
        .line_with("200 - via_upstream /pkg.Service/Method up 100000")
        .await;
}

#[tokio::test]
async fn http2_in_front_of_http1_and_the_other_way_round() {
    let (_running, at) = simple(peers::echo("up").await).await;
    let mut send = connect(at).await;
    let request = Request::post("http://svc/x")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let (response, mut body) = send
        .send_request(request.body(()).expect("good"), false)
        .expect("sent");
    body.send_data(Bytes::from_static(b"payload"), true)
        .expect("sent");
    let (data, _) = body_of(response.await.expect("a response").into_body()).await;
    let text = String::from_utf8(data).expect("text");
    assert!(
        text.contains("POST /x HTTP/1.1\r\nhost: svc\r\n") && text.contains("cookie: a=1; b=2\r\n"),
        "{text}"
    );

    assert!(text.ends_with("payload"), "{text}");

    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let up = http2(static_cluster("up", &[h2_server().await]));
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut client = peers::Client::connect(running.at("in").await).await;
    let (head, body) = client
        .ask("POST /y HTTP/1.1\nhost: svc\ncontent-length: 4\n\nping")
        .await;
    assert!(
        head.contains("x-path: /y\r\n") && head.contains("transfer-encoding: chunked"),
        "{head}"
    );

    assert_eq!(body, "ping");
}

#[tokio::test]
async fn clients_that_expect_100_are_told_to_send() {
    let manager = manager(inline(table(
        "r",
        vec![forward("/none", "none"), forward("/", "up")],
    )));
    let clusters = vec![
        static_cluster("up", &[peers::echo("up").await]),
        static_cluster("none", &[]),
    ];
    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut send = connect(running.at("in").await).await;
    let mut ask = |path: &str, expectation: &str| {
        let request = Request::post(format!("http://svc{path}")).header("expect", expectation);
        send.send_request(request.body(()).expect("good"), false)
            .expect("sent")
    };

    let (mut response, mut body) = ask("/x", "100-Continue");
    let interim = poll_fn(|cx| response.poll_informational(cx)).await;
    let interim = interim.expect("an interim response").expect("whole");
    assert_eq!(interim.status(), 100);
    body.send_data(Bytes::from_static(b"payload"), true)
        .expect("sent");
    let (data, _) = body_of(response.await.expect("a response").into_body()).await;
    let text = String::from_utf8(data).expect("text");
    assert!(text.ends_with("payload"), "{text}");
    assert!(!text.contains("expect"), "it was answered: {text}");

    // Nobody takes the body, or knows what else is expected.
    for (path, expectation, status) in [("/none", "100-continue", 503), ("/x", "a-miracle", 417)] {
        let (mut response, _body) = ask(path, expectation);
        let interim = poll_fn(|cx| response.poll_informational(cx)).await;
        assert!(interim.is_none(), "{path}");
        assert_eq!(response.await.expect("a response").status(), status);
    }
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let (running, at) = simple(peers::echo("up").await).await;
    let send = connect(at).await;
    let mut tasks = Vec::new();

    for n in 0..100 {
        let mut send = send.clone().ready().await.expect("ready");
        let request = Request::get(format!("http://svc/{n}"))
            .body(())
            .expect("good");
        let (response, _) = send.send_request(request, true).expect("sent");
        tasks.push(tokio::spawn(async move {
            body_of(response.await.expect("a response").into_body())
                .await
                .0
        }));
    }

    for (n, task) in tasks.into_iter().enumerate() {
        let text = String::from_utf8(task.await.expect("done")).expect("text");
        assert!(text.contains(&format!("GET /{n} HTTP/1.1")), "{text}");
    }

    assert_eq!(running.handle.connections(), 1);
}

#[tokio::test]
async fn refusals_over_grpc_are_trailers_only() {
    let manager = manager(inline(table("r", vec![forward("/", "none")])));
    let running = Running::with(
        vec![static_cluster("none", &[])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let mut send = connect(running.at("in").await).await;
    let request = Request::post("http://svc/a")
        .header("content-type", "application/grpc")
        .body(())
        .expect("good");

    let (response, _) = send.send_request(request, true).expect("sent");
    let response = response.await.expect("a response");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let silent = peers::server(|stream, _| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    });

    let (_running, at) = simple(silent.await).await;
    let stream = TcpStream::connect(at).await.expect("connects");
    let (send, connection) = h2::client::Builder::new()
        .initial_max_send_streams(100)
        .handshake::<_, Bytes>(stream)
        .await
        .expect("handshake");

    let driver = tokio::spawn(connection);
    let mut failed = false;
    for _ in 0..20_000 {
        let Ok(mut send) = send.clone().ready().await else {
            failed = true;
            break;
        };

        let request = Request::get("http://svc/").body(()).expect("good");
        match send.send_request(request, true) {
            // Dropping both halves resets the stream.
            Ok((response, mut stream)) => {
                // The request must be on the wire, or there is nothing to reset.
                tokio::task::yield_now().await;
                stream.send_reset(h2::Reason::CANCEL);
                drop(response);
            }
            Err(_) => {
                failed = true;
                break;
            }
        }

        if driver.is_finished() {
            failed = true;
            break;
        }
    }

    assert!(failed, "20,000 resets went through");
}

/// Sends more small messages than anybody buffers without being asked, and then answers everybody
/// else.
async fn chatty(small: usize) -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = connections.clone();
    let at = peers::server(move |stream, _| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            let mut connection = h2::server::handshake(stream).await.expect("handshake");
            let said = std::sync::Arc::new(tokio::sync::Notify::new());
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let said = said.clone();
                tokio::spawn(async move {
                    if request.uri().path() == "/many" {
                        let mut send = respond
                            .send_response(Response::new(()), false)
                            .expect("sent");
                        for _ in 0..small {
                            send.reserve_capacity(15);
                            while send.capacity() < 15 {
                                let more = poll_fn(|cx| send.poll_capacity(cx)).await;
                                more.expect("the stream lives")
                                    .expect("the connection lives");
                            }
                            send.send_data(Bytes::from_static(&[b'x'; 15]), false)
                                .expect("sent");
                        }

                        said.notify_one();
                        std::future::pending::<()>().await;
                    }

                    said.notified().await;
                    let _ = respond.send_response(Response::new(()), true);
                });
            }
        }
    })
    .await;

    (at, connections)
}

/// As many messages of 15 bytes as fit into the window of a stream.
const SMALL: usize = 17_000;

#[tokio::test]
async fn small_messages_that_wait_to_be_read_cost_no_other_stream_anything() {
    use crate::hostile::frames::{Outcome, Raw, get};

    let (at, connections) = chatty(SMALL).await;
    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let up = http2(static_cluster("up", &[at]));
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;

    // SETTINGS_INITIAL_WINDOW_SIZE: nothing may be sent to this client.
    let mut raw = Raw::with(running.at("in").await, &[(4, 0)]).await;

    assert_eq!(
        raw.ask(&get(1, "/many"), 1).await.outcome(1),
        Outcome::Status(200)
    );

    let said = raw.ask(&get(3, "/other"), 3).await;
    assert_eq!(said.outcome(3), Outcome::Status(200));
    assert!(said.resets.is_empty(), "{said:?}");
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn small_messages_that_wait_to_be_sent_cost_no_other_stream_anything() {
    use crate::hostile::frames::{DATA, END, Outcome, Raw, SETTINGS, frame, get, post};

    // An application that takes nothing.
    let full = peers::server(|stream, _| async move {
        let mut builder = h2::server::Builder::new();
        let mut connection = builder
            .initial_window_size(0)
            .handshake::<_, Bytes>(stream)
            .await
            .expect("handshake");

        let mut held = Vec::new();
        while let Some(Ok(request)) = connection.accept().await {
            held.push(request);
        }
    })
    .await;

    let routes = vec![forward("/full", "full"), forward("/", "up")];
    let manager = manager(inline(table("r", routes)));
    let clusters = vec![
        http2(static_cluster("full", &[full])),
        static_cluster("up", &[peers::echo("up").await]),
    ];

    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut raw = Raw::connect(running.at("in").await).await;

    // The proxy's windows hold once its settings are acknowledged; by its first answer they have
    // come.
    assert_eq!(
        raw.ask(&get(1, "/first"), 1).await.outcome(1),
        Outcome::Status(200)
    );

    let small = frame(DATA, 0, 3, &[b'x'; 15]).repeat(SMALL);
    let said = raw
        .ask(
            &[
                frame(SETTINGS, END, 0, &[]),
                post(3, "/full"),
                small,
                get(5, "/other"),
            ]
            .concat(),
            5,
        )
        .await;

    assert_eq!(said.outcome(5), Outcome::Status(200), "{said:?}");
}
