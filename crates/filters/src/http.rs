//! HTTP filters as a closed enum, stepped by `match`.
//!
//! A filter is configuration; what lives in a stream is [`StreamState`]. Phases:
//! [`HttpFilter::on_request`], then [`HttpFilter::resume`] with the result of a
//! [`Call`](crate::Call) if the step asked for one, then [`HttpFilter::on_response`] in reverse
//! order.

mod facts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use self::facts::{HeaderFacts, StreamFacts};
use crate::alpn::AlpnOverrides;
use crate::conn::ConnInfo;
use crate::cors::{CorsPolicy, CorsRequest};
use crate::fault::{Fault, FaultGuard};
use crate::filter_state::{FilterState, SetFilterState};
use crate::flag::{ResponseFlag, ResponseFlags};
use crate::head::{RequestHead, ResponseHead};
use crate::header_mutation::HeaderMutation;
use crate::metadata::Metadata;
use crate::peer_metadata::{PeerCache, PeerInfo, PeerMetadata};
use crate::rate_limit::LocalRateLimit;
use crate::rbac::{self, Rbac};
use crate::reply::Step;

/// A filter in a connection manager.
#[derive(Debug)]
pub struct HttpFilterSlot {
    /// Its name, by which routes address their settings.
    pub name: Arc<str>,
    /// What it is.
    pub filter: HttpFilter,
    /// Off unless a route turns it on.
    pub disabled: bool,
}

/// Every HTTP filter there is.
#[derive(Debug)]
pub enum HttpFilter {
    /// Authorization.
    Rbac(Box<Rbac>),
    /// Delays and aborts.
    Fault(Box<Fault>),
    /// Cross-origin requests; the policy is the route's.
    Cors,
    /// Istio: the ALPN that a request offers upstream.
    Alpn(Arc<AlpnOverrides>),
    /// Istio: who the peer is.
    PeerMetadata(PeerMetadata),
    /// Changes to headers.
    HeaderMutation(Box<HeaderMutation>),
    /// Values for later filters and for the upstream connection.
    SetFilterState(Box<SetFilterState>),
    /// A token bucket.
    LocalRateLimit(Box<LocalRateLimit>),
    /// Istio's standard metrics; the proxy counts.
    Stats(Stats),
    /// gRPC message counts; the proxy counts.
    GrpcStats,
    /// Chooses an endpoint and forwards; always the last.
    Router(Router),
}

/// Istio's `istio.stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// A request to a destination that is no known service is counted under the host that it asked
    /// for. Default true.
    pub host_header_fallback: bool,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            host_header_fallback: true,
        }
    }
}

/// `envoy.filters.http.router`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Router {
    /// Set no `x-envoy-*` headers.
    pub suppress_envoy_headers: bool,
    /// Obey `x-envoy-expected-rq-timeout-ms`.
    pub respect_expected_timeout: bool,
}

/// Settings of one route, virtual host or weighted cluster for filters.
#[derive(Debug, Default)]
pub struct Overrides(Vec<(Box<str>, Override)>);

/// A filter's settings where they differ.
#[derive(Debug)]
pub enum Override {
    /// The filter is off.
    Disabled,
    /// The filter is on, with its own settings.
    Enabled,
    /// Authorization.
    Rbac(Box<Rbac>),
    /// Delays and aborts.
    Fault(Box<Fault>),
    /// Cross-origin requests.
    Cors(Box<CorsPolicy>),
    /// Changes to headers.
    HeaderMutation(Box<HeaderMutation>),
    /// Values for later filters.
    SetFilterState(Box<SetFilterState>),
    /// A token bucket.
    LocalRateLimit(Box<LocalRateLimit>),
}

impl Overrides {
    /// Settings by filter name.
    pub fn new(settings: Vec<(Box<str>, Override)>) -> Self {
        Self(settings)
    }

    /// With one more.
    pub fn with(mut self, filter: Box<str>, setting: Override) -> Self {
        self.0.push((filter, setting));
        self
    }

    /// The settings for a filter. Nearly always there is nothing to search.
    pub fn find(&self, filter: &str) -> Option<&Override> {
        self.0
            .iter()
            .find(|(name, _)| &**name == filter)
            .map(|(_, setting)| setting)
    }

    /// Whether there are no settings.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Random numbers for the filters of one stream, from one seed.
#[derive(Debug, Clone, Copy)]
pub struct Entropy(u64);

impl Entropy {
    /// Starts at a random number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        meltemi_lb::random::next(&mut self.0)
    }
}

/// What filters leave in a stream for each other, the router and the logs. Empty, it owns no
/// memory.
#[derive(Debug, Default)]
pub struct StreamState {
    /// Response flags so far.
    pub flags: ResponseFlags,
    /// Dynamic metadata.
    pub metadata: Metadata,
    /// Filter state.
    pub filter_state: FilterState,
    /// The ALPN to offer upstream, by upstream protocol.
    pub alpn: Option<Arc<AlpnOverrides>>,
    /// Who sent the request, if it said so.
    pub downstream_peer: Option<Arc<PeerInfo>>,
    /// Who answers it, if it said so.
    pub upstream_peer: Option<Arc<PeerInfo>>,
    /// The downstream sent peer metadata headers, so it gets ours in return.
    pub downstream_exchanges: bool,
    /// The request is cross-origin.
    pub cors: Option<CorsRequest>,
    /// A fault is active.
    pub fault: Option<FaultGuard>,
    /// A local rate limit adds headers to the response.
    pub rate_limited: bool,
}

impl StreamState {
    /// Filter state by key, and one field of what has fields: Istio's `downstream_peer` and
    /// `upstream_peer`.
    pub fn named(&self, key: &str, field: Option<&str>) -> Option<&str> {
        match (key, field) {
            ("downstream_peer", Some(field)) => self.downstream_peer.as_deref()?.field(field),
            ("upstream_peer", Some(field)) => self.upstream_peer.as_deref()?.field(field),
            (key, None) => self.filter_state.get(key),
            _ => None,
        }
    }

    /// Back to empty.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What a filter sees of a request.
#[derive(Debug)]
pub struct RequestContext<'a> {
    /// The request.
    pub head: &'a mut RequestHead,
    /// The connection it came on.
    pub conn: &'a ConnInfo,
    /// Its client: from `x-forwarded-for` where that is trusted.
    pub remote: SocketAddr,
    /// What filters share.
    pub state: &'a mut StreamState,
    /// Random numbers.
    pub entropy: &'a mut Entropy,
    /// Time since some fixed point.
    pub now: Duration,
    /// The route's static metadata, if there is a route.
    pub route_metadata: Option<&'a Metadata>,
    /// The cluster, if the route names one.
    pub cluster: Option<&'a str>,
    /// The upstream is in the mesh, so it may be told who we are.
    pub upstream_in_mesh: bool,
    /// Who we are.
    pub local: &'a LocalPeer,
    /// Peers known already.
    pub peers: &'a mut PeerCache,
    /// For format strings.
    pub stream: StreamFacts<'a>,
}

/// What a filter sees of a response.
#[derive(Debug)]
pub struct ResponseContext<'a> {
    /// The response.
    pub head: &'a mut ResponseHead,
    /// The request, as it was forwarded.
    pub request: &'a RequestHead,
    /// The connection it came on.
    pub conn: &'a ConnInfo,
    /// The client.
    pub remote: SocketAddr,
    /// What filters share.
    pub state: &'a mut StreamState,
    /// The proxy made the response itself.
    pub is_local: bool,
    /// Who we are.
    pub local: &'a LocalPeer,
    /// Peers known already.
    pub peers: &'a mut PeerCache,
    /// The route's static metadata, if there is a route.
    pub route_metadata: Option<&'a Metadata>,
    /// The cluster, if the request was going to one.
    pub cluster: Option<&'a str>,
    /// For format strings.
    pub stream: StreamFacts<'a>,
}

/// What this proxy tells its peers of itself.
#[derive(Debug, Clone, Default)]
pub struct LocalPeer {
    /// The node's id.
    pub id: Box<str>,
    /// Who we are.
    pub info: PeerInfo,
    /// [`PeerInfo::encode`]d once.
    pub encoded: Box<str>,
}

impl HttpFilterSlot {
    /// What runs for a request, given the route's settings: `None` if the filter is off.
    pub fn settings<'a>(&self, setting: Option<&'a Override>) -> Option<Option<&'a Override>> {
        match setting {
            Some(Override::Disabled) => None,
            None if self.disabled => None,
            setting => Some(setting),
        }
    }
}

impl HttpFilter {
    /// The request's head has come. `setting` is the route's for this filter.
    pub fn on_request(&self, setting: Option<&Override>, cx: &mut RequestContext<'_>) -> Step {
        match (self, setting) {
            (Self::Rbac(_), Some(Override::Rbac(own))) => run_rbac(own, cx),
            (Self::Rbac(rbac), _) => run_rbac(rbac, cx),
            (Self::Fault(_), Some(Override::Fault(own))) => own.on_request(cx),
            (Self::Fault(fault), _) => fault.on_request(cx),
            (Self::Cors, Some(Override::Cors(policy))) => policy.on_request(cx),
            (Self::Alpn(overrides), _) => {
                cx.state.alpn = Some(overrides.clone());
                Step::Continue
            }
            (Self::PeerMetadata(peer), _) => {
                peer.on_request(cx);
                Step::Continue
            }
            (Self::HeaderMutation(mutation), setting) => {
                mutation.on_request(own_mutation(setting), cx);
                Step::Continue
            }
            (Self::SetFilterState(set), setting) => {
                set.on_request(cx);
                if let Some(Override::SetFilterState(own)) = setting {
                    own.on_request(cx);
                }
                Step::Continue
            }
            (Self::LocalRateLimit(_), Some(Override::LocalRateLimit(own))) => own.on_request(cx),
            (Self::LocalRateLimit(limit), _) => limit.on_request(cx),
            (Self::Cors | Self::Stats(_) | Self::GrpcStats | Self::Router(_), _) => Step::Continue,
        }
    }

    /// The call that [`HttpFilter::on_request`] asked for is done: the time has passed.
    pub fn resume(&self, setting: Option<&Override>, cx: &mut RequestContext<'_>) -> Step {
        match (self, setting) {
            (Self::Fault(_), Some(Override::Fault(own))) => own.after_delay(cx),
            (Self::Fault(fault), _) => fault.after_delay(cx),
            _ => Step::Continue,
        }
    }

    /// The response's head has come, from upstream or from the proxy itself.
    pub fn on_response(&self, setting: Option<&Override>, cx: &mut ResponseContext<'_>) {
        match (self, setting) {
            (Self::Cors, Some(Override::Cors(policy))) => policy.on_response(cx),
            (Self::PeerMetadata(peer), _) => peer.on_response(cx),
            (Self::HeaderMutation(mutation), setting) => {
                mutation.on_response(own_mutation(setting), cx)
            }
            (Self::LocalRateLimit(_), Some(Override::LocalRateLimit(own))) => own.on_response(cx),
            (Self::LocalRateLimit(limit), _) => limit.on_response(cx),
            _ => {}
        }
    }

    /// Envoy's name for it, whatever the configuration calls it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Rbac(_) => "envoy.filters.http.rbac",
            Self::Fault(_) => "envoy.filters.http.fault",
            Self::Cors => "envoy.filters.http.cors",
            Self::Alpn(_) => "istio.alpn",
            Self::PeerMetadata(_) => "envoy.filters.http.peer_metadata",
            Self::HeaderMutation(_) => "envoy.filters.http.header_mutation",
            Self::SetFilterState(_) => "envoy.filters.http.set_filter_state",
            Self::LocalRateLimit(_) => "envoy.filters.http.local_ratelimit",
            Self::Stats(_) => "istio.stats",
            Self::GrpcStats => "envoy.filters.http.grpc_stats",
            Self::Router(_) => "envoy.filters.http.router",
        }
    }
}

fn own_mutation(setting: Option<&Override>) -> Option<&HeaderMutation> {
    match setting {
        Some(Override::HeaderMutation(own)) => Some(own),
        _ => None,
    }
}

fn run_rbac(rbac: &Rbac, cx: &mut RequestContext<'_>) -> Step {
    let facts = rbac::Facts {
        conn: cx.conn,
        remote: cx.remote,
        head: Some(cx.head),
        metadata: &cx.state.metadata,
        route_metadata: cx.route_metadata,
    };

    let mut told = Vec::new();
    let step = rbac.on_request(&facts, &mut told);
    for (filter, key, value) in told {
        cx.state.metadata.set(filter, &key, value);
    }

    step
}

impl RequestContext<'_> {
    /// Adds a response flag.
    pub fn flag(&mut self, flag: ResponseFlag) {
        self.state.flags.insert(flag);
    }
}

#[cfg(test)]
mod tests;
