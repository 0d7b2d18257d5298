//! Serves one downstream HTTP/1.1 connection: request after request, in order.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use meltemi_filters::head::RequestHead;
use meltemi_filters::{Cause, LocalReply};
use meltemi_proxy_config::http::HttpConnectionManager;
use tokio::time::Instant;

use super::body::{BodyReader, DRAIN_BYTES};
use super::codec::{self, Limits, Refusal, RequestTerms};
use super::input::Input;
use crate::body::{BodyIn, H1BodyIn};
use crate::downstream::Downstream;
use crate::exchange::state::Ended;
use crate::exchange::{self, Incoming};
use crate::io::Io;
use crate::respond::{H1Responder, Responder, with_codec_flag};
use crate::timer::LazyTimer;
use crate::worker::Worker;

/// How long reading that may take, and how long a closing connection waits for the next byte of a
/// peer that still sends.
const LINGER: Duration = Duration::from_secs(1);
/// How long a closing connection waits in all. A client that sends a large body reads its early
/// answer (403, 413, a fault) when it has sent it: RFC 9112 §9.6.
const LONGEST_LINGER: Duration = Duration::from_secs(30);

enum Next {
    /// A whole head, and when its first byte came if it came in pieces.
    Request(RequestTerms, Option<Instant>),
    Refused(Refusal),
    /// Nothing was lost by closing: the peer closed, or was idle for too long, or the connection
    /// drains.
    Quiet,
    /// A head did not become whole in time.
    Slow(SlowHead),
}

/// The limit that a head has exceeded, in Envoy's words for the client and for logs.
struct SlowHead {
    limit: &'static str,
    body: &'static str,
    details: &'static str,
    begun: Instant,
}

/// Serves until the connection ends. `first` was read already.
pub async fn serve(worker: Rc<Worker>, conn: Rc<Downstream>, io: Io, first: Vec<u8>) {
    let mut input = Input::new(worker.buffers.clone(), first);
    let mut timer = LazyTimer::default();
    let mut head = worker.take_head();

    loop {
        let view = worker.view_of(&conn);
        let Some(http) = view.http.clone() else { break };
        let limits = Limits {
            head_bytes: http.max_head_bytes as usize,
            fields: http.max_head_fields as usize,
            http10: http.http1.accept_http_10,
        };
        let waits = Waits::of(&http, &conn);

        let next = next(
            &conn, &io, &mut input, &mut timer, &limits, waits, &mut head,
        );
        let reply = match next.await {
            Next::Request(terms, begun) => Ok((terms, begun)),
            Next::Quiet => break,
            Next::Refused(refusal) => Err((refused(refusal), None)),
            Next::Slow(slow) => {
                let cause = Cause::Timeout(slow.limit, conn.chain.clone());
                let reply = LocalReply::new(408, slow.body, slow.details, cause);
                Err((reply, Some(slow.begun)))
            }
        };
        let (terms, begun) = match reply {
            Ok(request) => request,
            Err((reply, begun)) => {
                refuse(&worker, &conn, &io, head, reply, begun).await;
                linger(&io, &mut input).await;
                return;
            }
        };

        // The head may have taken long to arrive, so the request runs under the newest
        // configuration.
        let view = worker.view_of(&conn);
        conn.requests.set(conn.requests.get() + 1);
        let keep_alive = Cell::new(terms.keep_alive && goes_on(&http, &conn, waits.expires));
        let wants_continue =
            Cell::new(terms.expects_continue && terms.framing != codec::Framing::Empty);
        let reader = BodyReader::new(terms.framing);
        let http10 = head.version == meltemi_filters::head::HttpVersion::Http10;
        let buffers = worker.buffers.clone();

        // Boxed, so that an idle connection does not carry the room that a request needs.
        let ended = Box::pin(exchange::serve(Incoming {
            worker: &worker,
            conn: &conn,
            view,
            head: &mut head,
            upgrade: terms.upgrade,
            body: BodyIn::H1(H1BodyIn {
                io: &io,
                input: &mut input,
                reader: &reader,
                wants_continue: &wants_continue,
                lent: 0,
            }),
            responder: Responder::H1(H1Responder {
                io: &io,
                conn: &conn,
                keep_alive: &keep_alive,
                request_body: &reader,
                wants_continue: &wants_continue,
                http10,
                buffers: &buffers,
            }),
            begun: begun.map(Instant::into_std),
        }))
        .await;

        match ended {
            Ended::Whole if keep_alive.get() => {
                // The next request must not be read from this one's body.
                if !reader.is_done() && !drain(&io, &mut input, &reader).await {
                    linger(&io, &mut input).await;
                    break;
                }
            }
            Ended::Whole => {
                let _ = io.shutdown().await;
                linger(&io, &mut input).await;
                break;
            }
            Ended::Broken | Ended::Gone => {
                io.with(|stream| meltemi_net::socket::reset_on_close(stream.socket()));
                break;
            }
            Ended::Switched => break,
        }
    }

    worker.give_head(head);
    let _ = tokio::time::timeout(LINGER, io.shutdown()).await;
}

/// The answer to a head that cannot be read.
fn refused(Refusal { status, details }: Refusal) -> LocalReply {
    let body = meltemi_filters::head::reason(status);
    let cause = Cause::Protocol(details.into());
    with_codec_flag(LocalReply::new(status, body, details, cause))
}

/// Whether a connection may carry another request after the one that it has just begun.
fn goes_on(http: &HttpConnectionManager, conn: &Downstream, expires: Option<Instant>) -> bool {
    let limit = u64::from(http.max_requests_per_connection);
    let is_last = limit > 0 && conn.requests.get() >= limit;
    let is_old = expires.is_some_and(|expires| Instant::now() >= expires);

    !is_last && !is_old && !conn.is_draining()
}

#[derive(Clone, Copy)]
struct Waits {
    idle: Option<Duration>,
    headers: Option<Duration>,
    request: Option<Duration>,
    stream: Option<Duration>,
    stream_idle: Option<Duration>,
    expires: Option<Instant>,
}

impl Waits {
    /// The limits of a connection's next head.
    fn of(http: &HttpConnectionManager, conn: &Downstream) -> Self {
        let longest = http.max_connection_duration;
        Self {
            idle: http.idle_timeout,
            headers: http.request_headers_timeout,
            request: http.request_timeout,
            stream: http.max_stream_duration,
            stream_idle: http.stream_idle_timeout,
            expires: longest.map(|longest| Instant::from_std(conn.since) + longest),
        }
    }

    /// Until when a head that began at `started` must be whole, or else one must have begun.
    fn deadline(&self, asked: Instant, started: Option<Instant>) -> Option<Instant> {
        match started {
            Some(started) => self.slowest().map(|wait| started + wait),
            None => [self.idle.map(|wait| asked + wait), self.expires]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// Where nothing else limits a head that never ends, it has the time of a connection that never
    /// begins one.
    fn slowest(&self) -> Option<Duration> {
        [self.headers, self.request, self.stream, self.stream_idle]
            .into_iter()
            .flatten()
            .min()
            .or(self.idle)
    }

    /// What a head that began at `begun` and was not whole in time has exceeded.
    fn exceeded(&self, begun: Instant) -> SlowHead {
        let slowest = self.slowest();
        let is_slowest = |limit: Option<Duration>| limit.is_some() && limit == slowest;

        let (limit, body, details) = if is_slowest(self.headers) {
            (
                "request headers timeout",
                "request header timeout",
                "request_header_timeout",
            )
        } else if is_slowest(self.request) {
            (
                "request timeout",
                "request timeout",
                "request_overall_timeout",
            )
        } else if is_slowest(self.stream) {
            (
                "max stream duration",
                "downstream duration timeout",
                "max_duration_timeout",
            )
        } else {
            (
                "stream idle timeout",
                "stream timeout",
                "stream_idle_timeout",
            )
        };

        SlowHead {
            limit,
            body,
            details,
            begun,
        }
    }
}

async fn next(
    conn: &Downstream,
    io: &Io,
    input: &mut Input,
    timer: &mut LazyTimer,
    limits: &Limits,
    waits: Waits,
    head: &mut RequestHead,
) -> Next {
    let mut scanned = 0;
    let mut started = None;
    let asked = Instant::now();
    let mut draining = std::pin::pin!(conn.draining());

    loop {
        if !input.is_empty() {
            match codec::read_request(input.bytes(), &mut scanned, limits, head) {
                Ok(Some((n, terms))) => {
                    input.consume(n);
                    return Next::Request(terms, started);
                }
                Ok(None) => {}
                Err(refusal) => return Next::Refused(refusal),
            }
            started.get_or_insert_with(Instant::now);
        }

        let deadline = waits.deadline(asked, started);
        let filled = poll_fn(|cx| {
            if let Poll::Ready(filled) = input.poll_fill(cx, io) {
                return Poll::Ready(Ok(filled));
            }
            if started.is_none() && draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(None));
            }
            timer.poll(cx, deadline).map(|()| Err(started))
        })
        .await;

        match filled {
            Ok(Ok(0) | Err(_)) => return Next::Quiet,
            Ok(Ok(_)) => {}
            Err(Some(begun)) => return Next::Slow(waits.exceeded(begun)),
            Err(None) => return Next::Quiet,
        }
    }
}

/// Answers bytes that are no request and logs them like one; the caller closes.
async fn refuse(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    io: &Io,
    mut head: RequestHead,
    reply: LocalReply,
    begun: Option<Instant>,
) {
    let (keep_alive, wants_continue) = (Cell::new(false), Cell::new(false));
    let buffers = worker.buffers.clone();
    let responder = Responder::H1(H1Responder {
        io,
        conn,
        keep_alive: &keep_alive,
        request_body: &BodyReader::new(codec::Framing::Empty),
        wants_continue: &wants_continue,
        http10: false,
        buffers: &buffers,
    });

    let view = worker.view_of(conn);
    let begun = begun.map(Instant::into_std);
    exchange::reply_only(worker, conn, view, &mut head, responder, reply, begun).await;
}

/// Reads the rest of a body; `false` if it is too long or too slow.
async fn drain(io: &Io, input: &mut Input, reader: &BodyReader) -> bool {
    let mut left = DRAIN_BYTES;
    let drained = tokio::time::timeout(LINGER, async {
        loop {
            match reader.ready(io, input).await {
                Ok(0) => return true,
                Ok(n) if n <= left => {
                    left -= n;
                    reader.consume(input, n);
                }
                _ => return false,
            }
        }
    });

    drained.await.unwrap_or(false)
}

/// Waits for the peer to close after our answer: closing with unread bytes would reset it away (RFC
/// 9112 §9.6).
async fn linger(io: &Io, input: &mut Input) {
    let _ = tokio::time::timeout(LONGEST_LINGER, async {
        let _ = tokio::time::timeout(LINGER, io.shutdown()).await;
        loop {
            let n = input.bytes().len();
            input.consume(n);
            match tokio::time::timeout(LINGER, input.fill(io)).await {
                Ok(Ok(read)) if read > 0 => {}
                _ => return,
            }
        }
    })
    .await;
}
