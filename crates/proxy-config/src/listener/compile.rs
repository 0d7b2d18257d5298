//! Compiling listeners, their filter chains and network filters.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::core::v3::TrafficDirection;
use meltemi_proto::envoy::config::listener::v3 as proto;
use meltemi_proto::envoy::extensions::filters::network;
use meltemi_proto::istio::{StatsConfig, TypedStruct};
use proto::listener_filter_chain_match_predicate::Rule;

use super::*;
use crate::compiler::Compiler;
use crate::convert::{boolean, keepalive, limit, number};
use crate::tls::compile::type_name;

/// How deep predicates may nest.
const MAX_DEPTH: usize = 16;
/// Envoy's default.
const BUFFER_LIMIT: u32 = 1 << 20;

impl Listener {
    pub(crate) fn compile(
        message: &proto::Listener,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        if message.filter_chain_matcher.is_some() || message.fcds_config.is_some() {
            return scope.refuse("filter_chain_matcher and fcds_config are unknown");
        }
        if message.api_listener.is_some() || message.udp_listener_config.is_some() {
            return scope.refuse("API and UDP listeners are not served");
        }
        scope.unsupported("socket_options", !message.socket_options.is_empty());
        scope.unsupported(
            "per_connection_buffer_limit_bytes",
            message.per_connection_buffer_limit_bytes.is_some(),
        );

        let address = match &message.listener_specifier {
            Some(proto::listener::ListenerSpecifier::InternalListener(_)) => {
                Address::Internal(message.name.as_str().into())
            }
            None => Address::compile_required(message.address.as_ref(), scope)?,
        };

        if matches!(address, Address::Name(..)) {
            return scope.refuse("a listener needs an IP address");
        }
        let additional_addresses = scope.each(
            "additional_addresses",
            &message.additional_addresses,
            |scope, more| Address::compile_required(more.address.as_ref(), scope),
        )?;

        let chains = FilterChains::compile(message, compiler, scope)?;
        if chains.all.is_empty() && chains.default.is_none() {
            return scope.refuse("no filter chain");
        }
        #[allow(deprecated)]
        let deprecated_bind = message
            .deprecated_v1
            .as_ref()
            .and_then(|v1| v1.bind_to_port.as_ref());

        Ok(Self {
            name: match message.name.as_str() {
                "" => address.to_string().into(),
                name => name.into(),
            },
            additional_addresses,
            bind_to_port: boolean(message.bind_to_port.as_ref().or(deprecated_bind), true),
            use_original_dst: boolean(message.use_original_dst.as_ref(), false),
            direction: match TrafficDirection::try_from(message.traffic_direction) {
                Ok(TrafficDirection::Inbound) => Direction::Inbound,
                Ok(TrafficDirection::Outbound) => Direction::Outbound,
                Ok(TrafficDirection::Unspecified) | Err(_) => Direction::Unspecified,
            },
            filters: ListenerFilters::compile(message, scope)?,
            chains,
            access_logs: crate::access_log::compile::compile_all(&message.access_log, scope)?,
            transparent: boolean(message.transparent.as_ref(), false),
            freebind: boolean(message.freebind.as_ref(), false),
            backlog: message.tcp_backlog_size.as_ref().map(|size| size.value),
            buffer_limit: number(
                message.per_connection_buffer_limit_bytes.as_ref(),
                BUFFER_LIMIT,
            ),
            keepalive: message.tcp_keepalive.as_ref().map(keepalive),
            metadata: Metadata::from_option(message.metadata.as_ref()),
            address,
        })
    }
}

impl ListenerFilters {
    fn compile(message: &proto::Listener, scope: &mut Scope) -> Result<Self, Rejection> {
        let mut filters = Self {
            timeout: limit(
                "listener_filters_timeout",
                message.listener_filters_timeout.as_ref(),
                Some(Duration::from_secs(15)),
                scope,
            )?,
            continue_on_timeout: message.continue_on_listener_filters_timeout,
            ..Self::default()
        };

        for (index, filter) in message.listener_filters.iter().enumerate() {
            scope.within(format_args!("listener_filters[{index}]"), |scope| {
                filters.add(filter, scope)
            })?;
        }

        Ok(filters)
    }

    fn add(&mut self, filter: &proto::ListenerFilter, scope: &mut Scope) -> Result<(), Rejection> {
        let disabled = match &filter.filter_disabled {
            None => PortPredicate::Never,
            Some(predicate) => PortPredicate::compile(predicate, scope, 0)?,
        };

        let any = match &filter.config_type {
            Some(proto::listener_filter::ConfigType::TypedConfig(any)) => Some(any),
            Some(proto::listener_filter::ConfigType::ConfigDiscovery(_)) => {
                return scope.refuse("listener filters by discovery are unknown");
            }
            None => None,
        };

        let kind = any.map_or(filter.name.as_str(), type_name);
        match kind {
            "envoy.filters.listener.original_dst"
            | "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
                self.original_dst = Some(disabled);
            }
            "envoy.filters.listener.tls_inspector"
            | "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
                self.tls_inspector = Some(disabled);
            }
            "envoy.filters.listener.http_inspector"
            | "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
                self.http_inspector = Some(disabled);
            }
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
                return scope.refuse("PROXY protocol is not read: every caller would have the load balancer's address");
            }
            "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
                scope.warn(
                    "",
                    "original_src is not honoured: the workload sees the proxy's address",
                );
            }
            // Istio's waypoints; it sets what sidecars do not need.
            "envoy.extensions.filters.listener.set_filter_state.v3.Config" => {
                scope.warn("", "set_filter_state is not honoured")
            }
            other => return scope.refuse(format!("unknown listener filter {other:?}")),
        }

        Ok(())
    }
}

impl PortPredicate {
    fn compile(
        message: &proto::ListenerFilterChainMatchPredicate,
        scope: &mut Scope,
        depth: usize,
    ) -> Result<Self, Rejection> {
        if depth > MAX_DEPTH {
            return scope.refuse("filter_disabled is nested too deeply");
        }
        let set = |set: &proto::listener_filter_chain_match_predicate::MatchSet,
                   scope: &mut Scope| {
            scope.each("rules", &set.rules, |scope, rule| {
                Self::compile(rule, scope, depth + 1)
            })
        };

        Ok(
            match scope.required("filter_disabled.rule", message.rule.as_ref())? {
                Rule::AnyMatch(true) => Self::Always,
                Rule::AnyMatch(false) => Self::Never,
                Rule::OrMatch(rules) => Self::Any(set(rules, scope)?),
                Rule::AndMatch(rules) => Self::All(set(rules, scope)?),
                Rule::NotMatch(rule) => Self::Not(Box::new(Self::compile(rule, scope, depth + 1)?)),
                Rule::DestinationPortRange(range) => Self::Range(
                    u32::try_from(range.start).unwrap_or(0),
                    u32::try_from(range.end).unwrap_or(0),
                ),
            },
        )
    }
}

impl FilterChains {
    fn compile(
        message: &proto::Listener,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let mut chains = Self::default();
        for (index, chain) in message.filter_chains.iter().enumerate() {
            let compiled = scope.within(format_args!("filter_chains[{index}]"), |scope| {
                scope.within("filter_chain_match", |scope| {
                    chains
                        .tree
                        .insert(chain.filter_chain_match.as_ref(), index, scope)
                })?;
                FilterChain::compile(chain, &message.name, index, compiler, scope)
            })?;
            chains.all.push(Arc::new(compiled));
        }

        if let Some(chain) = &message.default_filter_chain {
            let compiled = scope.within("default_filter_chain", |scope| {
                FilterChain::compile(chain, &message.name, usize::MAX, compiler, scope)
            })?;
            chains.default = Some(Arc::new(compiled));
        }

        Ok(chains)
    }
}

impl FilterChain {
    fn compile(
        message: &proto::FilterChain,
        listener: &str,
        index: usize,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        #[allow(deprecated)]
        let proxy_proto = boolean(message.use_proxy_proto.as_ref(), false);
        if proxy_proto {
            return scope.refuse("use_proxy_proto is gone from Envoy; use the listener filter");
        }
        let name: Arc<str> = match (message.name.as_str(), index) {
            ("", usize::MAX) => format!("{listener}/default").into(),
            ("", index) => format!("{listener}/{index}").into(),
            (name, _) => name.into(),
        };

        let owner = format!("{listener}/{name}");
        let mut filters = Vec::new();
        let mut terminal = None;

        for (index, filter) in message.filters.iter().enumerate() {
            scope.within(format_args!("filters[{index}]"), |scope| {
                if terminal.is_some() {
                    return scope.refuse("a filter after the terminal one");
                }
                match NetworkItem::compile(filter, &owner, compiler, scope)? {
                    NetworkItem::Filter(filter) => filters.push(filter),
                    NetworkItem::Terminal(found) => terminal = Some(found),
                    NetworkItem::Nothing => {}
                }
                Ok(())
            })?;
        }

        let Some(terminal) = terminal else {
            return scope.refuse(
                "a filter chain without terminal filter (tcp_proxy or http_connection_manager)",
            );
        };

        Ok(Self {
            name,
            transport: DownstreamTransport::compile(message.transport_socket.as_ref(), scope)?,
            handshake_timeout: limit(
                "transport_socket_connect_timeout",
                message.transport_socket_connect_timeout.as_ref(),
                None,
                scope,
            )?,
            filters: filters.into(),
            terminal,
            metadata: Metadata::from_option(message.metadata.as_ref()),
        })
    }
}

enum NetworkItem {
    Filter(NetworkFilter),
    Terminal(Terminal),
    Nothing,
}

impl NetworkItem {
    fn compile(
        message: &proto::Filter,
        owner: &str,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let any = match &message.config_type {
            Some(proto::filter::ConfigType::TypedConfig(any)) => any,
            Some(proto::filter::ConfigType::ConfigDiscovery(_)) => {
                return scope.refuse("network filters by discovery are unknown");
            }
            None => &Any::default(),
        };

        let kind = match type_name(any) {
            "" => message.name.as_str(),
            // Istio sends some filters by URL alone.
            "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct" => {
                &typed_struct_kind(any, scope)?
            }
            name => name,
        };

        Ok(match kind {
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
                let config: network::http_connection_manager::v3::HttpConnectionManager =
                    scope.unpack(any)?;
                let manager = HttpConnectionManager::compile(&config, owner, compiler, scope)?;
                Self::Terminal(Terminal::Http(Arc::new(manager)))
            }
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
                let config: network::tcp_proxy::v3::TcpProxy = scope.unpack(any)?;
                Self::Terminal(Terminal::Tcp(Arc::new(TcpProxy::compile(&config, scope)?)))
            }
            "envoy.extensions.filters.network.rbac.v3.RBAC" => {
                let config: network::rbac::v3::Rbac = scope.unpack(any)?;
                Self::Filter(NetworkFilter::Rbac(Arc::new(Rbac::compile_network(
                    &config, scope,
                )?)))
            }
            "envoy.extensions.filters.network.sni_cluster.v3.SniCluster"
            | "envoy.filters.network.sni_cluster" => Self::Filter(NetworkFilter::SniCluster),
            "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => {
                let config: network::connection_limit::v3::ConnectionLimit = scope.unpack(any)?;
                Self::Filter(NetworkFilter::ConnectionLimit(Arc::new(ConnectionLimit {
                    stat_prefix: config.stat_prefix.as_str().into(),
                    max: config
                        .max_connections
                        .as_ref()
                        .map_or(u64::MAX, |max| max.value),
                    delay: scope
                        .duration("delay", config.delay.as_ref())?
                        .unwrap_or_default(),
                })))
            }
            "envoy.tcp.metadataexchange.config.MetadataExchange"
            | "istio.metadata_exchange"
            | "envoy.filters.network.metadata_exchange" => {
                Self::Filter(NetworkFilter::MetadataExchange)
            }
            "stats.PluginConfig" | "istio.stats" => {
                let config: StatsConfig = match type_name(any) {
                    "stats.PluginConfig" => scope.unpack(any)?,
                    _ => StatsConfig::default(),
                };

                let interval = scope.duration(
                    "tcp_reporting_duration",
                    config.tcp_reporting_duration.as_ref(),
                )?;

                Self::Filter(NetworkFilter::Stats {
                    interval: interval
                        .filter(|i| !i.is_zero())
                        .unwrap_or(Duration::from_secs(5)),
                })
            }
            // Set for waypoints and ambient; a sidecar loses nothing without it.
            "envoy.extensions.filters.network.set_filter_state.v3.Config" => {
                scope.warn("", "set_filter_state is not honoured on connections");
                Self::Nothing
            }
            other => return scope.refuse(format!("unknown network filter {other:?}")),
        })
    }
}

/// A message that came as a struct with the type that it stands for.
pub(crate) fn typed_struct(any: &Any, scope: &Scope) -> Result<TypedStruct, Rejection> {
    use prost::Message;
    TypedStruct::decode(any.value.as_slice()).map_err(|error| scope.reject(error.to_string()))
}

/// The type that a `TypedStruct` stands for, without its URL's host.
pub(crate) fn typed_struct_kind(any: &Any, scope: &Scope) -> Result<String, Rejection> {
    Ok(typed_struct(any, scope)?
        .type_url
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned())
}
