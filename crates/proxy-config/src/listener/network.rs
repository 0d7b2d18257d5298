//! Compiling network filters. An unknown one refuses the listener: it may be what keeps callers
//! out.

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::ext_authz::ConnectionAuthz;
use meltemi_filters::rbac::Rbac;
use meltemi_filters::{Rejection, Scope};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::listener::v3 as proto;
use meltemi_proto::envoy::extensions::filters::network;
use meltemi_proto::envoy::extensions::filters::network::connection_limit::v3 as connection_limit;
use meltemi_proto::istio::StatsConfig;

use super::{ConnectionLimit, NetworkFilter, Terminal};
use crate::any::type_name;
use crate::convert::{duration_or, not_honoured};
use crate::http::HttpConnectionManager;
use crate::http_filter::FilterShared;
use crate::tcp::TcpProxy;
use crate::typed_struct::{self, is_typed_struct};

/// The time between Istio's reports on a connection that stays open.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// One element of a filter chain's `filters`.
pub(super) enum NetworkItem {
    /// Runs before the terminal filter.
    Filter(NetworkFilter),
    /// Serves the connection.
    Terminal(Terminal),
    /// Has no effect here.
    LeftOut,
}

impl NetworkItem {
    /// `owner` names the filter chain for token shared.
    pub(super) fn compile(
        message: &proto::Filter,
        owner: &str,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::Filter { name, config_type } = message;
        let any = match config_type {
            Some(proto::filter::ConfigType::TypedConfig(any)) => any,
            Some(proto::filter::ConfigType::ConfigDiscovery(_)) => {
                return scope.refuse("network filters by discovery are unknown");
            }
            None => &Any::default(),
        };

        let kind = match type_name(any) {
            // Envoy's old way for filters without settings.
            "" => name.as_str(),
            // Istio sends some filters by URL alone.
            _ if is_typed_struct(any) => &typed_struct::kind(any, scope)?,
            name => name,
        };

        Ok(match kind {
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
                let config = scope.unpack(any)?;
                let manager = HttpConnectionManager::compile(&config, owner, shared, scope)?;
                Self::Terminal(Terminal::Http(Arc::new(manager)))
            }
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
                let config = scope.unpack(any)?;
                Self::Terminal(Terminal::Tcp(Arc::new(TcpProxy::compile(&config, scope)?)))
            }
            "envoy.extensions.filters.network.rbac.v3.RBAC" => {
                let config: network::rbac::v3::Rbac = scope.unpack(any)?;
                let rbac = Rbac::compile_network(&config, &shared.counters, scope)?;
                Self::Filter(NetworkFilter::Rbac(Arc::new(rbac)))
            }
            "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz" => {
                let authz = ConnectionAuthz::compile(&scope.unpack(any)?, scope)?;
                Self::Filter(NetworkFilter::ExtAuthz(Arc::new(authz)))
            }
            "envoy.extensions.filters.network.sni_cluster.v3.SniCluster"
            | "envoy.filters.network.sni_cluster" => Self::Filter(NetworkFilter::SniCluster),
            "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => {
                match ConnectionLimit::compile(&scope.unpack(any)?, scope) {
                    Some(limit) => Self::Filter(NetworkFilter::ConnectionLimit(Arc::new(limit))),
                    None => Self::LeftOut,
                }
            }
            "envoy.tcp.metadataexchange.config.MetadataExchange"
            | "istio.metadata_exchange"
            | "envoy.filters.network.metadata_exchange" => {
                Self::Filter(NetworkFilter::MetadataExchange)
            }
            "stats.PluginConfig" | "istio.stats" => Self::Filter(NetworkFilter::Stats {
                interval: report_interval(any, scope)?,
            }),
            // Istio sets it for waypoints and ambient; a sidecar loses nothing without it.
            "envoy.extensions.filters.network.set_filter_state.v3.Config" => {
                scope.warn("", "set_filter_state is not honoured on connections");
                Self::LeftOut
            }
            other => return scope.refuse(format!("unknown network filter {other:?}")),
        })
    }
}

impl ConnectionLimit {
    /// `None` where the configuration turns the filter off.
    fn compile(message: &connection_limit::ConnectionLimit, scope: &mut Scope) -> Option<Self> {
        let connection_limit::ConnectionLimit {
            stat_prefix,
            max_connections,
            delay,
            runtime_enabled,
        } = message;

        // A refused connection is closed at once.
        not_honoured!(scope, delay);

        // There is no runtime, so the flag has its default.
        let enabled = runtime_enabled
            .as_ref()
            .and_then(|flag| flag.default_value.as_ref())
            .is_none_or(|default| default.value);

        enabled.then(|| Self {
            stat_prefix: stat_prefix.as_str().into(),
            max: max_connections.as_ref().map_or(u64::MAX, |max| max.value),
        })
    }
}

/// How often open connections are reported. The settings of Istio's metrics come as their own
/// message; as a struct or a name alone they have none that concerns TCP.
fn report_interval(any: &Any, scope: &Scope) -> Result<Duration, Rejection> {
    if type_name(any) != "stats.PluginConfig" {
        return Ok(REPORT_INTERVAL);
    }

    let StatsConfig {
        tcp_reporting_duration,
        // Concerns HTTP alone.
        disable_host_header_fallback: _,
    } = scope.unpack(any)?;

    duration_or(
        "tcp_reporting_duration",
        tcp_reporting_duration.as_ref(),
        REPORT_INTERVAL,
        scope,
    )
}
