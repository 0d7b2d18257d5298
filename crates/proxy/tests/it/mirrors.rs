//! Copies for mirrors, beside those that stock Envoy makes.

use std::sync::Arc;
use std::time::Duration;

use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::common::mutation_rules::v3 as rules;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::google::protobuf::BoolValue;
use route::route_action::{HostRewriteSpecifier, RequestMirrorPolicy};
use tokio::sync::{Mutex, mpsc};

use crate::config::*;
use crate::envoy::{self, Envoy};
use crate::hostile::soon;
use crate::peers::{self, Client};

const COUNT: &str = "x-envoy-attempt-count: ";

/// A mirror that tells of each copy which of its header lines the table below is about, and its
/// body.
async fn shadow() -> (cluster::Cluster, mpsc::UnboundedReceiver<String>) {
    let (book, copies) = mpsc::unbounded_channel();
    let at = peers::http_server(move |head, body| {
        let shown = |line: &&str| {
            let names = [
                "host: ",
                "x-envoy-original-host: ",
                "x-new: ",
                "x-gone: ",
                COUNT,
            ];
            names.iter().any(|name| line.starts_with(name))
        };
        let mut lines: Vec<&str> = head.split("\r\n").filter(shown).collect();
        lines.sort_unstable();
        let path = head.split(' ').nth(1).unwrap_or_default();
        let body = String::from_utf8_lossy(body);
        let _ = book.send(format!("{path} {} {body}", lines.join(" ")));
        b"HTTP/1.1 204 Seen\r\n\r\n".to_vec()
    });

    (static_cluster("shadow", &[at.await]), copies)
}

fn to_shadow() -> RequestMirrorPolicy {
    RequestMirrorPolicy {
        cluster: "shadow".into(),
        ..Default::default()
    }
}

fn routes() -> Vec<route::Route> {
    let mirrored = |path: &str, cluster: &str| {
        tune(forward(path, cluster), |action| {
            action.request_mirror_policies = vec![to_shadow()];
        })
    };
    let rewriting = |path: &str, specifier: HostRewriteSpecifier| {
        tune(mirrored(path, "up"), |action| {
            action.host_rewrite_specifier = Some(specifier);
        })
    };

    let set = rules::HeaderMutation {
        action: Some(rules::header_mutation::Action::Append(
            core::HeaderValueOption {
                header: Some(core::HeaderValue {
                    key: "x-new".into(),
                    value: "1".into(),
                    ..Default::default()
                }),
                ..Default::default()
            },
        )),
    };
    let removed = rules::HeaderMutation {
        action: Some(rules::header_mutation::Action::Remove("x-gone".into())),
    };
    let changed = tune(forward("/changed", "up"), |action| {
        action.request_mirror_policies = vec![RequestMirrorPolicy {
            request_headers_mutations: vec![set, removed],
            ..to_shadow()
        }];
    });

    let literal = HostRewriteSpecifier::HostRewriteLiteral("new.test".into());
    let auto = HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true });
    vec![
        changed,
        rewriting("/literal", literal),
        rewriting("/auto", auto),
        mirrored("/down", "down"),
        mirrored("/none", "none"),
        forward("/", "up"),
    ]
}

/// The copies of a few requests, through one proxy.
async fn copies(
    at: std::net::SocketAddr,
    seen: &Mutex<mpsc::UnboundedReceiver<String>>,
) -> Vec<String> {
    let mut copies = Vec::new();
    for request in [
        "GET /table HTTP/1.1\nhost: svc\nx-gone: 1\n\n",
        "GET /changed HTTP/1.1\nhost: svc\nx-gone: 1\n\n",
        "GET /literal HTTP/1.1\nhost: svc\n\n",
        "GET /auto HTTP/1.1\nhost: svc\n\n",
        "GET /none HTTP/1.1\nhost: svc\n\n",
        "POST /none HTTP/1.1\nhost: svc\ncontent-length: 2\n\nhi",
        "GET /down HTTP/1.1\nhost: svc\n\n",
        "POST /down HTTP/1.1\nhost: svc\ncontent-length: 2\n\nhi",
    ] {
        Client::connect(at).await.ask(request).await;
        if !request.contains(" /none ") {
            copies.push(
                soon(async { seen.lock().await.recv().await })
                    .await
                    .expect("a copy"),
            );
        }
    }

    copies
}

#[tokio::test]
async fn mirrors_get_what_envoy_sends_them() {
    let mut up = static_cluster("up", &[peers::echo("up").await]);
    let endpoints = up.load_assignment.as_mut().expect("static");
    if let Some(
        meltemi_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier::Endpoint(endpoint),
    ) = &mut endpoints.endpoints[0].lb_endpoints[0].host_identifier
    {
        endpoint.hostname = "own.test".into();
    }
    let (shadow, seen) = shadow().await;
    let seen = Arc::new(Mutex::new(seen));
    let clusters = vec![
        up,
        shadow,
        static_cluster("down", &[peers::nobody().await]),
        static_cluster("none", &[]),
    ];
    let listener = || {
        let mut routes = table("r", routes());
        routes.request_mirror_policies = vec![to_shadow()];
        routes.virtual_hosts[0].include_request_attempt_count = true;
        let mut manager = manager(inline(routes));
        manager.access_log = Vec::new();
        listener("in", vec![http_chain(&manager)])
    };

    let ours = Running::with(clusters.clone(), vec![listener()]).await;
    let we = copies(ours.at("in").await, &seen).await;
    assert_eq!(
        we,
        [
            "/table host: svc-shadow x-envoy-attempt-count: 1 x-gone: 1 ",
            "/changed host: svc-shadow x-envoy-attempt-count: 1 x-new: 1 ",
            "/literal host: new.test-shadow x-envoy-attempt-count: 1 x-envoy-original-host: svc ",
            "/auto host: svc-shadow x-envoy-attempt-count: 1 ",
            "/down host: svc-shadow x-envoy-attempt-count: 1 ",
            "/down host: svc-shadow x-envoy-attempt-count: 1 hi",
        ]
    );

    let Some(program) = envoy::program("mirrors_get_what_envoy_sends_them") else {
        return;
    };
    let theirs = Envoy::start(program, clusters, |_| vec![listener()]).await;
    assert_eq!(copies(theirs.at("in").await, &seen).await, we);
}

#[tokio::test]
async fn a_mirror_has_the_time_that_the_route_has() {
    let (book, mut ended) = mpsc::unbounded_channel();
    let silent = peers::server(move |mut stream, _| {
        let book = book.clone();
        async move {
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            let _ = book.send(());
        }
    });
    let mirrored = tune(forward("/", "up"), |action| {
        action.timeout = Some(duration(Duration::from_millis(100)));
        action.request_mirror_policies = vec![to_shadow()];
    });
    let clusters = vec![
        static_cluster("up", &[peers::echo("up").await]),
        static_cluster("shadow", &[silent.await]),
    ];
    let manager = manager(inline(table("r", vec![mirrored])));
    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;

    let (head, _) = peers::get(running.at("in").await, "/").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let ended = tokio::time::timeout(Duration::from_secs(5), ended.recv()).await;
    assert!(ended.is_ok(), "the mirror still waits");
}

/// Trailers go with every copy of a request: to the second attempt, and to the mirror.
#[tokio::test]
async fn trailers_are_sent_again_and_to_mirrors() {
    let (book, mut seen) = mpsc::unbounded_channel();
    let serving = |name: &'static str, first_status: u16| {
        let book = book.clone();
        peers::server(move |stream, _| {
            let book = book.clone();
            async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else {
                    return;
                };
                let mut status = first_status;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let (book, answer) = (book.clone(), std::mem::replace(&mut status, 200));
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut length = 0;
                        while let Some(Ok(piece)) = body.data().await {
                            let _ = body.flow_control().release_capacity(piece.len());
                            length += piece.len();
                        }
                        let trailers = body.trailers().await.ok().flatten();
                        let value = trailers.and_then(|map| map.get("x-t").cloned());
                        let _ = book.send((name, length, value));
                        let response = http::Response::builder().status(answer).body(());
                        let _ = respond.send_response(response.expect("good"), true);
                    });
                }
            }
        })
    };

    let mirrored = tune(forward("/", "up"), |action| {
        action.request_mirror_policies = vec![to_shadow()];
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "5xx".into(),
            ..Default::default()
        });
    });
    let clusters = vec![
        http2(static_cluster("up", &[serving("up", 503).await])),
        http2(static_cluster("shadow", &[serving("shadow", 200).await])),
    ];
    let manager = manager(inline(table("r", vec![mirrored])));
    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let stream = tokio::net::TcpStream::connect(running.at("in").await).await;
    let (send, connection) = h2::client::handshake(stream.expect("connects"))
        .await
        .expect("handshake");
    let connection = tokio::spawn(connection);

    for size in [5, 0] {
        let mut send = send.clone().ready().await.expect("ready");
        let request = http::Request::post("http://a/").body(()).expect("good");
        let (response, mut body) = send.send_request(request, false).expect("sent");
        if size > 0 {
            body.send_data(vec![b'x'; size].into(), false)
                .expect("sent");
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-t", http::HeaderValue::from_static("1"));
        body.send_trailers(trailers).expect("sent");
        assert_eq!(soon(response).await.expect("a response").status(), 200);

        let copies = if size > 0 { 3 } else { 2 };
        for _ in 0..copies {
            let (name, length, value) = soon(seen.recv()).await.expect("a copy");
            assert_eq!((length, value.is_some()), (size, true), "{name}");
        }
    }

    connection.abort();
}
