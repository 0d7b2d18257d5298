//! Serves one downstream HTTP/2 connection; every stream is a task of its own.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use h2::server::{Builder, Connection};
use meltemi_filters::head::{RequestHead, reason};
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::http::HttpConnectionManager;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::heads::{self, Expectation};
use super::meter::{Alarm, Metered};
use super::resets::Resets;
use super::send::{Piece, SendBudget};
use super::{PING_TIMEOUT, REMEMBERED_RESETS, keep_alive, small_frames};
use crate::body::BodyIn;
use crate::downstream::Downstream;
use crate::exchange::state::Ended;
use crate::exchange::{self, Incoming};
use crate::respond::{H2Responder, Responder, with_codec_flag};
use crate::timer::sleep_until;
use crate::worker::Worker;

/// Streams at a time where configuration says nothing. Envoy's own default is 2^31-1, which lets
/// one peer hold everything; its edge guidance is 100.
const MAX_STREAMS: u32 = 100;
/// RFC 9113 §6.9.1.
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// Streams that the peer opened and reset before we looked at them. Rapid reset: beyond it the
/// connection ends with ENHANCE_YOUR_CALM.
const MAX_PENDING_RESETS: usize = 50;
/// The same for a peer of the mesh, over mutual TLS: it carries the streams of many clients, and one
/// of them must not end those of all others.
const MAX_PENDING_RESETS_OF_MESH: usize = 1000;
/// A stream that lived longer was not abandoned.
const ABANDONED_WITHIN: Duration = Duration::from_secs(1);
/// How long a peer may be silent after a GOAWAY where idle connections have no limit. Envoy's
/// default idle timeout.
const LONGEST_GOODBYE: Duration = Duration::from_secs(3600);
/// How long a peer may take to hear that it is left.
const GOODBYE: Duration = Duration::from_secs(1);
/// Unsent bytes of one stream.
const MAX_SEND_BUFFER: usize = 256 * 1024;

/// Counts the streams of a connection.
struct Streams {
    active: Cell<usize>,
    resets: RefCell<Resets>,
    ended: Notify,
}

impl Streams {
    fn new() -> Self {
        Self {
            active: Cell::new(0),
            resets: RefCell::new(Resets::new(std::time::Instant::now())),
            ended: Notify::new(),
        }
    }

    /// Resolves when no stream is open.
    async fn all_ended(&self) {
        while self.active.get() > 0 {
            self.ended.notified().await;
        }
    }
}

struct ActiveGuard(Rc<Streams>);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.ended.notify_one();
    }
}

fn builder(http: &HttpConnectionManager, is_mesh_peer: bool) -> Builder {
    let options = &http.http2;
    let stream_window = options.initial_stream_window.unwrap_or(256 * 1024);
    // A peer of the mesh carries the streams of many clients: an upload that nobody reads must not
    // stop the others. A client's own uploads may wait for each other.
    let connection_window = options
        .initial_connection_window
        .unwrap_or(match is_mesh_peer {
            true => stream_window.saturating_mul(MAX_STREAMS),
            false => 1024 * 1024,
        })
        .min(MAX_WINDOW);
    let mut builder = Builder::new();

    // The codec's own limit is kept for streams that are reset because of the peer's errors
    // (MadeYouReset).
    builder
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .data_frame_budget(small_frames(stream_window, connection_window))
        .max_concurrent_streams(options.max_concurrent_streams.unwrap_or(MAX_STREAMS))
        .max_header_list_size(http.max_head_bytes)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(match is_mesh_peer {
            true => MAX_PENDING_RESETS_OF_MESH,
            false => MAX_PENDING_RESETS,
        })
        .max_send_buffer_size(MAX_SEND_BUFFER);

    builder
}

/// A connection under way.
struct Session<S> {
    worker: Rc<Worker>,
    conn: Rc<Downstream>,
    http: Arc<HttpConnectionManager>,
    connection: Connection<Metered<S>, Piece>,
    budget: Rc<SendBudget>,
    streams: Rc<Streams>,
    alarm: Rc<Alarm>,
    /// It was told to go, and takes no more streams than those that cross the GOAWAY.
    is_draining: bool,
}

/// Why a connection takes no more streams.
enum Close {
    /// It has ended.
    Ended,
    /// Its time to drain is over.
    Overdue,
    /// The peer floods it.
    Flood(&'static str),
}

/// Serves until the connection ends.
pub async fn serve<S>(worker: Rc<Worker>, conn: Rc<Downstream>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let view = worker.view_of(&conn);
    let Some(http) = view.http.clone() else {
        return;
    };
    let alarm = Rc::new(Alarm::default());
    let handshake = builder(&http, conn.info.is_mesh_peer())
        .handshake::<_, Piece>(Metered::downstream(stream, alarm.clone()));
    let limit = http
        .request_headers_timeout
        .or(http.idle_timeout)
        .unwrap_or(Duration::from_secs(60));

    let Ok(Ok(connection)) = tokio::time::timeout(limit, handshake).await else {
        return;
    };
    let mut session = Session {
        budget: SendBudget::new(worker.send_budget.clone()),
        worker,
        conn,
        http,
        connection,
        streams: Rc::new(Streams::new()),
        alarm,
        is_draining: false,
    };

    let close = session.accept_streams().await;
    session.close(close).await;
}

impl<S> Session<S>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    /// Takes streams until the connection ends or must be closed.
    async fn accept_streams(&mut self) -> Close {
        let http = self.http.clone();
        let options = &http.http2;
        let ping_timeout = options.keepalive_timeout.unwrap_or(PING_TIMEOUT);
        let ping = options
            .keepalive_interval
            .and_then(|interval| Some((interval, self.connection.ping_pong()?)));
        let mut keepalive = pin!(keep_alive(ping, ping_timeout));

        let longest = http.max_connection_duration;
        let expires = longest.map(|longest| Instant::from_std(self.conn.since) + longest);
        let mut expired = pin!(sleep_until(expires));
        let drain_time = self.worker.common.drain_time;

        loop {
            // A peer that was told to go and does not answer has the idle time once more.
            let limit = http
                .idle_timeout
                .or(self.is_draining.then_some(LONGEST_GOODBYE));
            let idle = idle(&self.streams, limit);

            tokio::select! {
                biased;
                accepted = self.connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        if let Err(flood) = self.start(request, respond) {
                            return Close::Flood(flood);
                        }
                    }
                    Some(Err(error)) => {
                        self.note_error(&error);
                        return Close::Ended;
                    }
                    None => return Close::Ended,
                },
                () = self.conn.draining(), if !self.is_draining => self.drain(),
                () = self.conn.overdue(drain_time) => return Close::Overdue,
                () = &mut expired, if !self.is_draining => self.drain(),
                () = idle => {
                    if self.is_draining {
                        return Close::Ended;
                    }
                    self.drain();
                }
                () = poll_fn(|_| self.alarm.poll()) => {
                    return Close::Flood("flood of control frames");
                }
                () = &mut keepalive => return Close::Ended,
            }
        }
    }

    /// Tells the peer to open no more streams: RFC 9113 §6.8.
    fn drain(&mut self) {
        self.is_draining = true;
        self.connection.graceful_shutdown();
    }

    /// Serves a stream in a task of its own. `Err`: the peer opens streams only to reset them.
    fn start(
        &mut self,
        request: http::Request<h2::RecvStream>,
        respond: h2::server::SendResponse<Piece>,
    ) -> Result<(), &'static str> {
        let (streams, conn) = (self.streams.clone(), self.conn.clone());
        let budget = self.budget.clone();
        let responder = H2Responder {
            respond,
            budget,
            wants_continue: false,
        };
        streams.active.set(streams.active.get() + 1);
        streams.resets.borrow_mut().open(std::time::Instant::now());
        if streams.resets.borrow().is_flood() {
            if !conn.info.is_mesh_peer() {
                return Err("flood of resets");
            }
            // A peer of the mesh carries the streams of many clients: theirs end in order, and the
            // peer needs another connection for the next.
            if !self.is_draining {
                tracing::debug!(conn = conn.id, "a peer of the mesh floods, and is drained");
                self.drain();
            }
        }

        conn.requests.set(conn.requests.get() + 1);
        let guard = ActiveGuard(streams);
        let worker = self.worker.clone();
        let limit = u64::from(self.http.max_requests_per_connection);
        if !self.is_draining && limit > 0 && conn.requests.get() >= limit {
            self.drain();
        }

        tokio::task::spawn_local(async move {
            let since = Instant::now();
            let ended = serve_stream(worker, conn, request, responder).await;
            if ended == Ended::Gone && since.elapsed() < ABANDONED_WITHIN {
                guard.0.resets.borrow_mut().abandon();
            }
        });

        Ok(())
    }

    /// Counts an end that the peer's breach of the protocol has caused.
    fn note_error(&self, error: &h2::Error) {
        if !error.is_io() && !error.is_remote() {
            let cause = Cause::Protocol("HTTP/2 connection error".into());
            let flag = ResponseFlag::DownstreamProtocolError;
            self.worker.causes.refusal(&cause, Some(flag));
        }
        tracing::debug!(%error, conn = self.conn.id, "downstream HTTP/2 connection ended");
    }

    /// Says goodbye, as far as the peer listens.
    async fn close(mut self, close: Close) {
        let reason = match close {
            Close::Ended => return,
            Close::Flood(flood) => {
                tracing::debug!(conn = self.conn.id, flood);
                let flag = ResponseFlag::OverloadManagerTerminated;
                let cause = Cause::Overload(flood);
                self.worker.causes.refusal(&cause, Some(flag));
                h2::Reason::ENHANCE_YOUR_CALM
            }
            Close::Overdue => {
                // Its streams end by themselves, and say why in their logs.
                let last = self.streams.all_ended();
                let connection = &mut self.connection;
                tokio::select! {
                    biased;
                    _ = tokio::time::timeout(GOODBYE, last) => {}
                    () = async { while let Some(Ok(_)) = connection.accept().await {} } => {
                        return;
                    }
                }
                h2::Reason::NO_ERROR
            }
        };

        self.connection.abrupt_shutdown(reason);
        let _ = tokio::time::timeout(GOODBYE, self.connection.accept()).await;
    }
}

/// Resolves when no stream was open for this long. A stream that ends starts the time anew.
async fn idle(streams: &Streams, limit: Option<Duration>) {
    loop {
        let ended = streams.ended.notified();
        match (streams.active.get(), limit) {
            (0, Some(limit)) => {
                if tokio::time::timeout(limit, ended).await.is_err() {
                    return;
                }
            }
            _ => ended.await,
        }
    }
}

async fn serve_stream(
    worker: Rc<Worker>,
    conn: Rc<Downstream>,
    request: http::Request<h2::RecvStream>,
    mut responder: H2Responder,
) -> Ended {
    let view = worker.view_of(&conn);
    let limit = view
        .http
        .as_ref()
        .map_or(0, |http| http.max_head_fields as usize);

    let (parts, body) = request.into_parts();
    let mut head: RequestHead = worker.take_head();
    let expectation = heads::request_from(&parts, limit, &mut head);
    responder.wants_continue = expectation == Ok(Expectation::Continue) && !body.is_end_stream();
    let responder = Responder::H2(responder);
    let ended = if let Err(bad) = expectation {
        let cause = Cause::Protocol(bad.details.into());
        let reply = LocalReply::new(bad.status, reason(bad.status), bad.details, cause);
        let reply = with_codec_flag(reply);
        exchange::reply_only(&worker, &conn, view, &mut head, responder, reply, None).await;
        Ended::Whole
    } else {
        drop(parts);
        exchange::serve(Incoming {
            worker: &worker,
            conn: &conn,
            view,
            head: &mut head,
            upgrade: false,
            body: BodyIn::from_h2(body),
            responder,
            begun: None,
        })
        .await
    };

    worker.give_head(head);

    ended
}
