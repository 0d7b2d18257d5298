//! Compiling listeners, their listener filters and filter chains.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3::TrafficDirection;
use meltemi_proto::envoy::config::listener::v3 as proto;
use meltemi_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use proto::listener_filter_chain_match_predicate::{MatchSet, Rule};

use super::network::NetworkItem;
use super::*;
use crate::any::type_name;
use crate::convert::{boolean, limit, not_honoured};
use crate::http_filter::FilterShared;
use crate::keepalive::compile_keepalive;

/// The depth to which predicates may nest.
const MAX_DEPTH: usize = 16;

impl Listener {
    pub(crate) fn compile(
        message: &proto::Listener,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        check_fields(message, scope)?;

        let address = match &message.listener_specifier {
            Some(proto::listener::ListenerSpecifier::InternalListener(_)) => {
                Address::Internal(message.name.as_str().into())
            }
            None => compile_address(message.address.as_ref(), scope)?,
        };
        let additional_addresses = scope.each(
            "additional_addresses",
            &message.additional_addresses,
            compile_additional_address,
        )?;

        #[expect(
            deprecated,
            reason = "the older form counts where the newer one is absent"
        )]
        let deprecated_bind = message
            .deprecated_v1
            .as_ref()
            .and_then(|v1| v1.bind_to_port.as_ref());
        let bind_to_port = message.bind_to_port.as_ref().or(deprecated_bind);

        Ok(Self {
            name: match message.name.as_str() {
                "" => address.to_string().into(),
                name => name.into(),
            },
            additional_addresses,
            bind_to_port: boolean(bind_to_port, true),
            use_original_dst: boolean(message.use_original_dst.as_ref(), false),
            direction: match TrafficDirection::try_from(message.traffic_direction) {
                Ok(TrafficDirection::Inbound) => Direction::Inbound,
                Ok(TrafficDirection::Outbound) => Direction::Outbound,
                Ok(TrafficDirection::Unspecified) | Err(_) => Direction::Unspecified,
            },
            filters: ListenerFilters::compile(message, scope)?,
            chains: FilterChains::compile(message, shared, scope)?,
            access_logs: crate::access_log::compile::compile_all(&message.access_log, scope)?,
            transparent: boolean(message.transparent.as_ref(), false),
            freebind: boolean(message.freebind.as_ref(), false),
            backlog: message.tcp_backlog_size.as_ref().map(|size| size.value),
            keepalive: message.tcp_keepalive.as_ref().map(compile_keepalive),
            buffer_limit: message
                .per_connection_buffer_limit_bytes
                .as_ref()
                .map(|limit| limit.value),
            metadata: Metadata::from_option(message.metadata.as_ref()),
            address,
        })
    }
}

/// Refuses, or warns of, the fields that have no effect here.
fn check_fields(message: &proto::Listener, scope: &mut Scope) -> Result<(), Rejection> {
    #[expect(deprecated, reason = "older fields are named like the newer ones")]
    let proto::Listener {
        stat_prefix,
        stats_matcher,
        fcds_config,
        filter_chain_matcher,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        drain_type,
        socket_options,
        tcp_fast_open_queue_length,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        enable_reuse_port,
        enable_mptcp,
        // Every worker has a socket of its own.
        reuse_port: _,
        // A matter of throughput alone.
        max_connections_to_accept_per_socket_event: _,
        // There is neither a global limit nor an overload manager to be excepted from.
        ignore_global_conn_limit: _,
        bypass_overload_manager: _,
        // All others are compiled.
        name: _,
        address: _,
        additional_addresses: _,
        filter_chains: _,
        use_original_dst: _,
        default_filter_chain: _,
        metadata: _,
        deprecated_v1: _,
        listener_filters: _,
        listener_filters_timeout: _,
        continue_on_listener_filters_timeout: _,
        transparent: _,
        freebind: _,
        traffic_direction: _,
        access_log: _,
        tcp_backlog_size: _,
        bind_to_port: _,
        tcp_keepalive: _,
        listener_specifier: _,
    } = message;

    if filter_chain_matcher.is_some() || fcds_config.is_some() {
        return scope.refuse("filter_chain_matcher and fcds_config are unknown");
    }
    if api_listener.is_some() || udp_listener_config.is_some() {
        return scope.refuse("API and UDP listeners are not served");
    }

    not_honoured!(
        scope,
        stat_prefix,
        stats_matcher,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        drain_type,
        socket_options,
        tcp_fast_open_queue_length,
        connection_balance_config,
        enable_mptcp,
    );
    scope.unsupported(
        "enable_reuse_port",
        !boolean(enable_reuse_port.as_ref(), true),
    );

    Ok(())
}

/// An address to listen on. Envoy listens on Unix sockets as well; a listener that nobody can reach
/// must not pass for one that serves.
fn compile_address(
    message: Option<&meltemi_proto::envoy::config::core::v3::Address>,
    scope: &mut Scope,
) -> Result<Address, Rejection> {
    match Address::compile_required(message, scope)? {
        Address::Name(..) => scope.refuse("a listener needs an IP address"),
        Address::Pipe(_) => scope.refuse("listeners on Unix sockets are not served"),
        address @ (Address::Socket(_) | Address::Internal(_)) => Ok(address),
    }
}

fn compile_additional_address(
    scope: &mut Scope,
    message: &proto::AdditionalAddress,
) -> Result<Address, Rejection> {
    let proto::AdditionalAddress {
        address,
        socket_options,
        tcp_keepalive,
    } = message;

    not_honoured!(scope, socket_options, tcp_keepalive);

    compile_address(address.as_ref(), scope)
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
        scope.each(
            "listener_filters",
            &message.listener_filters,
            |scope, filter| filters.add(filter, scope),
        )?;

        Ok(filters)
    }

    fn add(&mut self, message: &proto::ListenerFilter, scope: &mut Scope) -> Result<(), Rejection> {
        let proto::ListenerFilter {
            name,
            filter_disabled,
            config_type,
        } = message;

        let disabled = match filter_disabled {
            None => PortPredicate::Never,
            Some(predicate) => PortPredicate::compile(predicate, scope, 0)?,
        };

        let any = match config_type {
            Some(proto::listener_filter::ConfigType::TypedConfig(any)) => Some(any),
            Some(proto::listener_filter::ConfigType::ConfigDiscovery(_)) => {
                return scope.refuse("listener filters by discovery are unknown");
            }
            None => None,
        };

        match any.map_or(name.as_str(), type_name) {
            "envoy.filters.listener.original_dst"
            | "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
                self.original_dst = Some(disabled);
            }
            "envoy.filters.listener.tls_inspector"
            | "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
                if let Some(any) = any {
                    check_tls_inspector(&scope.unpack(any)?, scope);
                }
                self.tls_inspector = Some(disabled);
            }
            "envoy.filters.listener.http_inspector"
            | "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
                self.http_inspector = Some(disabled);
            }
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
                return scope.refuse(
                    "PROXY protocol is not read: every caller would have the load balancer's address",
                );
            }
            "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => scope.warn(
                "",
                "original_src is not honoured: the workload sees the proxy's address",
            ),
            // Istio sets it for waypoints; a sidecar loses nothing without it.
            "envoy.extensions.filters.listener.set_filter_state.v3.Config" => {
                scope.warn("", "set_filter_state is not honoured");
            }
            other => return scope.refuse(format!("unknown listener filter {other:?}")),
        }

        Ok(())
    }
}

fn check_tls_inspector(message: &TlsInspector, scope: &mut Scope) {
    let TlsInspector {
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        close_connection_on_client_hello_parsing_errors,
        max_client_hello_size,
        // The inspector reads as much as the ClientHello needs, up to its own bound.
        initial_read_buffer_size: _,
    } = message;

    not_honoured!(
        scope,
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        close_connection_on_client_hello_parsing_errors,
        max_client_hello_size,
    );
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

        let each = |set: &MatchSet, scope: &mut Scope| {
            scope.each("rules", &set.rules, |scope, rule| {
                Self::compile(rule, scope, depth + 1)
            })
        };

        Ok(
            match scope.required("filter_disabled.rule", message.rule.as_ref())? {
                Rule::AnyMatch(true) => Self::Always,
                Rule::AnyMatch(false) => Self::Never,
                Rule::OrMatch(set) => Self::Any(each(set, scope)?),
                Rule::AndMatch(set) => Self::All(each(set, scope)?),
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
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let listener = &message.name;
        let mut chains = Self::default();
        for (index, message) in message.filter_chains.iter().enumerate() {
            let chain = scope.within(format_args!("filter_chains[{index}]"), |scope| {
                scope.within("filter_chain_match", |scope| {
                    chains
                        .tree
                        .insert(message.filter_chain_match.as_ref(), index, scope)
                })?;
                FilterChain::compile(message, listener, &index.to_string(), shared, scope)
            })?;
            chains.all.push(Arc::new(chain));
        }

        if let Some(message) = &message.default_filter_chain {
            let chain = scope.within("default_filter_chain", |scope| {
                FilterChain::compile(message, listener, "default", shared, scope)
            })?;
            chains.default = Some(Arc::new(chain));
        }

        if chains.iter().next().is_none() {
            return scope.refuse("no filter chain");
        }

        Ok(chains)
    }
}

impl FilterChain {
    /// `place` names the chain within its listener where the message has no name.
    fn compile(
        message: &proto::FilterChain,
        listener: &str,
        place: &str,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        #[expect(deprecated, reason = "use_proxy_proto is read to be refused")]
        let proto::FilterChain {
            filters,
            use_proxy_proto,
            metadata,
            transport_socket,
            transport_socket_connect_timeout,
            name,
            // The tree of the listener's chains has compiled it.
            filter_chain_match: _,
        } = message;

        if boolean(use_proxy_proto.as_ref(), false) {
            return scope.refuse("use_proxy_proto is gone from Envoy; use the listener filter");
        }

        let name: Arc<str> = match name.as_str() {
            "" => format!("{listener}/{place}").into(),
            name => name.into(),
        };

        let owner = format!("{listener}/{name}");
        let mut before = Vec::new();
        let mut terminal = None;
        scope.each("filters", filters, |scope, filter| {
            if terminal.is_some() {
                return scope.refuse("a filter after the terminal one");
            }
            match NetworkItem::compile(filter, &owner, shared, scope)? {
                NetworkItem::Filter(filter) => before.push(filter),
                NetworkItem::Terminal(found) => terminal = Some(found),
                NetworkItem::LeftOut => {}
            }
            Ok(())
        })?;

        let Some(terminal) = terminal else {
            return scope.refuse(
                "a filter chain without terminal filter (tcp_proxy or http_connection_manager)",
            );
        };

        Ok(Self {
            name,
            transport: DownstreamTransport::compile(transport_socket.as_ref(), scope)?,
            handshake_timeout: limit(
                "transport_socket_connect_timeout",
                transport_socket_connect_timeout.as_ref(),
                None,
                scope,
            )?,
            filters: before.into(),
            terminal,
            metadata: Metadata::from_option(metadata.as_ref()),
        })
    }
}
