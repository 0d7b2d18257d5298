//! Serves one downstream HTTP/2 connection; every stream is a task of its own.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use h2::server::Builder;
use meltemi_filters::head::{RequestHead, reason};
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::http::HttpConnectionManager;
use tokio::sync::Notify;

use super::meter::{Alarm, Metered};
use super::{REMEMBERED_RESETS, heads, small_frames};
use crate::body::BodyIn;
use crate::downstream::Downstream;
use crate::exchange::state::Ended;
use crate::exchange::{self, Incoming};
use crate::respond::Responder;
use crate::worker::Worker;

/// Streams at a time where configuration says nothing. Envoy's own default is 2^31-1, which lets
/// one peer hold everything; its edge guidance is 100.
const MAX_STREAMS: u32 = 100;
/// Streams that the peer opened and reset before we looked at them. Rapid reset: beyond it the
/// connection ends with ENHANCE_YOUR_CALM.
const MAX_PENDING_RESETS: usize = 50;
/// Streams that the peer opened and reset soon after, while most of its streams end so. Source:
/// Envoy `premature_reset_total_stream_count`; lower, since nobody honest comes near it.
const MAX_ABANDONED: usize = 200;
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
    opened: Cell<usize>,
    abandoned: Cell<usize>,
    ended: Notify,
}

impl Streams {
    /// Whether the peer opens streams only to reset them (CVE-2023-44487).
    fn is_flood(&self) -> bool {
        let abandoned = self.abandoned.get();
        abandoned > MAX_ABANDONED && abandoned * 2 > self.opened.get()
    }
}

struct ActiveGuard(Rc<Streams>);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.ended.notify_one();
    }
}

fn builder(http: &HttpConnectionManager) -> Builder {
    let options = &http.http2;
    let stream_window = options.initial_stream_window.unwrap_or(256 * 1024);
    let connection_window = options.initial_connection_window.unwrap_or(1024 * 1024);
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
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_send_buffer_size(MAX_SEND_BUFFER);

    builder
}

/// Serves until the connection ends.
pub async fn serve<S>(worker: Rc<Worker>, conn: Rc<Downstream>, stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let view = worker.view_of(&conn);
    let Some(http) = view.http.clone() else {
        return;
    };
    let alarm = Rc::new(Alarm::default());
    let handshake = builder(&http).handshake(Metered::downstream(stream, alarm.clone()));
    let limit = http
        .request_headers_timeout
        .or(http.idle_timeout)
        .unwrap_or(Duration::from_secs(60));

    let Ok(Ok(mut connection)) = tokio::time::timeout(limit, handshake).await else {
        return;
    };
    let streams = Rc::new(Streams {
        active: Cell::new(0),
        opened: Cell::new(0),
        abandoned: Cell::new(0),
        ended: Notify::new(),
    });

    let mut ping = http
        .http2
        .keepalive_interval
        .and_then(|interval| Some((interval, connection.ping_pong()?)));

    let ping_timeout = http
        .http2
        .keepalive_timeout
        .unwrap_or(Duration::from_secs(20));

    let mut keepalive = std::pin::pin!(async move {
        match &mut ping {
            None => std::future::pending::<()>().await,
            Some((interval, ping)) => loop {
                tokio::time::sleep(*interval).await;
                match tokio::time::timeout(ping_timeout, ping.ping(h2::Ping::opaque())).await {
                    Ok(Ok(_)) => {}
                    _ => return,
                }
            },
        }
    });

    let mut draining = false;
    let expires = http
        .max_connection_duration
        .map(|longest| tokio::time::Instant::from_std(conn.since) + longest);
    let mut expired = std::pin::pin!(async move {
        match expires {
            Some(expires) => tokio::time::sleep_until(expires).await,
            None => std::future::pending().await,
        }
    });

    let drain_time = worker.common.drain_time;
    let flood = loop {
        // A peer that was asked to go and does not even answer has the idle time once more.
        let limit = http.idle_timeout.or(draining.then_some(LONGEST_GOODBYE));
        let idle = async {
            // Idle means: no stream for so long. A stream that ends starts the time anew.
            loop {
                let ended = streams.ended.notified();
                match (streams.active.get(), limit) {
                    (0, Some(limit)) => match tokio::time::timeout(limit, ended).await {
                        Ok(()) => {}
                        Err(_) => return,
                    },
                    _ => ended.await,
                }
            }
        };

        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    streams.active.set(streams.active.get() + 1);
                    streams.opened.set(streams.opened.get() + 1);
                    if streams.is_flood() {
                        break Some("flood of resets");
                    }
                    conn.requests.set(conn.requests.get() + 1);
                    let limit = http.max_requests_per_connection;
                    if !draining && limit > 0 && conn.requests.get() >= u64::from(limit) {
                        draining = true;
                        connection.graceful_shutdown();
                    }
                    let guard = ActiveGuard(streams.clone());
                    let (worker, conn) = (worker.clone(), conn.clone());
                    tokio::task::spawn_local(async move {
                        let since = Instant::now();
                        let ended = one(worker, conn, request, respond).await;
                        if ended == Ended::Gone && since.elapsed() < ABANDONED_WITHIN {
                            guard.0.abandoned.set(guard.0.abandoned.get() + 1);
                        }
                    });
                }
                Some(Err(error)) => {
                    if !error.is_io() && !error.is_remote() {
                        let cause = Cause::Protocol("HTTP/2 connection error".into());
                        worker.causes.refusal(&cause, Some(ResponseFlag::DownstreamProtocolError));
                    }
                    tracing::debug!(%error, conn = conn.id, "downstream HTTP/2 connection ended");
                    return;
                }
                None => return,
            },
            () = conn.draining(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = conn.overdue(drain_time) => break None,
            () = &mut expired, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = idle => {
                if draining {
                    return;
                }
                draining = true;
                connection.graceful_shutdown();
            }
            () = std::future::poll_fn(|_| alarm.poll()) => break Some("flood of control frames"),
            () = &mut keepalive => return,
        }
    };

    let reason = match flood {
        Some(flood) => {
            tracing::debug!(conn = conn.id, flood);
            worker.causes.refusal(
                &Cause::Overload(flood),
                Some(ResponseFlag::OverloadManagerTerminated),
            );
            h2::Reason::ENHANCE_YOUR_CALM
        }
        None => {
            // Its streams end by themselves, and say why in their logs.
            let last = async {
                while streams.active.get() > 0 {
                    streams.ended.notified().await;
                }
            };

            tokio::select! {
                biased;
                _ = tokio::time::timeout(GOODBYE, last) => {}
                () = async { while let Some(Ok(_)) = connection.accept().await {} } => return,
            }

            h2::Reason::NO_ERROR
        }
    };

    connection.abrupt_shutdown(reason);

    // Says goodbye, as far as the peer listens.
    let _ = tokio::time::timeout(GOODBYE, connection.accept()).await;
}

async fn one(
    worker: Rc<Worker>,
    conn: Rc<Downstream>,
    request: http::Request<h2::RecvStream>,
    respond: h2::server::SendResponse<bytes::Bytes>,
) -> Ended {
    let view = worker.view_of(&conn);
    let limit = view
        .http
        .as_ref()
        .map_or(0, |http| http.max_head_fields as usize);

    let (parts, body) = request.into_parts();
    let mut head: RequestHead = worker.take_head();
    let responder = Responder::H2(respond);
    let ended = if let Err(bad) = heads::request_from(&parts, limit, &mut head) {
        let reply = LocalReply::new(
            bad.status,
            reason(bad.status),
            bad.details,
            Cause::Protocol(bad.details.into()),
        )
        .flagged(ResponseFlag::DownstreamProtocolError);
        exchange::reply_only(&worker, &conn, view, &mut head, responder, reply).await;
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
        })
        .await
    };

    worker.give_head(head);

    ended
}
