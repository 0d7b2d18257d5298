//! Bodies whose reader takes nothing. What an HTTP/2 peer has sent of such a body waits in this
//! process, up to the window of its stream. The streams of one connection share its peer's
//! patience, so the windows of connections to upstreams are wide and this file bounds the sum: when
//! many streams stall at a time, those that have stalled longest are given up.
//!
//! Envoy's counterpart is the overload action `reset_high_memory_stream`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use tokio::sync::Notify;

use crate::http1::body::BodyError;

/// Streams of one worker that may stall for as long as they like. With the default window of a
/// stream they hold 64 MiB.
const FREE: usize = 256;
/// A stream beyond [`FREE`] may stall for this long. A reader that is slow but alive takes a piece,
/// 16 KiB at most, within it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The stalled bodies of one worker.
#[derive(Debug, Default)]
pub struct Stalls {
    /// By number, so that the first is the one that has stalled longest.
    stalled: RefCell<BTreeMap<u64, Stalled>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Stalled {
    since: Instant,
    give_up: Rc<Notify>,
}

/// A body's place among the stalled, until its reader goes on.
struct Place<'a> {
    stalls: &'a Stalls,
    number: u64,
    give_up: Rc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.stalls.stalled.borrow_mut().remove(&self.number);
    }
}

impl Stalls {
    /// Completes a write, or gives the body up if the write stalls for too long while too many
    /// others stall.
    pub async fn watch<T>(&self, write: impl Future<Output = T>) -> Result<T, BodyError> {
        let mut write = pin!(write);
        if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await {
            return Ok(done);
        }

        let now = Instant::now();
        let place = self.enter(now);
        self.relieve(now);
        tokio::select! {
            biased;
            done = &mut write => Ok(done),
            () = place.give_up.notified() => Err(BodyError::Refused(Box::new(given_up()))),
        }
    }

    fn enter(&self, since: Instant) -> Place<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        let give_up = Rc::new(Notify::new());
        let stalled = Stalled {
            since,
            give_up: give_up.clone(),
        };
        self.stalled.borrow_mut().insert(number, stalled);

        Place {
            stalls: self,
            number,
            give_up,
        }
    }

    /// Gives up the bodies that have stalled longest while there are too many.
    pub fn relieve(&self, now: Instant) {
        let mut stalled = self.stalled.borrow_mut();
        while stalled.len() > FREE {
            let Some(longest) = stalled.first_entry() else {
                return;
            };
            if now.saturating_duration_since(longest.get().since) < PATIENCE {
                return;
            }
            longest.remove().give_up.notify_one();
        }
    }
}

/// What the logs, and a client without a response so far, are told.
fn given_up() -> LocalReply {
    const WHY: &str = "a stream took no data while too many others took none";
    LocalReply::new(
        503,
        "overload",
        "overload_stalled_stream",
        Cause::Overload(WHY),
    )
    .flagged(ResponseFlag::OverloadManagerTerminated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_stalled_are_given_up_once_there_are_too_many() {
        let (stalls, start) = (Stalls::default(), Instant::now());
        let mut places: Vec<_> = (0..FREE as u64 + 2)
            .map(|n| stalls.enter(start + Duration::from_millis(n)))
            .collect();

        stalls.relieve(start + PATIENCE - Duration::from_millis(1));
        assert_eq!(stalls.stalled.borrow().len(), FREE + 2, "all are patient");

        stalls.relieve(start + PATIENCE);
        assert_eq!(
            stalls.stalled.borrow().len(),
            FREE + 1,
            "one has had its time"
        );
        places[0].give_up.notified().await;

        // One reader goes on: the rest may stall.
        places.pop();
        stalls.relieve(start + PATIENCE * 100);
        assert_eq!(stalls.stalled.borrow().len(), FREE);
    }

    #[tokio::test]
    async fn a_body_that_is_given_up_says_why() {
        let stalls = Rc::new(Stalls::default());
        let waiting = stalls.watch(std::future::pending::<()>());
        let relieve = async {
            tokio::task::yield_now().await;
            let others: Vec<_> = (0..FREE).map(|_| stalls.enter(Instant::now())).collect();
            stalls.relieve(Instant::now() + PATIENCE);
            others
        };

        let (result, _others) = tokio::join!(waiting, relieve);
        let Err(BodyError::Refused(reply)) = result else {
            panic!("{result:?}");
        };
        assert_eq!(
            (reply.status, &*reply.details),
            (503, "overload_stalled_stream")
        );
    }
}
