//! How a cluster's endpoints are found.

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;
use proto::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig};

use crate::address::Address;
use crate::convert::limit;
use crate::endpoint::EndpointSet;

/// How endpoints are found.
#[derive(Debug)]
pub enum Discovery {
    /// Written in the cluster.
    Static(Arc<EndpointSet>),
    /// An EDS resource of this name.
    Eds(Arc<str>),
    /// Every address that the names have.
    StrictDns(Arc<EndpointSet>, Dns),
    /// One address that the name has, asked anew for new connections.
    LogicalDns(Arc<EndpointSet>, Dns),
    /// Where the connection was going.
    OriginalDst(OriginalDst),
}

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// How often. Default 5 s.
    pub refresh: Duration,
    /// After failures: first and longest pause.
    pub failure_refresh: (Duration, Duration),
    /// Which kinds of addresses.
    pub family: DnsFamily,
}

/// Which kinds of addresses are looked up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum DnsFamily {
    /// IPv6, or IPv4 if there is none.
    #[default]
    Auto,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4, or IPv6 if there is none.
    V4Preferred,
    /// Both.
    All,
}

/// `original_dst_lb_config`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginalDst {
    /// A header that names the destination instead (`x-envoy-original-dst-host`).
    pub header: Option<Box<str>>,
    /// Another port than the original one.
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

        let own = |scope: &mut Scope| -> Result<Arc<EndpointSet>, Rejection> {
            let Some(assignment) = &message.load_assignment else {
                return Ok(Arc::default());
            };
            scope
                .within("load_assignment", |scope| {
                    EndpointSet::compile(assignment, scope)
                })
                .map(Arc::new)
        };

        Ok(match kind {
            DiscoveryType::Static => {
                let set = own(scope)?;
                if set
                    .endpoints
                    .iter()
                    .any(|endpoint| matches!(endpoint.address, Address::Name(..)))
                {
                    return scope.refuse("a STATIC cluster needs IP addresses");
                }
                Discovery::Static(set)
            }
            DiscoveryType::Eds => {
                let service = message
                    .eds_cluster_config
                    .as_ref()
                    .map(|config| config.service_name.as_str());

                Discovery::Eds(
                    service
                        .filter(|name| !name.is_empty())
                        .unwrap_or(&message.name)
                        .into(),
                )
            }
            DiscoveryType::StrictDns => {
                Discovery::StrictDns(own(scope)?, compile_dns(message, scope)?)
            }
            DiscoveryType::LogicalDns => {
                let set = own(scope)?;
                if set.endpoints.len() != 1 {
                    return scope.refuse("a LOGICAL_DNS cluster needs exactly one endpoint");
                }
                Discovery::LogicalDns(set, compile_dns(message, scope)?)
            }
            DiscoveryType::OriginalDst => {
                if message
                    .load_assignment
                    .as_ref()
                    .is_some_and(|assignment| !assignment.endpoints.is_empty())
                {
                    return scope.refuse("an ORIGINAL_DST cluster has no endpoints of its own");
                }

                let Some(LbConfig::OriginalDstLbConfig(config)) = &message.lb_config else {
                    return Ok(Discovery::OriginalDst(OriginalDst::default()));
                };
                let header = match config.http_header_name.as_str() {
                    "" => "x-envoy-original-dst-host",
                    name => name,
                };

                scope.unsupported(
                    "original_dst_lb_config.metadata_key",
                    config.metadata_key.is_some(),
                );

                Discovery::OriginalDst(OriginalDst {
                    header: config
                        .use_http_header
                        .then(|| header.to_ascii_lowercase().into()),
                    port: match &config.upstream_port_override {
                        None => None,
                        Some(port) => {
                            Some(u16::try_from(port.value).map_err(|_| {
                                scope.reject(format!("{} is not a port", port.value))
                            })?)
                        }
                    },
                })
            }
        })
    }
}

fn compile_dns(message: &proto::Cluster, scope: &mut Scope) -> Result<Dns, Rejection> {
    use proto::cluster::DnsLookupFamily as Family;

    scope.unsupported("dns_resolvers", !dns_resolvers(message).is_empty());
    scope.unsupported(
        "typed_dns_resolver_config",
        message.typed_dns_resolver_config.is_some(),
    );

    #[allow(deprecated)]
    let (refresh, failure, respect_ttl, family) = (
        message.dns_refresh_rate.as_ref(),
        message.dns_failure_refresh_rate.as_ref(),
        message.respect_dns_ttl,
        message.dns_lookup_family,
    );

    scope.unsupported("respect_dns_ttl", respect_ttl);
    let refresh = limit(
        "dns_refresh_rate",
        refresh,
        Some(Duration::from_secs(5)),
        scope,
    )?;

    let refresh = refresh.unwrap_or(Duration::from_secs(5));
    let base = scope.duration(
        "dns_failure_refresh_rate",
        failure.and_then(|f| f.base_interval.as_ref()),
    )?;

    let base = base.filter(|base| !base.is_zero()).unwrap_or(refresh);
    let max = scope.duration(
        "dns_failure_refresh_rate",
        failure.and_then(|f| f.max_interval.as_ref()),
    )?;

    Ok(Dns {
        refresh,
        failure_refresh: (base, max.filter(|max| *max >= base).unwrap_or(base * 10)),
        family: match Family::try_from(family) {
            Ok(Family::Auto) => DnsFamily::Auto,
            Ok(Family::V4Only) => DnsFamily::V4,
            Ok(Family::V6Only) => DnsFamily::V6,
            Ok(Family::V4Preferred) => DnsFamily::V4Preferred,
            Ok(Family::All) => DnsFamily::All,
            Err(_) => return scope.refuse(format!("unknown dns_lookup_family {family}")),
        },
    })
}

#[allow(deprecated)]
fn dns_resolvers(message: &proto::Cluster) -> &[core::Address] {
    &message.dns_resolvers
}
