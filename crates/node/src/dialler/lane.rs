//! Requests of one kind: so many at a time, so many more that wait, and the rest refused. Kinds do
//! not wait for each other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whoever waited this long is refused.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The places for requests of one kind.
#[derive(Debug)]
pub(super) struct Lane {
    /// Under way or waiting.
    places: Arc<Semaphore>,
    /// Under way.
    turns: Arc<Semaphore>,
}

/// A place in a lane; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    turns: Arc<Semaphore>,
    _place: OwnedSemaphorePermit,
}

impl Lane {
    pub(super) fn new(at_a_time: usize, waiting: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(at_a_time + waiting)),
            turns: Arc::new(Semaphore::new(at_a_time)),
        }
    }

    /// Takes a place without waiting; refused when too many wait.
    pub(super) fn enter(&self) -> io::Result<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place
            .map_err(|_| io::Error::other("too many requests of this kind wait for the machine"))?;
        Ok(Place {
            turns: Arc::clone(&self.turns),
            _place: place,
        })
    }
}

impl Place {
    /// Waits for the turn, which ends when the answer is dropped.
    pub(super) async fn turn(&self) -> io::Result<OwnedSemaphorePermit> {
        let turn =
            tokio::time::timeout(LONGEST_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        Ok(turn
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .expect("the semaphore is never closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn some_go_some_wait_and_the_rest_is_refused() {
        let lane = Lane::new(1, 1);
        let (first, second) = (lane.enter().unwrap(), lane.enter().unwrap());
        assert!(lane.enter().is_err());
        let turn = first.turn().await.unwrap();
        assert_eq!(
            second.turn().await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );

        drop((turn, first));
        drop(second.turn().await.unwrap());
        lane.enter().unwrap();
    }
}
