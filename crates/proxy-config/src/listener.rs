//! Listeners: where connections arrive, what is sniffed, and which filter chain serves them.

pub(crate) mod compile;

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::ConnInfo;
use meltemi_filters::metadata::Metadata;
use meltemi_filters::rbac::Rbac;
use meltemi_types::Keepalive;

use crate::access_log::AccessLog;
use crate::address::Address;
use crate::chain_match::ChainTree;
use crate::http::HttpConnectionManager;
use crate::tcp::TcpProxy;
use crate::tls::DownstreamTransport;

/// A listener. Source: Envoy `config.listener.v3.Listener`.
#[derive(Debug)]
pub struct Listener {
    /// The resource's name.
    pub name: Arc<str>,
    /// Where it listens, or which original destination it serves.
    pub address: Address,
    /// Further addresses.
    pub additional_addresses: Vec<Address>,
    /// Whether it has a socket of its own; else connections come from a listener with
    /// `use_original_dst`.
    pub bind_to_port: bool,
    /// Whether connections are handed to the listener of their original destination.
    pub use_original_dst: bool,
    /// For reports and access logs.
    pub direction: Direction,
    /// What happens before a filter chain is chosen.
    pub filters: ListenerFilters,
    /// The chains and how they are chosen.
    pub chains: FilterChains,
    /// Logs of connections that no chain took.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// IP_TRANSPARENT.
    pub transparent: bool,
    /// IP_FREEBIND.
    pub freebind: bool,
    /// The backlog; the system's if unset.
    pub backlog: Option<u32>,
    /// Bytes a connection may buffer; Envoy's default is 1 MiB.
    pub buffer_limit: u32,
    /// Keepalive of accepted sockets.
    pub keepalive: Option<Keepalive>,
    /// Static metadata.
    pub metadata: Metadata,
}

/// Which way traffic goes, seen from the workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Not said.
    #[default]
    Unspecified,
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// What runs on an accepted socket before a chain is chosen, in this order.
#[derive(Debug, Clone, Default)]
pub struct ListenerFilters {
    /// Restore the original destination.
    pub original_dst: Option<PortPredicate>,
    /// Peek for a ClientHello.
    pub tls_inspector: Option<PortPredicate>,
    /// Peek for HTTP in plaintext.
    pub http_inspector: Option<PortPredicate>,
    /// How long all of that may take; `None`: for ever.
    pub timeout: Option<Duration>,
    /// Go on after the timeout with what is known; else close.
    pub continue_on_timeout: bool,
}

impl ListenerFilters {
    /// Whether the TLS inspector runs for this destination port.
    pub fn inspects_tls(&self, port: u16) -> bool {
        self.tls_inspector
            .as_ref()
            .is_some_and(|disabled| !disabled.matches(port))
    }

    /// Whether the HTTP inspector runs for this destination port.
    pub fn inspects_http(&self, port: u16) -> bool {
        self.http_inspector
            .as_ref()
            .is_some_and(|disabled| !disabled.matches(port))
    }

    /// Whether the original destination is restored.
    pub fn restores_original_dst(&self) -> bool {
        self.original_dst.is_some()
    }
}

/// Destination ports for which a listener filter is off. Source: Envoy
/// `ListenerFilterChainMatchPredicate`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PortPredicate {
    /// No port.
    #[default]
    Never,
    /// Every port.
    Always,
    /// At least the first, below the second.
    Range(u32, u32),
    /// Any of these.
    Any(Vec<PortPredicate>),
    /// All of these.
    All(Vec<PortPredicate>),
    /// Not this.
    Not(Box<PortPredicate>),
}

impl PortPredicate {
    /// Whether the port is meant.
    pub fn matches(&self, port: u16) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Range(start, end) => (*start..*end).contains(&u32::from(port)),
            Self::Any(any) => any.iter().any(|predicate| predicate.matches(port)),
            Self::All(all) => all.iter().all(|predicate| predicate.matches(port)),
            Self::Not(not) => !not.matches(port),
        }
    }
}

/// A listener's chains.
#[derive(Debug, Default)]
pub struct FilterChains {
    pub(crate) tree: ChainTree,
    /// Every chain in the order of the message, without the default.
    pub all: Vec<Arc<FilterChain>>,
    /// What serves connections that match nothing.
    pub default: Option<Arc<FilterChain>>,
}

impl FilterChains {
    /// The chain for a connection; `None`: the connection is closed. No allocation.
    pub fn select(&self, conn: &ConnInfo) -> Option<&Arc<FilterChain>> {
        self.tree
            .find(conn)
            .and_then(|index| self.all.get(index))
            .or(self.default.as_ref())
    }

    /// A chain by name.
    pub fn named(&self, name: &str) -> Option<&Arc<FilterChain>> {
        self.iter().find(|chain| &*chain.name == name)
    }

    /// Every chain, the default last.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.all.iter().chain(&self.default)
    }
}

/// A way to serve a connection. Source: Envoy `config.listener.v3.FilterChain`.
#[derive(Debug)]
pub struct FilterChain {
    /// Its name; made from its place where the message has none.
    pub name: Arc<str>,
    /// Plaintext or TLS.
    pub transport: DownstreamTransport,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Option<Duration>,
    /// What runs before the terminal filter, in order.
    pub filters: Box<[NetworkFilter]>,
    /// What serves the connection.
    pub terminal: Terminal,
    /// Static metadata.
    pub metadata: Metadata,
}

/// A network filter that does not serve the connection itself.
#[derive(Debug)]
pub enum NetworkFilter {
    /// Authorization of the connection.
    Rbac(Arc<Rbac>),
    /// The cluster is what SNI says.
    SniCluster,
    /// Istio's exchange of peer metadata on connections with ALPN `istio-peer-exchange`.
    MetadataExchange,
    /// Istio's standard metrics for TCP; how often open connections are reported.
    Stats {
        /// Default 5 s.
        interval: Duration,
    },
    /// At most so many connections.
    ConnectionLimit(Arc<ConnectionLimit>),
}

/// `envoy.filters.network.connection_limit`; the count of what is open lives here.
#[derive(Debug)]
pub struct ConnectionLimit {
    /// For metrics.
    pub stat_prefix: Box<str>,
    /// The limit.
    pub max: u64,
    /// How long a refused connection is kept open before it is closed.
    pub delay: Duration,
}

/// What serves a connection.
#[derive(Debug, Clone)]
pub enum Terminal {
    /// As HTTP.
    Http(Arc<HttpConnectionManager>),
    /// As bytes.
    Tcp(Arc<TcpProxy>),
}
