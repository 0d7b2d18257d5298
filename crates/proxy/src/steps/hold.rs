//! Bodies that wait at a filter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meltemi_filters::http::{Beyond, Event, Hold};
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_types::GrpcCode;

use super::Stop;
use crate::body::BodyIn;
use crate::http1::body::BodyError;

/// As much of a body as filters have asked for.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    ended: bool,
}

/// How long a body, or an answer, may take to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Between two pieces.
    pub idle: Option<Duration>,
    /// The end of the time for the request to arrive.
    pub request: Option<Instant>,
    /// The end of the time for the stream.
    pub stream: Option<Instant>,
    /// Whether the request has arrived: its client is not the slow one.
    pub is_arrived: bool,
}

/// How gathering ended.
#[derive(Debug)]
pub(super) enum Gathered {
    /// The filter can be stepped.
    Enough,
    /// The body is longer than the filter holds.
    TooLong,
    /// A limit of time passed.
    Slow,
    /// The body broke off.
    Failed(BodyError),
}

impl Held {
    /// Whether a part of the body has been read.
    pub fn is_begun(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Whether all of it has been read.
    pub fn is_whole(&self) -> bool {
        self.ended
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn event(&self) -> Event<'_> {
        Event::Held {
            body: &self.bytes,
            ended: self.ended,
        }
    }

    /// Reads until the body is whole or longer than the limit.
    pub async fn gather(&mut self, hold: Hold, body: &mut BodyIn<'_>, limits: Limits) -> Gathered {
        loop {
            if self.bytes.len() > hold.limit {
                return match hold.beyond {
                    Beyond::Refuse => Gathered::TooLong,
                    Beyond::Deliver => Gathered::Enough,
                };
            }
            if self.ended {
                return Gathered::Enough;
            }

            match within(limits, body.next()).await {
                Some(Ok(Some(piece))) => self.bytes.extend_from_slice(piece.as_slice()),
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => return Gathered::Failed(error),
                None => return Gathered::Slow,
            }
        }
    }

    /// Puts the held bytes before the rest of the body.
    pub fn give_back(self, body: &mut BodyIn<'_>) {
        if self.is_begun() {
            body.prepend(Bytes::from(self.bytes));
        }
    }
}

/// `None` if a limit passes first.
pub(super) async fn within<T>(limits: Limits, future: impl Future<Output = T>) -> Option<T> {
    let idle = limits.idle.map(|idle| Instant::now() + idle);
    let ends = [idle, limits.request, limits.stream];
    match ends.into_iter().flatten().min() {
        None => Some(future.await),
        Some(at) => tokio::time::timeout_at(at.into(), future).await.ok(),
    }
}

/// Why a request whose body broke off goes no further.
pub(super) fn failed(error: BodyError) -> Stop {
    match error {
        BodyError::Malformed(how) => {
            let cause = Cause::Protocol(how.into());
            let reply = LocalReply::new(400, "Bad Request", "http1.codec_error", cause);
            Stop::Reply(Box::new(
                reply.flagged(ResponseFlag::DownstreamProtocolError),
            ))
        }
        BodyError::Refused(reply) => Stop::Reply(reply),
        BodyError::Io(_) | BodyError::Truncated | BodyError::Reset => Stop::Gone,
    }
}

/// The answer to a request that waited too long, in Envoy's words.
pub(super) fn too_slow(limits: &Limits, chain: &Arc<str>) -> LocalReply {
    let is_over = |end: Option<Instant>| end.is_some_and(|end| Instant::now() >= end);
    let status = if limits.is_arrived { 504 } else { 408 };
    let reply = |name, body: &'static str, details: &'static str| {
        LocalReply::new(status, body, details, Cause::Timeout(name, chain.clone()))
    };

    if is_over(limits.request) {
        let name = "request timeout";
        reply(name, "request timeout", "request_overall_timeout")
    } else if is_over(limits.stream) {
        let body = "downstream duration timeout";
        LocalReply {
            grpc_status: Some(GrpcCode::DEADLINE_EXCEEDED.number()),
            ..reply("max stream duration", body, "max_duration_timeout")
        }
    } else {
        let name = "stream idle timeout";
        reply(name, "stream timeout", "stream_idle_timeout")
            .flagged(ResponseFlag::StreamIdleTimeout)
    }
}

/// The answer in place of a response whose body a filter could not hold.
pub(super) fn no_response(gathered: &Gathered, filter: &Arc<str>) -> Box<LocalReply> {
    let (details, cause) = match gathered {
        Gathered::TooLong => (
            "response_payload_too_large",
            Cause::BodyTooLarge(filter.clone()),
        ),
        Gathered::Failed(error) => (
            "response_body_broken",
            Cause::Protocol(error.to_string().into()),
        ),
        Gathered::Enough | Gathered::Slow => (
            "stream_idle_timeout",
            Cause::Timeout("stream idle timeout", filter.clone()),
        ),
    };

    Box::new(LocalReply::new(
        500,
        "Internal Server Error",
        details,
        cause,
    ))
}
