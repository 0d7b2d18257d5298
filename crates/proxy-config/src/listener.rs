//! Listeners: their addresses, the inspection of first bytes, and their filter chains.

mod compile;
mod network;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::ConnInfo;
use meltemi_filters::ext_authz::ConnectionAuthz;
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
    /// The resource's name; the address as text where the message has none.
    pub name: Arc<str>,
    /// The address that it listens on, or the original destination that it serves.
    pub address: Address,
    /// Further addresses, used like the first.
    pub additional_addresses: Vec<Address>,
    /// Whether it has a socket of its own; without one it serves connections that a listener with
    /// `use_original_dst` hands over.
    pub bind_to_port: bool,
    /// Whether connections are handed to the listener of their original destination.
    pub use_original_dst: bool,
    /// Which way its traffic goes, for metrics and access logs.
    pub direction: Direction,
    /// The listener filters, which run before a filter chain is chosen.
    pub filters: ListenerFilters,
    /// The filter chains and how one is chosen.
    pub chains: FilterChains,
    /// Access logs of connections that no filter chain serves.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// IP_TRANSPARENT.
    pub transparent: bool,
    /// IP_FREEBIND.
    pub freebind: bool,
    /// Connections that the system may hold before they are accepted; `None`: its default.
    pub backlog: Option<u32>,
    /// Keepalive of accepted sockets.
    pub keepalive: Option<Keepalive>,
    /// `per_connection_buffer_limit_bytes`: the bytes of a request's body that are kept for a retry
    /// or a mirror where the route says nothing; 0: no limit.
    pub buffer_limit: Option<u32>,
    /// Static metadata.
    pub metadata: Metadata,
}

impl Listener {
    /// Every address, the first one first.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.additional_addresses)
    }

    /// Whether the address is one of the listener's own; an unspecified IP stands for any.
    pub fn listens_on(&self, address: SocketAddr) -> bool {
        self.addresses().filter_map(Address::socket).any(|own| {
            own.port() == address.port() && (own.ip().is_unspecified() || own.ip() == address.ip())
        })
    }
}

/// Which way traffic goes, seen from the workload. Source: Envoy `TrafficDirection`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The configuration does not say.
    #[default]
    Unspecified,
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// Filters that run on an accepted socket before a filter chain is chosen, in this order. Each
/// comes with the destination ports for which it is off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenerFilters {
    /// Restores the original destination.
    pub original_dst: Option<PortPredicate>,
    /// Peeks at the first bytes for a ClientHello.
    pub tls_inspector: Option<PortPredicate>,
    /// Peeks at the first bytes for HTTP in plaintext.
    pub http_inspector: Option<PortPredicate>,
    /// The time that all of them may take together; `None`: no limit. Envoy's default is 15 s.
    pub timeout: Option<Duration>,
    /// After the timeout the connection is served with the facts so far instead of closed.
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

    /// Whether the original destination of connections is restored.
    pub fn restores_original_dst(&self) -> bool {
        self.original_dst.is_some()
    }
}

/// Destination ports for which a listener filter is off. Source: Envoy
/// `ListenerFilterChainMatchPredicate`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PortPredicate {
    /// Matches no port.
    #[default]
    Never,
    /// Matches every port.
    Always,
    /// Matches ports from the first to below the second.
    Range(u32, u32),
    /// Matches where at least one of these does.
    Any(Vec<PortPredicate>),
    /// Matches where all of these do.
    All(Vec<PortPredicate>),
    /// Matches where this does not.
    Not(Box<PortPredicate>),
}

impl PortPredicate {
    /// Whether the filter is off for this port.
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

/// The filter chains of a listener.
#[derive(Debug, Default)]
pub struct FilterChains {
    pub(crate) tree: ChainTree,
    /// Every filter chain in the order of the message, without the default one.
    pub all: Vec<Arc<FilterChain>>,
    /// Serves connections that no filter chain matches.
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

    /// Every chain, the default last.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.all.iter().chain(&self.default)
    }
}

/// A way to serve a connection. Source: Envoy `config.listener.v3.FilterChain`.
#[derive(Debug)]
pub struct FilterChain {
    /// Its name; `LISTENER/NUMBER` or `LISTENER/default` where the message has none.
    pub name: Arc<str>,
    /// Plaintext or TLS.
    pub transport: DownstreamTransport,
    /// The time that a TLS handshake may take.
    pub handshake_timeout: Option<Duration>,
    /// The network filters before the terminal one, in order.
    pub filters: Box<[NetworkFilter]>,
    /// The network filter that serves the connection.
    pub terminal: Terminal,
    /// Static metadata.
    pub metadata: Metadata,
}

/// A network filter that does not serve the connection itself.
#[derive(Debug)]
pub enum NetworkFilter {
    /// Authorization of the connection.
    Rbac(Arc<Rbac>),
    /// A service decides whether the connection may pass.
    ExtAuthz(Arc<ConnectionAuthz>),
    /// The SNI of the connection names the cluster.
    SniCluster,
    /// Istio's exchange of peer metadata on connections with ALPN `istio-peer-exchange`.
    MetadataExchange,
    /// Istio's standard metrics for TCP.
    Stats {
        /// The time between reports on a connection that stays open. Default 5 s.
        interval: Duration,
    },
    /// A limit on open connections.
    ConnectionLimit(Arc<ConnectionLimit>),
}

/// `envoy.filters.network.connection_limit`. The proxy counts open connections by listener and
/// `stat_prefix`.
#[derive(Debug, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// Names the limit in metrics and causes.
    pub stat_prefix: Box<str>,
    /// Connections that may be open at a time; the next one is closed.
    pub max: u64,
}

/// The network filter that serves a connection.
#[derive(Debug, Clone)]
pub enum Terminal {
    /// Serves it as HTTP.
    Http(Arc<HttpConnectionManager>),
    /// Forwards its bytes.
    Tcp(Arc<TcpProxy>),
}
