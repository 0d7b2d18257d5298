//! Limits the requests of one kind: a number of them run at a time, a number wait, and further ones
//! are refused. Each kind has its own queue, so that slow connects never delay DNS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A request that waited this long is refused.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The queue of one kind of request.
#[derive(Debug)]
pub(super) struct RequestQueue {
    /// Permits of admitted requests, running or waiting.
    admitted: Arc<Semaphore>,
    /// Permits of running requests.
    running: Arc<Semaphore>,
}

/// A place of an admitted request; given back when dropped.
#[derive(Debug)]
pub(super) struct QueuePlace {
    running: Arc<Semaphore>,
    _admitted: OwnedSemaphorePermit,
}

impl RequestQueue {
    pub(super) fn new(running: usize, waiting: usize) -> Self {
        Self {
            admitted: Arc::new(Semaphore::new(running + waiting)),
            running: Arc::new(Semaphore::new(running)),
        }
    }

    /// Admits a request, without waiting.
    ///
    /// # Errors
    /// When the queue is full.
    pub(super) fn admit(&self) -> io::Result<QueuePlace> {
        let admitted = Arc::clone(&self.admitted)
            .try_acquire_owned()
            .map_err(|_| io::Error::other("too many requests of this kind wait for the machine"))?;
        Ok(QueuePlace {
            running: Arc::clone(&self.running),
            _admitted: admitted,
        })
    }
}

impl QueuePlace {
    /// Waits until the request may run; it counts as running until the returned permit is dropped.
    ///
    /// # Errors
    /// After [`LONGEST_WAIT`].
    pub(super) async fn wait_for_turn(&self) -> io::Result<OwnedSemaphorePermit> {
        let permit =
            tokio::time::timeout(LONGEST_WAIT, Arc::clone(&self.running).acquire_owned()).await;
        Ok(permit
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .expect("the semaphore is never closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn some_run_some_wait_and_the_rest_is_refused() {
        let queue = RequestQueue::new(1, 1);
        let (first, second) = (queue.admit().unwrap(), queue.admit().unwrap());
        assert!(queue.admit().is_err());
        let turn = first.wait_for_turn().await.unwrap();
        assert_eq!(
            second.wait_for_turn().await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );

        drop((turn, first));
        drop(second.wait_for_turn().await.unwrap());
        queue.admit().unwrap();
    }
}
