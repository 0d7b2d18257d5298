//! Envoy messages, as short as tests want them.

use std::net::SocketAddr;
use std::time::Duration;

use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::endpoint::v3 as endpoint;
use meltemi_proto::envoy::config::listener::v3 as listener;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::http::router::v3::Router;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use meltemi_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
use meltemi_proto::type_url::{CLUSTER, LISTENER};
use meltemi_proto::{Any, google, pack};
use meltemi_proxy::{Logs, Proxy, ProxyHandle, ProxyOptions};

pub fn address(at: SocketAddr) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(
                at.port().into(),
            )),
            ..Default::default()
        })),
    }
}

pub fn duration(time: Duration) -> google::protobuf::Duration {
    google::protobuf::Duration {
        seconds: time.as_secs() as i64,
        nanos: time.subsec_nanos() as i32,
    }
}

pub fn assignment(name: &str, endpoints: &[SocketAddr]) -> endpoint::ClusterLoadAssignment {
    let one = |at: &SocketAddr| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
            endpoint::Endpoint {
                address: Some(address(*at)),
                ..Default::default()
            },
        )),
        ..Default::default()
    };

    endpoint::ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: endpoints.iter().map(one).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub fn static_cluster(name: &str, endpoints: &[SocketAddr]) -> cluster::Cluster {
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Static as i32,
        )),
        load_assignment: Some(assignment(name, endpoints)),
        connect_timeout: Some(duration(Duration::from_secs(2))),
        ..Default::default()
    }
}

/// Makes a cluster speak HTTP/2.
pub fn http2(mut cluster: cluster::Cluster) -> cluster::Cluster {
    use http::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    use meltemi_proto::envoy::extensions::upstreams::http::v3 as http;

    let options = http::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Default::default())),
            },
        )),
        ..Default::default()
    };

    cluster.typed_extension_protocol_options.insert(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(),
        pack(&options),
    );

    cluster
}

pub fn forward(prefix: &str, cluster: &str) -> route::Route {
    route::Route {
        name: format!("to-{cluster}"),
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix(prefix.into())),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
                cluster.into(),
            )),
            timeout: Some(duration(Duration::ZERO)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// Changes the action of a route that forwards.
pub fn tune(mut route: route::Route, change: impl FnOnce(&mut route::RouteAction)) -> route::Route {
    if let Some(route::route::Action::Route(action)) = &mut route.action {
        change(action);
    }
    route
}

pub fn table(name: &str, routes: Vec<route::Route>) -> route::RouteConfiguration {
    route::RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![route::VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes,
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub fn http_filter(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

pub fn manager(routes: hcm::http_connection_manager::RouteSpecifier) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        stat_prefix: "test".into(),
        route_specifier: Some(routes),
        http_filters: vec![http_filter(
            "envoy.filters.http.router",
            pack(&Router::default()),
        )],
        server_name: "istio-envoy".into(),
        access_log: vec![log()],
        upgrade_configs: vec![hcm::http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub fn inline(table: route::RouteConfiguration) -> hcm::http_connection_manager::RouteSpecifier {
    hcm::http_connection_manager::RouteSpecifier::RouteConfig(table)
}

pub fn rds(name: &str) -> hcm::http_connection_manager::RouteSpecifier {
    hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
        route_config_name: name.into(),
        config_source: Some(core::ConfigSource {
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
                Default::default(),
            )),
            resource_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        }),
    })
}

/// Flag, details, status, path, cluster, cause: what tests look for in the log.
pub fn log() -> meltemi_proto::envoy::config::accesslog::v3::AccessLog {
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %REQ(:PATH)% %UPSTREAM_CLUSTER% \
                  %BYTES_SENT% <%CAUSE%>\n";
    log_as("/dev/stdout", format)
}

/// A log in a format.
pub fn log_as(path: &str, format: &str) -> meltemi_proto::envoy::config::accesslog::v3::AccessLog {
    use core::substitution_format_string::Format;
    use meltemi_proto::envoy::config::accesslog::v3::{AccessLog, access_log::ConfigType};
    use meltemi_proto::envoy::extensions::access_loggers::file::v3 as file;

    let config = file::FileAccessLog {
        path: path.into(),
        access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(
            core::SubstitutionFormatString {
                format: Some(Format::TextFormatSource(core::DataSource {
                    specifier: Some(core::data_source::Specifier::InlineString(format.into())),
                    ..Default::default()
                })),
                ..Default::default()
            },
        )),
    };

    AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(ConfigType::TypedConfig(pack(&config))),
        ..Default::default()
    }
}

pub fn network_filter(name: &str, config: Any) -> listener::Filter {
    listener::Filter {
        name: name.into(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    }
}

pub fn http_chain(manager: &hcm::HttpConnectionManager) -> listener::FilterChain {
    listener::FilterChain {
        name: "http".into(),
        filters: vec![network_filter(
            "envoy.filters.network.http_connection_manager",
            pack(manager),
        )],
        ..Default::default()
    }
}

pub fn tcp_chain(cluster: &str) -> listener::FilterChain {
    let proxy = tcp_proxy::TcpProxy {
        stat_prefix: "tcp".into(),
        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(
            cluster.into(),
        )),
        access_log: vec![log()],
        ..Default::default()
    };

    listener::FilterChain {
        name: "tcp".into(),
        filters: vec![network_filter(
            "envoy.filters.network.tcp_proxy",
            pack(&proxy),
        )],
        ..Default::default()
    }
}

pub fn listener(name: &str, chains: Vec<listener::FilterChain>) -> listener::Listener {
    listener::Listener {
        name: name.into(),
        address: Some(address(([127, 0, 0, 1], 0).into())),
        filter_chains: chains,
        ..Default::default()
    }
}

/// A log that tests read.
#[derive(Clone, Default)]
pub struct LogBook(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for LogBook {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .expect("no writer panics")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl LogBook {
    /// Waits for a line that holds `text`.
    pub async fn line_with(&self, text: &str) -> String {
        for _ in 0..500 {
            let all = String::from_utf8(self.0.lock().expect("no writer panics").clone())
                .expect("logs are UTF-8");
            if let Some(line) = all.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        panic!(
            "no line with {text:?}: {}",
            String::from_utf8_lossy(&self.0.lock().expect("no writer panics"))
        );
    }
}

/// A running proxy with its listeners' addresses.
pub struct Running {
    pub handle: ProxyHandle,
    pub log: LogBook,
}

impl Running {
    /// With a short time to drain.
    pub fn start(options: ProxyOptions) -> Self {
        Self::start_with(ProxyOptions {
            drain_time: Duration::from_millis(50),
            ..options
        })
    }

    pub fn start_with(options: ProxyOptions) -> Self {
        let log = LogBook::default();
        let logs = Logs::to(Box::new(log.clone())).expect("a thread for the log");
        let handle = Proxy::start(ProxyOptions { logs, ..options }).expect("starts");
        Self { handle, log }
    }

    pub async fn with(clusters: Vec<cluster::Cluster>, listeners: Vec<listener::Listener>) -> Self {
        let running = Self::start(ProxyOptions::default());
        running.apply(clusters, listeners).await;
        running
    }

    pub async fn apply(&self, clusters: Vec<cluster::Cluster>, listeners: Vec<listener::Listener>) {
        let clusters = clusters.iter().map(|c| (c.name.clone(), pack(c))).collect();
        self.handle
            .apply(CLUSTER, clusters, Vec::new())
            .await
            .expect("clusters are good");

        let listeners = listeners
            .iter()
            .map(|l| (l.name.clone(), pack(l)))
            .collect();

        self.handle
            .apply(LISTENER, listeners, Vec::new())
            .await
            .expect("listeners are good");
    }

    /// Where a listener listens, as soon as it does.
    pub async fn at(&self, name: &str) -> SocketAddr {
        for _ in 0..500 {
            if let Some((_, address)) = self
                .handle
                .addresses()
                .await
                .into_iter()
                .find(|(n, _)| &**n == name)
            {
                return address;
            }

            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        panic!(
            "{name} does not listen: {:?}",
            self.handle.not_ready().await
        );
    }
}

/// One HTTP listener `in` in front of one upstream `up`, all routes the same.
pub async fn simple(upstream: SocketAddr) -> (Running, SocketAddr) {
    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    let running = Running::with(
        vec![static_cluster("up", &[upstream])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;
    let at = running.at("in").await;
    (running, at)
}
