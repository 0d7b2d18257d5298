//! Forwarding bytes: `tcp_proxy`.

mod compile;

use std::sync::Arc;
use std::time::Duration;

use meltemi_lb::SubsetMatch;

use crate::access_log::AccessLog;

/// `envoy.filters.network.tcp_proxy`, compiled.
#[derive(Debug)]
pub struct TcpProxy {
    /// Names the filter in metrics.
    pub stat_prefix: Arc<str>,
    /// The cluster, or clusters, that connections go to.
    pub destination: TcpDestination,
    /// The longest time without bytes, after which a connection is closed; `None`: no limit.
    /// Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// The age at which a connection is closed; `None`: never.
    pub max_duration: Option<Duration>,
    /// Attempts to connect, at least 1.
    pub max_connect_attempts: u32,
    /// Access logs of its connections.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// Metadata (`envoy.lb`) that an endpoint must have.
    pub metadata_match: Option<SubsetMatch>,
    /// The client's address is hashed to choose the endpoint.
    pub hash_source_ip: bool,
}

/// The cluster, or clusters, that connections go to.
#[derive(Debug)]
pub enum TcpDestination {
    /// One cluster takes every connection.
    Cluster(Arc<str>),
    /// Each cluster takes a share.
    Weighted(TcpWeights),
}

/// Clusters by weight, as a cumulative table.
#[derive(Debug)]
pub struct TcpWeights {
    /// Each cluster with the upper bound (exclusive) of its share.
    pub(crate) table: Vec<(u64, TcpWeight)>,
    /// The sum of all weights, at least 1.
    pub(crate) total: u64,
}

/// One of several clusters.
#[derive(Debug)]
pub struct TcpWeight {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// Metadata that an endpoint must have, laid over the one of the whole filter.
    pub metadata_match: Option<SubsetMatch>,
}

impl TcpProxy {
    /// Draws the cluster for a connection, and the metadata that its endpoint must have.
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
}
