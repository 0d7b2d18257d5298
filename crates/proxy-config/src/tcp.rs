//! Forwarding bytes: `tcp_proxy`.

mod compile;

use std::sync::Arc;
use std::time::Duration;

use meltemi_lb::SubsetMatch;

use crate::access_log::AccessLog;

/// `envoy.filters.network.tcp_proxy`.
#[derive(Debug)]
pub struct TcpProxy {
    /// For metrics.
    pub stat_prefix: Arc<str>,
    /// Where to.
    pub destination: TcpDestination,
    /// A connection without bytes for so long is closed; `None`: never. Envoy's default is 1 h.
    pub idle_timeout: Option<Duration>,
    /// A connection is closed after so long.
    pub max_duration: Option<Duration>,
    /// Attempts to connect; at least 1.
    pub max_connect_attempts: u32,
    /// Access logs.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// Endpoints with this metadata, from `envoy.lb`.
    pub metadata_match: Option<SubsetMatch>,
    /// The client's address decides the endpoint.
    pub hash_source_ip: bool,
}

/// Where a TCP connection goes.
#[derive(Debug)]
pub enum TcpDestination {
    /// One cluster.
    Cluster(Arc<str>),
    /// Several, by weight.
    Weighted(TcpWeights),
}

/// Clusters by weight, as a cumulative table.
#[derive(Debug)]
pub struct TcpWeights {
    /// Upper bound (exclusive) of each cluster's share, and the cluster.
    pub(crate) table: Vec<(u64, TcpWeight)>,
    pub(crate) total: u64,
}

/// One of several clusters.
#[derive(Debug)]
pub struct TcpWeight {
    /// Its name.
    pub cluster: Arc<str>,
    /// Endpoints with this metadata.
    pub metadata_match: Option<SubsetMatch>,
}

impl TcpProxy {
    /// The cluster for a connection with this random number, and the metadata that its endpoint
    /// must have.
    pub fn select(&self, random: u64) -> (&Arc<str>, Option<&SubsetMatch>) {
        match &self.destination {
            TcpDestination::Cluster(cluster) => (cluster, self.metadata_match.as_ref()),
            TcpDestination::Weighted(weights) => {
                let point = random % weights.total.max(1);
                let at = weights
                    .table
                    .partition_point(|(bound, _)| *bound <= point)
                    .min(weights.table.len() - 1);

                let chosen = &weights.table[at].1;
                (
                    &chosen.cluster,
                    chosen
                        .metadata_match
                        .as_ref()
                        .or(self.metadata_match.as_ref()),
                )
            }
        }
    }

    /// Every cluster that it may choose.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        let (one, many) = match &self.destination {
            TcpDestination::Cluster(cluster) => (Some(cluster), None),
            TcpDestination::Weighted(weights) => (
                None,
                Some(weights.table.iter().map(|(_, weight)| &weight.cluster)),
            ),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}
