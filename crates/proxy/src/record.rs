//! The record of one request or TCP connection: what the log, the metrics and the cause of its end
//! are made from.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use meltemi_filters::grpc::MessageCount;
use meltemi_filters::head::HttpVersion;
use meltemi_filters::http::StreamState;
use meltemi_filters::peer_metadata::PeerInfo;
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::route::Position;

use crate::counts::ClusterCounts;

/// gRPC messages of one exchange, both ways; over all its attempts, since what is sent again came
/// once.
#[derive(Debug, Default)]
pub struct Messages {
    /// Of the client.
    pub requests: Cell<MessageCount>,
    /// Of the server.
    pub responses: Cell<MessageCount>,
}

/// The record of one request or TCP connection.
#[derive(Debug)]
pub struct StreamInfo {
    /// When it began, for durations.
    pub start: Instant,
    /// When it began, for people.
    pub start_time: SystemTime,
    /// `None` for TCP.
    pub protocol: Option<HttpVersion>,
    /// The client, where it is another than the peer of the connection: from `x-forwarded-for`.
    pub remote: Option<SocketAddr>,
    /// The status that was sent; 0 before.
    pub status: u16,
    /// `grpc-status`, from head or trailers.
    pub grpc_status: Option<u32>,
    /// What filters share: flags, metadata, peers.
    pub state: StreamState,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination: Cow<'static, str>,
    /// What caused a local reply or refusal.
    pub cause: Option<Cause>,
    /// Body bytes from the downstream.
    pub received: Cell<u64>,
    /// Body bytes to the downstream.
    pub sent: Cell<u64>,
    /// The route's name.
    pub route: Option<Arc<str>>,
    /// Where the route is in its table.
    pub position: Option<Position>,
    /// The virtual host's name.
    pub host: Option<Arc<str>>,
    pub cluster: Option<Arc<str>>,
    /// The endpoint.
    pub upstream: Option<SocketAddr>,
    /// What the upstream is spoken to with.
    pub upstream_protocol: Option<HttpVersion>,
    /// Our end of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Who the endpoint proved to be.
    pub upstream_principal: Option<Arc<str>>,
    /// Why a transport failed.
    pub transport_failure: String,
    /// Attempts so far.
    pub attempts: u32,
    /// When the whole request had arrived.
    pub request_end: Cell<Option<Instant>>,
    /// When the response head had arrived.
    pub response_start: Option<Instant>,
    /// One random number for all decisions on it.
    pub random: u64,
    /// What the endpoint's metadata says of its workload.
    pub workload: Option<Arc<PeerInfo>>,
    /// A cookie that consistent hashing wants set.
    pub set_cookie: Option<String>,
    /// `None` unless it is gRPC and its messages are counted.
    pub messages: Option<Rc<Messages>>,
    /// Of the cluster that it was forwarded to.
    pub counts: Option<Rc<ClusterCounts>>,
}

impl StreamInfo {
    /// Begins now.
    pub fn new(random: u64) -> Self {
        Self {
            start: Instant::now(),
            start_time: SystemTime::now(),
            protocol: None,
            remote: None,
            status: 0,
            grpc_status: None,
            state: StreamState::default(),
            details: Cow::Borrowed(""),
            termination: Cow::Borrowed(""),
            cause: None,
            received: Cell::new(0),
            sent: Cell::new(0),
            route: None,
            position: None,
            host: None,
            cluster: None,
            upstream: None,
            upstream_protocol: None,
            upstream_local: None,
            upstream_principal: None,
            transport_failure: String::new(),
            attempts: 0,
            request_end: Cell::new(None),
            response_start: None,
            random,
            workload: None,
            set_cookie: None,
            messages: None,
            counts: None,
        }
    }

    /// Counts the durations from an earlier moment, at which the first byte of the head came.
    pub fn begun_at(&mut self, begun: Instant) {
        let earlier = self.start.saturating_duration_since(begun);
        self.start = begun;
        self.start_time = self
            .start_time
            .checked_sub(earlier)
            .unwrap_or(self.start_time);
    }

    /// Notes what a local reply says.
    pub fn note(&mut self, reply: &LocalReply) {
        if let Some(flag) = reply.flag {
            self.state.flags.insert(flag);
        }
        self.details = reply.details.clone();
        self.cause = Some(reply.cause.clone());
    }

    /// Notes an end without reply.
    pub fn end(
        &mut self,
        flag: impl Into<Option<ResponseFlag>>,
        details: impl Into<Cow<'static, str>>,
        cause: Option<Cause>,
    ) {
        if let Some(flag) = flag.into() {
            self.state.flags.insert(flag);
        }
        self.details = details.into();
        if cause.is_some() {
            self.cause = cause;
        }
    }
}
