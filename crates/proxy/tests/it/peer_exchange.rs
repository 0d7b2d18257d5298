//! Two proxies that tell each other who they are before the first byte of a TCP connection.

use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3::{FilterChain, Listener};
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proto::google::protobuf::{BoolValue, Struct};
use meltemi_proto::istio::{MetadataExchange, StatsConfig};
use meltemi_proto::{pack, value_of};
use meltemi_proxy::ProxyOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::*;
use crate::peers::{self, Client};
use crate::stats::{administered, page};
use crate::tls::{Authority, common, socket};

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

fn node(workload: &str) -> core::Node {
    let fields = [("WORKLOAD_NAME", workload), ("NAMESPACE", "default")];
    let fields = fields
        .map(|(key, value)| (key.to_owned(), value_of(value)))
        .into();
    core::Node {
        id: workload.to_owned(),
        metadata: Some(Struct { fields }),
        ..Default::default()
    }
}

fn options(authority: &Authority, workload: &str) -> ProxyOptions {
    let secrets = authority.secrets(&format!("spiffe://cluster.local/ns/default/sa/{workload}"));
    ProxyOptions {
        node: node(workload),
        secrets,
        ..administered()
    }
}

fn exchange() -> meltemi_proto::Any {
    pack(&MetadataExchange {
        protocol: "istio-peer-exchange".to_owned(),
    })
}

/// A chain that counts, and logs both peers.
fn chain(cluster: &str, exchanges: bool) -> FilterChain {
    let mut chain = tcp_chain(cluster);
    let mut proxy: meltemi_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy =
        match &chain.filters[0].config_type {
            Some(meltemi_proto::envoy::config::listener::v3::filter::ConfigType::TypedConfig(
                any,
            )) => meltemi_proto::unpack(any).expect("a TCP proxy"),
            _ => unreachable!("made with one"),
        };

    let format = "peers %FILTER_STATE(downstream_peer:FIELD:workload)% %FILTER_STATE(upstream_peer:FIELD:workload)%\n";
    proxy.access_log = vec![log_as("/dev/stdout", format)];
    chain.filters = vec![network_filter(
        "envoy.filters.network.tcp_proxy",
        pack(&proxy),
    )];

    chain.filters.insert(
        0,
        network_filter("istio.stats", pack(&StatsConfig::default())),
    );

    if exchanges {
        chain
            .filters
            .insert(0, network_filter("istio.metadata_exchange", exchange()));
    }

    chain
}

fn inbound(app: &str, alpn: &[&str], exchanges: bool) -> Listener {
    let mut chain = chain(app, exchanges);
    chain.transport_socket = Some(socket(pack(&tls::DownstreamTlsContext {
        common_tls_context: Some(common(alpn, &[])),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    })));
    let mut inbound = listener("in", vec![chain]);
    inbound.traffic_direction = core::TrafficDirection::Inbound as i32;
    inbound
}

fn server_cluster(to: std::net::SocketAddr, alpn: &[&str]) -> cluster::Cluster {
    let mut up = static_cluster("server", &[to]);
    up.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
        common_tls_context: Some(common(alpn, &[SERVER])),
        sni: "outbound_.9000_._.server.default.svc.cluster.local".into(),
        ..Default::default()
    })));

    if alpn.contains(&"istio-peer-exchange") {
        up.filters = vec![cluster::Filter {
            name: "istio.metadata_exchange".into(),
            typed_config: Some(exchange()),
            ..Default::default()
        }];
    }

    up
}

fn outbound() -> Listener {
    let mut outbound = listener("out", vec![chain("server", false)]);
    outbound.traffic_direction = core::TrafficDirection::Outbound as i32;
    outbound
}

const EXCHANGING: &[&str] = &["istio-peer-exchange", "h2", "http/1.1", "istio"];
const OFFERED: &[&str] = &["istio-peer-exchange", "istio"];

/// Greets first, then says back what it hears.
async fn greeter() -> std::net::SocketAddr {
    peers::server(|mut stream, _| async move {
        if stream.write_all(b"welcome\n").await.is_err() {
            return;
        }
        let mut bytes = [0; 256];
        while let Ok(read @ 1..) = stream.read(&mut bytes).await {
            if stream.write_all(&bytes[..read]).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Hears the greeting, speaks, and hears itself.
async fn talk(at: std::net::SocketAddr) {
    let mut client = Client::connect(at).await;
    let mut heard = [0; 8];
    client
        .stream
        .read_exact(&mut heard)
        .await
        .expect("the server speaks first");

    assert_eq!(&heard, b"welcome\n");
    client.send("question").await;
    client.stream.read_exact(&mut heard).await.expect("an echo");
    assert_eq!(&heard, b"question");
    client.stream.shutdown().await.expect("half-closed");
    let mut rest = Vec::new();
    client
        .stream
        .read_to_end(&mut rest)
        .await
        .expect("to the end");

    assert!(rest.is_empty(), "{rest:?}");
}

fn counted(metrics: &str, labels: &[&str]) -> bool {
    let opened = |line: &&str| line.starts_with("istio_tcp_connections_opened_total{");
    metrics
        .lines()
        .filter(opened)
        .any(|line| labels.iter().all(|label| line.contains(label)))
}

#[tokio::test]
async fn both_ends_name_their_peer_in_metrics_and_logs() {
    let authority = Authority::new();
    let server = Running::start(options(&authority, "server"));
    server
        .apply(
            vec![static_cluster("app", &[greeter().await])],
            vec![inbound("app", EXCHANGING, true)],
        )
        .await;

    let client = Running::start(options(&authority, "client"));
    client
        .apply(
            vec![server_cluster(server.at("in").await, OFFERED)],
            vec![outbound()],
        )
        .await;

    talk(client.at("out").await).await;
    assert_eq!(server.log.line_with("peers ").await, "peers client -");
    assert_eq!(client.log.line_with("peers ").await, "peers - server");
    let both = [
        "source_workload=\"client\"",
        "destination_workload=\"server\"",
        "source_workload_namespace=\"default\"",
    ];

    let (at_server, at_client) = (server.handle.metrics(), client.handle.metrics());
    assert!(
        counted(
            &at_server,
            &[&both[..], &["reporter=\"destination\""]].concat()
        ),
        "{at_server}"
    );

    assert!(
        counted(&at_client, &[&both[..], &["reporter=\"source\""]].concat()),
        "{at_client}"
    );

    // Named by the address that was configured, which has no port yet.
    assert_eq!(
        page(&server, "/stats?filter=ssl&usedonly").await,
        "listener.127.0.0.1_0.ssl.handshake: 1\n"
    );

    assert_eq!(
        page(&client, "/stats?filter=ssl&usedonly").await,
        "cluster.server.ssl.handshake: 1\n"
    );
}

#[tokio::test]
async fn a_peer_without_the_exchange_is_served_without_it() {
    let authority = Authority::new();

    // As Envoy without Istio's filter is configured, on either side.
    for (selected, exchanges, offered) in [
        (&["h2", "http/1.1", "istio"][..], false, OFFERED),
        (EXCHANGING, true, &["istio"][..]),
    ] {
        let server = Running::start(options(&authority, "server"));
        server
            .apply(
                vec![static_cluster("app", &[greeter().await])],
                vec![inbound("app", selected, exchanges)],
            )
            .await;

        let client = Running::start(options(&authority, "client"));
        client
            .apply(
                vec![server_cluster(server.at("in").await, offered)],
                vec![outbound()],
            )
            .await;

        talk(client.at("out").await).await;
        assert_eq!(server.log.line_with("peers ").await, "peers - -");
        let metrics = server.handle.metrics();
        assert!(
            counted(
                &metrics,
                &[
                    "source_workload=\"unknown\"",
                    "destination_workload=\"server\""
                ]
            ),
            "{metrics}"
        );
    }
}

#[tokio::test]
async fn requests_never_offer_the_exchange() {
    let authority = Authority::new();
    let server = Running::start(options(&authority, "server"));
    let app = peers::echo("app").await;

    server
        .apply(
            vec![static_cluster("app", &[app])],
            vec![inbound("app", EXCHANGING, true)],
        )
        .await;

    let client = Running::start(options(&authority, "client"));
    let http = listener(
        "http",
        vec![http_chain(&manager(inline(table(
            "r",
            vec![forward("/", "server")],
        ))))],
    );

    client
        .apply(
            vec![server_cluster(server.at("in").await, OFFERED)],
            vec![http],
        )
        .await;

    let (head, body) = peers::get(client.at("http").await, "/").await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && body.starts_with("app\n"),
        "{head}{body}"
    );
}
