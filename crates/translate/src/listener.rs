//! Listeners: the input that a listener is made of, and the one builder.

use meltemi_model::{AccessLog, Cidr};
use meltemi_proto::{Any, pack};

use crate::accesslog::{self, Place};
use crate::envoy::core::TrafficDirection;
use crate::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
    tls_inspector::v3::TlsInspector,
};
use crate::envoy::http::listener_filter;
use crate::envoy::value::{address, boolv, cidr_range, seconds, u32v};
use crate::envoy::{listener, types};
use crate::filters::{Direction, HttpInput, TcpInput, http_chain, tcp_chain};
use crate::tls::{DownstreamTls, downstream_transport};

/// Everything that a listener is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ListenerInput {
    pub name: String,
    pub address: String,
    pub port: u16,
    /// False: connections come from a listener with `use_original_dst`.
    pub bind_to_port: bool,
    pub use_original_dst: bool,
    pub direction: Direction,
    pub inspect: Inspect,
    pub chains: Vec<ChainInput>,
    pub default_chain: Option<ChainInput>,
    /// Written for connections that find no chain.
    pub logs: Vec<AccessLog>,
}

/// The inspection of a connection before its filter chain is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Inspect {
    pub original_destination: bool,
    pub tls: bool,
    pub http: bool,
    /// Destination ports for which nothing waits for a first byte: protocols in which the server
    /// speaks first.
    pub not_tls_on: Vec<u16>,
    /// Destination ports whose protocol is declared.
    pub not_http_on: Vec<u16>,
}

/// A filter chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ChainInput {
    pub name: String,
    pub matched: ChainMatch,
    pub tls: DownstreamTls,
    pub filters: ChainFilters,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ChainFilters {
    Http(Box<HttpInput>),
    Tcp(Box<TcpInput>),
}

/// Which connections a chain takes; empty fields do not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct ChainMatch {
    pub destination_port: Option<u16>,
    pub destinations: Vec<Cidr>,
    pub server_names: Vec<String>,
    pub transport: Option<Transport>,
    pub alpn: Vec<String>,
}

impl ChainMatch {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Tls,
    Raw,
}

/// Builds a listener from its input alone.
pub(crate) fn build_listener(input: &ListenerInput) -> Any {
    pack(&listener_message(input))
}

fn listener_message(input: &ListenerInput) -> listener::Listener {
    let ListenerInput {
        name,
        address: host,
        port,
        bind_to_port,
        use_original_dst,
        direction,
        inspect,
        chains,
        default_chain,
        logs,
    } = input;

    // A sidecar waits for the first bytes as long as a client likes, since some protocols have the
    // server speak first. Istio: MeshConfig.protocolDetectionTimeout, 0 by default. At a gateway, as
    // with Istio, Envoy's default of 15 s holds: whoever says nothing there is closed.
    let waits = (inspect.tls || inspect.http) && *direction != Direction::Gateway;
    listener::Listener {
        name: name.clone(),
        address: Some(address(host, u32::from(*port))),
        bind_to_port: if *bind_to_port { None } else { boolv(false) },
        use_original_dst: if *use_original_dst { boolv(true) } else { None },
        traffic_direction: match direction {
            Direction::Inbound => TrafficDirection::Inbound,
            Direction::Outbound | Direction::Gateway => TrafficDirection::Outbound,
        } as i32,
        listener_filters: inspectors(inspect),
        listener_filters_timeout: if waits { seconds(0) } else { None },
        continue_on_listener_filters_timeout: waits,
        filter_chains: chains.iter().map(chain_message).collect(),
        default_filter_chain: default_chain.as_ref().map(chain_message),
        access_log: accesslog::messages(logs, Place::Listener),
        ..Default::default()
    }
}

fn inspectors(input: &Inspect) -> Vec<listener::ListenerFilter> {
    let Inspect {
        original_destination,
        tls,
        http,
        not_tls_on,
        not_http_on,
    } = input;

    let mut filters = Vec::new();
    if *original_destination {
        filters.push(listener_filter(
            "envoy.filters.listener.original_dst",
            &OriginalDst {},
        ));
    }

    if *tls {
        let config = TlsInspector {
            initial_read_buffer_size: u32v(512),
            ..Default::default()
        };
        let mut filter = listener_filter("envoy.filters.listener.tls_inspector", &config);
        filter.filter_disabled = on_ports(not_tls_on);
        filters.push(filter);
    }

    if *http {
        let mut filter =
            listener_filter("envoy.filters.listener.http_inspector", &HttpInspector {});
        filter.filter_disabled = on_ports(not_http_on);
        filters.push(filter);
    }

    filters
}

fn on_ports(ports: &[u16]) -> Option<listener::ListenerFilterChainMatchPredicate> {
    use listener::listener_filter_chain_match_predicate::{MatchSet, Rule};

    let predicate = |rule| listener::ListenerFilterChainMatchPredicate { rule: Some(rule) };
    let mut rules: Vec<_> = ports
        .iter()
        .map(|port| {
            let start = i32::from(*port);
            predicate(Rule::DestinationPortRange(types::v3::Int32Range {
                start,
                end: start + 1,
            }))
        })
        .collect();

    match rules.len() {
        0 => None,
        1 => rules.pop(),
        // Envoy wants two or more in a set.
        _ => Some(predicate(Rule::OrMatch(MatchSet { rules }))),
    }
}

fn chain_message(input: &ChainInput) -> listener::FilterChain {
    let ChainInput {
        name,
        matched,
        tls,
        filters,
    } = input;

    let is_gateway =
        matches!(filters, ChainFilters::Http(http) if http.direction == Direction::Gateway);
    listener::FilterChain {
        name: name.clone(),
        filter_chain_match: (!matched.is_empty()).then(|| match_message(matched)),
        filters: match filters {
            ChainFilters::Http(http) => http_chain(http),
            ChainFilters::Tcp(tcp) => tcp_chain(tcp),
        },
        transport_socket: downstream_transport(tls),
        transport_socket_connect_timeout: if is_gateway { seconds(15) } else { None },
        ..Default::default()
    }
}

fn match_message(input: &ChainMatch) -> listener::FilterChainMatch {
    let ChainMatch {
        destination_port,
        destinations,
        server_names,
        transport,
        alpn,
    } = input;

    listener::FilterChainMatch {
        destination_port: destination_port.and_then(|port| u32v(u32::from(port))),
        prefix_ranges: destinations.iter().map(cidr_range).collect(),
        server_names: server_names.clone(),
        transport_protocol: match transport {
            None => String::new(),
            Some(Transport::Tls) => "tls".to_owned(),
            Some(Transport::Raw) => "raw_buffer".to_owned(),
        },
        application_protocols: alpn.clone(),
        ..Default::default()
    }
}
