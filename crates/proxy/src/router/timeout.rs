//! The limits of a forwarded request: all of it, one attempt, silence.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use meltemi_filters::head::{Known, RequestHead};
use tokio::time::Instant;

use super::Plan;
use crate::exchange::Run;
use crate::timer::LazyTimer;

/// Which limit passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The whole response, counted from the end of the request.
    Total,
    /// The response of one attempt.
    PerTry,
    /// No byte either way.
    Idle,
    /// The stream, from its beginning.
    Stream,
}

/// Durations, as configuration and the request's own headers set them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timeouts {
    /// See [`Limit::Total`].
    pub total: Option<Duration>,
    /// See [`Limit::Idle`].
    pub idle: Option<Duration>,
    /// See [`Limit::Stream`].
    pub stream: Option<Duration>,
}

impl Timeouts {
    /// For one request. Headers count only from inside; `prepare` has dropped the others.
    pub fn of(run: &Run<'_>, plan: &Plan<'_>, head: &RequestHead) -> Self {
        let own = &plan.forward.action.timeouts;
        let mut total = own.request;
        if let Some(max) = own.max_grpc
            && head.is_grpc()
            && let Some(asked) = head.fields().known(Known::GrpcTimeout).and_then(grpc_timeout)
        {
            let asked = asked.saturating_sub(own.grpc_offset);
            total = Some(if max.is_zero() { asked } else { asked.min(max) });
        }
        if let Some(text) = head.fields().known_str(Known::XEnvoyUpstreamRqTimeoutMs)
            && let Ok(ms) = text.parse()
        {
            total = Some(Duration::from_millis(ms));
        }
        Self {
            total: total.filter(|total| !total.is_zero()),
            idle: own.idle.unwrap_or(run.http.stream_idle_timeout).filter(|idle| !idle.is_zero()),
            stream: own.max_stream.unwrap_or(run.http.max_stream_duration).filter(|max| !max.is_zero()),
        }
    }
}

/// `8S`, `100m`, ... Source: gRPC over HTTP/2, "Timeout".
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The running limits of one request.
#[derive(Debug)]
pub struct Clocks {
    timeouts: Timeouts,
    stream_at: Option<Instant>,
    total_at: Cell<Option<Instant>>,
    per_try: Cell<Option<Duration>>,
    try_at: Cell<Option<Instant>>,
    uploaded: Cell<bool>,
    seen: Cell<u64>,
    moved: Cell<Option<Instant>>,
    timer: RefCell<LazyTimer>,
}

impl Clocks {
    /// Starts. Without limits no clock is read.
    pub fn new(timeouts: Timeouts, whole: bool) -> Self {
        let clocks = Self {
            timeouts,
            stream_at: timeouts.stream.map(|limit| Instant::now() + limit),
            total_at: Cell::new(None),
            per_try: Cell::new(None),
            try_at: Cell::new(None),
            uploaded: Cell::new(false),
            seen: Cell::new(0),
            moved: Cell::new(timeouts.idle.map(|_| Instant::now())),
            timer: RefCell::default(),
        };
        if whole {
            clocks.uploaded();
        }
        clocks
    }

    /// A new attempt.
    pub fn begin_attempt(&self, limit: Option<Duration>) {
        self.per_try.set(limit);
        self.try_at.set(limit.filter(|_| self.uploaded.get()).map(|limit| Instant::now() + limit));
    }

    /// The request has been sent to its end: the limits for the response start.
    pub fn uploaded(&self) {
        self.uploaded.set(true);
        if self.total_at.get().is_none() {
            self.total_at.set(self.timeouts.total.map(|limit| Instant::now() + limit));
        }
        if self.try_at.get().is_none() {
            self.try_at.set(self.per_try.get().map(|limit| Instant::now() + limit));
        }
    }

    /// The response has begun: the attempt has succeeded in time.
    pub fn responded(&self) {
        self.try_at.set(None);
        self.per_try.set(None);
    }

    fn next(&self) -> Option<(Instant, Limit)> {
        let idle = self.moved.get().zip(self.timeouts.idle).map(|(at, idle)| at + idle);
        let all = [
            (self.total_at.get(), Limit::Total),
            (self.try_at.get(), Limit::PerTry),
            (idle, Limit::Idle),
            (self.stream_at, Limit::Stream),
        ];
        all.into_iter().filter_map(|(at, limit)| Some((at?, limit))).min_by_key(|(at, _)| *at)
    }

    /// Ready when a limit has passed. `moved` is how many bytes went either way so far.
    pub fn poll(&self, cx: &mut Context<'_>, moved: u64) -> Poll<Limit> {
        if moved != self.seen.get() && self.timeouts.idle.is_some() {
            self.seen.set(moved);
            self.moved.set(Some(Instant::now()));
        }
        match self.next() {
            None => Poll::Pending,
            Some((at, limit)) => self.timer.borrow_mut().poll(cx, Some(at)).map(|()| limit),
        }
    }

    /// Resolves when a limit has passed while nothing moves.
    pub async fn expired(&self) -> Limit {
        poll_fn(|cx| self.poll(cx, self.seen.get())).await
    }

    /// Waits between attempts, unless a limit passes first.
    pub async fn sleep(&self, pause: Duration) -> Option<Limit> {
        self.try_at.set(None);
        tokio::select! {
            () = tokio::time::sleep(pause) => None,
            limit = self.expired() => Some(limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_have_units() {
        assert_eq!(grpc_timeout(b"8S"), Some(Duration::from_secs(8)));
        assert_eq!(grpc_timeout(b"100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout(b"S"), None);
        assert_eq!(grpc_timeout(b"999999999S"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_response_clock_starts_when_the_request_has_ended() {
        let timeouts = Timeouts { total: Some(Duration::from_secs(5)), ..Timeouts::default() };
        let clocks = Clocks::new(timeouts, false);
        clocks.begin_attempt(Some(Duration::from_secs(2)));
        tokio::time::sleep(Duration::from_secs(60)).await;
        clocks.uploaded();
        let start = Instant::now();
        assert_eq!(clocks.expired().await, Limit::PerTry);
        clocks.begin_attempt(None);
        assert_eq!(clocks.expired().await, Limit::Total);
        assert_eq!(start.elapsed().as_secs(), 5);
    }
}
