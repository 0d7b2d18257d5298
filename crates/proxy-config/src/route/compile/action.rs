//! Compiling what a route does to requests.

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::matcher::{Fraction, Substitution};
use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3::RoutingPriority;
use meltemi_proto::envoy::config::route::v3 as proto;
use proto::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier};

use super::HostWide;
use crate::compiler::Compiler;
use crate::convert::{boolean, limit, subset_match};
use crate::http_filter::compile_overrides;
use crate::route::action::{
    HashPolicies, HostRewrite, Mirror, PathRewrite, Timeouts, WeightedCluster, WeightedClusters,
};
use crate::route::{ClusterChoice, ClusterRef, HashPolicy, RetryPolicy, RouteAction};

pub(super) fn mirrors(
    messages: &[proto::route_action::RequestMirrorPolicy],
    scope: &mut Scope,
) -> Result<Vec<Mirror>, Rejection> {
    scope.each("request_mirror_policies", messages, |scope, mirror| {
        scope.unsupported(
            "request_headers_mutations",
            !mirror.request_headers_mutations.is_empty(),
        );

        Ok(Mirror {
            cluster: match (mirror.cluster.as_str(), mirror.cluster_header.as_str()) {
                ("", "") => return scope.refuse("a mirror without cluster"),
                ("", header) => ClusterRef::Header(header.to_ascii_lowercase().into()),
                (cluster, _) => ClusterRef::Name(cluster.into()),
            },
            fraction: Fraction::from_runtime(mirror.runtime_fraction.as_ref(), Fraction::ALL),
            keep_host: mirror.disable_shadow_host_suffix_append,
            host_rewrite: Some(mirror.host_rewrite_literal.as_str())
                .filter(|host| !host.is_empty())
                .map(Into::into),
        })
    })
}

impl RouteAction {
    pub(super) fn compile(
        message: &proto::RouteAction,
        owner: &str,
        general: &HostWide<'_>,
        compiler: &Compiler,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        if message.retry_policy_typed_config.is_some() || message.path_rewrite_policy.is_some() {
            return scope.refuse("retry_policy_typed_config and path_rewrite_policy are unknown");
        }
        scope.unsupported("hedge_policy", message.hedge_policy.is_some());
        scope.unsupported(
            "internal_redirect_policy",
            message.internal_redirect_policy.is_some(),
        );

        scope.unsupported(
            "upgrade_configs.connect_config",
            message
                .upgrade_configs
                .iter()
                .any(|upgrade| upgrade.connect_config.is_some()),
        );

        scope.unsupported("rate_limits", !message.rate_limits.is_empty());
        let metadata_match = subset_match(message.metadata_match.as_ref());
        let mut weight_header = None;
        let cluster =
            match scope.required("cluster_specifier", message.cluster_specifier.as_ref())? {
                ClusterSpecifier::Cluster(name) if name.is_empty() => {
                    return scope.refuse("an empty cluster name");
                }
                ClusterSpecifier::Cluster(name) => ClusterChoice::Name(name.as_str().into()),
                ClusterSpecifier::ClusterHeader(name) if name.is_empty() => {
                    return scope.refuse("an empty cluster_header");
                }
                ClusterSpecifier::ClusterHeader(name) => {
                    ClusterChoice::Header(name.to_ascii_lowercase().into())
                }
                ClusterSpecifier::WeightedClusters(weighted) => {
                    use proto::weighted_cluster::RandomValueSpecifier;

                    match &weighted.random_value_specifier {
                        Some(RandomValueSpecifier::HeaderName(name)) => {
                            weight_header = Some(name.to_ascii_lowercase().into());
                        }
                        Some(RandomValueSpecifier::UseHashPolicy(on)) => {
                            scope.unsupported("weighted_clusters.use_hash_policy", on.value);
                        }
                        None => {}
                    }

                    ClusterChoice::Weighted(scope.within("weighted_clusters", |scope| {
                        compile_weighted(weighted, metadata_match.as_ref(), owner, compiler, scope)
                    })?)
                }
                _ => return scope.refuse("cluster specifier plugins are unknown"),
            };

        let own_mirrors = mirrors(&message.request_mirror_policies, scope)?;

        Ok(Self {
            cluster,
            cluster_not_found_status: match ClusterNotFoundResponseCode::try_from(
                message.cluster_not_found_response_code,
            ) {
                Ok(ClusterNotFoundResponseCode::NotFound) => 404,
                Ok(ClusterNotFoundResponseCode::InternalServerError) => 500,
                Ok(ClusterNotFoundResponseCode::ServiceUnavailable) | Err(_) => 503,
            },
            metadata_match,
            path_rewrite: match (
                &*message.prefix_rewrite,
                &message.regex_rewrite,
                &*message.path_rewrite,
            ) {
                ("", None, "") => None,
                (prefix, None, "") => Some(PathRewrite::Prefix(prefix.into())),
                ("", Some(rewrite), "") => Some(PathRewrite::Regex(Box::new(
                    scope.within("regex_rewrite", |scope| {
                        Substitution::compile(rewrite, scope)
                    })?,
                ))),
                ("", None, path) => match path.contains('%') {
                    true => return scope.refuse("path_rewrite with formatters is unknown"),
                    false => Some(PathRewrite::Full(path.into())),
                },
                _ => {
                    return scope
                        .refuse("more than one of prefix_rewrite, regex_rewrite and path_rewrite");
                }
            },
            host_rewrite: match &message.host_rewrite_specifier {
                None => None,
                Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                    Some(HostRewrite::Literal(host.as_str().into())).filter(|_| !host.is_empty())
                }
                Some(HostRewriteSpecifier::AutoHostRewrite(on)) => {
                    on.value.then_some(HostRewrite::Auto)
                }
                Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
                    Some(HostRewrite::Header(name.to_ascii_lowercase().into()))
                }
                Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => Some(
                    HostRewrite::PathRegex(Box::new(Substitution::compile(rewrite, scope)?)),
                ),
                Some(HostRewriteSpecifier::HostRewrite(_)) => {
                    return scope.refuse("host_rewrite is unknown");
                }
            },
            append_x_forwarded_host: message.append_x_forwarded_host,
            timeouts: compile_timeouts(message, scope)?,
            retry: match &message.retry_policy {
                Some(retry) => {
                    Some(Arc::new(scope.within("retry_policy", |scope| {
                        RetryPolicy::compile(retry, scope)
                    })?))
                }
                None => general.retry.clone(),
            },
            hash: HashPolicies(
                scope
                    .each("hash_policy", &message.hash_policy, |scope, policy| {
                        HashPolicy::compile(policy, scope)
                    })?
                    .into_iter()
                    .flatten()
                    .collect(),
            ),
            mirrors: match own_mirrors.is_empty() {
                true => mirrors(general.mirrors, scope)?,
                false => own_mirrors,
            },
            upgrades: message
                .upgrade_configs
                .iter()
                .map(|upgrade| {
                    (
                        upgrade.upgrade_type.to_ascii_lowercase().into(),
                        boolean(upgrade.enabled.as_ref(), true),
                    )
                })
                .collect(),
            high_priority: message.priority == RoutingPriority::High as i32,
            request_attempt_count: general.request_attempt_count,
            response_attempt_count: general.response_attempt_count,
            weight_header,
        })
    }
}

fn compile_timeouts(
    message: &proto::RouteAction,
    scope: &mut Scope,
) -> Result<Timeouts, Rejection> {
    let stream = message.max_stream_duration.as_ref();
    #[allow(deprecated)] // what Istio sends
    let (max_grpc, grpc_offset) = (
        message.max_grpc_timeout.as_ref(),
        message.grpc_timeout_offset.as_ref(),
    );

    let max_grpc = stream
        .and_then(|stream| stream.grpc_timeout_header_max.as_ref())
        .or(max_grpc);
    let grpc_offset = stream
        .and_then(|stream| stream.grpc_timeout_header_offset.as_ref())
        .or(grpc_offset);
    let zero_is_none = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());

    Ok(Timeouts {
        request: limit(
            "timeout",
            message.timeout.as_ref(),
            Some(Duration::from_secs(15)),
            scope,
        )?,
        idle: scope
            .duration("idle_timeout", message.idle_timeout.as_ref())?
            .map(zero_is_none),
        max_grpc: scope.duration("max_grpc_timeout", max_grpc)?,
        grpc_offset: scope
            .duration("grpc_timeout_offset", grpc_offset)?
            .unwrap_or_default(),
        max_stream: scope
            .duration(
                "max_stream_duration",
                stream.and_then(|stream| stream.max_stream_duration.as_ref()),
            )?
            .map(zero_is_none),
    })
}

fn compile_weighted(
    message: &proto::WeightedCluster,
    general: Option<&meltemi_lb::SubsetMatch>,
    owner: &str,
    compiler: &Compiler,
    scope: &mut Scope,
) -> Result<WeightedClusters, Rejection> {
    use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;

    let clusters = scope.each("clusters", &message.clusters, |scope, cluster| {
        let own = subset_match(cluster.metadata_match.as_ref());
        Ok(WeightedCluster {
            cluster: match (cluster.name.as_str(), cluster.cluster_header.as_str()) {
                ("", "") => return scope.refuse("a weighted cluster without name"),
                ("", header) => ClusterRef::Header(header.to_ascii_lowercase().into()),
                (name, _) => ClusterRef::Name(name.into()),
            },
            weight: cluster.weight.as_ref().map_or(0, |weight| weight.value),
            metadata_match: match (own, general) {
                (Some(own), Some(general)) => Some(own.over(general)),
                (own, general) => own.or_else(|| general.cloned()),
            },
            request_headers: super::request_headers(
                &cluster.request_headers_to_add,
                &cluster.request_headers_to_remove,
                scope,
            )?,
            response_headers: super::response_headers(
                &cluster.response_headers_to_add,
                &cluster.response_headers_to_remove,
                scope,
            )?,
            overrides: compile_overrides(
                &cluster.typed_per_filter_config,
                &format!("{owner}/{}", cluster.name),
                compiler,
                scope,
            )?,
            host_rewrite: cluster.host_rewrite_specifier.as_ref().map(|specifier| {
                let HostRewriteSpecifier::HostRewriteLiteral(host) = specifier;
                host.as_str().into()
            }),
        })
    })?;

    let mut sum = 0u64;
    let bounds: Vec<u64> = clusters
        .iter()
        .map(|cluster| {
            sum += u64::from(cluster.weight);
            sum
        })
        .collect();

    match sum {
        0 => scope.refuse("weights sum to 0"),
        sum if sum > u64::from(u32::MAX) => scope.refuse("weights sum to more than 4294967295"),
        _ => Ok(WeightedClusters { bounds, clusters }),
    }
}
