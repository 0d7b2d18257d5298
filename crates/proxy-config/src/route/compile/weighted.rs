//! Compiling clusters by weight.

use meltemi_filters::{Rejection, Scope};
use meltemi_lb::SubsetMatch;
use meltemi_proto::envoy::config::route::v3 as proto;
use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;
use proto::weighted_cluster::{ClusterWeight, RandomValueSpecifier};

use super::action::compile_cluster_ref;
use super::{request_headers, response_headers};
use crate::convert::{header_name, number, require_one_line, weighted_subset_match};
use crate::http_filter::{FilterShared, compile_overrides};
use crate::route::action::{WeightedCluster, WeightedClusters};

impl WeightedClusters {
    /// `general` is the `metadata_match` of the whole action.
    pub(super) fn compile(
        message: &proto::WeightedCluster,
        general: Option<&SubsetMatch>,
        owner: &str,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        #[expect(deprecated, reason = "total_weight is named to be ignored")]
        let proto::WeightedCluster {
            clusters,
            random_value_specifier,
            // The sum of the weights counts.
            total_weight: _,
            // There is no runtime, so each weight is the configured one.
            runtime_key_prefix: _,
        } = message;

        let header = match random_value_specifier {
            Some(RandomValueSpecifier::HeaderName(name)) => Some(header_name(name)),
            Some(RandomValueSpecifier::UseHashPolicy(on)) => {
                scope.unsupported("use_hash_policy", on.value);
                None
            }
            None => None,
        };

        let clusters = scope.each("clusters", clusters, |scope, cluster| {
            WeightedCluster::compile(cluster, general, owner, shared, scope)
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
            _ => Ok(Self {
                bounds,
                clusters,
                header,
            }),
        }
    }
}

impl WeightedCluster {
    fn compile(
        message: &ClusterWeight,
        general: Option<&SubsetMatch>,
        owner: &str,
        shared: &FilterShared,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let ClusterWeight {
            name,
            cluster_header,
            weight,
            metadata_match,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            typed_per_filter_config,
            host_rewrite_specifier,
        } = message;

        if let Some(HostRewriteSpecifier::HostRewriteLiteral(host)) = host_rewrite_specifier {
            require_one_line("host_rewrite_literal", host, scope)?;
        }

        Ok(Self {
            cluster: compile_cluster_ref(name, cluster_header, "a weighted cluster", scope)?,
            weight: number(weight.as_ref(), 0),
            metadata_match: weighted_subset_match(metadata_match.as_ref(), general),
            request_headers: request_headers(
                request_headers_to_add,
                request_headers_to_remove,
                scope,
            )?,
            response_headers: response_headers(
                response_headers_to_add,
                response_headers_to_remove,
                scope,
            )?,
            overrides: compile_overrides(
                typed_per_filter_config,
                &format!("{owner}/{name}"),
                shared,
                scope,
            )?,
            host_rewrite: host_rewrite_specifier.as_ref().map(|specifier| {
                let HostRewriteSpecifier::HostRewriteLiteral(host) = specifier;
                host.as_str().into()
            }),
        })
    }
}
