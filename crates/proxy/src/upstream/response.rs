//! The response's side of a [`Carrier`](super::carrier::Carrier): its head, and where its body
//! comes from.

use std::cell::Cell;
use std::future::poll_fn;

use meltemi_filters::head::ResponseHead;

use crate::body::{BodyIn, H1BodyIn, H2BodyIn};
use crate::http1::body::BodyReader;
use crate::http1::client::{self, ReadError};
use crate::http1::codec::{Framing, Limits, ResponseTerms};
use crate::http1::input::Input;
use crate::http2::heads;
use crate::io::Io;

/// Where a response comes from, once its request is on the way.
#[derive(Debug)]
pub enum ResponseSource<'u> {
    /// An HTTP/1.1 connection.
    H1 {
        io: &'u Io,
        /// Its unread bytes.
        input: &'u mut Input,
    },
    /// An HTTP/2 stream.
    H2 {
        /// Resolves with the head.
        response: &'u mut h2::client::ResponseFuture,
    },
}

/// A final response head has arrived.
#[derive(Debug)]
pub struct ResponseStart {
    /// How the body is delimited, and whether the connection may serve another request.
    pub terms: ResponseTerms,
    stream: Option<h2::RecvStream>,
}

/// Why no head came.
#[derive(Debug, thiserror::Error)]
pub enum NoResponse {
    /// An HTTP/1.1 connection brought none.
    #[error("{0}")]
    H1(ReadError),
    /// An HTTP/2 stream brought none.
    #[error("{0}")]
    H2(h2::Error),
    /// An HTTP/2 head breaks the rules.
    #[error("malformed response: {0}")]
    BadHead(&'static str),
}

impl<'u> ResponseSource<'u> {
    /// See [`Io::sent`]; `None` for a stream, whose head has been sent before.
    pub fn sent(&self) -> Option<u64> {
        match self {
            Self::H1 { io, .. } => Some(io.sent()),
            Self::H2 { .. } => None,
        }
    }

    /// Reads the final head.
    pub async fn head(
        &mut self,
        method: &str,
        limits: &Limits,
        head: &mut ResponseHead,
    ) -> Result<ResponseStart, NoResponse> {
        match self {
            Self::H1 { io, input } => {
                let terms = client::read_head(io, input, method, limits, head)
                    .await
                    .map_err(NoResponse::H1)?;
                Ok(ResponseStart {
                    terms,
                    stream: None,
                })
            }
            Self::H2 { response } => {
                skip_interim(response).await?;
                let (parts, stream) = response.await.map_err(NoResponse::H2)?.into_parts();
                heads::response_from(&parts, limits.fields, head)
                    .map_err(|bad| NoResponse::BadHead(bad.details))?;
                let framing = if stream.is_end_stream() {
                    Framing::Empty
                } else {
                    Framing::UntilClose
                };

                Ok(ResponseStart {
                    terms: ResponseTerms {
                        framing,
                        keep_alive: true,
                    },
                    stream: Some(stream),
                })
            }
        }
    }

    /// The body after this head. `reader` and `no_continue` are the memory that an HTTP/1.1 body
    /// needs while it is read.
    pub fn body<'b>(
        self,
        start: ResponseStart,
        reader: &'b BodyReader,
        no_continue: &'b Cell<bool>,
    ) -> BodyIn<'b>
    where
        'u: 'b,
    {
        match (self, start.stream) {
            (Self::H1 { io, input }, _) => BodyIn::H1(H1BodyIn {
                io,
                input,
                reader,
                wants_continue: no_continue,
                lent: 0,
            }),
            (Self::H2 { .. }, Some(stream)) => BodyIn::H2(H2BodyIn { stream, held: 0 }),
            (Self::H2 { .. }, None) => BodyIn::Empty,
        }
    }
}

/// Drops interim responses until the final one, or the end of the stream, has come. The codec itself
/// would drop them without end.
async fn skip_interim(response: &mut h2::client::ResponseFuture) -> Result<(), NoResponse> {
    let mut interim = 0;
    while let Some(dropped) = poll_fn(|cx| response.poll_informational(cx)).await {
        dropped.map_err(NoResponse::H2)?;
        interim += 1;
        if interim > client::MAX_INTERIM {
            return Err(NoResponse::BadHead("http2.too_many_interim_responses"));
        }
    }

    Ok(())
}
