//! How the endpoints of a cluster are found.

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use proto::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig};

use crate::address::Address;
use crate::convert::{duration_or, header_name, not_honoured, require_ads};
use crate::endpoint::EndpointSet;

/// How the endpoints of a cluster are found. Source: Envoy `DiscoveryType`.
#[derive(Debug, PartialEq)]
pub enum Discovery {
    /// The cluster lists them.
    Static(Arc<EndpointSet>),
    /// The EDS resource of this name lists them.
    Eds(Arc<str>),
    /// Every address of every listed name is an endpoint.
    StrictDns(Arc<EndpointSet>, Dns),
    /// One address of the one listed name is the endpoint.
    LogicalDns(Arc<EndpointSet>, Dns),
    /// The endpoint is where the connection was going.
    OriginalDst(OriginalDst),
}

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The time between two lookups. Default 5 s.
    pub refresh: Duration,
    /// The shortest and the longest pause after lookups that failed.
    pub failure_refresh: (Duration, Duration),
    /// The address families that are looked up.
    pub family: DnsFamily,
}

/// The address families that are looked up. Source: Envoy `DnsLookupFamily`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum DnsFamily {
    /// IPv6, or IPv4 if there is none.
    #[default]
    Auto,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// IPv4, or IPv6 if there is none.
    V4Preferred,
    /// Both.
    All,
}

/// How the destination of a connection becomes the endpoint. Source: Envoy
/// `original_dst_lb_config`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginalDst {
    /// A request header that names the destination, in place of the connection's own.
    pub header: Option<Box<str>>,
    /// Replaces the port of the destination.
    pub port: Option<u16>,
}

impl Discovery {
    pub(super) fn compile(message: &proto::Cluster, scope: &mut Scope) -> Result<Self, Rejection> {
        let kind = match &message.cluster_discovery_type {
            None => DiscoveryType::Static,
            Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind)
                .map_err(|_| scope.reject(format!("unknown type {kind}")))?,
            Some(ClusterDiscoveryType::ClusterType(custom)) => {
                return scope.refuse(format!("unknown cluster type {:?}", custom.name));
            }
        };

        match kind {
            DiscoveryType::Static => {
                let set = compile_assignment(message, scope)?;
                let named = |address: &Address| matches!(address, Address::Name(..));
                if set
                    .endpoints
                    .iter()
                    .any(|endpoint| named(&endpoint.address))
                {
                    return scope.refuse("a STATIC cluster needs IP addresses");
                }
                Ok(Self::Static(set))
            }
            DiscoveryType::Eds => compile_eds(message, scope).map(Self::Eds),
            DiscoveryType::StrictDns => Ok(Self::StrictDns(
                compile_assignment(message, scope)?,
                Dns::compile(message, scope)?,
            )),
            DiscoveryType::LogicalDns => {
                let set = compile_assignment(message, scope)?;
                if set.endpoints.len() != 1 {
                    return scope.refuse("a LOGICAL_DNS cluster needs exactly one endpoint");
                }
                Ok(Self::LogicalDns(set, Dns::compile(message, scope)?))
            }
            DiscoveryType::OriginalDst => {
                if !compile_assignment(message, scope)?.localities.is_empty() {
                    return scope.refuse("an ORIGINAL_DST cluster has no endpoints of its own");
                }
                OriginalDst::compile(message, scope).map(Self::OriginalDst)
            }
        }
    }
}

/// The endpoints that stand in the cluster itself.
fn compile_assignment(
    message: &proto::Cluster,
    scope: &mut Scope,
) -> Result<Arc<EndpointSet>, Rejection> {
    let Some(assignment) = &message.load_assignment else {
        return Ok(Arc::default());
    };
    let set = scope.within("load_assignment", |scope| {
        EndpointSet::compile(assignment, scope)
    })?;
    Ok(Arc::new(set))
}

/// The name of the EDS resource: the cluster's own unless it names another.
fn compile_eds(message: &proto::Cluster, scope: &Scope) -> Result<Arc<str>, Rejection> {
    let Some(config) = &message.eds_cluster_config else {
        return Ok(message.name.as_str().into());
    };
    let proto::cluster::EdsClusterConfig {
        eds_config,
        service_name,
    } = config;
    require_ads("eds_cluster_config.eds_config", eds_config.as_ref(), scope)?;

    Ok(match service_name.as_str() {
        "" => message.name.as_str().into(),
        name => name.into(),
    })
}

impl OriginalDst {
    fn compile(message: &proto::Cluster, scope: &mut Scope) -> Result<Self, Rejection> {
        let Some(LbConfig::OriginalDstLbConfig(config)) = &message.lb_config else {
            return Ok(Self::default());
        };
        let proto::cluster::OriginalDstLbConfig {
            use_http_header,
            http_header_name,
            upstream_port_override,
            metadata_key,
        } = config;
        scope.unsupported(
            "original_dst_lb_config.metadata_key",
            metadata_key.is_some(),
        );

        let header = match http_header_name.as_str() {
            "" => "x-envoy-original-dst-host",
            name => name,
        };
        let port = match upstream_port_override {
            None => None,
            Some(port) => Some(
                u16::try_from(port.value)
                    .map_err(|_| scope.reject(format!("{} is not a port", port.value)))?,
            ),
        };

        Ok(Self {
            header: use_http_header.then(|| header_name(header)),
            port,
        })
    }
}

impl Dns {
    fn compile(message: &proto::Cluster, scope: &mut Scope) -> Result<Self, Rejection> {
        use proto::cluster::DnsLookupFamily as Family;

        let proto::Cluster {
            dns_lookup_family,
            typed_dns_resolver_config,
            ..
        } = message;
        #[expect(deprecated, reason = "Istio sends the older fields")]
        let proto::Cluster {
            dns_refresh_rate,
            dns_jitter,
            dns_failure_refresh_rate,
            respect_dns_ttl,
            dns_resolvers,
            use_tcp_for_dns_lookups,
            dns_resolution_config,
            ..
        } = message;

        not_honoured!(
            scope,
            dns_jitter,
            respect_dns_ttl,
            dns_resolvers,
            use_tcp_for_dns_lookups,
            dns_resolution_config,
            typed_dns_resolver_config,
        );

        let refresh = duration_or(
            "dns_refresh_rate",
            dns_refresh_rate.as_ref(),
            Duration::from_secs(5),
            scope,
        )?;

        let proto::cluster::RefreshRate {
            base_interval,
            max_interval,
        } = dns_failure_refresh_rate.unwrap_or_default();
        let field = "dns_failure_refresh_rate";
        let base = duration_or(field, base_interval.as_ref(), refresh, scope)?;
        let max = scope.duration(field, max_interval.as_ref())?;

        Ok(Self {
            refresh,
            failure_refresh: (base, max.filter(|max| *max >= base).unwrap_or(base * 10)),
            family: match Family::try_from(*dns_lookup_family) {
                Ok(Family::Auto) => DnsFamily::Auto,
                Ok(Family::V4Only) => DnsFamily::V4,
                Ok(Family::V6Only) => DnsFamily::V6,
                Ok(Family::V4Preferred) => DnsFamily::V4Preferred,
                Ok(Family::All) => DnsFamily::All,
                Err(_) => {
                    return scope.refuse(format!("unknown dns_lookup_family {dns_lookup_family}"));
                }
            },
        })
    }
}
