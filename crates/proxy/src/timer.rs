//! Timers of connections and requests, most of which never fire.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Sleeps for this time; `None` sleeps for ever.
pub async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Sleeps until then; `None` sleeps for ever.
pub async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Polls a moving deadline; costs a timer registration only when the deadline comes nearer or the
/// old one fires.
#[derive(Debug, Default)]
pub struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl LazyTimer {
    /// Ready once `deadline` has passed; `None` never is.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }

        loop {
            match sleep.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if sleep.deadline() >= deadline => return Poll::Ready(()),
                Poll::Ready(()) => sleep.as_mut().reset(deadline),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn the_deadline_moves_both_ways() {
        let mut timer = LazyTimer::default();
        let start = Instant::now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));

        poll_fn(|cx| {
            assert!(timer.poll(cx, at(10)).is_pending());
            Poll::Ready(())
        })
        .await;

        poll_fn(|cx| timer.poll(cx, at(20))).await;
        assert_eq!(start.elapsed().as_secs(), 20);
        poll_fn(|cx| {
            assert!(timer.poll(cx, at(60)).is_pending());
            Poll::Ready(())
        })
        .await;

        poll_fn(|cx| timer.poll(cx, at(30))).await;
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
