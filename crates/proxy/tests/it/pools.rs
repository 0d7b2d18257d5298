//! Connections to endpoints: how many there are, what one may carry, who waits for one, when it
//! ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use meltemi_proto::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use meltemi_proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use meltemi_proto::envoy::extensions::upstreams::http::v3 as upstream;
use meltemi_proto::google::protobuf::UInt32Value;
use meltemi_proto::pack;
use meltemi_proxy::ProxyOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

use crate::config::*;
use crate::envoy::{self, Envoy};
use crate::http2::connect;
use crate::peers::{self, Client};

/// What happened to a connection of [`Numbered`].
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Asked(usize, String),
    Ended(usize),
}

/// A server of both protocols that answers with the number of its connection; paths with `held`
/// once it is let.
struct Numbered {
    at: SocketAddr,
    gate: Arc<Semaphore>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Numbered {
    async fn start() -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let shut = gate.clone();
        let at = peers::server(move |mut stream, number| {
            let (tell, gate) = (tell.clone(), shut.clone());
            let pass = async move |path: String, tell: mpsc::UnboundedSender<Event>| {
                let is_held = path.contains("held");
                let _ = tell.send(Event::Asked(number, path));
                if is_held {
                    gate.acquire().await.expect("nobody closes it").forget();
                }
            };

            async move {
                let mut first = [0; 3];
                while matches!(stream.peek(&mut first).await, Ok(n) if (1..3).contains(&n)) {}
                if &first == b"PRI" {
                    let mut connection = h2::server::handshake(stream).await.expect("handshake");
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let (tell, pass) = (tell.clone(), pass.clone());
                        tokio::spawn(async move {
                            pass(request.uri().path().to_owned(), tell).await;
                            let response = Response::builder()
                                .header("x-number", number)
                                .body(())
                                .expect("good");
                            let _ = respond.send_response(response, true);
                        });
                    }
                } else {
                    let mut waiting = Vec::new();
                    while let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await
                    {
                        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                        pass.clone()(path, tell.clone()).await;
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-number: {number}\r\n\r\n"
                        );
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                }

                let _ = tell.send(Event::Ended(number));
            }
        })
        .await;

        Self { at, gate, events }
    }

    async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.expect("the server runs")
    }
}

/// Nothing here hangs; a test that would has failed.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("hangs")
}

fn with_options(
    mut cluster: Cluster,
    change: impl FnOnce(&mut upstream::HttpProtocolOptions),
) -> Cluster {
    let mut options = upstream::HttpProtocolOptions::default();
    change(&mut options);
    cluster.typed_extension_protocol_options.insert(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(),
        pack(&options),
    );
    cluster
}

/// Speaks HTTP/2 with so many streams at a time on a connection, under these common options.
fn explicit(cluster: Cluster, streams: Option<u32>, common: core::HttpProtocolOptions) -> Cluster {
    use upstream::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };

    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: streams.map(|value| UInt32Value { value }),
        ..Default::default()
    };

    with_options(cluster, |options| {
        options.common_http_protocol_options = Some(common);
        options.upstream_protocol_options = Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)),
            },
        ));
    })
}

/// Speaks HTTP/1.1 under these common options.
fn http1(cluster: Cluster, common: core::HttpProtocolOptions) -> Cluster {
    use upstream::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };

    with_options(cluster, |options| {
        options.common_http_protocol_options = Some(common);
        options.upstream_protocol_options = Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Default::default())),
            },
        ));
    })
}

/// Speaks what the client speaks.
fn as_downstream(cluster: Cluster) -> Cluster {
    use upstream::http_protocol_options::{UpstreamProtocolOptions, UseDownstreamHttpConfig};
    with_options(cluster, |options| {
        options.upstream_protocol_options = Some(
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http2_protocol_options: Some(Default::default()),
                ..Default::default()
            }),
        );
    })
}

/// So many connections.
fn connections(mut cluster: Cluster, max: u32) -> Cluster {
    let limits = Thresholds {
        max_connections: Some(UInt32Value { value: max }),
        ..Default::default()
    };
    cluster.circuit_breakers = Some(CircuitBreakers {
        thresholds: vec![limits],
        ..Default::default()
    });
    cluster
}

/// Ours, or stock Envoy: what is asserted here holds for both.
enum Proxy {
    Ours(Running),
    Envoy(Envoy),
}

/// Which proxies there are to test: `None` is ours.
fn all(test: &str) -> Vec<Option<PathBuf>> {
    std::iter::once(None)
        .chain(envoy::program(test).map(Some))
        .collect()
}

impl Proxy {
    /// One listener in front of cluster `up`; `/direct` is answered by the proxy itself.
    async fn start(program: Option<PathBuf>, cluster: Cluster) -> Self {
        let direct = route::Route {
            r#match: Some(route::RouteMatch {
                path_specifier: Some(route::route_match::PathSpecifier::Path("/direct".into())),
                ..Default::default()
            }),
            action: Some(route::route::Action::DirectResponse(
                route::DirectResponseAction {
                    status: 200,
                    ..Default::default()
                },
            )),
            ..Default::default()
        };

        let mut manager = manager(inline(table("r", vec![direct, forward("/", "up")])));

        // Ours has an operator that Envoy does not know.
        manager.access_log.clear();
        let listeners = vec![listener("in", vec![http_chain(&manager)])];

        match program {
            Some(program) => Self::Envoy(Envoy::start(program, vec![cluster], |_| listeners).await),
            None => {
                let admin = Some(([127, 0, 0, 1], 0).into());
                let running = Running::start(ProxyOptions {
                    admin,
                    ..Default::default()
                });
                running.apply(vec![cluster], listeners).await;
                Self::Ours(running)
            }
        }
    }

    async fn at(&self) -> SocketAddr {
        match self {
            Self::Ours(running) => running.at("in").await,
            Self::Envoy(envoy) => envoy.at("in").await,
        }
    }

    /// A figure of cluster `up`.
    async fn figure(&self, name: &str) -> u64 {
        let page = match self {
            Self::Ours(running) => {
                let mut client = Client::connect(running.handle.admin_addresses()[0]).await;
                client
                    .ask("GET /stats HTTP/1.1\nhost: localhost\n\n")
                    .await
                    .1
            }
            Self::Envoy(envoy) => envoy.admin("/stats").await,
        };

        let start = format!("cluster.up.{name}: ");
        let line = page.lines().find_map(|line| line.strip_prefix(&start));

        line.unwrap_or_else(|| panic!("no {name} in {page}"))
            .parse()
            .expect("a number")
    }

    /// Returns as soon as a figure has this value.
    async fn until(&self, name: &str, value: u64) {
        soon(async { while self.figure(name).await != value {} }).await;
    }
}

/// A request that has been sent, and its response to come.
async fn ask(send: &SendRequest<Bytes>, path: &str) -> h2::client::ResponseFuture {
    let mut send = send.clone().ready().await.expect("ready");
    let request = Request::get(format!("http://svc{path}"))
        .body(())
        .expect("good");
    send.send_request(request, true).expect("sent").0
}

/// The number of the upstream connection that carried it.
async fn number(response: h2::client::ResponseFuture) -> usize {
    let response = soon(response).await.expect("a response");
    assert_eq!(response.status(), 200);
    response.headers()["x-number"]
        .to_str()
        .expect("text")
        .parse()
        .expect("a number")
}

#[tokio::test]
async fn a_connection_of_the_other_protocol_is_not_waited_for() {
    for program in all("a_connection_of_the_other_protocol_is_not_waited_for") {
        let server = Numbered::start().await;
        let running = Proxy::start(
            program,
            connections(as_downstream(static_cluster("up", &[server.at])), 1),
        )
        .await;

        let at = running.at().await;
        let send = connect(at).await;
        assert_eq!(number(ask(&send, "/").await).await, 0);

        // The only connection that the breaker allows cannot carry it.
        let (head, _) = soon(peers::get(at, "/")).await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains("x-number: 1\r\n"),
            "{head}"
        );

        assert_eq!(running.figure("upstream_cx_active").await, 2);
    }
}

#[tokio::test]
async fn whoever_waits_for_a_connection_was_not_refused() {
    for (program, http2) in all("whoever_waits_for_a_connection_was_not_refused")
        .into_iter()
        .flat_map(|p| [(p.clone(), true), (p, false)])
    {
        let mut server = Numbered::start().await;
        let cluster = connections(static_cluster("up", &[server.at]), 1);
        let cluster = if http2 {
            explicit(cluster, Some(1), Default::default())
        } else {
            cluster
        };

        let running = Proxy::start(program, cluster).await;
        let send = connect(running.at().await).await;
        let first = ask(&send, "/held").await;

        assert_eq!(server.event().await, Event::Asked(0, "/held".into()));
        let second = ask(&send, "/second").await;
        running.until("upstream_rq_pending_active", 1).await;
        server.gate.add_permits(1);
        assert_eq!(number(first).await, 0);
        assert_eq!(number(second).await, 0, "the connection is used again");
        assert_eq!(running.figure("upstream_rq_pending_overflow").await, 0);
        assert_eq!(running.figure("upstream_cx_overflow").await, 1);
        assert_eq!(running.figure("upstream_rq_pending_active").await, 0);
    }
}

#[tokio::test]
async fn an_http2_connection_carries_so_many_requests_and_ends_with_the_last() {
    for program in all("an_http2_connection_carries_so_many_requests_and_ends_with_the_last") {
        let mut server = Numbered::start().await;
        let common = core::HttpProtocolOptions {
            max_requests_per_connection: Some(UInt32Value { value: 2 }),
            ..Default::default()
        };

        let running = Proxy::start(
            program,
            explicit(static_cluster("up", &[server.at]), None, common),
        )
        .await;

        let send = connect(running.at().await).await;
        let held = ask(&send, "/held").await;
        assert_eq!(server.event().await, Event::Asked(0, "/held".into()));
        assert_eq!(number(ask(&send, "/second").await).await, 0);
        assert_eq!(
            number(ask(&send, "/third").await).await,
            1,
            "two were the most"
        );

        server.gate.add_permits(1);
        assert_eq!(
            number(held).await,
            0,
            "a stream on a connection that takes no more goes on"
        );

        assert_eq!(server.event().await, Event::Asked(0, "/second".into()));
        assert_eq!(server.event().await, Event::Asked(1, "/third".into()));
        assert_eq!(server.event().await, Event::Ended(0));
        assert_eq!(number(ask(&send, "/fourth").await).await, 1);
    }
}

#[tokio::test]
async fn an_http1_connection_carries_so_many_requests() {
    for program in all("an_http1_connection_carries_so_many_requests") {
        let server = Numbered::start().await;
        let common = core::HttpProtocolOptions {
            max_requests_per_connection: Some(UInt32Value { value: 2 }),
            ..Default::default()
        };

        let cluster = static_cluster("up", &[server.at]);
        let cluster = http1(cluster, common);
        let running = Proxy::start(program, cluster).await;
        let send = connect(running.at().await).await;

        for of in [0, 0, 1, 1, 2] {
            assert_eq!(number(ask(&send, "/").await).await, of);
        }
    }
}

#[tokio::test]
async fn an_http2_connection_carries_so_many_streams_at_a_time() {
    for program in all("an_http2_connection_carries_so_many_streams_at_a_time") {
        let mut server = Numbered::start().await;
        let running = Proxy::start(
            program,
            explicit(
                static_cluster("up", &[server.at]),
                Some(2),
                Default::default(),
            ),
        )
        .await;

        let send = connect(running.at().await).await;
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(ask(&send, "/held").await);
        }
        let mut of = [0; 3];
        for _ in 0..5 {
            let Event::Asked(number, _) = server.event().await else {
                panic!("nothing ends")
            };
            of[number] += 1;
        }

        of.sort_unstable();
        assert_eq!(of, [1, 2, 2]);
        server.gate.add_permits(5);
        for response in held {
            number(response).await;
        }
    }
}

#[tokio::test]
async fn idle_connections_end() {
    for (program, http2) in all("idle_connections_end")
        .into_iter()
        .flat_map(|p| [(p.clone(), true), (p, false)])
    {
        let mut server = Numbered::start().await;
        let common = core::HttpProtocolOptions {
            idle_timeout: Some(duration(Duration::from_millis(200))),
            ..Default::default()
        };

        let cluster = static_cluster("up", &[server.at]);
        let cluster = if http2 {
            explicit(cluster, None, common)
        } else {
            http1(cluster, common)
        };

        let running = Proxy::start(program, cluster).await;
        let send = connect(running.at().await).await;
        number(ask(&send, "/").await).await;
        assert_eq!(server.event().await, Event::Asked(0, "/".into()));
        assert_eq!(server.event().await, Event::Ended(0));
        running.until("upstream_cx_active", 0).await;
        assert_eq!(number(ask(&send, "/").await).await, 1);
    }
}

#[tokio::test]
async fn connections_of_a_cluster_that_goes_end() {
    for http2 in [true, false] {
        let mut server = Numbered::start().await;
        let cluster = static_cluster("up", &[server.at]);
        let cluster = if http2 {
            explicit(cluster, None, Default::default())
        } else {
            cluster
        };

        let running = Proxy::start(None, cluster).await;
        let send = connect(running.at().await).await;
        number(ask(&send, "/").await).await;
        assert_eq!(server.event().await, Event::Asked(0, "/".into()));
        let Proxy::Ours(running) = running else {
            panic!("ours")
        };
        running
            .handle
            .apply(meltemi_proto::type_url::CLUSTER, vec![], vec!["up".into()])
            .await
            .expect("a cluster that routes name may go");

        assert_eq!(server.event().await, Event::Ended(0));
    }
}

/// A cluster whose TLS handshakes wait until they are let fail, and who hears of each.
async fn unfinished() -> (Cluster, Arc<Semaphore>, mpsc::UnboundedReceiver<usize>) {
    let (tell, opened) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let shut = gate.clone();
    let at = peers::server(move |mut stream, number| {
        let (tell, gate) = (tell.clone(), shut.clone());
        async move {
            let _ = stream.read(&mut [0; 16]).await;
            let _ = tell.send(number);
            let _ = gate.acquire().await;
        }
    })
    .await;

    let mut cluster = explicit(static_cluster("up", &[at]), None, Default::default());
    cluster.connect_timeout = Some(duration(Duration::from_secs(20)));
    cluster.transport_socket = Some(core::TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(
            &UpstreamTlsContext {
                sni: "up.example".into(),
                ..Default::default()
            },
        ))),
    });

    (cluster, gate, opened)
}

/// Returns once the requests before it on the connection have been looked at.
async fn looked_at(send: &SendRequest<Bytes>) {
    assert_eq!(
        soon(ask(send, "/direct").await)
            .await
            .expect("a response")
            .status(),
        200
    );
}

#[tokio::test]
async fn a_connection_that_fails_fails_all_who_wait_for_it() {
    for program in all("a_connection_that_fails_fails_all_who_wait_for_it") {
        let (cluster, gate, mut opened) = unfinished().await;
        let running = Proxy::start(program, cluster).await;
        let send = connect(running.at().await).await;
        let mut responses = Vec::new();

        for _ in 0..8 {
            responses.push(ask(&send, "/").await);
        }
        assert_eq!(soon(opened.recv()).await, Some(0));
        looked_at(&send).await;
        gate.add_permits(1);
        for response in responses {
            assert_eq!(soon(response).await.expect("a response").status(), 503);
        }
        assert_eq!(opened.try_recv().ok(), None, "one connection was tried");
        assert_eq!(running.figure("upstream_cx_connect_fail").await, 1);
    }
}

#[tokio::test]
async fn a_connection_outlives_the_request_that_asked_for_it() {
    let test = "a_connection_outlives_the_request_that_asked_for_it";
    for (program, http2) in all(test)
        .into_iter()
        .flat_map(|p| [(p.clone(), true), (p, false)])
    {
        let (cluster, gate, mut opened) = unfinished().await;
        let cluster = if http2 {
            cluster
        } else {
            http1(cluster, Default::default())
        };

        let running = Proxy::start(program, cluster).await;
        let send = connect(running.at().await).await;
        let first = ask(&send, "/first").await;

        assert_eq!(soon(opened.recv()).await, Some(0));

        // Resets the stream.
        drop(first);
        running.until("upstream_rq_pending_active", 0).await;
        let second = ask(&send, "/second").await;
        running.until("upstream_rq_pending_active", 1).await;
        gate.add_permits(1);
        assert_eq!(soon(second).await.expect("a response").status(), 503);
        assert_eq!(opened.try_recv().ok(), None, "one connection was tried");
    }
}
