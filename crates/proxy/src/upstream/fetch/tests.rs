//! Fetches from real sockets, over both protocols.

use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;

use meltemi_filters::peer_metadata::{LocalPeer, PeerInfo};
use meltemi_net::OsBinder;
use meltemi_proto::envoy::config::endpoint::v3 as endpoint;
use meltemi_proto::envoy::config::{cluster::v3 as cluster, core::v3 as core};
use meltemi_proxy_config::cluster::Discovery;
use meltemi_proxy_config::compile_cluster;

use super::*;
use crate::common::Common;
use crate::published::{ClusterEntry, Published};
use crate::upstream::live::{ClusterLive, Thresholds};

/// A worker whose one cluster, `up`, has this endpoint.
fn worker(at: SocketAddr, http2: bool, thresholds: Thresholds) -> Rc<Worker> {
    let common = Common {
        mark: None,
        secrets: meltemi_tls::SecretStore::new(),
        registry: Arc::default(),
        logs: crate::logs::Logs::default(),
        binder: Arc::new(OsBinder),
        local: LocalPeer {
            id: "here".into(),
            encoded: PeerInfo::default().encode().into(),
            info: PeerInfo::default(),
        },
        node_id: "here".into(),
        connections: Default::default(),
        since: Instant::now(),
        ready: AtomicBool::new(true),
        failed: AtomicBool::new(false),
        quit: AtomicBool::new(false),
        bootstrap: Default::default(),
        drain_time: Duration::from_secs(5),
        strangers: 1,
        levels: None,
        limited: Default::default(),
    };

    let socket = core::SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(
            at.port().into(),
        )),
        ..Default::default()
    };
    let address = core::Address {
        address: Some(core::address::Address::SocketAddress(socket)),
    };
    let host = endpoint::Endpoint {
        address: Some(address),
        ..Default::default()
    };
    let load_assignment = endpoint::ClusterLoadAssignment {
        cluster_name: "up".to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint::LbEndpoint {
                host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(host)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };

    #[expect(deprecated, reason = "the short way to a cluster that speaks HTTP/2")]
    let message = cluster::Cluster {
        name: "up".to_owned(),
        load_assignment: Some(load_assignment),
        http2_protocol_options: http2.then(Default::default),
        ..Default::default()
    };

    let (compiled, _) = compile_cluster(&message).expect("a good cluster");
    let live = ClusterLive::new([thresholds; 2], None);
    let Discovery::Static(endpoints) = &compiled.discovery else {
        panic!("the cluster is not static");
    };
    let endpoints = endpoints.clone();
    let entry = ClusterEntry::new(compiled, endpoints, Arc::new(live));
    let entry = Arc::new(entry);
    let worker = Worker::new(Arc::new(common), 0, 7);
    worker.swap(Arc::new(Published {
        clusters: [("up".into(), entry)].into(),
        ..Published::default()
    }));

    worker
}

fn request(method: &str, body: &'static str, most: usize) -> FetchRequest<'static> {
    FetchRequest {
        head: RequestHead::of(method, "up.test", "/path"),
        body: Bytes::from_static(body.as_bytes()),
        trailers: None,
        timeout: Duration::from_secs(5),
        response_body: ResponseBody::UpTo(most),
        downstream: None,
    }
}

/// Answers each connection's requests in turn and closes; tells what it was asked.
fn http1(
    answers: &'static [&'static [&'static str]],
) -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let at = listener.local_addr().expect("bound");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for connection in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            for answer in *connection {
                let mut seen = Vec::new();
                while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
                    let mut piece = [0; 4096];
                    let n = stream.read(&mut piece).expect("readable");
                    assert!(n > 0, "closed inside a head");
                    seen.extend_from_slice(&piece[..n]);
                }
                let _ = tell.send(String::from_utf8_lossy(&seen).into_owned());
                stream.write_all(answer.as_bytes()).expect("written");
            }
        }
        // Later connections wait: nobody accepts them.
        std::thread::park();
    });

    (at, told)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .expect("a runtime");
    runtime.block_on(test)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody";

#[test]
fn a_response_is_whole_and_its_connection_is_used_again() {
    let (at, asked) = http1(&[&[OK, OK]]);
    run(async {
        let worker = worker(at, false, Thresholds::default());
        let mut first = request("POST", "hello", 4);
        first.head.append("content-length", b"77");
        let response = fetch(&worker, "up", first).await.expect("a response");
        assert_eq!((response.head.status, &*response.body), (200, &b"body"[..]));

        let second = fetch(&worker, "up", request("GET", "", 3)).await;
        let error = second.expect_err("too long").to_string();
        let wanted = format!("cluster up, endpoint {at}: the response body is longer than 3 bytes");
        assert_eq!(error, wanted);
    });

    let asked: Vec<_> = asked.try_iter().collect();
    let first = "POST /path HTTP/1.1\r\nhost: up.test\r\ncontent-length: 5\r\n\r\n";
    assert!(asked[0].starts_with(first), "{asked:?}");
    assert!(
        asked[1].starts_with("GET /path HTTP/1.1\r\nhost: up.test\r\n\r\n"),
        "{asked:?}"
    );
}

#[test]
fn a_pooled_connection_that_was_closed_costs_a_safe_request_nothing() {
    // The second answer is none: the server closes after it has read the request.
    let (at, asked) = http1(&[&[OK, ""], &[OK]]);
    run(async {
        let worker = worker(at, false, Thresholds::default());
        for _ in 0..2 {
            let response = fetch(&worker, "up", request("GET", "", 4)).await;
            assert_eq!(response.expect("a response").head.status, 200);
        }
    });
    assert_eq!(asked.try_iter().count(), 3);

    let (at, _asked) = http1(&[&[OK, ""], &[OK]]);
    run(async {
        let worker = worker(at, false, Thresholds::default());
        fetch(&worker, "up", request("POST", "", 4))
            .await
            .expect("a response");
        let error = fetch(&worker, "up", request("POST", "", 4))
            .await
            .expect_err("closed");
        assert!(matches!(error.failed, Failed::NoResponse(_)), "{error}");
    });
}

#[test]
fn errors_name_cluster_endpoint_and_what_was_waited_for() {
    let (at, _asked) = http1(&[&["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbo"]]);
    run(async {
        let up = worker(at, false, Thresholds::default());
        let error = fetch(&up, "other", request("GET", "", 4))
            .await
            .expect_err("unknown");
        assert_eq!(error.to_string(), "cluster other: no such cluster");

        let none = Thresholds {
            requests: 0,
            ..Thresholds::default()
        };
        let full = worker(at, false, none);
        let error = fetch(&full, "up", request("GET", "", 4))
            .await
            .expect_err("full");
        assert_eq!(
            error.to_string(),
            "cluster up: circuit breaker: max_requests is reached"
        );

        // A second connection is never answered.
        let slow = FetchRequest {
            timeout: Duration::from_millis(50),
            ..request("GET", "", 4)
        };
        let error = fetch(&up, "up", slow).await.expect_err("cut");
        assert!(
            error
                .to_string()
                .starts_with(&format!("cluster up, endpoint {at}: ")),
            "{error}"
        );
        let slow = FetchRequest {
            timeout: Duration::from_millis(50),
            ..request("GET", "", 4)
        };
        let error = fetch(&up, "up", slow).await.expect_err("silent");
        let wanted = format!(
            "cluster up, endpoint {at}: timeout of 50ms while waiting for the response head"
        );
        assert_eq!(error.to_string(), wanted);
    });

    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let at = closed.expect("bound");
    run(async {
        let worker = worker(at, false, Thresholds::default());
        let error = fetch(&worker, "up", request("GET", "", 4))
            .await
            .expect_err("closed");
        assert!(matches!(error.failed, Failed::Connect(_)), "{error}");
    });
}

#[test]
fn http2_brings_trailers() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a socket");
        let at = listener.local_addr().expect("bound");
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut connection = h2::server::handshake(stream).await.expect("a handshake");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.headers()["te"], "trailers");
                tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    let mut size = 0;
                    while let Some(Ok(piece)) = body.data().await {
                        size += piece.len();
                        let _ = body.flow_control().release_capacity(piece.len());
                    }

                    let response = http::Response::new(());
                    let mut send = respond.send_response(response, false).expect("open");
                    send.send_data(size.to_string().into(), false)
                        .expect("open");
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().expect("good"));
                    send.send_trailers(trailers).expect("open");
                });
            }
        });

        let worker = worker(at, true, Thresholds::default());
        for _ in 0..2 {
            let mut call = request("POST", "a message", 64);
            call.head.append("te", b"trailers");
            let response = fetch(&worker, "up", call).await.expect("a response");
            assert_eq!(&*response.body, b"9");
            let trailers = response.trailers.expect("trailers");
            assert_eq!(trailers["grpc-status"], "0");
        }
    });
}
