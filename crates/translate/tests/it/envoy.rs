//! Real Envoy reads what stock Envoy is sent: every cluster, listener and route table, as static
//! resources.
//!
//! The binary comes from `MELTEMI_ENVOY`, else from the peers that `cargo xtask test` installs;
//! without it the test says that it was skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use meltemi_model::Snapshot;
use meltemi_proto::envoy::config::bootstrap::v3::{
    Bootstrap, LayeredRuntime, RuntimeLayer, bootstrap::DynamicResources,
    bootstrap::StaticResources, runtime_layer::LayerSpecifier,
};
use meltemi_proto::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType},
};
use meltemi_proto::envoy::config::core::v3::{
    Address, ApiConfigSource, ApiVersion, GrpcService, Node, Pipe, SocketAddress, address,
    api_config_source::ApiType, grpc_service, socket_address::PortSpecifier,
};
use meltemi_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use meltemi_proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use meltemi_proto::envoy::config::route::v3::RouteConfiguration;
use meltemi_proto::envoy::extensions::filters::http::router::v3::Router;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
};
use meltemi_proto::google::protobuf::{Duration, Struct, Value, value::Kind};
use meltemi_proto::{pack, type_url, unpack};
use meltemi_translate::{Memo, Proxy, Translated, translate};
use prost::Message;

pub fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MELTEMI_ENVOY") {
        return Some(path.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers/python/lib");
    let versions = std::fs::read_dir(root).ok()?;
    versions
        .filter_map(|entry| Some(entry.ok()?.path().join("site-packages/envoy/_bin/envoy")))
        .find(|path| path.is_file())
}

#[test]
fn real_envoy_accepts_every_resource() {
    let Some(envoy) = envoy() else {
        super::skip(
            "real_envoy_accepts_every_resource",
            "there is no Envoy (cargo xtask peers)",
        );
        return;
    };

    let folder = tempfile::tempdir().expect("a folder");
    let logs = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    accessLogFile: /dev/stdout\n    accessLogEncoding: JSON\n    pathNormalization: {normalization: MERGE_SLASHES}\n";
    let snapshot = super::snapshot_of(&format!("{}{logs}", super::SHOP));

    for proxy in [super::front(), super::ledger(), super::entry()] {
        assert_accepted(
            &envoy,
            &folder.path().join("shop.pb"),
            &snapshot,
            proxy,
            "shop",
        );
    }
}

#[test]
fn real_envoy_accepts_the_seldom_used_settings() {
    let Some(envoy) = envoy() else {
        super::skip(
            "real_envoy_accepts_the_seldom_used_settings",
            "there is no Envoy (cargo xtask peers)",
        );
        return;
    };

    let folder = tempfile::tempdir().expect("a folder");
    for (name, policy) in [
        (
            "warmup",
            "{loadBalancer: {simple: LEAST_REQUEST, warmup: {duration: 60s, aggression: 1.5}}}",
        ),
        (
            "split",
            "{outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 5, consecutive5xxErrors: 0}}",
        ),
        (
            "priorities",
            "{loadBalancer: {localityLbSetting: {failoverPriority: [topology.istio.io/network, kubernetes.io/hostname]}}, outlierDetection: {interval: 10s}}",
        ),
        (
            "maglev",
            "{loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 0s}, maglev: {tableSize: 65537}}}}",
        ),
        (
            "pool",
            "{connectionPool: {tcp: {idleTimeout: 5s, tcpKeepalive: {time: 60s}}, http: {useClientProtocol: true, maxConcurrentStreams: 3}}, retryBudget: {percent: 25}}",
        ),
    ] {
        let rules = super::values::destination_rule(policy);
        let snapshot = super::snapshot_of(&format!("{}---\n{rules}", super::values::WORLD));
        assert_accepted(
            &envoy,
            &folder.path().join("places.pb"),
            &snapshot,
            super::values::caller(),
            name,
        );
    }
}

#[test]
fn real_envoy_accepts_external_authorizers() {
    let Some(envoy) = envoy() else {
        super::skip(
            "real_envoy_accepts_external_authorizers",
            "there is no Envoy (cargo xtask peers)",
        );
        return;
    };

    let folder = tempfile::tempdir().expect("a folder");
    let service = "service: ledger.bank.svc.cluster.local, port: 9080, statusOnError: '503', includeRequestBodyInCheck: {maxRequestBytes: 10}";
    for provider in [
        format!("envoyExtAuthzGrpc: {{{service}}}"),
        format!(
            "envoyExtAuthzHttp: {{{service}, pathPrefix: /check, includeRequestHeadersInCheck: [cookie], includeAdditionalHeadersInCheck: {{x-a: b}}, headersToUpstreamOnAllow: [x-*]}}"
        ),
    ] {
        let mesh = format!(
            "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    extensionProviders: [{{name: mine, {provider}}}]\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ask, namespace: istio-system}}\nspec: {{action: CUSTOM, provider: {{name: mine}}, rules: [{{}}]}}\n"
        );
        let snapshot = super::snapshot_of(&format!("{}{mesh}", super::SHOP));

        for proxy in [super::front(), super::entry()] {
            assert_accepted(
                &envoy,
                &folder.path().join("authz.pb"),
                &snapshot,
                proxy,
                &provider,
            );
        }
    }
}

#[test]
fn real_envoy_accepts_what_istios_samples_become() {
    let shared = std::env::var_os("MELTEMI_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );

    let samples = shared.join("istio/samples/bookinfo");
    let (Some(envoy), true) = (envoy(), samples.is_dir()) else {
        super::skip(
            "real_envoy_accepts_what_istios_samples_become",
            "there is no Envoy (cargo xtask peers), or there are no Istio samples (MELTEMI_SHARED)",
        );
        return;
    };

    let read = |path: PathBuf| std::fs::read_to_string(path).expect("a file");
    let base = read(samples.join("platform/kube/bookinfo.yaml"));
    let rules = read(samples.join("networking/destination-rule-all.yaml"));
    let gateway = read(samples.join("networking/bookinfo-gateway.yaml"));
    let folder = tempfile::tempdir().expect("a folder");
    let mut files: Vec<PathBuf> = std::fs::read_dir(samples.join("networking"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();

    files.sort();

    for file in files {
        let snapshot = super::snapshot_of(
            &[base.as_str(), &rules, &gateway, &read(file.clone())].join("\n---\n"),
        );
        let page = [("app", "productpage"), ("version", "v1")];
        let sidecar = "sidecar~10.44.0.2~productpage-1.default~default.svc.cluster.local";
        let router = "router~10.44.0.9~gateway-1.istio-system~istio-system.svc.cluster.local";
        for proxy in [
            super::proxy(sidecar, "bookinfo-productpage", &page),
            super::proxy(router, "gateway", &[("istio", "ingressgateway")]),
        ] {
            assert_accepted(
                &envoy,
                &folder.path().join("bookinfo.pb"),
                &snapshot,
                proxy,
                &file.to_string_lossy(),
            );
        }
    }
}

fn assert_accepted(envoy: &Path, file: &Path, snapshot: &Snapshot, mut proxy: Proxy, name: &str) {
    proxy.is_meltemi = false;
    let translated = translate(snapshot, &proxy, &Memo::new());
    std::fs::write(file, bootstrap(&translated, &proxy.id).encode_to_vec()).expect("a file");
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--log-level", "warning", "-c"])
        .arg(file)
        .output()
        .expect("Envoy runs");

    let is_accepted =
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("OK");
    assert!(
        is_accepted,
        "{name}, {}: {}",
        proxy.id,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn bootstrap(translated: &Translated, id: &str) -> Bootstrap {
    let clusters = translated
        .of(type_url::CLUSTER)
        .iter()
        .map(|one| unpack(&one.any).expect("a cluster"));
    let listeners = translated
        .of(type_url::LISTENER)
        .iter()
        .map(|one| unpack(&one.any).expect("a listener"));
    let tables = translated
        .of(type_url::ROUTE)
        .iter()
        .map(|one| unpack(&one.any).expect("a table"));

    bootstrap_of(
        clusters.collect(),
        listeners.collect(),
        tables.collect(),
        id,
    )
}

/// A bootstrap with these resources. As the agent's, it takes large expressions.
pub fn bootstrap_of(
    mut clusters: Vec<Cluster>,
    mut listeners: Vec<Listener>,
    tables: Vec<RouteConfiguration>,
    id: &str,
) -> Bootstrap {
    clusters.extend(["sds-grpc", "xds-grpc"].map(agent));
    for (index, table) in tables.into_iter().enumerate() {
        listeners.push(serving(table, 20_000 + index));
    }
    let limit = Value {
        kind: Some(Kind::StringValue("32768".to_owned())),
    };
    let fields = [("re2.max_program_size.error_level".to_owned(), limit)];
    let layer = RuntimeLayer {
        name: "static".to_owned(),
        layer_specifier: Some(LayerSpecifier::StaticLayer(Struct {
            fields: fields.into(),
        })),
    };

    Bootstrap {
        layered_runtime: Some(LayeredRuntime {
            layers: vec![layer],
        }),
        node: Some(Node {
            id: id.to_owned(),
            cluster: "test".to_owned(),
            ..Node::default()
        }),
        static_resources: Some(StaticResources {
            listeners,
            clusters,
            secrets: Vec::new(),
        }),
        dynamic_resources: Some(DynamicResources {
            ads_config: Some(ApiConfigSource {
                api_type: ApiType::Grpc as i32,
                transport_api_version: ApiVersion::V3 as i32,
                grpc_services: vec![GrpcService {
                    target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(
                        grpc_service::EnvoyGrpc {
                            cluster_name: "xds-grpc".to_owned(),
                            ..Default::default()
                        },
                    )),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The cluster of an agent's socket, as a bootstrap has it.
fn agent(name: &str) -> Cluster {
    let at = address::Address::Pipe(Pipe {
        path: "./agent.sock".to_owned(),
        mode: 0,
    });

    let endpoint = Endpoint {
        address: Some(Address { address: Some(at) }),
        ..Default::default()
    };

    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        connect_timeout: Some(Duration {
            seconds: 1,
            nanos: 0,
        }),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A listener that serves a table, so that it is read.
fn serving(table: RouteConfiguration, port: usize) -> Listener {
    let manager = HttpConnectionManager {
        stat_prefix: table.name.clone(),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(pack(
                &Router::default(),
            ))),
            ..Default::default()
        }],
        route_specifier: Some(RouteSpecifier::RouteConfig(table)),
        ..Default::default()
    };

    let at = address::Address::SocketAddress(SocketAddress {
        address: "127.0.0.1".to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(
            u32::try_from(port).expect("a port"),
        )),
        ..Default::default()
    });

    Listener {
        name: format!("table_{port}"),
        address: Some(Address { address: Some(at) }),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}
