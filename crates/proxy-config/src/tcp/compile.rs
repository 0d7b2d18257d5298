//! Compiling `tcp_proxy`.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use meltemi_proto::envoy::r#type::v3::HashPolicy;
use meltemi_proto::envoy::r#type::v3::hash_policy::PolicySpecifier;
use proto::tcp_proxy::{ClusterSpecifier, WeightedCluster};

use super::*;
use crate::convert::{limit, not_honoured, number, subset_match, weighted_subset_match};

impl TcpProxy {
    pub(crate) fn compile(message: &proto::TcpProxy, scope: &mut Scope) -> Result<Self, Rejection> {
        #[expect(deprecated, reason = "older fields are warned of like the newer ones")]
        let proto::TcpProxy {
            stat_prefix,
            on_demand,
            metadata_match,
            idle_timeout,
            downstream_idle_timeout,
            upstream_idle_timeout,
            access_log,
            max_connect_attempts,
            backoff_options,
            hash_policy,
            tunneling_config,
            max_downstream_connection_duration,
            max_downstream_connection_duration_jitter_percentage,
            access_log_flush_interval,
            flush_access_log_on_connected,
            access_log_options,
            proxy_protocol_tlvs,
            upstream_connect_mode,
            max_early_data_bytes,
            check_drain_close,
            cluster_specifier,
            // Concerns `proxy_protocol_tlvs`, which are not sent.
            proxy_protocol_tlv_merge_policy: _,
        } = message;

        if tunneling_config.is_some() {
            return scope.refuse("tunneling_config is unknown: connections would go out bare");
        }

        not_honoured!(
            scope,
            on_demand,
            downstream_idle_timeout,
            upstream_idle_timeout,
            backoff_options,
            max_downstream_connection_duration_jitter_percentage,
            access_log_flush_interval,
            flush_access_log_on_connected,
            access_log_options,
            proxy_protocol_tlvs,
            upstream_connect_mode,
            max_early_data_bytes,
            check_drain_close,
        );

        let metadata_match = subset_match(metadata_match.as_ref());
        let destination = match scope.required("cluster_specifier", cluster_specifier.as_ref())? {
            ClusterSpecifier::Cluster(name) => TcpDestination::Cluster(name.as_str().into()),
            ClusterSpecifier::WeightedClusters(weighted) => {
                let general = metadata_match.as_ref();
                TcpDestination::Weighted(TcpWeights::compile(weighted, general, scope)?)
            }
        };
        let hour = Some(Duration::from_secs(3600));

        Ok(Self {
            stat_prefix: stat_prefix.as_str().into(),
            destination,
            idle_timeout: limit("idle_timeout", idle_timeout.as_ref(), hour, scope)?,
            max_duration: limit(
                "max_downstream_connection_duration",
                max_downstream_connection_duration.as_ref(),
                None,
                scope,
            )?,
            max_connect_attempts: number(max_connect_attempts.as_ref(), 1).max(1),
            access_logs: crate::access_log::compile::compile_all(access_log, scope)?,
            metadata_match,
            hash_source_ip: compile_hash_policy(hash_policy, scope),
        })
    }
}

impl TcpWeights {
    fn compile(
        message: &WeightedCluster,
        general: Option<&SubsetMatch>,
        scope: &Scope,
    ) -> Result<Self, Rejection> {
        let WeightedCluster { clusters } = message;
        let mut total = 0u64;
        let mut table = Vec::with_capacity(clusters.len());
        for cluster in clusters {
            let proto::tcp_proxy::weighted_cluster::ClusterWeight {
                name,
                weight,
                metadata_match,
            } = cluster;

            total += u64::from(*weight);
            let weight = TcpWeight {
                cluster: name.as_str().into(),
                metadata_match: weighted_subset_match(metadata_match.as_ref(), general),
            };
            table.push((total, weight));
        }

        if total == 0 {
            return scope.refuse("the weights of weighted_clusters sum to 0");
        }

        Ok(Self { table, total })
    }
}

/// Whether the client's address decides the endpoint, which is all that can be hashed here.
fn compile_hash_policy(policies: &[HashPolicy], scope: &mut Scope) -> bool {
    let hashes_source =
        |policy: &HashPolicy| matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_)));
    scope.unsupported(
        "hash_policy",
        policies.iter().any(|policy| !hashes_source(policy)),
    );

    policies.iter().any(hashes_source)
}
