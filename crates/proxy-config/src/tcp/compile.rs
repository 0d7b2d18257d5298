//! Compiling `tcp_proxy`.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use proto::tcp_proxy::ClusterSpecifier;

use super::*;
use crate::convert::{limit, number, subset_match};

impl TcpProxy {
    /// Compiles Envoy's message.
    pub fn compile(message: &proto::TcpProxy, scope: &mut Scope) -> Result<Self, Rejection> {
        use meltemi_proto::envoy::r#type::v3::hash_policy::PolicySpecifier;

        scope.unsupported("on_demand", message.on_demand.is_some());
        scope.unsupported(
            "proxy_protocol_tlvs",
            !message.proxy_protocol_tlvs.is_empty(),
        );

        scope.unsupported("upstream_connect_mode", message.upstream_connect_mode != 0);
        let metadata_match = subset_match(message.metadata_match.as_ref());
        let destination =
            match scope.required("cluster_specifier", message.cluster_specifier.as_ref())? {
                ClusterSpecifier::Cluster(name) => TcpDestination::Cluster(name.as_str().into()),
                ClusterSpecifier::WeightedClusters(weighted) => {
                    let mut total = 0u64;
                    let mut table = Vec::with_capacity(weighted.clusters.len());
                    for cluster in &weighted.clusters {
                        total += u64::from(cluster.weight);
                        let own = subset_match(cluster.metadata_match.as_ref());
                        let metadata_match = match (own, &metadata_match) {
                            (Some(own), Some(general)) => Some(own.over(general)),
                            (own, general) => own.or_else(|| general.clone()),
                        };

                        table.push((
                            total,
                            TcpWeight {
                                cluster: cluster.name.as_str().into(),
                                metadata_match,
                            },
                        ));
                    }

                    if total == 0 {
                        return scope.refuse("the weights of weighted_clusters sum to 0");
                    }
                    TcpDestination::Weighted(TcpWeights { table, total })
                }
            };

        if message.tunneling_config.is_some() {
            return scope.refuse("tunneling_config is unknown: connections would go out bare");
        }
        let hour = Some(Duration::from_secs(3600));

        Ok(Self {
            stat_prefix: message.stat_prefix.as_str().into(),
            destination,
            idle_timeout: limit("idle_timeout", message.idle_timeout.as_ref(), hour, scope)?,
            max_duration: limit(
                "max_downstream_connection_duration",
                message.max_downstream_connection_duration.as_ref(),
                None,
                scope,
            )?,
            max_connect_attempts: number(message.max_connect_attempts.as_ref(), 1).max(1),
            access_logs: crate::access_log::compile::compile_all(&message.access_log, scope)?,
            metadata_match,
            hash_source_ip: message.hash_policy.iter().any(|policy| {
                matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_)))
            }),
        })
    }
}
