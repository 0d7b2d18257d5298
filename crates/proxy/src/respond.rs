//! The way back to the downstream, whichever protocol it speaks.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use meltemi_filters::head::{Known, ResponseHead};
use meltemi_filters::{LocalReply, ResponseFlag};
use meltemi_net::Buffers;

use crate::body::{BodyIn, BodyOut};
use crate::downstream::Downstream;
use crate::http1::body::{BodyReader, DRAIN_BYTES};
use crate::http1::codec;
use crate::http2::heads;
use crate::http2::send::{BodySender, Piece, SendBudget};
use crate::io::Io;

/// Where a response goes.
#[derive(Debug)]
pub enum Responder<'a> {
    /// To an HTTP/1.1 connection.
    H1(H1Responder<'a>),
    /// To an HTTP/2 stream.
    H2(H2Responder),
}

/// See [`Responder::H1`].
#[derive(Debug)]
pub struct H1Responder<'a> {
    pub io: &'a Io,
    /// Facts about the connection.
    pub conn: &'a Downstream,
    /// Whether another request may follow; a response can decide otherwise.
    pub keep_alive: &'a Cell<bool>,
    /// How much of the request's body has been read.
    pub request_body: &'a BodyReader,
    /// The client still waits for a 100.
    pub wants_continue: &'a Cell<bool>,
    /// The request came with HTTP/1.0.
    pub http10: bool,
    /// Spare buffers.
    pub buffers: &'a Buffers,
}

/// See [`Responder::H2`].
#[derive(Debug)]
pub struct H2Responder {
    pub respond: h2::server::SendResponse<Piece>,
    /// Of the stream's connection.
    pub budget: Rc<SendBudget>,
    /// The client still waits for a 100.
    pub wants_continue: bool,
}

/// The body that comes after a response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// Nothing, and `content-length` is whatever the head says (HEAD, 204, 304).
    Nothing,
    /// An empty body.
    Empty,
    /// A body; its length stands in the head or is not known.
    Body,
}

impl BodyFraming {
    /// By the client's method and the status that the client gets. `is_empty`: there is no body.
    pub fn of(is_head: bool, status: u16, is_empty: bool) -> Self {
        match is_empty {
            _ if is_head || matches!(status, 204 | 304) => Self::Nothing,
            true => Self::Empty,
            false => Self::Body,
        }
    }
}

impl<'a> Responder<'a> {
    /// Prepares the head; it goes out with the first piece of the body, or when the body is flushed
    /// or finished.
    pub fn start(
        &mut self,
        head: &mut ResponseHead,
        framing: BodyFraming,
    ) -> io::Result<BodyOut<'a>> {
        match self {
            Self::H1(to) => {
                if to.wants_continue.replace(false) {
                    // RFC 9110 §10.1.1: the client may send its body now or leave it out, so its
                    // next bytes could be a body or a request.
                    to.keep_alive.set(false);
                }

                // A client that is told in time does not send its next request behind the rest of a
                // long body. Envoy: the response to a request that has not ended.
                let is_long = !to.request_body.has_at_most(DRAIN_BYTES as u64);
                if is_long || to.conn.is_draining() {
                    to.keep_alive.set(false);
                }
                codec::strip_hop_by_hop(head.fields_mut());
                if framing == BodyFraming::Empty {
                    head.fields_mut().set("content-length", b"0");
                }
                let unknown =
                    framing == BodyFraming::Body && !head.fields().has(Known::ContentLength);
                if unknown && to.http10 {
                    to.keep_alive.set(false);
                }
                let chunked = unknown && !to.http10;
                let mut out = to.buffers.take();
                head.write_h1(&mut out);
                if to.http10 && to.keep_alive.get() {
                    out.extend_from_slice(b"connection: keep-alive\r\n");
                }
                codec::end_head(&mut out, chunked, !to.keep_alive.get());
                Ok(BodyOut::H1 {
                    io: to.io,
                    head: out,
                    chunked,
                    is_bodyless: framing != BodyFraming::Body,
                })
            }
            Self::H2(to) => {
                let end = framing != BodyFraming::Body;
                let sent = to.respond.send_response(heads::response_to(head), end);
                let stream =
                    sent.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
                Ok(if end {
                    BodyOut::Discard
                } else {
                    BodyOut::H2(BodySender::new(stream, to.budget.clone()))
                })
            }
        }
    }

    /// Tells a client of HTTP/2 that waits for it to send its body. A client of HTTP/1.1 is told when
    /// its body is first read, see [`BodyIn::next`].
    pub fn invite_body(&mut self) {
        if let Self::H2(to) = self
            && std::mem::take(&mut to.wants_continue)
        {
            let mut interim = http::Response::new(());
            *interim.status_mut() = http::StatusCode::CONTINUE;
            // Fails only when the stream is gone, which the reader of the body reports.
            let _ = to.respond.send_informational(interim);
        }
    }

    /// Sends a 101 and leaves the connection to its new protocol.
    pub async fn switch(&mut self, head: &ResponseHead) -> io::Result<()> {
        if let Self::H1(to) = self {
            to.keep_alive.set(false);
            let mut out = to.buffers.take();
            head.write_h1(&mut out);
            out.extend_from_slice(b"connection: upgrade\r\n\r\n");
            to.io.write_all([&out, b"", b""]).await?;
            to.buffers.give(out);
        }
        Ok(())
    }

    /// Whether the downstream has reset the stream. HTTP/1.1 is watched through its body.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(_) => Poll::Pending,
            Self::H2(to) => to.respond.poll_reset(cx).map(|_| ()),
        }
    }

    /// Resolves when nobody waits for the response any more: the stream was reset, or the
    /// connection ended after a whole request. Cancellation-safe.
    pub async fn left(&mut self, body: &mut BodyIn<'_>) {
        tokio::select! {
            biased;
            () = body.gone() => {}
            () = poll_fn(|cx| self.poll_gone(cx)) => {}
        }
    }

    /// The connection cannot serve another request after this one.
    pub fn close_after(&self) {
        if let Self::H1(to) = self {
            to.keep_alive.set(false);
        }
    }
}

/// Adds the flag of a client that broke its protocol. As in Envoy, requests that the codec takes and
/// the connection manager refuses have none.
pub fn with_codec_flag(reply: LocalReply) -> LocalReply {
    let is_of_codec = ["http1.", "http2."]
        .iter()
        .any(|codec| reply.details.starts_with(codec));
    match is_of_codec {
        true => reply.flagged(ResponseFlag::DownstreamProtocolError),
        false => reply,
    }
}
