//! The limits of a forwarded request as they exchange: all of it, one attempt, silence.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use meltemi_filters::{Cause, ResponseFlag};
use meltemi_types::GrpcCode;
use tokio::time::Instant;

use super::durations::Timeouts;
use crate::counts::ClusterCounts;
use crate::downstream::Downstream;
use crate::timer::LazyTimer;

/// Which limit passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The whole response, counted from the end of the request.
    Total,
    /// The response of one attempt.
    PerTry,
    /// No byte either way for so long within one attempt.
    PerTryIdle,
    /// No byte either way.
    Idle,
    /// The stream, from its beginning.
    Stream,
    /// The request, from its beginning to its end.
    Request,
    /// The stream to the upstream, from its beginning.
    Upstream,
    /// The connection was asked to end, and has had its time for that.
    Drain,
}

impl Limit {
    /// Whether another attempt may do better.
    pub fn is_of_attempt(self) -> bool {
        matches!(self, Self::PerTry | Self::PerTryIdle)
    }

    /// Counts that it passed, where Envoy does.
    pub fn count(self, counts: &ClusterCounts) {
        match self {
            Self::Total => counts.timeout.inc(),
            Self::PerTry => counts.per_try_timeout.inc(),
            Self::PerTryIdle
            | Self::Idle
            | Self::Stream
            | Self::Request
            | Self::Upstream
            | Self::Drain => {}
        }
    }

    /// Envoy's flag, where it has one: its `DT` is for TCP alone.
    pub fn flag(self) -> Option<ResponseFlag> {
        match self {
            Self::Total | Self::PerTry | Self::PerTryIdle => {
                Some(ResponseFlag::UpstreamRequestTimeout)
            }
            Self::Idle => Some(ResponseFlag::StreamIdleTimeout),
            Self::Stream | Self::Request => None,
            Self::Upstream => Some(ResponseFlag::UpstreamMaxStreamDurationReached),
            Self::Drain => Some(ResponseFlag::LocalReset),
        }
    }

    /// As a cause names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Total => "route timeout",
            Self::PerTry => "per-try timeout",
            Self::PerTryIdle => "per-try idle timeout",
            Self::Idle => "stream idle timeout",
            Self::Stream => "max stream duration",
            Self::Request => "request timeout",
            Self::Upstream => "max upstream stream duration",
            Self::Drain => "drain time",
        }
    }

    /// Envoy's response code details.
    pub fn details(self) -> &'static str {
        match self {
            Self::Total => "response_timeout",
            Self::PerTry => "upstream_per_try_timeout",
            Self::PerTryIdle => "upstream_per_try_idle_timeout",
            Self::Idle => "stream_idle_timeout",
            Self::Stream => "max_duration_timeout",
            Self::Request => "request_overall_timeout",
            Self::Upstream => "upstream_max_stream_duration_reached",
            Self::Drain => "connection_drained",
        }
    }

    /// The status for gRPC, where it is not that of the HTTP status.
    pub fn grpc_status(self) -> Option<u32> {
        (self == Self::Stream).then(|| GrpcCode::DEADLINE_EXCEEDED.number())
    }

    /// Envoy's words for the client.
    pub fn body(self) -> &'static str {
        match self {
            Self::Total | Self::PerTry | Self::PerTryIdle => "upstream request timeout",
            Self::Idle => "stream timeout",
            Self::Stream => "downstream duration timeout",
            Self::Request => "request timeout",
            Self::Upstream => "upstream max stream duration reached",
            Self::Drain => "connection drained",
        }
    }
}

/// The running limits of one request.
#[derive(Debug)]
pub struct Clocks {
    timeouts: Timeouts,
    stream_at: Option<Instant>,
    request_at: Cell<Option<Instant>>,
    upstream_at: Cell<Option<Instant>>,
    total_at: Cell<Option<Instant>>,
    per_try: Cell<Option<Duration>>,
    try_at: Cell<Option<Instant>>,
    uploaded: Cell<bool>,
    seen: Cell<u64>,
    moved: Cell<Option<Instant>>,
    per_try_idle: Cell<Option<Duration>>,
    moved_in_try: Cell<Option<Instant>>,
    /// The connection, and how long it has once it is asked to end.
    drain: Option<(Rc<Downstream>, Duration)>,
    timer: RefCell<LazyTimer>,
}

impl Clocks {
    /// Starts for a stream that began at `start`; `whole`: its request has ended. Without limits no
    /// clock is read.
    pub fn new(timeouts: Timeouts, whole: bool, start: std::time::Instant) -> Self {
        let from_start =
            |limit: Option<Duration>| limit.map(|limit| Instant::from_std(start) + limit);
        let clocks = Self {
            timeouts,
            stream_at: from_start(timeouts.stream),
            request_at: Cell::new(from_start(timeouts.request)),
            upstream_at: Cell::new(None),
            total_at: Cell::new(None),
            per_try: Cell::new(None),
            try_at: Cell::new(None),
            uploaded: Cell::new(false),
            seen: Cell::new(0),
            moved: Cell::new(timeouts.idle.map(|_| Instant::now())),
            per_try_idle: Cell::new(None),
            moved_in_try: Cell::new(None),
            drain: None,
            timer: RefCell::default(),
        };

        if whole {
            clocks.uploaded();
        }

        clocks
    }

    /// Ends with its connection, which has so long once it is asked to end.
    pub fn ending_with(self, conn: &Rc<Downstream>, time: Duration) -> Self {
        Self {
            drain: Some((conn.clone(), time)),
            ..self
        }
    }

    /// The limits that the clocks hold.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// A new attempt, with the limit of silence that it has for itself.
    pub fn begin_attempt(&self, idle: Option<Duration>) {
        let limit = self.timeouts.per_try;
        self.per_try.set(limit);
        self.per_try_idle.set(idle);
        self.moved_in_try.set(idle.map(|_| Instant::now()));
        self.upstream_at
            .set(self.timeouts.upstream.map(|limit| Instant::now() + limit));
        self.try_at.set(
            limit
                .filter(|_| self.uploaded.get())
                .map(|limit| Instant::now() + limit),
        );
    }

    /// The request has been sent to its end: the limits for the response start.
    pub fn uploaded(&self) {
        self.uploaded.set(true);
        self.request_at.set(None);
        if self.total_at.get().is_none() {
            self.total_at
                .set(self.timeouts.total.map(|limit| Instant::now() + limit));
        }

        if self.try_at.get().is_none() {
            self.try_at
                .set(self.per_try.get().map(|limit| Instant::now() + limit));
        }
    }

    /// Whether the request has been sent to its end.
    pub fn is_uploaded(&self) -> bool {
        self.uploaded.get()
    }

    /// How long the response has been waited for.
    pub fn elapsed(&self) -> Duration {
        let (Some(at), Some(total)) = (self.total_at.get(), self.timeouts.total) else {
            return Duration::ZERO;
        };
        total.saturating_sub(at.saturating_duration_since(Instant::now()))
    }

    /// The request has become a tunnel: it has no end that limits of a response could be counted
    /// from.
    pub fn tunnelled(&self) {
        self.responded();
        self.request_at.set(None);
        self.total_at.set(None);
        self.per_try_idle.set(None);
        // Its bytes are counted from here.
        self.seen.set(0);
    }

    /// What to name where a limit has passed.
    pub fn cause(&self, limit: Limit, route: &Arc<str>) -> Cause {
        let drain = self.drain.as_ref().filter(|_| limit == Limit::Drain);
        let drain = drain.and_then(|(conn, _)| conn.drain_cause());
        drain.unwrap_or_else(|| Cause::Timeout(limit.name(), route.clone()))
    }

    /// The response has begun: the attempt has succeeded in time.
    pub fn responded(&self) {
        self.try_at.set(None);
        self.per_try.set(None);
    }

    fn next(&self) -> Option<(Instant, Limit)> {
        let idle = self
            .moved
            .get()
            .zip(self.timeouts.idle)
            .map(|(at, idle)| at + idle);

        let idle_in_try = self
            .moved_in_try
            .get()
            .zip(self.per_try_idle.get())
            .map(|(at, idle)| at + idle);

        let drain = self
            .drain
            .as_ref()
            .and_then(|(conn, time)| conn.overdue_at(*time));

        let all = [
            (drain.map(Instant::from_std), Limit::Drain),
            (self.total_at.get(), Limit::Total),
            (self.try_at.get(), Limit::PerTry),
            (idle_in_try, Limit::PerTryIdle),
            (idle, Limit::Idle),
            (self.stream_at, Limit::Stream),
            (self.request_at.get(), Limit::Request),
            (self.upstream_at.get(), Limit::Upstream),
        ];

        all.into_iter()
            .filter_map(|(at, limit)| Some((at?, limit)))
            .min_by_key(|(at, _)| *at)
    }

    /// Ready when a limit has passed. `moved` is how many bytes went either way so far.
    pub fn poll(&self, cx: &mut Context<'_>, moved: u64) -> Poll<Limit> {
        let in_try = self.per_try_idle.get().is_some();
        if moved != self.seen.get() && (self.timeouts.idle.is_some() || in_try) {
            self.seen.set(moved);
            let now = Some(Instant::now());
            self.moved.set(now.filter(|_| self.timeouts.idle.is_some()));
            self.moved_in_try.set(now.filter(|_| in_try));
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
        self.per_try_idle.set(None);
        self.upstream_at.set(None);
        tokio::select! {
            () = tokio::time::sleep(pause) => None,
            limit = self.expired() => Some(limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_response_clock_starts_when_the_request_has_ended() {
        let (total, per_try) = (Some(Duration::from_secs(5)), Some(Duration::from_secs(2)));
        let timeouts = Timeouts {
            total,
            per_try,
            ..Timeouts::default()
        };

        let clocks = Clocks::new(timeouts, false, std::time::Instant::now());
        clocks.begin_attempt(None);
        tokio::time::sleep(Duration::from_secs(60)).await;
        clocks.uploaded();
        let start = Instant::now();
        assert_eq!(clocks.expired().await, Limit::PerTry);
        clocks.responded();
        assert_eq!(clocks.expired().await, Limit::Total);
        assert_eq!(start.elapsed().as_secs(), 5);
    }
    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_ends_ends_after_its_time_and_silence_in_an_attempt_too() {
        let start = Instant::now();
        let timeouts = Timeouts {
            request: Some(Duration::from_secs(9)),
            ..Timeouts::default()
        };

        let clocks = Clocks::new(timeouts, false, start.into_std());
        assert_eq!(clocks.expired().await, Limit::Request);
        assert_eq!(start.elapsed().as_secs(), 9);
        clocks.uploaded();
        clocks.begin_attempt(Some(Duration::from_secs(3)));
        let began = Instant::now();
        assert!(
            poll_fn(|cx| Poll::Ready(clocks.poll(cx, 1)))
                .await
                .is_pending()
        );

        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(
            poll_fn(|cx| Poll::Ready(clocks.poll(cx, 2)))
                .await
                .is_pending()
        );

        assert_eq!(poll_fn(|cx| clocks.poll(cx, 2)).await, Limit::PerTryIdle);
        assert_eq!(began.elapsed().as_secs(), 5, "every byte starts it anew");
    }
}
