//! Network and HTTP filters of a chain, in Istio's order, as far as the client has them.

use meltemi_model::{AccessLog, PathNormalization};
use meltemi_proto::istio::{
    AlpnConfig, AlpnOverride, IstioHeaders, MetadataExchange, PeerMetadataConfig, PeerMethod,
    StatsConfig,
};
use meltemi_proto::pack;

use crate::accesslog::{self, Place};
use crate::authz::{self, AuthzInput};
use crate::envoy::extensions::filters::common::set_filter_state::v3 as filter_state;
use crate::envoy::extensions::filters::http::{
    cors, fault, grpc_stats, grpc_web, router, set_filter_state,
};
use crate::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use crate::envoy::extensions::filters::network::{
    set_filter_state as network_filter_state, tcp_proxy,
};
use crate::envoy::http::{connection_manager, http_filter, network_filter};
use crate::envoy::value::{ads, boolv, duration, seconds};
use crate::envoy::{core, listener, types};
use crate::proxy::Proxy;
use crate::route::action::{CORS_FILTER, FAULT_FILTER};
use crate::route::{RouteTableInput, table_message};

/// How long the head of a request to a gateway may take to come.
const GATEWAY_HEAD_SECONDS: u64 = 60;

/// The filters that the client has compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Abilities {
    pub fault: bool,
    pub cors: bool,
    pub grpc_stats: bool,
    pub grpc_web: bool,
    pub istio_alpn: bool,
    pub istio_stats: bool,
    pub peer_metadata: bool,
    /// Both ends of a TCP connection say who they are, after ALPN `istio-peer-exchange`.
    pub peer_exchange: bool,
    /// An external authorizer is asked about requests.
    pub http_ext_authz: bool,
    /// An external authorizer is asked about TCP connections.
    pub network_ext_authz: bool,
    pub http_filter_state: bool,
    pub network_filter_state: bool,
    /// `100 Continue` comes from the server, and is not the proxy's own answer.
    pub proxies_continue: bool,
}

impl Abilities {
    pub fn of(proxy: &Proxy) -> Self {
        Self {
            fault: proxy.has(FAULT_FILTER),
            cors: proxy.has(CORS_FILTER),
            grpc_stats: proxy.has("envoy.filters.http.grpc_stats"),
            // Our own proxy takes the filter and passes gRPC-Web on as it comes: it is not sent
            // what it does not do.
            grpc_web: proxy.has("envoy.filters.http.grpc_web") && !proxy.is_meltemi,
            istio_alpn: proxy.has("istio.alpn"),
            istio_stats: proxy.has("istio.stats"),
            peer_metadata: proxy.has("envoy.filters.http.peer_metadata"),
            // Without the filter that decides the ALPN of every request, requests would offer it,
            // too.
            peer_exchange: proxy.has("envoy.filters.network.metadata_exchange")
                && proxy.has("istio.alpn"),
            http_ext_authz: proxy.has(authz::HTTP_EXT_AUTHZ),
            network_ext_authz: proxy.has(authz::NETWORK_EXT_AUTHZ),
            http_filter_state: proxy.has("envoy.filters.http.set_filter_state"),
            network_filter_state: proxy.has("envoy.filters.network.set_filter_state"),
            // Our own proxy answers 100 itself, and would warn of the field.
            proxies_continue: !proxy.is_meltemi,
        }
    }
}

/// Which way a chain's traffic goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// To the application beside the proxy.
    Inbound,
    /// From it.
    Outbound,
    /// Through a gateway.
    Gateway,
}

/// A connection manager.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HttpInput {
    pub stat_prefix: String,
    pub direction: Direction,
    pub routes: RouteSource,
    pub authz: AuthzInput,
    pub abilities: Abilities,
    pub logs: Vec<AccessLog>,
    pub is_grpc_web: bool,
    pub paths: PathNormalization,
    /// The ALPN that requests of this chain offer upstream, for clients that cannot decide it per
    /// request.
    pub upstream_alpn: Vec<String>,
}

/// Where a connection manager's routes come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum RouteSource {
    Rds(String),
    Inline(Box<RouteTableInput>),
}

/// A TCP proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TcpInput {
    pub stat_prefix: String,
    pub direction: Direction,
    pub target: TcpTarget,
    pub authz: AuthzInput,
    pub abilities: Abilities,
    pub logs: Vec<AccessLog>,
    pub idle_timeout: Option<std::time::Duration>,
    /// Connections of one source go to one endpoint.
    pub hash_source: bool,
    /// See [`HttpInput::upstream_alpn`].
    pub upstream_alpn: Vec<String>,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum TcpTarget {
    Cluster(String),
    /// Clusters with their shares; two or more.
    Weighted(Vec<(String, u32)>),
}

/// The network filters of an HTTP chain.
pub(crate) fn http_chain(input: &HttpInput) -> Vec<listener::Filter> {
    vec![network_filter(
        "envoy.filters.network.http_connection_manager",
        pack(&manager_message(input)),
    )]
}

fn manager_message(input: &HttpInput) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager as m;

    let HttpInput {
        stat_prefix,
        direction,
        routes,
        authz: _,
        abilities,
        logs,
        is_grpc_web: _,
        paths,
        upstream_alpn: _,
    } = input;

    let mut message = connection_manager(stat_prefix);
    message.proxy_100_continue = abilities.proxies_continue;
    message.normalize_path = boolv(paths.normalize);
    message.merge_slashes = paths.merge_slashes;
    if paths.unescape_slashes {
        message.path_with_escaped_slashes_action =
            m::PathWithEscapedSlashesAction::UnescapeAndForward as i32;
    }

    message.http_filters = http_filters(input);
    message.access_log = accesslog::messages(logs, Place::Chain);
    message.route_specifier = Some(match routes {
        RouteSource::Rds(name) => m::RouteSpecifier::Rds(hcm::Rds {
            config_source: ads(),
            route_config_name: name.clone(),
        }),
        RouteSource::Inline(table) => m::RouteSpecifier::RouteConfig(table_message(table)),
    });

    message.use_remote_address = boolv(*direction == Direction::Gateway);
    let client_certificate = |with_certificate| m::SetCurrentClientCertDetails {
        subject: boolv(true),
        dns: true,
        uri: true,
        cert: with_certificate,
        ..Default::default()
    };

    match direction {
        Direction::Inbound => {
            message.forward_client_cert_details = m::ForwardClientCertDetails::AppendForward as i32;
            message.set_current_client_cert_details = Some(client_certificate(false));
        }
        Direction::Gateway => {
            message.forward_client_cert_details = m::ForwardClientCertDetails::SanitizeSet as i32;
            message.set_current_client_cert_details = Some(client_certificate(true));
            // Anybody reaches a gateway, and half a head holds a connection until its end.
            message.request_headers_timeout = seconds(GATEWAY_HEAD_SECONDS);
        }
        // Istio leaves the name out here: callers within the mesh see Envoy's default, `server:
        // envoy`.
        Direction::Outbound => message.server_name.clear(),
    }

    message
}

fn http_filters(input: &HttpInput) -> Vec<hcm::HttpFilter> {
    let HttpInput {
        stat_prefix: _,
        direction,
        routes: _,
        authz,
        abilities,
        logs: _,
        is_grpc_web,
        paths: _,
        upstream_alpn,
    } = input;

    let mut filters = Vec::new();
    if abilities.peer_metadata {
        filters.push(http_filter(
            "istio.metadata_exchange",
            &peer_metadata(*direction),
        ));
    }

    // A client without the filter would let everything through; leaving it out is not an option,
    // and it refuses the listener instead.
    filters.extend(authz::http_filters(authz, abilities.http_ext_authz));
    if *is_grpc_web && abilities.grpc_web {
        filters.push(http_filter(
            "envoy.filters.http.grpc_web",
            &grpc_web::v3::GrpcWeb {},
        ));
    }

    if abilities.grpc_stats {
        use grpc_stats::v3::filter_config::PerMethodStatSpecifier;

        filters.push(http_filter(
            "envoy.filters.http.grpc_stats",
            &grpc_stats::v3::FilterConfig {
                emit_filter_state: true,
                per_method_stat_specifier: boolv(false)
                    .map(PerMethodStatSpecifier::StatsForAllMethods),
                ..Default::default()
            },
        ));
    }

    if *direction != Direction::Inbound {
        if abilities.istio_alpn {
            filters.push(http_filter("istio.alpn", &alpn_overrides()));
        } else if !upstream_alpn.is_empty() && abilities.http_filter_state {
            filters.push(http_filter(
                "envoy.filters.http.set_filter_state",
                &set_filter_state::v3::Config {
                    on_request_headers: vec![offered_protocols(upstream_alpn)],
                    clear_route_cache: false,
                },
            ));
        }
    }

    if abilities.fault {
        filters.push(http_filter(FAULT_FILTER, &fault::v3::HttpFault::default()));
    }
    if abilities.cors {
        filters.push(http_filter(CORS_FILTER, &cors::v3::Cors {}));
    }
    if abilities.istio_stats {
        filters.push(http_filter("istio.stats", &stats(*direction)));
    }
    filters.push(http_filter(
        "envoy.filters.http.router",
        &router::v3::Router::default(),
    ));

    filters
}

fn peer_metadata(direction: Direction) -> PeerMetadataConfig {
    let headers = |skip_external_clusters| {
        vec![PeerMethod {
            istio_headers: Some(IstioHeaders {
                skip_external_clusters,
            }),
        }]
    };

    match direction {
        Direction::Inbound => PeerMetadataConfig {
            downstream_discovery: headers(false),
            downstream_propagation: headers(false),
            ..Default::default()
        },
        Direction::Outbound | Direction::Gateway => PeerMetadataConfig {
            upstream_discovery: headers(false),
            upstream_propagation: headers(true),
            ..Default::default()
        },
    }
}

fn stats(direction: Direction) -> StatsConfig {
    // A server knows its own service; a client may have nothing but the host that it asked for.
    StatsConfig {
        disable_host_header_fallback: direction != Direction::Outbound,
        ..Default::default()
    }
}

/// The ALPN of peers that say who they are before the first byte of the application.
pub(crate) const PEER_EXCHANGE: &str = "istio-peer-exchange";

/// Settings of the filter, on both ends.
pub(crate) fn metadata_exchange() -> MetadataExchange {
    MetadataExchange {
        protocol: PEER_EXCHANGE.to_owned(),
    }
}

fn alpn_overrides() -> AlpnConfig {
    let entry = |upstream_protocol, own: &str, plain: &str| AlpnOverride {
        upstream_protocol,
        alpn_override: [own, "istio", plain].map(str::to_owned).to_vec(),
    };

    AlpnConfig {
        alpn_override: vec![
            entry(0, "istio-http/1.0", "http/1.0"),
            entry(1, "istio-http/1.1", "http/1.1"),
            entry(2, "istio-h2", "h2"),
        ],
    }
}

/// Filter state that replaces the cluster's ALPN for one request or connection.
fn offered_protocols(protocols: &[String]) -> filter_state::FilterStateValue {
    use filter_state::filter_state_value::{Key, SharedWithUpstream, Value};

    let text = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(
            protocols.join(","),
        )),
        ..Default::default()
    };

    filter_state::FilterStateValue {
        key: Some(Key::ObjectKey(
            "envoy.network.application_protocols".to_owned(),
        )),
        value: Some(Value::FormatString(core::SubstitutionFormatString {
            format: Some(core::substitution_format_string::Format::TextFormatSource(
                text,
            )),
            ..Default::default()
        })),
        shared_with_upstream: SharedWithUpstream::Once as i32,
        ..Default::default()
    }
}

/// The network filters of a TCP chain.
pub(crate) fn tcp_chain(input: &TcpInput) -> Vec<listener::Filter> {
    let TcpInput {
        stat_prefix,
        direction,
        target,
        authz,
        abilities,
        logs,
        idle_timeout,
        hash_source,
        upstream_alpn,
    } = input;

    let mut filters = Vec::new();
    if abilities.peer_exchange && *direction == Direction::Inbound {
        filters.push(network_filter(
            "istio.metadata_exchange",
            pack(&metadata_exchange()),
        ));
    }

    filters.extend(authz::network_filters(authz, abilities.network_ext_authz));
    if abilities.istio_stats {
        filters.push(network_filter("istio.stats", pack(&stats(*direction))));
    }
    if !upstream_alpn.is_empty() && abilities.network_filter_state {
        filters.push(network_filter(
            "envoy.filters.network.set_filter_state",
            pack(&network_filter_state::v3::Config {
                on_new_connection: vec![offered_protocols(upstream_alpn)],
                ..Default::default()
            }),
        ));
    }

    filters.push(network_filter(
        "envoy.filters.network.tcp_proxy",
        pack(&tcp_proxy::v3::TcpProxy {
            stat_prefix: stat_prefix.clone(),
            access_log: accesslog::messages(logs, Place::Chain),
            idle_timeout: idle_timeout.and_then(duration),
            hash_policy: if *hash_source {
                vec![source_hash()]
            } else {
                Vec::new()
            },
            cluster_specifier: Some(cluster_specifier(target)),
            ..Default::default()
        }),
    ));

    filters
}

fn source_hash() -> types::v3::HashPolicy {
    use types::v3::hash_policy::{PolicySpecifier, SourceIp};
    types::v3::HashPolicy {
        policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})),
    }
}

fn cluster_specifier(target: &TcpTarget) -> tcp_proxy::v3::tcp_proxy::ClusterSpecifier {
    use tcp_proxy::v3::tcp_proxy::{
        ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight,
    };

    match target {
        TcpTarget::Cluster(name) => ClusterSpecifier::Cluster(name.clone()),
        TcpTarget::Weighted(shares) => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: shares
                .iter()
                .map(|(name, weight)| ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    metadata_match: None,
                })
                .collect(),
        }),
    }
}
