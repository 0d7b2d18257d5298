//! The sidecar with a real proxy, Envoy's or ours, serving with the certificate of the moment.
//!
//! Envoy's program is named by `MELTEMI_ENVOY`, or unpacked below `target/peers`; without it its
//! test says so and is skipped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meltemi_agent::sidecar::{Embedded, EnvoySidecar, ProxyChoice, SidecarOptions, run};
use meltemi_agent::{IdentityOptions, NodeKind, Workload};
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3 as listener;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::http::router::v3::Router;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proto::{Any, pack, type_url};
use meltemi_proxy::ProxyOptions;
use meltemi_tls::{ClientTerms, SanMatcher, client_config, info_of};
use meltemi_types::Locality;
use meltemi_xds::ResourceSet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peers::{Peers, no_annotations, sleep_id, until};
use crate::status::http;

fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MELTEMI_ENVOY") {
        return Some(path.into());
    }
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers/python/lib");
    let versions = std::fs::read_dir(python).ok()?;
    versions
        .flatten()
        .map(|version| version.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file())
}

fn address(port: u16) -> Option<core::Address> {
    Some(core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
            ..core::SocketAddress::default()
        })),
    })
}

/// As translation writes it: the secret comes from the cluster `sds-grpc`.
fn from_agent(name: &str) -> tls::SdsSecretConfig {
    let envoy = core::grpc_service::EnvoyGrpc {
        cluster_name: "sds-grpc".into(),
        ..Default::default()
    };

    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)),
        ..Default::default()
    };

    let source = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![service],
        ..Default::default()
    };

    tls::SdsSecretConfig {
        name: name.into(),
        sds_config: Some(core::ConfigSource {
            resource_api_version: core::ApiVersion::V3.into(),
            initial_fetch_timeout: Some(Default::default()),
            config_source_specifier: Some(
                core::config_source::ConfigSourceSpecifier::ApiConfigSource(source),
            ),
            ..Default::default()
        }),
    }
}

/// A listener that answers every request itself, over mutual TLS with the workload's certificate.
fn secure_listener(port: u16) -> Any {
    let body = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString("meshed".into())),
        ..Default::default()
    };

    let direct = route::DirectResponseAction {
        status: 200,
        body: Some(body),
        ..Default::default()
    };

    let everything = route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::route::Action::DirectResponse(direct)),
        ..Default::default()
    };

    let host = route::VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: vec![everything],
        ..Default::default()
    };

    let table = route::RouteConfiguration {
        name: "table".into(),
        virtual_hosts: vec![host],
        ..Default::default()
    };

    let manager = hcm::HttpConnectionManager {
        stat_prefix: "test".into(),
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
            table,
        )),
        http_filters: vec![hcm::HttpFilter {
            name: "envoy.filters.http.router".into(),
            config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(
                &Router::default(),
            ))),
            ..Default::default()
        }],
        ..Default::default()
    };

    let context = tls::DownstreamTlsContext {
        require_client_certificate: Some(meltemi_proto::google::protobuf::BoolValue {
            value: true,
        }),
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![from_agent("default")],
            validation_context_type: Some(
                tls::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(
                    from_agent("ROOTCA"),
                ),
            ),
            ..Default::default()
        }),
        ..Default::default()
    };

    pack(&listener::Listener {
        name: "secure".into(),
        address: address(port),
        filter_chains: vec![listener::FilterChain {
            filters: vec![listener::Filter {
                name: "envoy.filters.network.http_connection_manager".into(),
                config_type: Some(listener::filter::ConfigType::TypedConfig(pack(&manager))),
            }],
            transport_socket: Some(core::TransportSocket {
                name: "envoy.transport_sockets.tls".into(),
                config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(
                    &context,
                ))),
            }),
            ..Default::default()
        }],
        ..Default::default()
    })
}

/// One request over mutual TLS: the answer, and the serial of the certificate that the server
/// showed.
async fn ask(
    port: u16,
    client: Arc<tokio_rustls::rustls::ClientConfig>,
) -> Option<(String, String)> {
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .ok()?;
    let name = rustls_pki_types::ServerName::try_from("sleep.default").expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(client)
        .connect(name, tcp)
        .await
        .ok()?;

    let serial = info_of(&stream.get_ref().1.peer_certificates()?[0])
        .ok()?
        .serial;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .ok()?;

    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.ok()?;

    Some((String::from_utf8_lossy(&text).into_owned(), serial))
}

/// A control plane that serves one secure listener on `port`, and the options of a sidecar under
/// it. Certificates live for two to three seconds, so that they rotate while a test looks.
async fn bench(
    port: u16,
    status: SocketAddr,
    choose: impl FnOnce(&Peers) -> ProxyChoice,
) -> (Peers, SidecarOptions) {
    let peers = Peers::start().await;
    *peers.csr.ttl.lock().expect("lock") = Some(Duration::from_secs(2));
    let mut set = ResourceSet::new();
    set.insert(type_url::LISTENER, "secure", "1", secure_listener(port));
    peers.resources.send_replace(Some(Arc::new(set)));
    let options = SidecarOptions {
        workload: Workload {
            kind: NodeKind::Sidecar,
            identity: sleep_id(),
            pod: "sleep-1".into(),
            ips: vec!["127.0.0.1".parse().expect("an address")],
            labels: [("app", "sleep")].into_iter().collect(),
            annotations: no_annotations(),
            workload_name: "sleep".into(),
            cluster_id: "Kubernetes".into(),
            locality: Locality::default(),
            node_name: "laptop".into(),
            domain_suffix: "cluster.local".into(),
            extra: Default::default(),
        },
        control_plane: peers.options(),
        identity: IdentityOptions::new(sleep_id()),
        dns: None,
        status,
        health: None,
        termination_drain: Duration::from_millis(100),
        proxy: choose(&peers),
    };

    (peers, options)
}

async fn is_ready(status: SocketAddr) {
    until("readiness", async || {
        tokio::net::TcpStream::connect(status).await.ok()?;
        (http(status, "GET", "/healthz/ready").await.0 == 200).then_some(())
    })
    .await;
}

/// Requests are answered over mutual TLS with the workload's identity, and the certificate changes
/// under them.
async fn serves_and_rotates(peers: &Peers, port: u16) {
    let trust = peers.authority.trust().expect("roots");
    let client_id = crate::unix_sockets::certificate(&peers.authority);
    let terms = ClientTerms {
        san: vec![SanMatcher::uri(sleep_id().to_string())],
        ..ClientTerms::default()
    };

    let client = client_config(&terms, Some(&client_id), &trust).expect("terms");
    let (answer, first) = until("an answer", async || ask(port, client.clone()).await).await;
    assert!(answer.ends_with("meshed"), "{answer}");
    until("another certificate", async || {
        ask(port, client.clone())
            .await
            .filter(|(_, serial)| *serial != first)
    })
    .await;

    let nobody = client_config(&terms, None, &trust).expect("terms");
    assert!(
        ask(port, nobody)
            .await
            .is_none_or(|(answer, _)| answer.is_empty()),
        "without a certificate there is no answer"
    );
}

#[tokio::test]
async fn envoy_serves_with_a_certificate_that_rotates_under_it() {
    let Some(program) = program() else {
        crate::skip(
            "envoy_serves_with_a_certificate_that_rotates_under_it",
            "there is no Envoy (cargo xtask peers)",
        );
        return;
    };

    let (port, admin, prometheus, health) = (
        meltemi_testkit::free_port(),
        meltemi_testkit::free_port(),
        meltemi_testkit::free_port(),
        meltemi_testkit::free_port(),
    );

    let status = SocketAddr::from(([127, 0, 0, 1], meltemi_testkit::free_port()));
    let (peers, options) = bench(port, status, |peers| {
        let mut envoy = EnvoySidecar::new(program, peers.folder());
        (
            envoy.concurrency,
            envoy.admin_port,
            envoy.prometheus_port,
            envoy.health_port,
        ) = (1, admin, prometheus, health);
        ProxyChoice::Envoy(envoy)
    })
    .await;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let sidecar = tokio::spawn(run(options, async move { _ = stopped.await }));
    is_ready(status).await;

    // The probe's own way, through Envoy to the agent and back.
    assert_eq!(
        http(
            SocketAddr::from(([127, 0, 0, 1], health)),
            "GET",
            "/healthz/ready"
        )
        .await
        .0,
        200
    );

    assert!(
        http(status, "GET", "/stats/prometheus")
            .await
            .1
            .contains("envoy_server_live")
    );

    serves_and_rotates(&peers, port).await;
    stop.send(()).expect("it runs");
    sidecar.await.expect("no panic").expect("a good end");
    assert!(
        tokio::net::TcpStream::connect(("127.0.0.1", admin))
            .await
            .is_err(),
        "no Envoy is left behind"
    );
}

#[tokio::test]
async fn our_proxy_serves_with_a_certificate_that_rotates_under_it() {
    let port = meltemi_testkit::free_port();
    let status = SocketAddr::from(([127, 0, 0, 1], meltemi_testkit::free_port()));
    let (peers, options) = bench(port, status, |_| {
        ProxyChoice::Embedded(Embedded::meltemi(ProxyOptions::default()))
    })
    .await;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let sidecar = tokio::spawn(run(options, async move { _ = stopped.await }));
    is_ready(status).await;
    serves_and_rotates(&peers, port).await;
    assert_eq!(http(status, "GET", "/stats/prometheus").await.0, 200);
    stop.send(()).expect("it runs");
    sidecar.await.expect("no panic").expect("a good end");
    assert!(
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err(),
        "no listener is left behind"
    );
}
