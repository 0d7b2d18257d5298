//! The upstream half of an attempt: the request's head and body out, the response's head in.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use meltemi_filters::grpc::MessageCount;
use meltemi_filters::head::{Known, RequestHead, ResponseHead};

use crate::body::{BodyIn, BodyOut, Data, PumpError, Tee, pump};
use crate::http1::client::{self, ReadError};
use crate::http1::codec::{Framing, Limits, ResponseTerms, end_head};
use crate::http1::input::Input;
use crate::http2::heads;
use crate::io::Io;

/// What the upstream half is, once the request is on its way.
pub(super) enum Upstream<'u> {
    H1 {
        io: &'u Io,
        input: &'u mut Input,
    },
    H2 {
        response: h2::client::ResponseFuture,
    },
}

/// A response head, and where its body comes from.
pub(super) struct Arrived {
    pub terms: ResponseTerms,
    pub stream: Option<h2::RecvStream>,
}

/// Why no head came.
pub(super) enum NoResponse {
    H1(ReadError),
    H2(h2::Error),
    BadHead(&'static str),
}

impl Upstream<'_> {
    /// See [`Io::sent`]. A stream's head has been sent before there was an [`Upstream`].
    pub fn sent(&self) -> Option<u64> {
        match self {
            Self::H1 { io, .. } => Some(io.sent()),
            Self::H2 { .. } => None,
        }
    }

    /// The final head.
    pub async fn head(
        &mut self,
        method: &str,
        limits: &Limits,
        head: &mut ResponseHead,
    ) -> Result<Arrived, NoResponse> {
        match self {
            Self::H1 { io, input } => {
                let terms = client::read_head(io, input, method, limits, head)
                    .await
                    .map_err(NoResponse::H1)?;
                Ok(Arrived {
                    terms,
                    stream: None,
                })
            }
            Self::H2 { response } => {
                let (parts, stream) = response.await.map_err(NoResponse::H2)?.into_parts();
                heads::response_from(&parts, limits.fields, head)
                    .map_err(|bad| NoResponse::BadHead(bad.details))?;
                let framing = if stream.is_end_stream() {
                    Framing::Empty
                } else {
                    Framing::UntilClose
                };

                Ok(Arrived {
                    terms: ResponseTerms {
                        framing,
                        keep_alive: true,
                    },
                    stream: Some(stream),
                })
            }
        }
    }
}

/// Whether this attempt has nothing to send but a head.
pub(super) fn is_bodyless(body: &BodyIn<'_>, tee: Option<&RefCell<Tee>>) -> bool {
    body.is_empty() && tee.is_none_or(|tee| tee.borrow().bytes.is_empty())
}

/// Sends what was kept of the body, then the rest of it.
pub(super) async fn send_body(
    body: &mut BodyIn<'_>,
    to: &mut BodyOut<'_>,
    tee: Option<&RefCell<Tee>>,
    received: &Cell<u64>,
    messages: Option<&Cell<MessageCount>>,
) -> Result<(), PumpError> {
    let kept = tee
        .map(|tee| Bytes::copy_from_slice(&tee.borrow().bytes))
        .filter(|kept| !kept.is_empty());
    if let Some(kept) = kept {
        to.data(Data::Owned(kept)).await.map_err(PumpError::Write)?;
    }
    if tee.is_some_and(|tee| tee.borrow().whole) || matches!(body, BodyIn::Empty) {
        return to.finish(None).await.map_err(PumpError::Write);
    }

    pump(body, to, received, messages, tee, |_| {}).await
}

/// Writes a request's head for HTTP/1.1, to its end; whether the body goes in chunks.
pub(super) fn write_head(
    head: &RequestHead,
    no_body: bool,
    upgrade: bool,
    out: &mut Vec<u8>,
) -> bool {
    head.write_h1(out);
    let sized = head.fields().has(Known::ContentLength);
    let chunked = !no_body && !sized;
    if upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
    } else if no_body && !sized && matches!(head.method(), "POST" | "PUT" | "PATCH") {
        // RFC 9110 §8.6: a method that usually has a body says so when it has none.
        out.extend_from_slice(b"content-length: 0\r\n");
    }

    end_head(out, chunked, false);

    chunked
}
