//! Compiling clusters.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;

use super::*;
use crate::convert::{boolean, keepalive, number};
use crate::tls::compile::type_name;

impl Cluster {
    pub(crate) fn compile(message: &proto::Cluster, scope: &mut Scope) -> Result<Self, Rejection> {
        if message.name.is_empty() {
            return scope.refuse("a cluster without name");
        }
        if message.transport_socket_matcher.is_some() {
            return scope
                .refuse("transport_socket_matcher is unknown; use transport_socket_matches");
        }

        let discovery = Discovery::compile(message, scope)?;
        let exchanges_metadata = compile_filters(message, scope)?;
        let (protocol, http) = upstream_http::compile(message, scope)?;
        let common = message.common_lb_config.clone().unwrap_or_default();
        let hashing = common.consistent_hashing_lb_config.as_ref();

        scope.unsupported(
            "common_lb_config.consistent_hashing_lb_config.hash_balance_factor",
            hashing.is_some_and(|hashing| hashing.hash_balance_factor.is_some()),
        );

        scope.unsupported("preconnect_policy", message.preconnect_policy.is_some());
        scope.unsupported("upstream_config", message.upstream_config.is_some());

        // Endpoints are as healthy as EDS and outlier detection say; nobody is probed.
        scope.unsupported("health_checks", !message.health_checks.is_empty());
        scope.unsupported("alt_stat_name", !message.alt_stat_name.is_empty());
        scope.unsupported(
            "per_connection_buffer_limit_bytes",
            message.per_connection_buffer_limit_bytes.is_some(),
        );

        scope.unsupported(
            "close_connections_on_host_health_failure",
            message.close_connections_on_host_health_failure,
        );

        scope.unsupported(
            "ignore_health_on_host_removal",
            message.ignore_health_on_host_removal,
        );

        let (lb, hash_by_hostname) = load_balancing::compile(message, &common, scope)?;

        Ok(Self {
            name: message.name.as_str().into(),
            discovery,
            lb,
            hash_by_hostname: hash_by_hostname
                || hashing.is_some_and(|hashing| hashing.use_hostname_for_hashing),
            connect_timeout: scope
                .duration("connect_timeout", message.connect_timeout.as_ref())?
                .filter(|timeout| !timeout.is_zero())
                .unwrap_or(Duration::from_secs(5)),
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
                |scope, matcher| {
                    let criteria = matcher
                        .r#match
                        .as_ref()
                        .map(|fields| fields.fields.iter())
                        .into_iter()
                        .flatten();

                    let mut criteria: Vec<(Box<str>, Value)> = criteria
                        .map(|(key, value)| (key.as_str().into(), Value::from_proto(value)))
                        .collect();
                    criteria.sort_by(|(a, _), (b, _)| a.cmp(b));
                    Ok(TransportMatch {
                        name: matcher.name.as_str().into(),
                        criteria,
                        transport: UpstreamTransport::compile(
                            matcher.transport_socket.as_ref(),
                            scope,
                        )?,
                    })
                },
            )?,
            bind: match &message.upstream_bind_config {
                None => None,
                Some(bind) => Some(scope.within("upstream_bind_config", |scope| {
                    UpstreamBind::compile(bind, scope)
                })?),
            },
            keepalive: message
                .upstream_connection_options
                .as_ref()
                .and_then(|options| options.tcp_keepalive.as_ref())
                .map(keepalive),
            exchanges_metadata,
            pool_per_downstream: message.connection_pool_per_downstream_connection,
            metadata: Metadata::from_option(message.metadata.as_ref()),
        })
    }
}

/// Network filters of connections to endpoints; says whether peer metadata is exchanged.
fn compile_filters(message: &proto::Cluster, scope: &mut Scope) -> Result<bool, Rejection> {
    let mut exchanges = false;
    for (index, filter) in message.filters.iter().enumerate() {
        let kind = filter
            .typed_config
            .as_ref()
            .map_or(filter.name.as_str(), type_name);

        match (kind, filter.name.as_str()) {
            (_, "istio.metadata_exchange" | "envoy.filters.network.upstream.metadata_exchange")
            | ("envoy.tcp.metadataexchange.config.MetadataExchange", _) => exchanges = true,
            (kind, name) => {
                return scope.within(format_args!("filters[{index}]"), |scope| {
                    scope.refuse(format!("unknown upstream network filter {name:?} ({kind})"))
                });
            }
        }
    }

    Ok(exchanges)
}

fn compile_breakers(message: Option<&proto::CircuitBreakers>, scope: &mut Scope) -> [Breakers; 2] {
    let mut breakers = [Breakers::default(), Breakers::default()];
    let Some(message) = message else {
        return breakers;
    };
    for thresholds in &message.thresholds {
        let own =
            &mut breakers[usize::from(thresholds.priority == core::RoutingPriority::High as i32)];
        let default = Breakers::default();
        scope.unsupported(
            "circuit_breakers.max_connection_pools",
            thresholds.max_connection_pools.is_some(),
        );

        *own = Breakers {
            max_connections: number(thresholds.max_connections.as_ref(), default.max_connections),
            max_pending: number(
                thresholds.max_pending_requests.as_ref(),
                default.max_pending,
            ),
            max_requests: number(thresholds.max_requests.as_ref(), default.max_requests),
            max_retries: number(thresholds.max_retries.as_ref(), default.max_retries),
            retry_budget: thresholds.retry_budget.as_ref().map(|budget| RetryBudget {
                percent: budget
                    .budget_percent
                    .as_ref()
                    .map_or(20.0, |percent| percent.value)
                    .clamp(0.0, 100.0),
                min_concurrency: number(budget.min_retry_concurrency.as_ref(), 3),
            }),
        };
    }

    scope.unsupported(
        "circuit_breakers.per_host_thresholds",
        !message.per_host_thresholds.is_empty(),
    );

    breakers
}

impl UpstreamBind {
    /// Compiles Envoy's message, of a cluster or of the bootstrap.
    pub fn compile(message: &core::BindConfig, scope: &mut Scope) -> Result<Self, Rejection> {
        let socket =
            |address: &core::SocketAddress, scope: &mut Scope| match Address::compile_socket(
                address, scope,
            )? {
                Address::Socket(address) => Ok(address),
                _ => scope.refuse("a source address must be an IP address"),
            };

        let source = match &message.source_address {
            None => None,
            Some(address) => Some(socket(address, scope)?),
        };

        let extra = scope.each(
            "extra_source_addresses",
            &message.extra_source_addresses,
            |scope, extra| socket(scope.required("address", extra.address.as_ref())?, scope),
        )?;

        scope.unsupported("socket_options", !message.socket_options.is_empty());

        Ok(Self {
            source,
            extra,
            freebind: boolean(message.freebind.as_ref(), false),
        })
    }
}
