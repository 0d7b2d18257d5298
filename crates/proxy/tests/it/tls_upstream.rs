//! Upstreams under TLS that end without a word, and that would rather speak HTTP/2.

use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proto::pack;
use rcgen::SanType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::*;
use crate::peers::{self, Client};
use crate::tls::{Authority, socket};

/// A server under TLS: `answer` gets what ALPN agreed on and the stream, and may just drop it.
async fn server<F, R>(alpn: &[&str], answer: F) -> std::net::SocketAddr
where
    F: Fn(Option<Vec<u8>>, tokio_rustls::server::TlsStream<tokio::net::TcpStream>) -> R
        + Send
        + Sync
        + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let identity =
        Authority::new().identity_of(SanType::DnsName("a.example".try_into().expect("IA5")));
    let terms = meltemi_tls::ServerTerms {
        alpn: alpn.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    };

    let config = meltemi_tls::server_config(&terms, &identity, None).expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let answer = std::sync::Arc::new(answer);

    peers::server(move |stream, _| {
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            answer(agreed, stream).await;
        }
    })
    .await
}

/// Under TLS, whoever the other side is.
fn under_tls(mut cluster: Cluster, alpn: &[&str]) -> Cluster {
    cluster.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            alpn_protocols: alpn.iter().map(|name| (*name).into()).collect(),
            ..Default::default()
        }),
        sni: "a.example".into(),
        ..Default::default()
    })));
    cluster
}

#[tokio::test]
async fn an_end_without_farewell_is_the_end_of_a_body_without_length_and_of_no_other() {
    let at = server(&[], |_, mut stream| async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut seen).await.is_ok_and(|n| n == 0) {
                return;
            }
        }

        let length = if seen.starts_with(b"GET /sized") {
            "content-length: 100\r\n"
        } else {
            ""
        };

        let answer = format!("HTTP/1.1 200 OK\r\n{length}\r\nold but whole");
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.flush().await;
    })
    .await;

    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let up = under_tls(static_cluster("up", &[at]), &[]);
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let to = running.at("in").await;
    let mut client = Client::connect(to).await;

    client
        .send("GET /old HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await;
    let (_, body) = client.receive().await.expect("a whole answer");
    assert_eq!(body, b"old but whole");
    running.log.line_with("200 - via_upstream /old ").await;
    let mut client = Client::connect(to).await;
    client.send("GET /sized HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(client.receive().await.is_none(), "what is cut is not whole");
    running
        .log
        .line_with("200 UPE upstream_reset_after_response_started")
        .await;
}

#[tokio::test]
async fn a_websocket_to_a_cluster_of_http2_is_spoken_as_it_was_agreed() {
    let both = server(&["h2", "http/1.1"], |agreed, mut stream| async move {
        if agreed.as_deref() != Some(b"http/1.1") {
            return;
        }
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut seen).await.is_ok_and(|n| n == 0) {
                return;
            }
        }

        let head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n";
        let _ = stream.write_all(head).await;
        let _ = stream.flush().await;
        let _ = stream.read_buf(&mut seen).await;
    })
    .await;

    let only_http2 = server(&["h2"], |_, mut stream| async move {
        // The preface would be the first thing to come.
        let mut first = Vec::new();
        let _ = stream.read_buf(&mut first).await;
        assert!(first.is_empty() || first.starts_with(b"PRI "), "{first:?}");
    })
    .await;

    let routes = vec![forward("/both", "both"), forward("/only", "only")];
    let clusters = [("both", both), ("only", only_http2)]
        .map(|(name, at)| under_tls(http2(static_cluster(name, &[at])), &["h2", "http/1.1"]));
    let manager = manager(inline(table("r", routes)));
    let running = Running::with(
        clusters.into(),
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let at = running.at("in").await;
    let upgrade = "HTTP/1.1\nhost: a\nconnection: Upgrade\nupgrade: websocket\n\n";
    let (head, _) = Client::connect(at)
        .await
        .ask(&format!("GET /both {upgrade}"))
        .await;

    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (head, _) = Client::connect(at)
        .await
        .ask(&format!("GET /only {upgrade}"))
        .await;

    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    running.log.line_with("503 UF ").await;
}
