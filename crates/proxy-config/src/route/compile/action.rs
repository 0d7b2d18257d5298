//! Compiling what a route does with requests that it forwards.

use meltemi_filters::format::Place;
use meltemi_filters::matcher::{Fraction, Substitution};
use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3::RoutingPriority;
use meltemi_proto::envoy::config::route::v3 as proto;
use proto::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier};

use super::{HostWide, compile_retry};
use crate::convert::{
    boolean, header_name, limit, non_empty, not_honoured, require_one_line, subset_match,
};
use crate::http_filter::FilterShared;
use crate::route::action::{
    GrpcLimit, HashPolicies, HostRewrite, Mirror, PathRewrite, RouteLimit, Timeouts,
    WeightedClusters,
};
use crate::route::{ClusterChoice, ClusterRef, HashPolicy, HeaderOps, RouteAction};
use crate::upgrade::Upgrades;

impl RouteAction {
    pub(super) fn compile(
        message: &proto::RouteAction,
        owner: &str,
        general: &HostWide<'_>,
        copy_limit: Option<u64>,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        check_fields(message, scope)?;
        let metadata_match = subset_match(message.metadata_match.as_ref());
        let own_mirrors = compile_mirrors(&message.request_mirror_policies, scope)?;

        Ok(Self {
            cluster: match scope
                .required("cluster_specifier", message.cluster_specifier.as_ref())?
            {
                ClusterSpecifier::Cluster(name) if name.is_empty() => {
                    return scope.refuse("an empty cluster name");
                }
                ClusterSpecifier::Cluster(name) => ClusterChoice::Name(name.as_str().into()),
                ClusterSpecifier::ClusterHeader(name) if name.is_empty() => {
                    return scope.refuse("an empty cluster_header");
                }
                ClusterSpecifier::ClusterHeader(name) => ClusterChoice::Header(header_name(name)),
                ClusterSpecifier::WeightedClusters(weighted) => {
                    let general = metadata_match.as_ref();
                    ClusterChoice::Weighted(scope.within("weighted_clusters", |scope| {
                        WeightedClusters::compile(weighted, general, owner, shared, scope)
                    })?)
                }
                ClusterSpecifier::ClusterSpecifierPlugin(_)
                | ClusterSpecifier::InlineClusterSpecifierPlugin(_) => {
                    return scope.refuse("cluster specifier plugins are unknown");
                }
            },
            cluster_not_found_status: match ClusterNotFoundResponseCode::try_from(
                message.cluster_not_found_response_code,
            ) {
                Ok(ClusterNotFoundResponseCode::NotFound) => 404,
                Ok(ClusterNotFoundResponseCode::InternalServerError) => 500,
                Ok(ClusterNotFoundResponseCode::ServiceUnavailable) | Err(_) => 503,
            },
            path_rewrite: PathRewrite::compile(message, scope)?,
            host_rewrite: HostRewrite::compile(message.host_rewrite_specifier.as_ref(), scope)?,
            append_x_forwarded_host: message.append_x_forwarded_host,
            timeouts: Timeouts::compile(message, scope)?,
            retry: match compile_retry(message.retry_policy.as_ref(), scope)? {
                None => general.retry.clone(),
                own => own,
            },
            copy_limit,
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
                true => compile_mirrors(general.mirrors, scope)?,
                false => own_mirrors,
            },
            upgrades: compile_upgrades(&message.upgrade_configs, scope),
            high_priority: message.priority == RoutingPriority::High as i32,
            request_attempt_count: general.request_attempt_count,
            response_attempt_count: general.response_attempt_count,
            metadata_match,
        })
    }
}

/// Refuses, or warns of, the fields that have no effect here.
fn check_fields(message: &proto::RouteAction, scope: &mut Scope) -> Result<(), Rejection> {
    #[expect(deprecated, reason = "older fields are treated like the newer ones")]
    let proto::RouteAction {
        path_rewrite_policy,
        flush_timeout,
        retry_policy_typed_config,
        rate_limits,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        // Concerns requests in TLS early data, which is not accepted.
        early_data_policy: _,
        // Concerns `rate_limits` of the virtual host, which have no effect either.
        include_vh_rate_limits: _,
        // All others are compiled.
        cluster_not_found_response_code: _,
        metadata_match: _,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite,
        append_x_forwarded_host: _,
        timeout: _,
        idle_timeout: _,
        retry_policy: _,
        request_mirror_policies: _,
        priority: _,
        hash_policy: _,
        cors: _,
        max_grpc_timeout: _,
        grpc_timeout_offset: _,
        upgrade_configs: _,
        max_stream_duration: _,
        cluster_specifier: _,
        host_rewrite_specifier,
    } = message;

    require_one_line("prefix_rewrite", prefix_rewrite, scope)?;
    require_one_line("path_rewrite", path_rewrite, scope)?;
    if let Some(rewrite) = regex_rewrite {
        require_one_line("regex_rewrite", &rewrite.substitution, scope)?;
    }
    match host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            require_one_line("host_rewrite_literal", host, scope)?;
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => {
            require_one_line("host_rewrite_path_regex", &rewrite.substitution, scope)?;
        }
        _ => {}
    }

    if retry_policy_typed_config.is_some() || path_rewrite_policy.is_some() {
        return scope.refuse("retry_policy_typed_config and path_rewrite_policy are unknown");
    }

    not_honoured!(
        scope,
        flush_timeout,
        rate_limits,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
    );

    Ok(())
}

/// A cluster that stands in the configuration by `name`, or else in the request's `header`.
pub(super) fn compile_cluster_ref(
    name: &str,
    header: &str,
    what: &str,
    scope: &Scope,
) -> Result<ClusterRef, Rejection> {
    match (name, header) {
        ("", "") => scope.refuse(format!("{what} without name")),
        ("", header) => Ok(ClusterRef::Header(header_name(header))),
        (name, _) => Ok(ClusterRef::Name(name.into())),
    }
}

pub(super) fn compile_mirrors(
    messages: &[proto::route_action::RequestMirrorPolicy],
    scope: &mut Scope,
) -> Result<Vec<Mirror>, Rejection> {
    scope.each("request_mirror_policies", messages, |scope, message| {
        let proto::route_action::RequestMirrorPolicy {
            cluster,
            cluster_header,
            runtime_fraction,
            disable_shadow_host_suffix_append,
            request_headers_mutations,
            host_rewrite_literal,
            // Concerns spans, and no spans are made.
            trace_sampled: _,
        } = message;
        require_one_line("host_rewrite_literal", host_rewrite_literal, scope)?;

        Ok(Mirror {
            cluster: compile_cluster_ref(
                cluster,
                cluster_header,
                "the cluster of a mirror",
                scope,
            )?,
            fraction: Fraction::from_runtime(runtime_fraction.as_ref(), Fraction::ALL),
            keep_host: *disable_shadow_host_suffix_append,
            host_rewrite: non_empty(host_rewrite_literal),
            request_headers: HeaderOps::compile_mutations(
                Place::RouteRequest,
                "request_headers_mutations",
                request_headers_mutations,
                scope,
            )?,
        })
    })
}

fn compile_upgrades(
    messages: &[proto::route_action::UpgradeConfig],
    scope: &mut Scope,
) -> Upgrades {
    let settings = messages.iter().map(|message| {
        let proto::route_action::UpgradeConfig {
            upgrade_type,
            enabled,
            connect_config,
        } = message;
        scope.unsupported("upgrade_configs.connect_config", connect_config.is_some());

        (upgrade_type.as_str(), boolean(enabled.as_ref(), true))
    });

    settings.collect()
}

impl PathRewrite {
    fn compile(message: &proto::RouteAction, scope: &mut Scope) -> Result<Option<Self>, Rejection> {
        let fields = (
            &*message.prefix_rewrite,
            &message.regex_rewrite,
            &*message.path_rewrite,
        );

        Ok(match fields {
            ("", None, "") => None,
            (prefix, None, "") => Some(Self::Prefix(prefix.into())),
            ("", Some(rewrite), "") => {
                let rewrite = scope.within("regex_rewrite", |scope| {
                    Substitution::compile(rewrite, scope)
                })?;
                Some(Self::Regex(Box::new(rewrite)))
            }
            ("", None, path) if path.contains('%') => {
                return scope.refuse("path_rewrite with formatters is unknown");
            }
            ("", None, path) => Some(Self::Full(path.into())),
            _ => {
                return scope
                    .refuse("more than one of prefix_rewrite, regex_rewrite and path_rewrite");
            }
        })
    }
}

impl HostRewrite {
    fn compile(
        message: Option<&HostRewriteSpecifier>,
        scope: &mut Scope,
    ) -> Result<Option<Self>, Rejection> {
        Ok(match message {
            None => None,
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                non_empty(host).map(Self::Literal)
            }
            Some(HostRewriteSpecifier::AutoHostRewrite(on)) => on.value.then_some(Self::Auto),
            Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
                Some(Self::Header(header_name(name)))
            }
            Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => Some(Self::PathRegex(
                Box::new(Substitution::compile(rewrite, scope)?),
            )),
            Some(HostRewriteSpecifier::HostRewrite(_)) => {
                return scope.refuse("host_rewrite is unknown");
            }
        })
    }
}

impl Timeouts {
    fn compile(message: &proto::RouteAction, scope: &Scope) -> Result<Self, Rejection> {
        let proto::route_action::MaxStreamDuration {
            max_stream_duration,
            grpc_timeout_header_max,
            grpc_timeout_header_offset,
        } = message.max_stream_duration.unwrap_or_default();

        // With the newer field, Envoy looks at neither the older ones nor `timeout`.
        let of_stream = message.max_stream_duration.is_some();
        #[expect(deprecated, reason = "Istio sends the older fields")]
        let (max_grpc, grpc_offset) = match of_stream {
            true => (grpc_timeout_header_max, grpc_timeout_header_offset),
            false => (message.max_grpc_timeout, message.grpc_timeout_offset),
        };
        let grpc_offset = scope.duration("grpc_timeout_offset", grpc_offset.as_ref())?;
        let grpc = scope
            .duration("max_grpc_timeout", max_grpc.as_ref())?
            .map(|max| GrpcLimit {
                max: Some(max).filter(|max| !max.is_zero()),
                offset: grpc_offset.unwrap_or_default(),
            });

        let route_limit = |field: &str, value: Option<&_>| {
            Ok(match scope.duration(field, value)? {
                None => RouteLimit::Inherited,
                Some(duration) if duration.is_zero() => RouteLimit::Off,
                Some(duration) => RouteLimit::After(duration),
            })
        };

        Ok(Self {
            request: limit(
                "timeout",
                message.timeout.as_ref(),
                Some(std::time::Duration::from_secs(15)),
                scope,
            )?
            .filter(|_| !of_stream),
            idle: route_limit("idle_timeout", message.idle_timeout.as_ref())?,
            grpc,
            max_stream: route_limit("max_stream_duration", max_stream_duration.as_ref())?,
            of_stream,
        })
    }
}
