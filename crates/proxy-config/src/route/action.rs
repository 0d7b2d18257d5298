//! What a route does with a request that it forwards.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::RequestHead;
use meltemi_filters::http::Overrides;
use meltemi_filters::matcher::{Fraction, Substitution};
use meltemi_lb::SubsetMatch;

use super::{HashOutcome, HashPolicy, HeaderOps, RetryPolicy};
use crate::upgrade::Upgrades;

/// `RouteAction`, compiled.
#[derive(Debug)]
pub struct RouteAction {
    /// The cluster, or how it is found for each request.
    pub cluster: ClusterChoice,
    /// The status of the response where the cluster is unknown: 503, 404 or 500.
    pub cluster_not_found_status: u16,
    /// Metadata (`envoy.lb`) that an endpoint must have.
    pub metadata_match: Option<SubsetMatch>,
    /// How the path is rewritten; `None`: it stays.
    pub path_rewrite: Option<PathRewrite>,
    /// How the host is rewritten; `None`: it stays.
    pub host_rewrite: Option<HostRewrite>,
    /// A host that is rewritten is kept in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Time limits.
    pub timeouts: Timeouts,
    /// When attempts are retried: the route's own policy, else its virtual host's.
    pub retry: Option<Arc<RetryPolicy>>,
    /// The bytes of a body that are kept for a retry or a mirror; `None`: the listener decides.
    pub copy_limit: Option<u64>,
    /// What consistent hashing hashes of a request.
    pub hash: HashPolicies,
    /// Clusters that are sent copies of requests.
    pub mirrors: Vec<Mirror>,
    /// Protocols for which the route overrides the connection manager's upgrades.
    pub upgrades: Upgrades,
    /// The circuit breakers of high priority count, not those of default priority.
    pub high_priority: bool,
    /// The upstream is told the number of the attempt, in `x-envoy-attempt-count`.
    pub request_attempt_count: bool,
    /// The downstream is told how many attempts were made, in `x-envoy-attempt-count`.
    pub response_attempt_count: bool,
}

/// How the cluster of a request is found.
#[derive(Debug)]
pub enum ClusterChoice {
    /// The cluster of this name takes every request.
    Name(Arc<str>),
    /// This request header names the cluster.
    Header(Box<str>),
    /// Each of several clusters takes a share.
    Weighted(WeightedClusters),
}

/// Clusters by weight, as a cumulative table.
#[derive(Debug)]
pub struct WeightedClusters {
    /// The upper bound (exclusive) of each cluster's share.
    pub(crate) bounds: Vec<u64>,
    /// The clusters, in the order of the message.
    pub clusters: Vec<WeightedCluster>,
    /// A request header whose number is used in place of a random one.
    pub(crate) header: Option<Box<str>>,
}

/// One of several clusters.
#[derive(Debug)]
pub struct WeightedCluster {
    /// The cluster's name, or the header that has it.
    pub cluster: ClusterRef,
    /// Its share, out of the sum of all weights.
    pub weight: u32,
    /// Metadata that an endpoint must have, laid over the action's.
    pub metadata_match: Option<SubsetMatch>,
    /// Request headers, applied before the route's.
    pub request_headers: HeaderOps,
    /// Response headers, applied before the route's.
    pub response_headers: HeaderOps,
    /// Filter settings of this cluster's requests.
    pub overrides: Overrides,
    /// Replaces the host, in place of the action's host rewrite.
    pub host_rewrite: Option<Arc<str>>,
}

/// A cluster by name, or by the header that has the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterRef {
    /// The name stands in the configuration.
    Name(Arc<str>),
    /// The value of this request header is the name.
    Header(Box<str>),
}

/// How a path is rewritten. The query stays.
#[derive(Debug)]
pub enum PathRewrite {
    /// Replaces the part of the path that the route's prefix or path matched.
    Prefix(Box<str>),
    /// Replaces every match of a pattern.
    Regex(Box<Substitution>),
    /// Replaces the whole path.
    Full(Box<str>),
}

/// How a host is rewritten.
#[derive(Debug)]
pub enum HostRewrite {
    /// To this host.
    Literal(Arc<str>),
    /// To the host name of the endpoint that is chosen.
    Auto,
    /// To the value of this request header.
    Header(Box<str>),
    /// To the path, with every match of a pattern replaced.
    PathRegex(Box<Substitution>),
}

/// Time limits of a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request to the end of the response; `None`: no limit. Default 15 s.
    pub request: Option<Duration>,
    /// The longest time without bytes in either direction.
    pub idle: RouteLimit,
    /// How `grpc-timeout` counts; `None`: not at all.
    pub grpc: Option<GrpcLimit>,
    /// The age at which the stream is ended.
    pub max_stream: RouteLimit,
    /// Limits count from the beginning of the stream, and `grpc` bounds its age, not the response.
    /// Envoy: the route has a `max_stream_duration`.
    pub of_stream: bool,
}

/// How the request's `grpc-timeout` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcLimit {
    /// The upper bound; `None`: no bound.
    pub max: Option<Duration>,
    /// Subtracted from it.
    pub offset: Duration,
}

impl Timeouts {
    /// The age at which a stream is ended, given the connection manager's limit and the request's
    /// `grpc-timeout`. `None`: no limit. Source: Envoy `ActiveStream::refreshDurationTimeout`.
    pub fn stream(
        &self,
        manager: Option<Duration>,
        grpc_timeout: Option<Duration>,
    ) -> Option<Duration> {
        match (self.grpc.filter(|_| self.of_stream), grpc_timeout) {
            (Some(grpc), Some(asked)) => {
                let capped = grpc.max.map_or(asked, |max| asked.min(max));
                Some(capped.saturating_sub(grpc.offset))
            }
            _ => self.max_stream.or(manager),
        }
    }
}

/// A time limit that a route sets, lifts, or leaves to its connection manager.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RouteLimit {
    /// The connection manager's limit counts.
    #[default]
    Inherited,
    /// There is no limit, whatever the connection manager says.
    Off,
    /// This limit counts.
    After(Duration),
}

impl RouteLimit {
    /// The limit that counts, given the connection manager's; `None`: no limit.
    pub fn or(self, manager: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Inherited => manager,
            Self::Off => None,
            Self::After(limit) => Some(limit),
        }
    }
}

/// What consistent hashing hashes of a request, in order.
#[derive(Debug, Default)]
pub struct HashPolicies(pub(crate) Vec<HashPolicy>);

/// A cluster that gets copies of requests. Its responses are discarded.
#[derive(Debug)]
pub struct Mirror {
    /// The cluster's name, or the header that has it.
    pub cluster: ClusterRef,
    /// The share of requests that are copied.
    pub fraction: Fraction,
    /// `-shadow` is not appended to the host.
    pub keep_host: bool,
    /// Replaces the host of the copy.
    pub host_rewrite: Option<Arc<str>>,
    /// Changes the headers of the copy.
    pub request_headers: HeaderOps,
}

/// What the route of one request does with it.
#[derive(Debug, Clone, Copy)]
pub enum Chosen<'a> {
    /// Forwards the request.
    Forward(Forward<'a>),
    /// Answers with a redirect.
    Redirect(&'a super::Redirect),
    /// Answers with a response from the configuration.
    Direct(&'a super::DirectResponse),
    /// Does nothing: a filter must answer.
    NonForwarding,
}

/// How one request is forwarded.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    pub action: &'a RouteAction,
    /// The weighted cluster that was drawn, if there are several.
    pub weighted: Option<&'a WeightedCluster>,
}

impl<'a> Forward<'a> {
    /// The cluster's name; `None`: the header that should have it is missing. Read it before
    /// anything changes the request's headers.
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

    /// The cluster's name where it stands in the configuration.
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

    /// The metadata that an endpoint must have: the weighted cluster's, which has the route's
    /// beneath it, else the route's alone.
    pub fn metadata_match(&self) -> Option<&'a SubsetMatch> {
        self.weighted
            .and_then(|weighted| weighted.metadata_match.as_ref())
            .or(self.action.metadata_match.as_ref())
    }
}

impl WeightedClusters {
    /// The cluster at a point of the sum of all weights, and its place in the list.
    pub(crate) fn pick(&self, point: u64) -> Option<(usize, &WeightedCluster)> {
        let total = *self.bounds.last()?;
        let point = point % total.max(1);
        let at = self.bounds.partition_point(|bound| *bound <= point);
        self.clusters.get(at).map(|cluster| (at, cluster))
    }
}

impl ClusterRef {
    /// The cluster's name; `None`: the header that should have it is missing.
    pub fn name<'h>(&'h self, head: &'h RequestHead) -> Option<&'h str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Header(header) => head.get_str(header),
        }
    }
}

impl RouteAction {
    /// Writes the rewritten host to `out`, and returns whether there is one: else the host stays.
    /// `endpoint` is the host name of the chosen endpoint, for [`HostRewrite::Auto`].
    pub fn rewrite_host(
        &self,
        weighted: Option<&WeightedCluster>,
        head: &RequestHead,
        endpoint: Option<&str>,
        out: &mut Vec<u8>,
    ) -> bool {
        // Envoy applies the rewrite of the weighted cluster first, and that of the route over it.
        if self.rewrite_host_by_route(head, endpoint, out) {
            return true;
        }
        let of_cluster = weighted.and_then(|weighted| weighted.host_rewrite.as_ref());
        of_cluster
            .inspect(|host| out.extend_from_slice(host.as_bytes()))
            .is_some()
    }

    fn rewrite_host_by_route(
        &self,
        head: &RequestHead,
        endpoint: Option<&str>,
        out: &mut Vec<u8>,
    ) -> bool {
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
    /// Whether nothing is hashed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hash of a request, and the cookie that the response must set where a policy makes one.
    /// The cookie's value comes from `ends`, the two addresses of the client's connection, the
    /// client's own first.
    pub fn hash(
        &self,
        head: &RequestHead,
        source: IpAddr,
        ends: (SocketAddr, SocketAddr),
    ) -> HashOutcome<'_> {
        super::hash::combine(&self.0, head, source, ends)
    }
}
