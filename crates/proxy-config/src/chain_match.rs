//! Finds the filter chain of a connection in a tree that has Envoy's order of conditions.
//!
//! Destination port, destination address (longest prefix), server name (exact, then wildcards,
//! longest first), transport protocol, application protocols, directly connected source, kind of
//! source, source (longest prefix), source port. Each step takes its most specific branch and never
//! comes back from it. Source: Envoy `filter_chain_manager_impl.cc`.

use std::collections::HashMap;
use std::net::IpAddr;

use meltemi_filters::matcher::Cidr;
use meltemi_filters::{ConnInfo, Rejection, Scope, TransportProtocol, conn};
use meltemi_proto::envoy::config::core::v3::CidrRange;
use meltemi_proto::envoy::config::listener::v3::FilterChainMatch;
use meltemi_proto::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;

use crate::fast_hash::FastHash;

/// The tree of conditions. A leaf holds the number of a chain.
#[derive(Debug, Default)]
pub(crate) struct ChainTree {
    ports: Branch<u16, PrefixMap<Names>>,
}

/// One level of the tree: branches for exact keys, and the branch for all other keys.
#[derive(Debug)]
struct Branch<K, V> {
    exact: HashMap<K, V, FastHash>,
    any: Option<Box<V>>,
}

impl<K, V> Default for Branch<K, V> {
    fn default() -> Self {
        Self {
            exact: HashMap::default(),
            any: None,
        }
    }
}

impl<K: Eq + std::hash::Hash, V: Default> Branch<K, V> {
    fn entry(&mut self, key: Option<K>) -> &mut V {
        match key {
            Some(key) => self.exact.entry(key).or_default(),
            None => self.any.get_or_insert_default(),
        }
    }
}

/// Values by address range, looked up by the longest prefix.
#[derive(Debug)]
struct PrefixMap<V> {
    /// Lengths in use, longest first.
    lengths: Vec<u8>,
    map: HashMap<Cidr, V, FastHash>,
    any: Option<Box<V>>,
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self {
            lengths: Vec::new(),
            map: HashMap::default(),
            any: None,
        }
    }
}

impl<V: Default> PrefixMap<V> {
    fn entry(&mut self, range: Option<Cidr>) -> &mut V {
        let Some(range) = range else {
            return self.any.get_or_insert_default();
        };
        if !self.lengths.contains(&range.length()) {
            self.lengths.push(range.length());
            self.lengths.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.map.entry(range).or_default()
    }

    fn find(&self, address: IpAddr) -> Option<&V> {
        self.lengths
            .iter()
            .find_map(|length| self.map.get(&Cidr::containing(address, *length)))
            .or(self.any.as_deref())
    }
}

#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Box<str>, Transports, FastHash>,
    /// `*.example.com` as `.example.com`.
    wildcard: HashMap<Box<str>, Transports, FastHash>,
    any: Option<Box<Transports>>,
}

type Transports = Branch<TransportKey, Applications>;
type Applications = Branch<Box<str>, PrefixMap<Kinds>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum TransportKey {
    Known(TransportProtocol),
    /// A name that no listener filter sets, so the chain serves no connection.
    Unknown(Box<str>),
}

#[derive(Debug, Default)]
struct Kinds {
    any: PrefixMap<Branch<u16, Leaf>>,
    local: Option<PrefixMap<Branch<u16, Leaf>>>,
    external: Option<PrefixMap<Branch<u16, Leaf>>>,
    has_any: bool,
}

/// The number of a chain, once one is inserted.
#[derive(Debug, Default, Clone, Copy)]
struct Leaf(Option<usize>);

/// The most leaves that one chain's match may need: the product of its lists' lengths.
const MAX_LEAVES: usize = 1 << 16;

/// A filter chain's match, compiled. Each list is one level of the tree; `None` in a list stands
/// for any value, and a list that the message leaves empty is `[None]`.
struct Conditions {
    port: Option<u16>,
    destinations: Vec<Option<Cidr>>,
    names: Vec<Option<Name>>,
    transport: Option<TransportKey>,
    applications: Vec<Option<Box<str>>>,
    direct_sources: Vec<Option<Cidr>>,
    kind: ConnectionSourceType,
    sources: Vec<Option<Cidr>>,
    source_ports: Vec<Option<u16>>,
}

impl Conditions {
    fn compile(message: &FilterChainMatch, scope: &mut Scope) -> Result<Self, Rejection> {
        let FilterChainMatch {
            destination_port,
            prefix_ranges,
            address_suffix,
            suffix_len,
            direct_source_prefix_ranges,
            source_type,
            source_prefix_ranges,
            source_ports,
            server_names,
            transport_protocol,
            application_protocols,
        } = message;

        // Envoy refuses a chain that it would match by less than the message says.
        if !address_suffix.is_empty() || suffix_len.is_some() {
            return scope.refuse("address_suffix is not implemented, in Envoy neither");
        }

        let port = match destination_port {
            Some(port) => Some(port_of(port.value, scope)?),
            None => None,
        };

        let transport = match transport_protocol.as_str() {
            "" => None,
            "raw_buffer" => Some(TransportKey::Known(TransportProtocol::RawBuffer)),
            "tls" => Some(TransportKey::Known(TransportProtocol::Tls)),
            "quic" => Some(TransportKey::Known(TransportProtocol::Quic)),
            other => Some(TransportKey::Unknown(other.into())),
        };

        let kind = ConnectionSourceType::try_from(*source_type)
            .map_err(|_| scope.reject(format!("unknown source_type {source_type}")))?;
        let direct = "direct_source_prefix_ranges";
        let port_in_list = |scope: &mut Scope, port: &u32| port_of(*port, scope);
        let name_in_list = |scope: &mut Scope, name: &String| server_name(name, scope);
        let applications = application_protocols
            .iter()
            .map(|name| name.as_str().into());

        Ok(Self {
            port,
            destinations: ranges("prefix_ranges", prefix_ranges, scope)?,
            names: or_any(scope.each("server_names", server_names, name_in_list)?),
            transport,
            applications: or_any(applications.collect()),
            direct_sources: ranges(direct, direct_source_prefix_ranges, scope)?,
            kind,
            sources: ranges("source_prefix_ranges", source_prefix_ranges, scope)?,
            source_ports: or_any(scope.each("source_ports", source_ports, port_in_list)?),
        })
    }

    /// The number of leaves that these conditions need; `None` if it does not fit a `usize`.
    fn leaves(&self) -> Option<usize> {
        let lists = [
            self.destinations.len(),
            self.names.len(),
            self.applications.len(),
            self.direct_sources.len(),
            self.sources.len(),
            self.source_ports.len(),
        ];

        let mut lengths = lists.into_iter();
        lengths.try_fold(1usize, |product, length| product.checked_mul(length))
    }

    /// Puts the chain's number into the leaves of all sources.
    fn insert_sources(
        &self,
        by_source: &mut PrefixMap<Branch<u16, Leaf>>,
        chain: usize,
        scope: &Scope,
    ) -> Result<(), Rejection> {
        for source in &self.sources {
            for port in &self.source_ports {
                let leaf = by_source.entry(*source).entry(*port);
                if leaf.0.is_some_and(|taken| taken != chain) {
                    return scope.refuse("another filter chain has the same matching rules");
                }
                leaf.0 = Some(chain);
            }
        }

        Ok(())
    }
}

impl ChainTree {
    /// Adds a chain; two chains must not have the same conditions.
    pub(crate) fn insert(
        &mut self,
        message: Option<&FilterChainMatch>,
        chain: usize,
        scope: &mut Scope,
    ) -> Result<(), Rejection> {
        let empty = FilterChainMatch::default();
        let conditions = Conditions::compile(message.unwrap_or(&empty), scope)?;
        if conditions.leaves().is_none_or(|leaves| leaves > MAX_LEAVES) {
            return scope.refuse(format!(
                "filter_chain_match stands for more than {MAX_LEAVES} combinations"
            ));
        }

        for destination in &conditions.destinations {
            let by_name = self.ports.entry(conditions.port).entry(*destination);
            for name in &conditions.names {
                let transports = by_name.entry(name.as_ref());
                let by_application = transports.entry(conditions.transport.clone());
                for application in &conditions.applications {
                    let by_direct = by_application.entry(application.clone());
                    for direct in &conditions.direct_sources {
                        let kinds = by_direct.entry(*direct);
                        conditions.insert_sources(kinds.entry(conditions.kind), chain, scope)?;
                    }
                }
            }
        }

        Ok(())
    }

    /// The chain for a connection.
    pub(crate) fn find(&self, conn: &ConnInfo) -> Option<usize> {
        let destination = conn::canonical(conn.local.ip());
        let by_address = self
            .ports
            .exact
            .get(&conn.local.port())
            .or(self.ports.any.as_deref())?;

        let transports = by_address
            .find(destination)?
            .find(conn.server_name.as_deref().unwrap_or_default())?;
        let key = TransportKey::Known(conn.transport);
        let applications = transports.exact.get(&key).or(transports.any.as_deref())?;
        let by_direct = conn
            .application_protocols
            .iter()
            .find_map(|protocol| applications.exact.get(&**protocol))
            .or(applications.any.as_deref())?;

        let kinds = by_direct.find(conn.direct_remote.ip())?;
        let by_source = kinds.find(conn)?;
        let ports = by_source.find(conn.remote.ip())?;

        ports
            .exact
            .get(&conn.remote.port())
            .or(ports.any.as_deref())?
            .0
    }
}

impl Names {
    fn entry(&mut self, name: Option<&Name>) -> &mut Transports {
        match name {
            Some(Name::Exact(name)) => self.exact.entry(name.clone()).or_default(),
            Some(Name::Wildcard(suffix)) => self.wildcard.entry(suffix.clone()).or_default(),
            None => self.any.get_or_insert_default(),
        }
    }

    /// The branch of a server name: exact, then the longest wildcard, then any name.
    fn find(&self, name: &str) -> Option<&Transports> {
        let named = !self.exact.is_empty() || !self.wildcard.is_empty();
        if named && !name.is_empty() {
            if let Some(found) = self.exact.get(name) {
                return Some(found);
            }

            // The wildcard stands for at least one character.
            let found = memchr::memchr_iter(b'.', name.as_bytes())
                .filter(|at| *at > 0)
                .find_map(|at| self.wildcard.get(&name[at..]));
            if found.is_some() {
                return found;
            }
        }

        self.any.as_deref()
    }
}

impl Kinds {
    fn entry(&mut self, kind: ConnectionSourceType) -> &mut PrefixMap<Branch<u16, Leaf>> {
        match kind {
            ConnectionSourceType::Any => {
                self.has_any = true;
                &mut self.any
            }
            ConnectionSourceType::SameIpOrLoopback => self.local.get_or_insert_default(),
            ConnectionSourceType::External => self.external.get_or_insert_default(),
        }
    }

    /// The branch of a connection's kind of source. A chain for the kind itself goes before chains
    /// for any kind.
    fn find(&self, conn: &ConnInfo) -> Option<&PrefixMap<Branch<u16, Leaf>>> {
        if self.local.is_some() || self.external.is_some() {
            let remote = conn.remote.ip();
            let chosen = if remote.is_loopback() || remote == conn.local.ip() {
                &self.local
            } else {
                &self.external
            };
            if chosen.is_some() {
                return chosen.as_ref();
            }
        }

        self.has_any.then_some(&self.any)
    }
}

#[derive(Debug, Clone)]
enum Name {
    Exact(Box<str>),
    Wildcard(Box<str>),
}

fn server_name(name: &str, scope: &mut Scope) -> Result<Name, Rejection> {
    let lower = name.to_ascii_lowercase();
    match lower.strip_prefix('*') {
        _ if lower.is_empty() || lower == "*" => {
            scope.refuse("an empty server name, or *; leave the list empty instead")
        }
        Some(suffix) if suffix.starts_with('.') && !suffix.contains('*') => {
            Ok(Name::Wildcard(suffix.into()))
        }
        None if !lower.contains('*') => Ok(Name::Exact(lower.into())),
        _ => scope.refuse(format!("partial wildcard {name:?} in a server name")),
    }
}

fn ranges(
    field: &str,
    messages: &[CidrRange],
    scope: &mut Scope,
) -> Result<Vec<Option<Cidr>>, Rejection> {
    Ok(or_any(scope.each(field, messages, |scope, range| {
        Cidr::compile(range, scope)
    })?))
}

fn or_any<T>(list: Vec<T>) -> Vec<Option<T>> {
    match list.is_empty() {
        true => vec![None],
        false => list.into_iter().map(Some).collect(),
    }
}

fn port_of(port: u32, scope: &Scope) -> Result<u16, Rejection> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => scope.refuse(format!("{port} is not a port")),
    }
}

#[cfg(test)]
mod tests;
