//! One worker's open connections to one endpoint, by transport.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::live::Permit;
use crate::http1::client::H1Connection;
use crate::http2::client::H2Connection;

/// What makes connections to one endpoint interchangeable: addresses of shared terms, which their owners keep alive for
/// as long as the pool lives.
pub type LaneKey = (usize, usize);

/// What is known of a connection beside its bytes.
#[derive(Debug, Clone, Default)]
pub struct UpstreamFacts {
    /// Who the peer proved to be.
    pub principal: Option<Arc<str>>,
    /// Our end.
    pub local: Option<SocketAddr>,
    /// From then on it takes no new request; Envoy: max_connection_duration.
    pub expires: Option<Instant>,
}

impl UpstreamFacts {
    /// Reads the clock only where there is a limit.
    fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| Instant::now() >= expires)
    }
}

/// A pooled HTTP/1.1 connection with its place in the breaker.
#[derive(Debug)]
pub struct PooledH1 {
    /// The connection.
    pub connection: H1Connection,
    /// What is known of it.
    pub facts: UpstreamFacts,
    /// Its place.
    pub permit: Permit,
    /// Its place in this pool.
    pub open: OpenHere,
}

/// Counts a connection of this pool, in use or idle.
#[derive(Debug)]
pub struct OpenHere(Rc<HostPool>);

impl Drop for OpenHere {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.freed.notify_one();
    }
}

/// A pooled HTTP/2 connection.
#[derive(Debug)]
pub struct PooledH2 {
    /// The connection; it holds its place in the breaker itself.
    pub connection: Rc<H2Connection>,
    /// What is known of it.
    pub facts: UpstreamFacts,
}

impl PooledH2 {
    /// Whether it takes new streams. One that has lived its time is taken out of service; its streams go on.
    fn is_open(&self) -> bool {
        if self.facts.is_expired() {
            self.connection.retire();
        }
        self.connection.is_open()
    }
}

#[derive(Debug)]
struct Lane {
    key: LaneKey,
    h1: Vec<PooledH1>,
    h2: Vec<Rc<PooledH2>>,
    /// An HTTP/2 connection is being made: others wait for it instead of making their own.
    connecting: Option<Rc<tokio::sync::Notify>>,
}

/// The connections to one endpoint.
#[derive(Debug, Default)]
pub struct HostPool {
    lanes: RefCell<SmallVec<[Lane; 1]>>,
    open: Cell<u32>,
    freed: tokio::sync::Notify,
}

/// Either an open HTTP/2 connection, or what to do about having none.
pub enum H2Lookup {
    /// Use this one.
    Open(Rc<PooledH2>),
    /// Somebody connects already: wait, then look again.
    Wait(Rc<tokio::sync::Notify>),
    /// Connect, and end the guard when done.
    Connect(Connecting),
}

/// Wakes those who wait for a connection, however connecting ends.
pub struct Connecting {
    notify: Rc<tokio::sync::Notify>,
    pool: Rc<HostPool>,
    key: LaneKey,
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.pool.with(self.key, |lane| lane.connecting = None);
        self.notify.notify_waiters();
    }
}

impl HostPool {
    fn with<T>(&self, key: LaneKey, act: impl FnOnce(&mut Lane) -> T) -> T {
        let mut lanes = self.lanes.borrow_mut();
        let at = match lanes.iter().position(|lane| lane.key == key) {
            Some(at) => at,
            None => {
                lanes.push(Lane { key, h1: Vec::new(), h2: Vec::new(), connecting: None });
                lanes.len() - 1
            }
        };
        act(&mut lanes[at])
    }

    /// The connection that was used last and still stands.
    pub fn take_h1(&self, key: LaneKey) -> Option<PooledH1> {
        // Closed connections are dropped after the borrow ends: dropping wakes others.
        let mut stale = Vec::new();
        self.with(key, |lane| {
            while let Some(pooled) = lane.h1.pop() {
                if !pooled.facts.is_expired() && pooled.connection.is_quiet() {
                    return Ok(pooled);
                }
                stale.push(pooled);
            }
            Err(())
        })
        .ok()
    }

    /// Gives a connection back after a whole exchange.
    pub fn give_h1(&self, key: LaneKey, mut pooled: PooledH1, now: Instant) {
        if pooled.facts.is_expired() {
            // Dropped here; whoever waits for a place is told.
            return;
        }
        pooled.connection.idle_since = now;
        // Put first, so that whoever is woken finds it.
        self.with(key, |lane| lane.h1.push(pooled));
        self.freed.notify_one();
    }

    /// Counts a connection that is about to be made.
    pub fn open_one(self: &Rc<Self>) -> OpenHere {
        self.open.set(self.open.get() + 1);
        OpenHere(self.clone())
    }

    /// Connections in use or idle, of every protocol.
    pub fn opened(&self) -> u32 {
        self.open.get()
    }

    /// Resolves when a connection was given back or closed.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// An HTTP/2 connection with room for a stream.
    pub fn find_h2(self: &Rc<Self>, key: LaneKey) -> H2Lookup {
        self.with(key, |lane| {
            lane.h2.retain(|pooled| pooled.is_open());
            let free =
                lane.h2.iter().find(|pooled| (pooled.connection.active() as usize) < pooled.connection.allowed());
            if let Some(pooled) = free {
                return H2Lookup::Open(pooled.clone());
            }
            if let Some(notify) = &lane.connecting {
                return H2Lookup::Wait(notify.clone());
            }
            let notify = Rc::new(tokio::sync::Notify::new());
            lane.connecting = Some(notify.clone());
            H2Lookup::Connect(Connecting { notify, pool: self.clone(), key })
        })
    }

    /// An HTTP/2 connection with room for a stream, if one stands.
    pub fn open_h2(&self, key: LaneKey) -> Option<Rc<PooledH2>> {
        self.with(key, |lane| {
            let free = |pooled: &&Rc<PooledH2>| {
                pooled.is_open() && (pooled.connection.active() as usize) < pooled.connection.allowed()
            };
            lane.h2.iter().find(free).cloned()
        })
    }

    /// Adds a new HTTP/2 connection.
    pub fn give_h2(&self, key: LaneKey, pooled: Rc<PooledH2>) {
        self.with(key, |lane| lane.h2.push(pooled));
    }

    /// Drops connections that ended or waited too long. Says whether any is left.
    pub fn sweep(&self, now: Instant, idle: Option<Duration>) -> bool {
        let mut lanes = self.lanes.borrow_mut();
        let too_long = |since: Instant| idle.is_some_and(|idle| now.saturating_duration_since(since) >= idle);
        for lane in lanes.iter_mut() {
            lane.h1.retain(|pooled| {
                !too_long(pooled.connection.idle_since) && !pooled.facts.is_expired() && pooled.connection.is_quiet()
            });
            lane.h2.retain(|pooled| pooled.is_open());
        }
        lanes.retain(|lane| !lane.h1.is_empty() || !lane.h2.is_empty() || lane.connecting.is_some());
        !lanes.is_empty()
    }

    /// Open connections, idle HTTP/1.1 and all HTTP/2.
    pub fn len(&self) -> usize {
        self.lanes.borrow().iter().map(|lane| lane.h1.len() + lane.h2.len()).sum()
    }

    /// Whether nothing is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
