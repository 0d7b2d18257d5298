//! One worker's open connections to one endpoint, in lanes: what is in one lane can stand in for
//! each other.
//!
//! A lane is what Envoy calls a connection pool: its connections are counted and waited for apart
//! from other lanes'.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meltemi_proxy_config::cluster::UpstreamProtocol;
use smallvec::SmallVec;

use super::live::Permit;
use super::places::{OpenHere, Places};
use crate::http1::client::H1Connection;
use crate::http2::client::H2Connection;

/// What makes connections to one endpoint interchangeable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneKey {
    /// The address of shared TLS terms, which their owner keeps alive for as long as the pool
    /// lives; 0: plaintext.
    pub terms: usize,
    /// A hash of names that replace the terms' own, and of the downstream if connections belong to
    /// one.
    pub words: usize,
    /// What is spoken; never "as downstream", which is decided for each request.
    pub protocol: UpstreamProtocol,
}

/// Facts about a connection, for logs and policies.
#[derive(Debug, Clone, Default)]
pub struct UpstreamFacts {
    /// Who the peer proved to be.
    pub principal: Option<Arc<str>>,
    /// Our end.
    pub local: Option<SocketAddr>,
    /// From then on it takes no new request; Envoy: max_connection_duration.
    pub expires: Option<Instant>,
    /// So many requests are all it takes; 0: any number.
    pub max_requests: u32,
}

impl UpstreamFacts {
    /// Whether it has carried all it may.
    fn is_spent(&self, requests: u32) -> bool {
        self.max_requests > 0 && requests >= self.max_requests
    }

    /// Reads the clock only where there is a limit.
    fn is_expired(&self) -> bool {
        self.expires
            .is_some_and(|expires| Instant::now() >= expires)
    }
}

/// A pooled HTTP/1.1 connection with its place in the breaker.
#[derive(Debug)]
pub struct PooledH1 {
    pub connection: H1Connection,
    /// Facts about the connection.
    pub facts: UpstreamFacts,
    /// Its places in the breaker and in its lane, which end with it.
    pub _places: (Permit, OpenHere),
}

/// A pooled HTTP/2 connection; it holds its places in the breaker and in its lane itself.
#[derive(Debug)]
pub struct PooledH2 {
    pub connection: Rc<H2Connection>,
    /// Facts about the connection.
    pub facts: UpstreamFacts,
    /// Streams at a time, whatever the peer allows.
    streams: u32,
    /// Requests that it was found for.
    requests: Cell<u32>,
    /// How many requests it had carried when it was last looked at, and since when it has carried
    /// no other.
    seen: Cell<(u32, Instant)>,
}

impl PooledH2 {
    pub fn new(connection: Rc<H2Connection>, facts: UpstreamFacts, streams: u32) -> Self {
        let seen = Cell::new((0, Instant::now()));
        Self {
            connection,
            facts,
            streams,
            requests: Cell::new(0),
            seen,
        }
    }

    /// Whether it takes new streams. One that has lived its time is taken out of service; its
    /// streams go on.
    fn is_open(&self) -> bool {
        if self.facts.is_expired() {
            self.connection.retire();
        }
        self.connection.is_open()
    }

    fn has_room(&self) -> bool {
        let active = self.connection.active();
        active < self.streams && (active as usize) < self.connection.allowed()
    }

    /// Counts a request that it is about to carry; its last one takes it out of service.
    pub fn count_request(&self) {
        self.requests.set(self.requests.get().wrapping_add(1));
        if self.facts.is_spent(self.requests.get()) {
            self.connection.retire();
        }
    }

    /// Whether it has carried nothing for so long, as far as those saw who asked this before.
    fn is_idle(&self, idle: Duration, now: Instant) -> bool {
        let (requests, since) = self.seen.get();
        if self.connection.active() > 0 || requests != self.requests.get() {
            self.seen.set((self.requests.get(), now));
            return false;
        }
        now.saturating_duration_since(since) >= idle
    }
}

/// A connection to use for one request.
#[derive(Debug)]
pub enum Acquired {
    /// The request's alone until its exchange ends: give it back to the lane if it stays usable.
    /// `true`: it was used before.
    H1(Box<PooledH1>, LaneKey, bool),
    /// Shared with other requests.
    H2(Rc<PooledH2>),
}

#[derive(Debug)]
struct Lane {
    key: LaneKey,
    h1: Vec<PooledH1>,
    h2: Vec<Rc<PooledH2>>,
    places: Rc<Places>,
}

/// The connections to one endpoint.
#[derive(Debug, Default)]
pub struct HostPool {
    lanes: RefCell<SmallVec<[Lane; 1]>>,
}

impl HostPool {
    fn with<T>(&self, key: LaneKey, act: impl FnOnce(&mut Lane) -> Option<T>) -> Option<T> {
        self.lanes
            .borrow_mut()
            .iter_mut()
            .find(|lane| lane.key == key)
            .and_then(act)
    }

    /// The lane's count of connections, and of those who wait for one.
    pub fn places(&self, key: LaneKey) -> Rc<Places> {
        if let Some(places) = self.with(key, |lane| Some(lane.places.clone())) {
            return places;
        }
        let lane = Lane {
            key,
            h1: Vec::new(),
            h2: Vec::new(),
            places: Rc::default(),
        };

        let places = lane.places.clone();
        self.lanes.borrow_mut().push(lane);

        places
    }

    /// The HTTP/1.1 connection that was used last and still stands.
    pub fn take_h1(&self, key: LaneKey) -> Option<PooledH1> {
        // Closed connections are dropped after the borrow ends: dropping wakes others.
        let mut stale = Vec::new();
        self.with(key, |lane| {
            while let Some(pooled) = lane.h1.pop() {
                if !pooled.facts.is_expired() && pooled.connection.is_quiet() {
                    return Some(pooled);
                }
                stale.push(pooled);
            }
            None
        })
    }

    /// Gives a connection back after a whole exchange.
    pub fn give_h1(&self, key: LaneKey, mut pooled: PooledH1, now: Instant) {
        pooled.connection.requests = pooled.connection.requests.wrapping_add(1);
        if pooled.facts.is_spent(pooled.connection.requests) || pooled.facts.is_expired() {
            // The connection is dropped here, which wakes the next request that waits for a place.
            return;
        }
        pooled.connection.idle_since = now;
        self.keep_h1(key, pooled);
    }

    /// Takes an idle connection back.
    pub fn keep_h1(&self, key: LaneKey, pooled: PooledH1) {
        self.with(key, |lane| {
            // The connection goes in first, so that the request that is woken finds it.
            lane.h1.push(pooled);
            lane.places.tell_one();
            Some(())
        });
    }

    /// An HTTP/2 connection with room for a stream, which must be opened before anything else is
    /// awaited.
    pub fn take_h2(&self, key: LaneKey) -> Option<Rc<PooledH2>> {
        self.with(key, |lane| {
            lane.h2.retain(|pooled| pooled.is_open());
            let at = lane.h2.iter().position(|pooled| pooled.has_room())?;
            lane.h2[at].count_request();
            Some(if lane.h2[at].is_open() {
                lane.h2[at].clone()
            } else {
                lane.h2.swap_remove(at)
            })
        })
    }

    /// Adds a new HTTP/2 connection, unless its first request is its last.
    pub fn give_h2(&self, key: LaneKey, pooled: Rc<PooledH2>) {
        self.with(key, |lane| {
            if pooled.is_open() {
                lane.h2.push(pooled);
            }
            lane.places.tell_all();
            Some(())
        });
    }

    /// Drops connections that ended or waited too long. Says whether any lane is left.
    pub fn sweep(&self, now: Instant, idle: Option<Duration>) -> bool {
        let mut lanes = self.lanes.borrow_mut();
        let too_long =
            |since: Instant| idle.is_some_and(|idle| now.saturating_duration_since(since) >= idle);
        for lane in lanes.iter_mut() {
            lane.h1.retain(|pooled| {
                !too_long(pooled.connection.idle_since)
                    && !pooled.facts.is_expired()
                    && pooled.connection.is_quiet()
            });
            lane.h2.retain(|pooled| {
                pooled.is_open() && !idle.is_some_and(|idle| pooled.is_idle(idle, now))
            });
        }

        // A connection in use and whoever waits for one hold the lane's places.
        lanes.retain(|lane| Rc::strong_count(&lane.places) > 1);

        !lanes.is_empty()
    }

    /// Open connections, idle HTTP/1.1 and all HTTP/2.
    pub fn len(&self) -> usize {
        self.lanes
            .borrow()
            .iter()
            .map(|lane| lane.h1.len() + lane.h2.len())
            .sum()
    }
}
