//! The connection or stream that carries one request to an endpoint.

use std::rc::Rc;
use std::time::{Duration, Instant};

use h2::client::ResponseFuture;
use meltemi_filters::head::{HttpVersion, Known, RequestHead};
use meltemi_net::Buffers;

use super::acquire::{ConnectRequest, NotAcquired, acquire};
use super::cluster::WorkerHost;
use super::pool::{Acquired, LaneKey, PooledH1, UpstreamFacts};
use super::response::ResponseSource;
use crate::body::BodyOut;
use crate::http1::codec::end_head;
use crate::http2::client::ActiveStream;
use crate::http2::heads;
use crate::http2::send::BodySender;
use crate::worker::Worker;

/// A connection of the request's own, or a stream of a shared one.
#[derive(Debug)]
pub enum Carrier {
    /// HTTP/1.1: nothing has been sent yet.
    H1 {
        /// The connection.
        pooled: Box<PooledH1>,
        /// The lane that it goes back to.
        lane: LaneKey,
        /// Whether it carried another request before.
        reused: bool,
    },
    /// HTTP/2: the head has been sent.
    H2 {
        /// The response to come.
        response: ResponseFuture,
        /// The way for the body; `None` once [`Carrier::split`] has taken it.
        send: Option<BodySender>,
        /// The stream's place on its connection, held to its end.
        _active: ActiveStream,
        /// Facts about the connection.
        facts: UpstreamFacts,
    },
}

/// Why no connection or stream could be had. Nothing of the request was sent.
#[derive(Debug)]
pub enum NotOpened {
    /// There is no connection.
    Acquire(NotAcquired),
    /// The head cannot be written as HTTP/2; the details say why.
    Head(&'static str),
    /// The connection refused the stream.
    Stream(h2::Error),
}

impl Carrier {
    /// Gets a connection from the pool or a new one; on HTTP/2 it also opens a stream with this
    /// head, which ends there if the request is `bodyless`. Cancellation-safe.
    pub async fn open(
        worker: &Rc<Worker>,
        connect: &ConnectRequest<'_>,
        head: &RequestHead,
        bodyless: bool,
    ) -> Result<Self, NotOpened> {
        loop {
            let acquired = acquire(worker, connect).await;
            let shared = match acquired.map_err(NotOpened::Acquire)? {
                Acquired::H1(pooled, lane, reused) => {
                    return Ok(Self::H1 {
                        pooled,
                        lane,
                        reused,
                    });
                }
                Acquired::H2(shared) => shared,
            };

            let request = heads::request_to(head).map_err(|bad| NotOpened::Head(bad.details))?;
            match shared.connection.open(request, bodyless).await {
                Ok((response, send, active)) => {
                    return Ok(Self::H2 {
                        response,
                        send: Some(send),
                        _active: active,
                        facts: shared.facts.clone(),
                    });
                }
                // The connection has said goodbye since its last request. Nothing was sent and the
                // endpoint is not to blame; the pool no longer returns this connection.
                Err(_) if shared.connection.is_spent() => {}
                Err(error) => return Err(NotOpened::Stream(error)),
            }
        }
    }

    /// The protocol that it speaks.
    pub fn version(&self) -> HttpVersion {
        match self {
            Self::H1 { .. } => HttpVersion::Http11,
            Self::H2 { .. } => HttpVersion::Http2,
        }
    }

    /// Facts about the connection.
    pub fn facts(&self) -> &UpstreamFacts {
        match self {
            Self::H1 { pooled, .. } => &pooled.facts,
            Self::H2 { facts, .. } => facts,
        }
    }

    /// Whether the connection carried another request before, so that its peer may have closed it
    /// meanwhile.
    pub fn is_reused(&self) -> bool {
        matches!(self, Self::H1 { reused: true, .. })
    }

    /// Separates the way up from the way down. On HTTP/1.1 the head waits in the way up until the
    /// first piece of the body, or its end, is sent. Call this once.
    pub fn split(
        &mut self,
        head: &RequestHead,
        bodyless: bool,
        upgrade: bool,
        buffers: &Buffers,
    ) -> (ResponseSource<'_>, BodyOut<'_>) {
        match self {
            Self::H1 { pooled, .. } => {
                let mut out = buffers.take();
                let chunked = write_head(head, bodyless, upgrade, &mut out);
                let io = &pooled.connection.io;
                let input = &mut pooled.connection.input;
                let up = BodyOut::H1 {
                    is_bodyless: false,
                    io,
                    head: out,
                    chunked,
                };
                (ResponseSource::H1 { io, input }, up)
            }
            Self::H2 { response, send, .. } => {
                let up = match send.take() {
                    Some(send) if !bodyless => BodyOut::H2(send),
                    _ => BodyOut::Discard,
                };
                (ResponseSource::H2 { response }, up)
            }
        }
    }

    /// Gives the connection back to its pool after a whole exchange that lets another one follow.
    pub fn give_back(self, host: &WorkerHost) {
        if let Self::H1 { pooled, lane, .. } = self
            // Bytes after a response belong to no request of ours: RFC 9112 §9.2.
            && pooled.connection.input.is_empty()
        {
            host.pool.give_h1(lane, *pooled, Instant::now());
        }
    }
}

/// A pooled connection that ends so soon after the request was closed before the request arrived.
/// One that ends later may have ended because of the request.
const STALE: Duration = Duration::from_millis(200);

/// Whether a request may be sent again after its pooled connection ended without a byte of an
/// answer, `after` the last byte was sent. RFC 9110 §9.2.2 allows it for every idempotent method;
/// an application whose PUT or DELETE is not idempotent would still act twice, so only safe methods
/// are sent again.
pub fn may_resend(method: &str, after: Duration) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE") && after < STALE
}

/// Writes a request's head for HTTP/1.1, to its end; whether the body goes in chunks.
fn write_head(head: &RequestHead, bodyless: bool, upgrade: bool, out: &mut Vec<u8>) -> bool {
    head.write_h1(out);
    let sized = head.fields().has(Known::ContentLength);
    let chunked = !bodyless && !sized;
    if upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
    } else if bodyless && !sized && matches!(head.method(), "POST" | "PUT" | "PATCH") {
        // RFC 9110 §8.6: a method that usually has a body says so when it has none.
        out.extend_from_slice(b"content-length: 0\r\n");
    }

    end_head(out, chunked, false);

    chunked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_requests_are_sent_again_and_only_at_once() {
        let (soon, late) = (Duration::from_millis(199), Duration::from_millis(200));
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert!(may_resend(method, soon), "{method}");
            assert!(!may_resend(method, late), "{method}");
        }
        for method in ["PUT", "DELETE", "POST", "PATCH", "get"] {
            assert!(!may_resend(method, Duration::ZERO), "{method}");
        }
    }
}
