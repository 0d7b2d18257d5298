//! The limits of a forwarded request: all of it, one attempt, silence.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use meltemi_filters::ResponseFlag;
use meltemi_filters::head::{Known, RequestHead};
use tokio::time::Instant;

use super::Plan;
use crate::exchange::Run;
use crate::timer::LazyTimer;
use crate::upstream::cluster::WorkerCluster;

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
}

impl Limit {
    /// Whether another attempt may do better.
    pub fn is_of_attempt(self) -> bool {
        matches!(self, Self::PerTry | Self::PerTryIdle)
    }

    /// Envoy's flag.
    pub fn flag(self) -> ResponseFlag {
        match self {
            Self::Total | Self::PerTry | Self::PerTryIdle => ResponseFlag::UpstreamRequestTimeout,
            Self::Idle => ResponseFlag::StreamIdleTimeout,
            Self::Stream | Self::Request => ResponseFlag::DurationTimeout,
            Self::Upstream => ResponseFlag::UpstreamMaxStreamDurationReached,
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
        }
    }

    /// Envoy's words for the client.
    pub fn body(self) -> &'static str {
        match self {
            Self::Total | Self::PerTry | Self::PerTryIdle => "upstream request timeout",
            Self::Idle => "stream timeout",
            Self::Stream => "downstream duration timeout",
            Self::Request => "request timeout",
            Self::Upstream => "upstream max stream duration reached",
        }
    }
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
    /// See [`Limit::Request`].
    pub request: Option<Duration>,
    /// See [`Limit::Upstream`].
    pub upstream: Option<Duration>,
}

impl Timeouts {
    /// For one request. Headers count only from inside; `prepare` has dropped the others.
    pub fn of(run: &Run<'_>, plan: &Plan<'_>, head: &RequestHead, cluster: &WorkerCluster) -> Self {
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
            request: run.http.request_timeout,
            upstream: cluster.entry.cluster.http.max_stream_duration,
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
    timer: RefCell<LazyTimer>,
}

impl Clocks {
    /// Starts for a stream that began at `start`; `whole`: its request has ended. Without limits no clock is read.
    pub fn new(timeouts: Timeouts, whole: bool, start: std::time::Instant) -> Self {
        let from_start = |limit: Option<Duration>| limit.map(|limit| Instant::from_std(start) + limit);
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
            timer: RefCell::default(),
        };
        if whole {
            clocks.uploaded();
        }
        clocks
    }

    /// A new attempt, with the limits that it has for itself.
    pub fn begin_attempt(&self, limit: Option<Duration>, idle: Option<Duration>) {
        self.per_try.set(limit);
        self.per_try_idle.set(idle);
        self.moved_in_try.set(idle.map(|_| Instant::now()));
        self.upstream_at.set(self.timeouts.upstream.map(|limit| Instant::now() + limit));
        self.try_at.set(limit.filter(|_| self.uploaded.get()).map(|limit| Instant::now() + limit));
    }

    /// The request has been sent to its end: the limits for the response start.
    pub fn uploaded(&self) {
        self.uploaded.set(true);
        self.request_at.set(None);
        if self.total_at.get().is_none() {
            self.total_at.set(self.timeouts.total.map(|limit| Instant::now() + limit));
        }
        if self.try_at.get().is_none() {
            self.try_at.set(self.per_try.get().map(|limit| Instant::now() + limit));
        }
    }

    /// Whether the request has been sent to its end.
    pub fn is_uploaded(&self) -> bool {
        self.uploaded.get()
    }

    /// The response has begun: the attempt has succeeded in time.
    pub fn responded(&self) {
        self.try_at.set(None);
        self.per_try.set(None);
    }

    fn next(&self) -> Option<(Instant, Limit)> {
        let idle = self.moved.get().zip(self.timeouts.idle).map(|(at, idle)| at + idle);
        let idle_in_try = self.moved_in_try.get().zip(self.per_try_idle.get()).map(|(at, idle)| at + idle);
        let all = [
            (self.total_at.get(), Limit::Total),
            (self.try_at.get(), Limit::PerTry),
            (idle_in_try, Limit::PerTryIdle),
            (idle, Limit::Idle),
            (self.stream_at, Limit::Stream),
            (self.request_at.get(), Limit::Request),
            (self.upstream_at.get(), Limit::Upstream),
        ];
        all.into_iter().filter_map(|(at, limit)| Some((at?, limit))).min_by_key(|(at, _)| *at)
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
        let clocks = Clocks::new(timeouts, false, std::time::Instant::now());
        clocks.begin_attempt(Some(Duration::from_secs(2)), None);
        tokio::time::sleep(Duration::from_secs(60)).await;
        clocks.uploaded();
        let start = Instant::now();
        assert_eq!(clocks.expired().await, Limit::PerTry);
        clocks.begin_attempt(None, None);
        assert_eq!(clocks.expired().await, Limit::Total);
        assert_eq!(start.elapsed().as_secs(), 5);
    }
    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_ends_ends_after_its_time_and_silence_in_an_attempt_too() {
        let start = Instant::now();
        let timeouts = Timeouts { request: Some(Duration::from_secs(9)), ..Timeouts::default() };
        let clocks = Clocks::new(timeouts, false, start.into_std());
        assert_eq!(clocks.expired().await, Limit::Request);
        assert_eq!(start.elapsed().as_secs(), 9);
        clocks.uploaded();
        clocks.begin_attempt(None, Some(Duration::from_secs(3)));
        let began = Instant::now();
        assert!(poll_fn(|cx| Poll::Ready(clocks.poll(cx, 1))).await.is_pending());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(poll_fn(|cx| Poll::Ready(clocks.poll(cx, 2))).await.is_pending());
        assert_eq!(poll_fn(|cx| clocks.poll(cx, 2)).await, Limit::PerTryIdle);
        assert_eq!(began.elapsed().as_secs(), 5, "every byte starts it anew");
    }
}
