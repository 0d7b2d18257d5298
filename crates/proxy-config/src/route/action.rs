//! What a route does with a request that it forwards.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::RequestHead;
use meltemi_filters::http::Overrides;
use meltemi_filters::matcher::{Fraction, Substitution};
use meltemi_lb::SubsetMatch;

use super::{HashOutcome, HashPolicy, HeaderOps, RetryPolicy};

/// `RouteAction`, compiled.
#[derive(Debug)]
pub struct RouteAction {
    /// Where to.
    pub cluster: ClusterChoice,
    /// The status where the cluster is unknown: 503, 404 or 500.
    pub cluster_not_found_status: u16,
    /// Endpoints with this metadata (`envoy.lb`).
    pub metadata_match: Option<SubsetMatch>,
    /// How the path is rewritten.
    pub path_rewrite: Option<PathRewrite>,
    /// How the host is rewritten.
    pub host_rewrite: Option<HostRewrite>,
    /// Tell the host as it was in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Retries; the virtual host's where the route has none.
    pub retry: Option<Arc<RetryPolicy>>,
    /// What decides the endpoint under consistent hashing.
    pub hash: HashPolicies,
    /// Copies of requests.
    pub mirrors: Vec<Mirror>,
    /// Upgrades that differ from the connection manager's.
    pub upgrades: Vec<(Box<str>, bool)>,
    /// Which of the two sets of circuit breakers counts.
    pub high_priority: bool,
    /// Tell the attempt's number to the upstream.
    pub request_attempt_count: bool,
    /// Tell the number of attempts to the downstream.
    pub response_attempt_count: bool,
    /// Hashed with `random` to pick a weighted cluster by header instead.
    pub(crate) weight_header: Option<Box<str>>,
}

/// How the cluster is found.
#[derive(Debug)]
pub enum ClusterChoice {
    /// By name.
    Name(Arc<str>),
    /// A request header names it.
    Header(Box<str>),
    /// By weight.
    Weighted(WeightedClusters),
}

/// Clusters by weight, as a cumulative table.
#[derive(Debug)]
pub struct WeightedClusters {
    pub(crate) bounds: Vec<u64>,
    /// The clusters, in the order of the message.
    pub clusters: Vec<WeightedCluster>,
}

/// One of several clusters.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Its name.
    pub cluster: ClusterRef,
    /// Its weight.
    pub weight: u32,
    /// Endpoints with this metadata, merged over the action's.
    pub metadata_match: Option<SubsetMatch>,
    /// Request headers, applied before the route's.
    pub request_headers: HeaderOps,
    /// Response headers, applied before the route's.
    pub response_headers: HeaderOps,
    /// Filter settings of this cluster's requests.
    pub overrides: Overrides,
    /// Overrides the action's host rewrite.
    pub host_rewrite: Option<Arc<str>>,
}

/// A cluster by name, or by the header that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterRef {
    /// By name.
    Name(Arc<str>),
    /// The value of this request header.
    Header(Box<str>),
}

/// How a path is rewritten.
#[derive(Debug)]
pub enum PathRewrite {
    /// What the route's prefix or path matched becomes this.
    Prefix(Box<str>),
    /// Every match within the path (without query).
    Regex(Box<Substitution>),
    /// The whole path; the query stays.
    Full(Box<str>),
}

/// How a host is rewritten.
#[derive(Debug)]
pub enum HostRewrite {
    /// To this.
    Literal(Arc<str>),
    /// To the name of the endpoint that is chosen.
    Auto,
    /// To the value of a request header.
    Header(Box<str>),
    /// From the path.
    PathRegex(Box<Substitution>),
}

/// Time limits of a route. `None` means no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request to the end of the response. Envoy's default of 15 s is applied
    /// already.
    pub request: Option<Duration>,
    /// Without bytes in either direction; outer `None`: the connection manager's.
    pub idle: Option<Option<Duration>>,
    /// What `grpc-timeout` may ask for at most, in place of `request`; `Some(0)` means no bound.
    pub max_grpc: Option<Duration>,
    /// Subtracted from `grpc-timeout`.
    pub grpc_offset: Duration,
    /// The whole stream; outer `None`: the connection manager's.
    pub max_stream: Option<Option<Duration>>,
}

/// What decides the endpoint under consistent hashing, in order.
#[derive(Debug, Default)]
pub struct HashPolicies(pub(crate) Vec<HashPolicy>);

/// A copy of the request to another cluster, whose answer nobody waits for.
#[derive(Debug)]
pub struct Mirror {
    /// Where to.
    pub cluster: ClusterRef,
    /// How many.
    pub fraction: Fraction,
    /// Do not append `-shadow` to the host.
    pub keep_host: bool,
    /// The host instead.
    pub host_rewrite: Option<Arc<str>>,
}

/// What was chosen for one request.
#[derive(Debug, Clone, Copy)]
pub enum Chosen<'a> {
    /// Forward it.
    Forward(Forward<'a>),
    /// Answer with a redirect.
    Redirect(&'a super::Redirect),
    /// Answer with this.
    Direct(&'a super::DirectResponse),
    /// Neither; a filter must have answered.
    NonForwarding,
}

/// Where a request is forwarded to.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    /// The route's action.
    pub action: &'a RouteAction,
    /// The weighted cluster that was drawn, if there are several.
    pub weighted: Option<&'a WeightedCluster>,
}

impl<'a> Forward<'a> {
    /// The cluster's name; it may come from a header, so read it before headers change. `None`: the
    /// header is missing.
    pub fn cluster<'h>(&self, head: &'h RequestHead) -> Option<&'h str>
    where
        'a: 'h,
    {
        let header = match (self.weighted, &self.action.cluster) {
            (Some(weighted), _) => match &weighted.cluster {
                ClusterRef::Name(name) => return Some(name),
                ClusterRef::Header(header) => header,
            },
            (None, ClusterChoice::Name(name)) => return Some(name),
            (None, ClusterChoice::Header(header)) => header,
            (None, ClusterChoice::Weighted(_)) => return None,
        };

        head.get_str(header)
    }

    /// The cluster's name where configuration alone says it.
    pub fn cluster_name(&self) -> Option<&'a Arc<str>> {
        match (self.weighted, &self.action.cluster) {
            (
                Some(WeightedCluster {
                    cluster: ClusterRef::Name(name),
                    ..
                }),
                _,
            ) => Some(name),
            (None, ClusterChoice::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// The metadata that endpoints must have: `(weighted cluster's, route's)`; a key in the first
    /// wins.
    pub fn metadata_match(&self) -> Option<&'a SubsetMatch> {
        self.weighted
            .and_then(|weighted| weighted.metadata_match.as_ref())
            .or(self.action.metadata_match.as_ref())
    }
}

impl WeightedClusters {
    pub(crate) fn pick(&self, point: u64) -> Option<(usize, &WeightedCluster)> {
        let total = *self.bounds.last()?;
        let point = point % total.max(1);
        let at = self.bounds.partition_point(|bound| *bound <= point);
        self.clusters.get(at).map(|cluster| (at, cluster))
    }
}

impl ClusterRef {
    /// The name; `None`: the header is missing.
    pub fn name<'h>(&'h self, head: &'h RequestHead) -> Option<&'h str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Header(header) => head.get_str(header),
        }
    }
}

impl RouteAction {
    /// Every cluster that configuration names, mirrors included.
    pub fn clusters(&self) -> Vec<&Arc<str>> {
        let named = |cluster: &'_ ClusterRef| matches!(cluster, ClusterRef::Name(_));
        let mut names = Vec::new();
        match &self.cluster {
            ClusterChoice::Name(name) => names.push(name),
            ClusterChoice::Header(_) => {}
            ClusterChoice::Weighted(weighted) => {
                for cluster in weighted
                    .clusters
                    .iter()
                    .filter(|cluster| named(&cluster.cluster))
                {
                    if let ClusterRef::Name(name) = &cluster.cluster {
                        names.push(name);
                    }
                }
            }
        }

        for mirror in &self.mirrors {
            if let ClusterRef::Name(name) = &mirror.cluster {
                names.push(name);
            }
        }

        names
    }

    /// Whether an upgrade is on: the route's word, else the connection manager's.
    pub fn allows_upgrade(
        &self,
        protocol: &str,
        manager: &crate::http::HttpConnectionManager,
    ) -> bool {
        let own = self
            .upgrades
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(protocol));
        own.map_or_else(|| manager.allows_upgrade(protocol), |(_, on)| *on)
    }

    /// The host that the upstream is told, written to `out`; `false`: leave it. `endpoint` is the
    /// chosen endpoint's name, for `Auto`.
    pub fn rewrite_host(
        &self,
        weighted: Option<&WeightedCluster>,
        head: &RequestHead,
        endpoint: Option<&str>,
        out: &mut Vec<u8>,
    ) -> bool {
        if let Some(host) = weighted.and_then(|weighted| weighted.host_rewrite.as_ref()) {
            out.extend_from_slice(host.as_bytes());
            return true;
        }

        match &self.host_rewrite {
            None => false,
            Some(HostRewrite::Literal(host)) => {
                out.extend_from_slice(host.as_bytes());
                true
            }
            Some(HostRewrite::Auto) => {
                let name = endpoint.filter(|name| !name.is_empty());
                name.inspect(|name| out.extend_from_slice(name.as_bytes()))
                    .is_some()
            }
            Some(HostRewrite::Header(header)) => {
                let value = head.get(header).filter(|value| !value.is_empty());
                value
                    .inspect(|value| out.extend_from_slice(value))
                    .is_some()
            }
            Some(HostRewrite::PathRegex(rewrite)) => {
                rewrite.replace_into(head.path_only().as_bytes(), out) && !out.is_empty()
            }
        }
    }
}

impl HashPolicies {
    /// Whether nothing decides.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hash of a request, as Envoy combines them, and a cookie to set if one must be made: out
    /// of the two ends of the client's connection, the client's own first.
    pub fn hash(
        &self,
        head: &RequestHead,
        source: IpAddr,
        ends: (SocketAddr, SocketAddr),
    ) -> HashOutcome<'_> {
        super::hash::combine(&self.0, head, source, ends)
    }
}
