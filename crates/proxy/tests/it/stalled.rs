//! Readers that take nothing: what they may hold, and what the others feel of it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use meltemi_proto::pack;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::*;
use crate::hostile::frames::{Raw, get};
use crate::hostile::soon;
use crate::peers;
use crate::tls::{Authority, common, inbound, outbound_with, socket};

/// Over HTTP/2: a body of 4 MiB for `/big`, an empty one for the rest.
async fn downloads() -> SocketAddr {
    peers::server(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.expect("handshake");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let is_big = request.uri().path() == "/big";
            let Ok(mut send) = respond.send_response(Response::new(()), !is_big) else {
                continue;
            };
            if is_big {
                let _ = send.send_data(Bytes::from(vec![b'x'; 4 << 20]), true);
                tokio::spawn(async move {
                    let _ = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
                });
            }
        }
    })
    .await
}

#[tokio::test]
async fn clients_that_read_nothing_stop_no_other_response_of_a_shared_upstream() {
    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let up = http2(static_cluster("up", &[downloads().await]));
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;

    // SETTINGS_INITIAL_WINDOW_SIZE: this client takes no byte of a body.
    let mut stalled = Raw::with(at, &[(4, 0)]).await;
    for stream in (1..=31).step_by(2) {
        stalled.ask(&get(stream, "/big"), stream).await;
    }

    let mut client = peers::Client::connect(at).await;
    let (head, body) = soon(client.ask("GET /big HTTP/1.1\nhost: svc\n\n")).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body.len(), 4 << 20);
}

/// Over HTTP/1.1: reads nothing of a body sent to `/full`, and answers the rest.
async fn busy() -> SocketAddr {
    peers::server(|mut stream, _| async move {
        let mut first = [0; 10];
        if stream.peek(&mut first).await.is_ok() && first == *b"POST /full" {
            return std::future::pending().await;
        }
        let mut waiting = Vec::new();
        while peers::read_message(&mut stream, &mut waiting)
            .await
            .is_some()
        {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    })
    .await
}

#[tokio::test]
async fn uploads_that_nobody_reads_stop_no_other_of_a_peer_of_the_mesh() {
    const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
    let authority = Authority::new();
    let server = inbound(&authority, busy().await).await;
    let client = outbound_with(&authority, server.at("inbound").await, SERVER, |cluster| {
        cluster.transport_socket = Some(socket(pack(&UpstreamTlsContext {
            common_tls_context: Some(common(&["h2"], &[SERVER])),
            ..Default::default()
        })));
        *cluster = http2(cluster.clone());
    })
    .await;
    let at = client.at("outbound").await;

    // Each sends until both proxies and all sockets on the way are full.
    let stalled = (0..8).map(|_| async move {
        let mut stream = TcpStream::connect(at).await.expect("connects");
        let head = b"POST /full HTTP/1.1\r\nhost: svc\r\ncontent-length: 1000000000\r\n\r\n";
        stream.write_all(head).await.expect("written");
        let piece = vec![0; 1 << 16];
        while let Ok(sent) = timeout(Duration::from_millis(500), stream.write(&piece)).await {
            assert!(sent.expect("written") > 0);
        }
        stream
    });
    let _stalled = soon(futures_util::future::join_all(stalled)).await;

    let mut other = peers::Client::connect(at).await;
    let body = "x".repeat(400_000);
    let request = format!("POST / HTTP/1.1\nhost: svc\ncontent-length: 400000\n\n{body}");
    let (head, _) = soon(other.ask(&request)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}
