//! Compiling clusters.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;

use super::*;
use crate::address::Address;
use crate::any::type_name;
use crate::convert::{boolean, duration_or, not_honoured, number};
use crate::keepalive::compile_keepalive;

impl Cluster {
    pub(crate) fn compile(message: &proto::Cluster, scope: &mut Scope) -> Result<Self, Rejection> {
        check_fields(message, scope)?;
        let (protocol, http) = upstream_http::compile(message, scope)?;
        let (lb, hash_by_hostname) = load_balancing::compile(message, scope)?;

        Ok(Self {
            name: message.name.as_str().into(),
            stat_name: match message.alt_stat_name.as_str() {
                "" => message.name.as_str().into(),
                name => name.into(),
            },
            discovery: Discovery::compile(message, scope)?,
            lb,
            hash_by_hostname,
            connect_timeout: duration_or(
                "connect_timeout",
                message.connect_timeout.as_ref(),
                Duration::from_secs(5),
                scope,
            )?,
            breakers: compile_breakers(message.circuit_breakers.as_ref(), scope),
            outlier: match &message.outlier_detection {
                None => None,
                Some(outlier) => Some(scope.within("outlier_detection", |scope| {
                    OutlierDetection::compile(outlier, scope)
                })?),
            },
            protocol,
            http,
            transport: UpstreamTransport::compile(message.transport_socket.as_ref(), scope)?,
            transport_matches: scope.each(
                "transport_socket_matches",
                &message.transport_socket_matches,
                TransportMatch::compile,
            )?,
            bind: match &message.upstream_bind_config {
                None => None,
                Some(bind) => Some(scope.within("upstream_bind_config", |scope| {
                    UpstreamBind::compile(bind, scope)
                })?),
            },
            keepalive: compile_connection_options(
                message.upstream_connection_options.as_ref(),
                scope,
            ),
            exchanges_metadata: compile_filters(&message.filters, scope)?,
            pool_per_downstream: message.connection_pool_per_downstream_connection,
            metadata: Metadata::from_option(message.metadata.as_ref()),
        })
    }
}

/// Refuses, or warns of, the fields that have no effect here.
fn check_fields(message: &proto::Cluster, scope: &mut Scope) -> Result<(), Rejection> {
    #[expect(deprecated, reason = "older fields are treated like the newer ones")]
    let proto::Cluster {
        transport_socket_matcher,
        name,
        stats_matcher,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        health_checks,
        wait_for_warm_on_init,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        queuing_policies,
        // An endpoint of ORIGINAL_DST is forgotten as soon as no connection uses it.
        cleanup_interval: _,
        // `Discovery` compiles these.
        eds_cluster_config: _,
        load_assignment: _,
        dns_refresh_rate: _,
        dns_jitter: _,
        dns_failure_refresh_rate: _,
        respect_dns_ttl: _,
        dns_lookup_family: _,
        dns_resolvers: _,
        use_tcp_for_dns_lookups: _,
        dns_resolution_config: _,
        typed_dns_resolver_config: _,
        cluster_discovery_type: _,
        // `load_balancing` compiles these.
        lb_policy: _,
        lb_subset_config: _,
        common_lb_config: _,
        load_balancing_policy: _,
        lb_config: _,
        // `upstream_http` compiles these.
        max_requests_per_connection: _,
        upstream_http_protocol_options: _,
        common_http_protocol_options: _,
        http_protocol_options: _,
        http2_protocol_options: _,
        typed_extension_protocol_options: _,
        protocol_selection: _,
        // `Cluster` compiles these.
        alt_stat_name: _,
        transport_socket_matches: _,
        connect_timeout: _,
        circuit_breakers: _,
        outlier_detection: _,
        upstream_bind_config: _,
        transport_socket: _,
        metadata: _,
        upstream_connection_options: _,
        filters: _,
        connection_pool_per_downstream_connection: _,
    } = message;

    if name.is_empty() {
        return scope.refuse("a cluster without name");
    }
    if transport_socket_matcher.is_some() {
        return scope.refuse("transport_socket_matcher is unknown; use transport_socket_matches");
    }

    // EDS and outlier detection alone decide on health: no endpoint is probed.
    not_honoured!(
        scope,
        stats_matcher,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        health_checks,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        queuing_policies,
    );
    scope.unsupported(
        "wait_for_warm_on_init",
        !boolean(wait_for_warm_on_init.as_ref(), true),
    );

    Ok(())
}

impl TransportMatch {
    fn compile(
        scope: &mut Scope,
        message: &proto::cluster::TransportSocketMatch,
    ) -> Result<Self, Rejection> {
        let proto::cluster::TransportSocketMatch {
            name,
            r#match,
            transport_socket,
        } = message;

        // Sorted, so that equal criteria are equal values.
        let fields = r#match.iter().flat_map(|criteria| &criteria.fields);
        let mut criteria: Vec<(Box<str>, Value)> = fields
            .map(|(key, value)| (key.as_str().into(), Value::from_proto(value)))
            .collect();
        criteria.sort_by(|(a, _), (b, _)| a.cmp(b));

        Ok(Self {
            name: name.as_str().into(),
            criteria,
            transport: UpstreamTransport::compile(transport_socket.as_ref(), scope)?,
        })
    }
}

fn compile_connection_options(
    message: Option<&proto::UpstreamConnectionOptions>,
    scope: &mut Scope,
) -> Option<Keepalive> {
    let proto::UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections,
        happy_eyeballs_config,
    } = message?;

    scope.within("upstream_connection_options", |scope| {
        not_honoured!(
            scope,
            set_local_interface_name_on_upstream_connections,
            happy_eyeballs_config,
        );
    });

    tcp_keepalive.as_ref().map(compile_keepalive)
}

/// Compiles the network filters of connections to endpoints, and returns whether one of them is
/// Istio's exchange of peer metadata. Others are refused: they may be what protects the bytes.
fn compile_filters(messages: &[proto::Filter], scope: &mut Scope) -> Result<bool, Rejection> {
    let filters = scope.each("filters", messages, |scope, message| {
        let proto::Filter {
            name,
            typed_config,
            config_discovery,
        } = message;
        if config_discovery.is_some() {
            return scope.refuse("upstream network filters by discovery are unknown");
        }

        let kind = typed_config.as_ref().map_or(name.as_str(), type_name);
        match (kind, name.as_str()) {
            (_, "istio.metadata_exchange" | "envoy.filters.network.upstream.metadata_exchange")
            | ("envoy.tcp.metadataexchange.config.MetadataExchange", _) => Ok(()),
            (kind, name) => {
                scope.refuse(format!("unknown upstream network filter {name:?} ({kind})"))
            }
        }
    })?;

    Ok(!filters.is_empty())
}

fn compile_breakers(message: Option<&proto::CircuitBreakers>, scope: &mut Scope) -> [Breakers; 2] {
    let mut breakers = [Breakers::default(), Breakers::default()];
    let Some(message) = message else {
        return breakers;
    };

    let proto::CircuitBreakers {
        thresholds,
        per_host_thresholds,
    } = message;

    scope.within("circuit_breakers", |scope| {
        not_honoured!(scope, per_host_thresholds);
        for thresholds in thresholds {
            let is_high = thresholds.priority == core::RoutingPriority::High as i32;
            breakers[usize::from(is_high)] = Breakers::compile(thresholds, scope);
        }
    });

    breakers
}

impl Breakers {
    fn compile(message: &proto::circuit_breakers::Thresholds, scope: &mut Scope) -> Self {
        let proto::circuit_breakers::Thresholds {
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            max_connection_pools,
            // The caller has chosen the breakers by it.
            priority: _,
            // Turns gauges of Envoy's on, which are not kept here.
            track_remaining: _,
        } = message;

        not_honoured!(scope, max_connection_pools);
        let default = Self::default();

        Self {
            max_connections: number(max_connections.as_ref(), default.max_connections),
            max_pending: number(max_pending_requests.as_ref(), default.max_pending),
            max_requests: number(max_requests.as_ref(), default.max_requests),
            max_retries: number(max_retries.as_ref(), default.max_retries),
            retry_budget: retry_budget
                .as_ref()
                .map(|budget| RetryBudget::compile(budget, scope)),
        }
    }
}

impl RetryBudget {
    fn compile(
        message: &proto::circuit_breakers::thresholds::RetryBudget,
        scope: &mut Scope,
    ) -> Self {
        let proto::circuit_breakers::thresholds::RetryBudget {
            budget_percent,
            budget_interval,
            min_retry_concurrency,
        } = message;
        scope.unsupported("retry_budget.budget_interval", budget_interval.is_some());

        Self {
            percent: budget_percent
                .as_ref()
                .map_or(20.0, |percent| percent.value)
                .clamp(0.0, 100.0),
            min_concurrency: number(min_retry_concurrency.as_ref(), 3),
        }
    }
}

impl UpstreamBind {
    fn compile(message: &core::BindConfig, scope: &mut Scope) -> Result<Self, Rejection> {
        #[expect(deprecated, reason = "the older list means the same as the newer one")]
        let core::BindConfig {
            source_address,
            freebind,
            socket_options,
            extra_source_addresses,
            additional_source_addresses,
            local_address_selector,
            validate_network_namespaces,
        } = message;

        scope.unsupported("freebind", boolean(freebind.as_ref(), false));
        not_honoured!(
            scope,
            socket_options,
            local_address_selector,
            validate_network_namespaces,
        );

        let socket =
            |scope: &mut Scope, address: &core::SocketAddress| match Address::compile_socket(
                address, scope,
            )? {
                Address::Socket(address) => Ok(address),
                _ => scope.refuse("a source address must be an IP address"),
            };

        let source = match source_address {
            None => None,
            Some(address) => Some(socket(scope, address)?),
        };

        let mut extra = scope.each(
            "extra_source_addresses",
            extra_source_addresses,
            |scope, message| {
                let core::ExtraSourceAddress {
                    address,
                    socket_options,
                } = message;
                not_honoured!(scope, socket_options);
                socket(scope, scope.required("address", address.as_ref())?)
            },
        )?;
        extra.extend(scope.each(
            "additional_source_addresses",
            additional_source_addresses,
            socket,
        )?);

        Ok(Self { source, extra })
    }
}
