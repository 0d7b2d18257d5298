//! One attempt: the request up one connection or stream, the response down, both at once.
//!
//! Its steps, in order: [`obtain`] a connection, [`send`] the request on it, [`await_head`] of the
//! response, [`judge`] that, [`deliver`] the response or become a [`tunnel`]. Until its response is
//! chosen an attempt borrows nothing of the exchange mutably, so that two attempts at the same
//! request can be under way at a time; `deliver` takes the exchange.

pub mod await_head;
pub mod deliver;
pub mod failure;
pub mod judge;
pub mod obtain;
pub mod send;
pub mod tunnel;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use meltemi_filters::LocalReply;
use meltemi_filters::head::{RequestHead, ResponseHead};
use meltemi_filters::http::Router;

use self::failure::Failure;
use self::send::Upload;
use super::plan::Plan;
use super::timeout::Clocks;
use crate::body::BodyIn;
use crate::body::tee::Tee;
use crate::exchange::state::Ended;
use crate::record::StreamInfo;
use crate::respond::Responder;
use crate::stalls::Stalls;
use crate::upstream::cluster::{WorkerCluster, WorkerHost};
use crate::upstream::response::ResponseSource;

/// The client's side of a request: where its body comes from, and where the response goes.
pub struct Client<'c, 'b, 'r> {
    /// The request's body.
    pub body: &'c mut BodyIn<'b>,
    /// The way back.
    pub responder: &'c mut Responder<'r>,
}

/// What all attempts at one request share.
#[derive(Debug)]
pub struct Forwarding<'a> {
    /// The decisions for the request.
    pub plan: &'a Plan<'a>,
    /// The cluster that it goes to.
    pub cluster: &'a WorkerCluster,
    /// Its time limits.
    pub clocks: &'a Clocks,
    /// The router filter's settings.
    pub router: &'a Router,
    /// The beginning of its body, kept for another attempt or a mirror.
    pub tee: Option<&'a RefCell<Tee>>,
    /// The worker's bodies whose reader takes nothing.
    pub stalls: &'a Stalls,
    /// What consistent hashing goes by.
    pub hash: Option<u64>,
    /// The request came with a body, whether or not that has been read since.
    pub has_body: bool,
}

impl Forwarding<'_> {
    /// Whether the whole request could be sent once more.
    pub fn is_replayable(&self) -> bool {
        self.tee
            .map_or(!self.has_body, |tee| tee.borrow().lost().is_none())
    }

    /// Whether the client asked for high priority.
    pub fn high_priority(&self) -> bool {
        self.plan.forward.action.high_priority
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub enum AttemptEnd {
    /// The exchange is over: a response went out, or the client left.
    Ended(Ended),
    /// The response was dropped; another attempt has been granted.
    Again,
    /// There was no response.
    Failed(Failure),
    /// A filter answers, in place of the request's body or of the response.
    Replied(Box<LocalReply>),
}

/// Why an attempt has no response.
#[derive(Debug)]
pub enum Unanswered {
    /// The client left: nobody waits for a response.
    Gone,
    /// The upstream, a limit or the request itself failed.
    Failed(Failure),
    /// A filter refuses the request's body, with this answer.
    Refused(Box<LocalReply>),
}

/// A request that is on its way up one connection.
pub struct Attempt<'a, 'c> {
    forwarding: &'a Forwarding<'a>,
    head: &'a RequestHead,
    host: &'a Rc<WorkerHost>,
    progress: &'a Progress,
    upload: Upload<'a>,
    source: ResponseSource<'c>,
    /// The response's head, once it has arrived.
    pub response: ResponseHead,
    /// Whether the connection carried another request before.
    reused: bool,
    started: Instant,
}

/// The progress of an attempt. The upload and the task that waits for it both write here.
#[derive(Default)]
pub struct Progress {
    received: Cell<u64>,
    sent: Cell<u64>,
    uploaded_at: Cell<Option<Instant>>,
    write_error: Cell<Option<String>>,
}

impl Progress {
    /// Body bytes of the client are counted on from those that earlier attempts have read.
    pub fn after(info: &StreamInfo) -> Self {
        Self {
            received: Cell::new(info.received.get()),
            ..Self::default()
        }
    }

    /// Whether the request has been sent to its end.
    fn is_uploaded(&self) -> bool {
        self.uploaded_at.get().is_some()
    }

    /// Notes what has happened until now in the record.
    pub fn note(&self, info: &StreamInfo) {
        info.received.set(self.received.get());
        if info.request_end.get().is_none() {
            info.request_end.set(self.uploaded_at.get());
        }
    }
}

impl<'a, 'c> Attempt<'a, 'c> {
    /// Starts when its first step is polled.
    pub fn new(
        forwarding: &'a Forwarding<'a>,
        (head, host): (&'a RequestHead, &'a Rc<WorkerHost>),
        (source, upload): (ResponseSource<'c>, Upload<'a>),
        progress: &'a Progress,
        reused: bool,
    ) -> Self {
        Self {
            forwarding,
            head,
            host,
            progress,
            upload,
            source,
            response: ResponseHead::default(),
            reused,
            started: Instant::now(),
        }
    }

    /// Stops reading the client's body, and returns where the upstream's bytes come from.
    pub fn into_source(self) -> ResponseSource<'c> {
        self.source
    }
}
