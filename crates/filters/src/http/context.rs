//! What a filter sees and may change in each phase.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::own::OwnStates;
use crate::alpn::AlpnOverrides;
use crate::conn::ConnInfo;
use crate::counter::{Counter, Tally};
use crate::filter_state::FilterState;
use crate::flag::{ResponseFlag, ResponseFlags};
use crate::head::{RequestHead, ResponseHead};
use crate::metadata::Metadata;
use crate::peer_metadata::{LocalPeer, PeerCache, PeerInfo};

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

/// What the filters of a stream leave for each other, the router and the logs, and each for itself.
/// Empty, it owns no memory.
#[derive(Debug, Default)]
pub struct StreamState {
    /// Response flags so far.
    pub flags: ResponseFlags,
    /// Dynamic metadata.
    pub metadata: Metadata,
    pub filter_state: FilterState,
    /// The ALPN to offer upstream, by upstream protocol.
    pub alpn: Option<Arc<AlpnOverrides>>,
    /// Who sent the request, if it said so.
    pub downstream_peer: Option<Arc<PeerInfo>>,
    /// Who answers it, if it said so.
    pub upstream_peer: Option<Arc<PeerInfo>>,
    /// What each filter keeps for itself.
    pub own: OwnStates,
}

impl StreamState {
    /// Filter state by key, or one field of Istio's `downstream_peer` and `upstream_peer`.
    pub fn named(&self, key: &str, field: Option<&str>) -> Option<&str> {
        match (key, field) {
            ("downstream_peer", Some(field)) => self.downstream_peer.as_deref()?.field(field),
            ("upstream_peer", Some(field)) => self.upstream_peer.as_deref()?.field(field),
            (key, None) => self.filter_state.get(key),
            _ => None,
        }
    }
}

/// What the proxy has noted of a stream beside its heads, for format strings.
#[derive(Debug, Clone, Copy)]
pub struct StreamFacts<'a> {
    /// When it began.
    pub start: SystemTime,
    /// The number of its connection.
    pub connection: u64,
    /// The route's name.
    pub route: Option<&'a str>,
    /// The endpoint.
    pub upstream: Option<SocketAddr>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: &'a str,
}

/// What a filter sees of a request before it is forwarded.
#[derive(Debug)]
pub struct RequestContext<'a> {
    /// The filter's place in its chain.
    pub slot: u16,
    pub head: &'a mut RequestHead,
    /// Whether the request has a body, held or still to come.
    pub has_body: bool,
    /// The connection it came on.
    pub conn: &'a ConnInfo,
    /// Its client: from `x-forwarded-for` where that is trusted.
    pub remote: SocketAddr,
    /// What the filters of the stream share.
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
    /// Counters under the connection manager's statistics prefix.
    pub tally: &'a Tally,
    /// Set by a filter whose changes ask for another route: the proxy selects it anew before the
    /// next filter.
    pub reroute: &'a mut bool,
    /// For format strings.
    pub stream: StreamFacts<'a>,
}

impl RequestContext<'_> {
    /// Adds a response flag.
    pub fn flag(&mut self, flag: ResponseFlag) {
        self.state.flags.insert(flag);
    }

    /// Adds one to a counter.
    pub fn count(&self, counter: &Counter) {
        self.tally.count(counter);
    }

    /// Keeps a value for this filter's next phase.
    pub fn keep<T: 'static>(&mut self, value: T) {
        self.state.own.keep(self.slot, value);
    }

    /// Takes what this filter has kept.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        self.state.own.take(self.slot)
    }
}

/// What a filter sees of a response before it is sent.
#[derive(Debug)]
pub struct ResponseContext<'a> {
    /// The filter's place in its chain.
    pub slot: u16,
    pub head: &'a mut ResponseHead,
    /// The forwarded request.
    pub request: &'a RequestHead,
    /// The connection it came on.
    pub conn: &'a ConnInfo,
    /// The client.
    pub remote: SocketAddr,
    /// What the filters of the stream share.
    pub state: &'a mut StreamState,
    /// Who we are.
    pub local: &'a LocalPeer,
    /// Peers known already.
    pub peers: &'a mut PeerCache,
    /// Counters under the connection manager's statistics prefix.
    pub tally: &'a Tally,
    /// The route's static metadata, if there is a route.
    pub route_metadata: Option<&'a Metadata>,
    /// The cluster, if the request was going to one.
    pub cluster: Option<&'a str>,
    /// For format strings.
    pub stream: StreamFacts<'a>,
}

impl ResponseContext<'_> {
    /// Keeps a value for this filter's next phase.
    pub fn keep<T: 'static>(&mut self, value: T) {
        self.state.own.keep(self.slot, value);
    }

    /// Takes what this filter has kept.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        self.state.own.take(self.slot)
    }
}

/// What a filter sees of a body that streams by. Its head is on its way already.
#[derive(Debug)]
pub struct DataContext<'a> {
    /// The filter's place in its chain.
    pub slot: u16,
    /// The piece, to be changed in place; together with those that the filter has held before.
    pub data: &'a mut Vec<u8>,
    /// Nothing follows but, perhaps, trailers.
    pub ended: bool,
    /// Time since some fixed point.
    pub now: Duration,
    /// Counters under the connection manager's statistics prefix.
    pub tally: &'a Tally,
    /// What each filter keeps for itself.
    pub own: &'a mut OwnStates,
}

impl DataContext<'_> {
    /// Keeps a value for this filter's next phase.
    pub fn keep<T: 'static>(&mut self, value: T) {
        self.own.keep(self.slot, value);
    }

    /// Takes what this filter has kept.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        self.own.take(self.slot)
    }
}

/// What a filter sees of an exchange that is over, before it is logged.
#[derive(Debug)]
pub struct DoneContext<'a> {
    /// The filter's place in its chain.
    pub slot: u16,
    pub request: &'a RequestHead,
    /// The response that the client got; its status is 0 if there was none.
    pub response: &'a ResponseHead,
    /// What the filters of the stream share; the log sees what is changed here.
    pub state: &'a mut StreamState,
    /// Counters under the connection manager's statistics prefix.
    pub tally: &'a Tally,
}

impl DoneContext<'_> {
    /// Takes what this filter has kept.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        self.state.own.take(self.slot)
    }
}
