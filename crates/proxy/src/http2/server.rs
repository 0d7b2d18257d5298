//! Serves one downstream HTTP/2 connection; every stream is a task of its own.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use h2::server::Builder;
use meltemi_filters::head::RequestHead;
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::http::HttpConnectionManager;
use tokio::sync::Notify;

use super::heads;
use crate::body::BodyIn;
use crate::downstream::Downstream;
use crate::exchange::{self, Exchange};
use crate::respond::Responder;
use crate::worker::Worker;

/// Streams at a time where configuration says nothing. Envoy's own default is 2^31-1, which lets one peer hold
/// everything; its edge guidance is 100.
const MAX_STREAMS: u32 = 100;
/// Streams that the peer opened and reset before we looked at them. Rapid reset: beyond it the connection ends with
/// ENHANCE_YOUR_CALM.
const MAX_PENDING_RESETS: usize = 50;
/// Streams that we reset because of the peer's errors (MadeYouReset).
const MAX_LOCAL_ERROR_RESETS: usize = 256;
/// Unsent bytes of one stream.
const MAX_SEND_BUFFER: usize = 256 * 1024;

/// Counts the streams of a connection.
struct Streams {
    active: Cell<usize>,
    ended: Notify,
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
    let mut builder = Builder::new();
    builder
        .initial_window_size(options.initial_stream_window.unwrap_or(256 * 1024))
        .initial_connection_window_size(options.initial_connection_window.unwrap_or(1024 * 1024))
        .max_concurrent_streams(options.max_concurrent_streams.unwrap_or(MAX_STREAMS))
        .max_header_list_size(http.max_head_bytes)
        .max_concurrent_reset_streams(MAX_PENDING_RESETS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .max_send_buffer_size(MAX_SEND_BUFFER);
    builder
}

/// Serves until the connection ends.
pub async fn serve<S>(worker: Rc<Worker>, conn: Rc<Downstream>, stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let view = conn.view(&worker);
    let Some(http) = view.http.clone() else { return };
    let handshake = builder(&http).handshake(stream);
    let limit = http.request_headers_timeout.or(http.idle_timeout).unwrap_or(Duration::from_secs(60));
    let Ok(Ok(mut connection)) = tokio::time::timeout(limit, handshake).await else { return };
    let streams = Rc::new(Streams { active: Cell::new(0), ended: Notify::new() });
    let mut ping = http.http2.keepalive_interval.and_then(|interval| Some((interval, connection.ping_pong()?)));
    let ping_timeout = http.http2.keepalive_timeout.unwrap_or(Duration::from_secs(20));
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
    loop {
        let idle = async {
            // Idle means: no stream for so long. A stream that ends starts the time anew.
            loop {
                let ended = streams.ended.notified();
                match (streams.active.get(), http.idle_timeout) {
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
                    conn.requests.set(conn.requests.get() + 1);
                    let limit = http.max_requests_per_connection;
                    if !draining && limit > 0 && conn.requests.get() >= u64::from(limit) {
                        draining = true;
                        connection.graceful_shutdown();
                    }
                    let guard = ActiveGuard(streams.clone());
                    let (worker, conn) = (worker.clone(), conn.clone());
                    tokio::task::spawn_local(async move {
                        let _guard = guard;
                        one(worker, conn, request, respond).await;
                    });
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, conn = conn.id, "downstream HTTP/2 connection ended");
                    return;
                }
                None => return,
            },
            () = conn.draining(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = idle, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut keepalive => return,
        }
    }
}

async fn one(
    worker: Rc<Worker>,
    conn: Rc<Downstream>,
    request: http::Request<h2::RecvStream>,
    respond: h2::server::SendResponse<bytes::Bytes>,
) {
    let view = conn.view(&worker);
    let (parts, body) = request.into_parts();
    let mut head: RequestHead = worker.take_head();
    let responder = Responder::H2(respond);
    if let Err(bad) = heads::request_from(&parts, &mut head) {
        let reply = LocalReply::new(400, "Bad Request", bad.0, Cause::Protocol(bad.0.into()))
            .flagged(ResponseFlag::DownstreamProtocolError);
        exchange::reply_only(&worker, &conn, view, &mut head, responder, reply).await;
    } else {
        drop(parts);
        exchange::serve(Exchange {
            worker: &worker,
            conn: &conn,
            view,
            head: &mut head,
            upgrade: false,
            body: BodyIn::from_h2(body),
            responder,
        })
        .await;
    }
    worker.give_head(head);
}
