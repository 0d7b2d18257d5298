//! The connections of one lane as numbers, and those who wait for one of them.
//!
//! Apart from the connections themselves, because each of them holds its place here: a pool that
//! held itself through its idle connections would never end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::connect::DialError;
use super::live::{ClusterLive, Permit, Resource};

/// Counts of one lane.
#[derive(Debug, Default)]
pub struct Places {
    /// Connections that are being made, in use or idle.
    open: Cell<u32>,
    /// Requests that connections will carry that are being made, beside those of their makers.
    promised: Cell<u64>,
    waiting: Cell<u64>,
    freed: Rc<Notify>,
    /// How often connecting failed, and why the last time.
    failures: Cell<u64>,
    failure: RefCell<Option<Rc<DialError>>>,
}

/// A connection of the lane.
#[derive(Debug)]
pub struct OpenHere(Rc<Places>);

impl Drop for OpenHere {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.tell_one();
    }
}

/// The place of a connection of the lane that is being opened, with the requests that it will carry
/// beside its maker's.
#[derive(Debug)]
pub struct PromisedPlace {
    places: Rc<Places>,
    promised: u64,
}

impl PromisedPlace {
    /// Its maker wants it no more: it has room for one more of the others.
    pub fn abandon(&mut self) {
        self.promised += 1;
        self.places.promised.set(self.places.promised.get() + 1);
    }

    /// Connecting failed: all who wait for a connection of the lane fail with it, as Envoy has it.
    pub fn fail(self, error: Rc<DialError>) {
        self.places.failures.set(self.places.failures.get() + 1);
        self.places.failure.replace(Some(error));
        self.places.tell_all();
    }
}

impl Drop for PromisedPlace {
    fn drop(&mut self) {
        self.places
            .promised
            .set(self.places.promised.get() - self.promised);
    }
}

struct Waiting<'a>(&'a Places);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl Places {
    /// Leave to connect, unless a connection that is being made has room for one more, or the
    /// breaker refuses. A lane without any connection may always have one: nothing else could serve
    /// those who wait.
    pub fn admit(&self, live: &Arc<ClusterLive>, high: bool) -> Option<Permit> {
        if self.waiting.get() < self.promised.get() {
            return None;
        }
        match live.admit(high, Resource::Connections) {
            None if self.open.get() == 0 => Some(live.admit_over(high, Resource::Connections)),
            permit => permit,
        }
    }

    /// Counts a connection that is about to be made and will carry so many requests.
    pub fn connect(self: &Rc<Self>, room: u32) -> (PromisedPlace, OpenHere) {
        let promised = u64::from(room.saturating_sub(1));
        self.promised.set(self.promised.get() + promised);
        self.open.set(self.open.get() + 1);

        (
            PromisedPlace {
                places: self.clone(),
                promised,
            },
            OpenHere(self.clone()),
        )
    }

    /// Resolves when there may be a connection, or room for one; an error if connecting failed
    /// meanwhile.
    pub async fn changed(&self) -> Result<(), Rc<DialError>> {
        let before = self.failures.get();
        self.waiting.set(self.waiting.get() + 1);
        let waiting = Waiting(self);
        self.freed.notified().await;
        drop(waiting);
        match &*self.failure.borrow() {
            Some(error) if self.failures.get() != before => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Tells one of those who wait to look again.
    pub fn tell_one(&self) {
        self.freed.notify_one();
    }

    /// Tells all who wait to look again.
    pub fn tell_all(&self) {
        self.freed.notify_waiters();
    }

    /// What to notify whenever a stream of an HTTP/2 connection ends.
    pub fn freed(&self) -> Rc<Notify> {
        self.freed.clone()
    }
}
