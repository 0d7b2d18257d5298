//! HTTP/2 on either side or both.

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
                let response = Response::builder().header("x-path", path).header("content-type", "application/grpc");
                let mut send = respond.send_response(response.body(()).expect("good"), false).expect("sent");
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
    let (response, mut body) = send.send_request(request.body(()).expect("good"), false).expect("sent");
    // A conversation: the response begins before the request has ended.
    let response = response.await.expect("a response");
    assert_eq!(response.headers()["x-path"], "/pkg.Service/Method");
    assert_eq!(response.headers()["server"], "istio-envoy");
    body.send_data(Bytes::from(vec![7; 100_000]), true).expect("sent");
    let (data, trailers) = body_of(response.into_body()).await;
    assert_eq!(data.len(), 100_000);
    assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
    running.log.line_with("200 - via_upstream /pkg.Service/Method up 100000").await;
}

#[tokio::test]
async fn http2_in_front_of_http1_and_the_other_way_round() {
    let (_running, at) = simple(peers::echo("up").await).await;
    let mut send = connect(at).await;
    let request = Request::post("http://svc/x").header("cookie", "a=1").header("cookie", "b=2");
    let (response, mut body) = send.send_request(request.body(()).expect("good"), false).expect("sent");
    body.send_data(Bytes::from_static(b"payload"), true).expect("sent");
    let (data, _) = body_of(response.await.expect("a response").into_body()).await;
    let text = String::from_utf8(data).expect("text");
    assert!(text.contains("POST /x HTTP/1.1\r\nhost: svc\r\n") && text.contains("cookie: a=1; b=2\r\n"), "{text}");
    assert!(text.ends_with("payload"), "{text}");

    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let up = http2(static_cluster("up", &[h2_server().await]));
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut client = peers::Client::connect(running.at("in").await).await;
    let (head, body) = client.ask("POST /y HTTP/1.1\nhost: svc\ncontent-length: 4\n\nping").await;
    assert!(head.contains("x-path: /y\r\n") && head.contains("transfer-encoding: chunked"), "{head}");
    assert_eq!(body, "ping");
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let (running, at) = simple(peers::echo("up").await).await;
    let send = connect(at).await;
    let mut tasks = Vec::new();
    for n in 0..100 {
        let mut send = send.clone().ready().await.expect("ready");
        let request = Request::get(format!("http://svc/{n}")).body(()).expect("good");
        let (response, _) = send.send_request(request, true).expect("sent");
        tasks.push(tokio::spawn(async move { body_of(response.await.expect("a response").into_body()).await.0 }));
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
    let running =
        Running::with(vec![static_cluster("none", &[])], vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut send = connect(running.at("in").await).await;
    let request = Request::post("http://svc/a").header("content-type", "application/grpc").body(()).expect("good");
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
