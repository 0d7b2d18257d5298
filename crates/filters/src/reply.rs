//! Responses that the proxy makes itself, and their causes.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::flag::ResponseFlag;

/// A response that the proxy makes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReply {
    /// The HTTP status.
    pub status: u16,
    /// The body, `text/plain` unless a header says otherwise; for gRPC requests it becomes
    /// `grpc-message`.
    pub body: Bytes,
    /// Further headers: lower-case name, value.
    pub headers: SmallVec<[(Cow<'static, str>, Bytes); 2]>,
    /// A gRPC status that the reply must carry instead of the one that follows from the HTTP
    /// status.
    pub grpc_status: Option<u32>,
    /// The response flag, if Envoy has one for the reason.
    pub flag: Option<ResponseFlag>,
    /// `%RESPONSE_CODE_DETAILS%`, in Envoy's words.
    pub details: Cow<'static, str>,
    /// The part of the configuration, or the failure, that caused the reply.
    pub cause: Cause,
}

impl LocalReply {
    /// A reply with a body and nothing else.
    pub fn new(
        status: u16,
        body: impl Into<Bytes>,
        details: impl Into<Cow<'static, str>>,
        cause: Cause,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            headers: SmallVec::new(),
            grpc_status: None,
            flag: None,
            details: details.into(),
            cause,
        }
    }

    /// With a response flag.
    pub fn flagged(mut self, flag: ResponseFlag) -> Self {
        self.flag = Some(flag);
        self
    }

    /// With one more header; the name is lower case.
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Why the proxy answered itself or refused a connection. Names are those of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// An authorization policy: its id, or `None` if no ALLOW policy matched.
    Policy(Option<Arc<str>>),
    /// A route's own action (redirect, direct response), by the route's name.
    Route(Arc<str>),
    /// A route and its connection manager do not allow the upgrade that was asked for; the route's
    /// name.
    Upgrade(Arc<str>),
    /// No virtual host or no route matches; the route table's name.
    NoRoute(Arc<str>),
    /// No filter chain matches; the listener's name.
    NoFilterChain(Arc<str>),
    /// The route names a cluster that does not exist.
    NoCluster(Arc<str>),
    /// The cluster has no usable endpoint.
    NoEndpoint(Arc<str>),
    /// A circuit breaker: the cluster and which threshold.
    Breaker(Arc<str>, &'static str),
    /// A limit on connections; its statistics prefix.
    ConnectionLimit(Arc<str>),
    /// The `drop_overloads` of this cluster's endpoints dropped the request.
    Drop(Arc<str>),
    /// An endpoint failed: the cluster, the address and how.
    Endpoint(Arc<str>, std::net::SocketAddr, Cow<'static, str>),
    /// A fault that configuration injects; the filter's name.
    Fault(Arc<str>),
    /// A rate limit; the filter's statistics prefix.
    RateLimit(Arc<str>),
    /// A CORS preflight that the filter answers.
    Cors,
    /// External authorization: the cluster that was asked, and the result of the call.
    ExternalAuthorization(Arc<str>, Cow<'static, str>),
    /// A token that is missing, or that nobody can check; in which way.
    Token(&'static str),
    /// A body is longer than a filter holds; the filter's name.
    BodyTooLarge(Arc<str>),
    /// A timeout: which one, and whose: a route, filter chain or listener.
    Timeout(&'static str, Arc<str>),
    /// The peer broke the protocol, and how.
    Protocol(Cow<'static, str>),
    /// A certificate or handshake, and why.
    Tls(Cow<'static, str>),
    /// The connection is asked to end: why, and its filter chain.
    Drain(&'static str, Arc<str>),
    /// A limit of the proxy itself is reached; which one.
    Overload(&'static str),
}

impl Cause {
    /// The kind without names: a value from a short, fixed list, for labels of metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Policy(_) => "policy",
            Self::Route(_) => "route",
            Self::Upgrade(_) => "upgrade",
            Self::NoRoute(_) => "no_route",
            Self::NoFilterChain(_) => "no_filter_chain",
            Self::NoCluster(_) => "no_cluster",
            Self::NoEndpoint(_) => "no_endpoint",
            Self::Breaker(..) => "breaker",
            Self::ConnectionLimit(_) => "connection_limit",
            Self::Drop(_) => "drop",
            Self::Endpoint(..) => "endpoint",
            Self::Fault(_) => "fault",
            Self::RateLimit(_) => "rate_limit",
            Self::Cors => "cors",
            Self::ExternalAuthorization(..) => "external_authorization",
            Self::Token(_) => "token",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::Timeout(..) => "timeout",
            Self::Protocol(_) => "protocol",
            Self::Tls(_) => "tls",
            Self::Drain(..) => "drain",
            Self::Overload(_) => "overload",
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy(Some(policy)) => write!(f, "policy {policy}"),
            Self::Policy(None) => f.write_str("no ALLOW policy matched"),
            Self::Route(route) => write!(f, "route {route}"),
            Self::Upgrade(route) => write!(f, "route {route} does not allow the upgrade"),
            Self::NoRoute(table) => write!(f, "no route in {table}"),
            Self::NoFilterChain(listener) => write!(f, "no filter chain in {listener}"),
            Self::NoCluster(cluster) => write!(f, "no cluster {cluster}"),
            Self::NoEndpoint(cluster) => write!(f, "no usable endpoint in {cluster}"),
            Self::Breaker(cluster, which) => write!(f, "circuit breaker {which} of {cluster}"),
            Self::ConnectionLimit(prefix) => write!(f, "connection limit {prefix}"),
            Self::Drop(cluster) => {
                write!(f, "load of {cluster} is dropped by its endpoints' policy")
            }
            Self::Endpoint(cluster, address, how) => {
                write!(f, "endpoint {address} of {cluster}: {how}")
            }
            Self::Fault(filter) => write!(f, "fault injected by {filter}"),
            Self::RateLimit(prefix) => write!(f, "rate limit {prefix}"),
            Self::Cors => f.write_str("CORS preflight"),
            Self::ExternalAuthorization(cluster, how) => {
                write!(f, "external authorization by {cluster}: {how}")
            }
            Self::Token(how) => f.write_str(how),
            Self::BodyTooLarge(filter) => write!(f, "body too large for {filter}"),
            Self::Timeout(which, whose) => write!(f, "{which} of {whose}"),
            Self::Protocol(how) => write!(f, "protocol error: {how}"),
            Self::Tls(why) => write!(f, "TLS: {why}"),
            Self::Drain(why, chain) => write!(f, "{why}: filter chain {chain}"),
            Self::Overload(why) => write!(f, "overload: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_names_what_it_is_and_its_kind_does_not() {
        let name = || Arc::from("reviews");
        for (cause, text, kind) in [
            (
                Cause::Policy(Some("ns[a]-policy[p]-rule[0]".into())),
                "policy ns[a]-policy[p]-rule[0]",
                "policy",
            ),
            (
                Cause::Breaker(name(), "max_requests"),
                "circuit breaker max_requests of reviews",
                "breaker",
            ),
            (
                Cause::Endpoint(name(), ([10, 0, 0, 1], 80).into(), "refused".into()),
                "endpoint 10.0.0.1:80 of reviews: refused",
                "endpoint",
            ),
            (
                Cause::Timeout("route timeout", name()),
                "route timeout of reviews",
                "timeout",
            ),
            (
                Cause::Drain("draining", name()),
                "draining: filter chain reviews",
                "drain",
            ),
        ] {
            assert_eq!((cause.to_string().as_str(), cause.kind()), (text, kind));
        }
    }
}
