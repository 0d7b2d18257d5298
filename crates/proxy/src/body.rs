//! Bodies on their way through: read from one protocol, written to either, in place where that can
//! be.

mod piped;
pub mod tee;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use meltemi_filters::grpc::MessageCount;

pub use self::piped::PieceFilter;
use self::piped::PipedBody;
use self::tee::Tee;
use crate::http1::body::{BodyError, BodyReader};
use crate::http1::input::Input;
use crate::http2::heads;
use crate::http2::send::BodySender;
use crate::io::Io;
use crate::stalls::Stalls;

/// A piece of payload, lent by the reader's buffer or owned.
#[derive(Debug)]
pub enum Data<'a> {
    /// Valid until the reader goes on.
    Lent(&'a [u8]),
    /// A piece of its own.
    Owned(Bytes),
}

impl Data<'_> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Lent(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    /// The piece as owned bytes; copies a lent one.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Lent(bytes) => Bytes::copy_from_slice(bytes),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A body that comes in.
#[derive(Debug)]
pub enum BodyIn<'a> {
    /// None.
    Empty,
    /// From an HTTP/1.1 connection.
    H1(H1BodyIn<'a>),
    /// From an HTTP/2 stream.
    H2(H2BodyIn),
    /// One of the others, of which filters hold a part or change the pieces.
    Piped(Box<PipedBody<'a>>),
}

/// See [`BodyIn::H1`].
#[derive(Debug)]
pub struct H1BodyIn<'a> {
    pub io: &'a Io,
    /// Its unread bytes.
    pub input: &'a mut Input,
    /// Where in the body we are.
    pub reader: &'a BodyReader,
    /// The peer waits for a 100 before it sends. Shared with the writer of the response: a final
    /// response that comes first makes it pointless.
    pub wants_continue: &'a Cell<bool>,
    /// How much the last piece was.
    pub lent: usize,
}

/// See [`BodyIn::H2`].
#[derive(Debug)]
pub struct H2BodyIn {
    pub stream: h2::RecvStream,
    /// Flow control that the last piece holds.
    pub held: usize,
}

/// Why a body did not come through.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// Reading failed.
    #[error("{0}")]
    Read(BodyError),
    /// Writing failed.
    #[error("{0}")]
    Write(io::Error),
}

impl<'a> BodyIn<'a> {
    /// A body from an HTTP/2 stream; `Empty` if the stream has ended already.
    pub fn from_h2(stream: h2::RecvStream) -> Self {
        if stream.is_end_stream() {
            Self::Empty
        } else {
            Self::H2(H2BodyIn { stream, held: 0 })
        }
    }

    /// Whether there is certainly nothing (more) to come.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(body) => body.reader.is_done(),
            Self::H2(body) => body.stream.is_end_stream(),
            Self::Piped(body) => body.is_empty(),
        }
    }

    /// Whether the rest of the body waits in this process while nobody reads it. An HTTP/1.1 peer
    /// waits with it.
    fn waits_here(&self) -> bool {
        match self {
            Self::H2(_) => true,
            Self::Piped(body) => body.waits_here(),
            Self::Empty | Self::H1(_) => false,
        }
    }

    /// Puts bytes that were read already before the rest.
    pub fn prepend(&mut self, bytes: Bytes) {
        let rest = std::mem::replace(self, Self::Empty);
        *self = Self::Piped(Box::new(PipedBody::held(bytes, rest)));
    }

    /// Sends every piece through filters.
    pub fn pass_through(&mut self, filters: Box<dyn PieceFilter>) {
        let rest = std::mem::replace(self, Self::Empty);
        *self = Self::Piped(Box::new(PipedBody::filtered(rest, filters)));
    }

    /// The next piece; `None` at the end. Cancellation-safe, but for a piece that a filter is
    /// working on.
    pub async fn next(&mut self) -> Result<Option<Data<'_>>, BodyError> {
        match self {
            Self::Empty => Ok(None),
            Self::H1(body) => {
                settle_h1(body);
                if body.wants_continue.get() && body.input.is_empty() {
                    body.io
                        .write_all([b"HTTP/1.1 100 Continue\r\n\r\n", b"", b""])
                        .await?;
                    body.wants_continue.set(false);
                }

                let n = body.reader.ready(body.io, body.input).await?;
                body.lent = n;
                Ok((n > 0).then(|| Data::Lent(&body.input.bytes()[..n])))
            }
            Self::H2(body) => {
                if body.held > 0 {
                    // Fails only when the stream is gone, which the next line reports.
                    let _ = body.stream.flow_control().release_capacity(body.held);
                    body.held = 0;
                }

                match poll_fn(|cx| body.stream.poll_data(cx)).await {
                    None => Ok(None),
                    Some(Ok(bytes)) => {
                        body.held = bytes.len();
                        Ok(Some(Data::Owned(bytes)))
                    }
                    Some(Err(error)) => Err(h2_error(error)),
                }
            }
            Self::Piped(body) => body.next().await,
        }
    }

    /// The trailers, after the last piece.
    pub async fn trailers(&mut self) -> Result<Option<HeaderMap>, BodyError> {
        match self {
            Self::H2(body) => {
                let trailers = poll_fn(|cx| body.stream.poll_trailers(cx)).await;
                let trailers = trailers.map_err(h2_error)?;
                let mut values = trailers.iter().flat_map(HeaderMap::values);
                match values.any(heads::has_blank_ends) {
                    true => Err(BodyError::Malformed(heads::BLANK_ENDS)),
                    false => Ok(trailers),
                }
            }
            Self::Piped(body) => body.trailers().await,
            Self::Empty | Self::H1(_) => Ok(None),
        }
    }

    /// Resolves when the peer of HTTP/1.1 is gone. It never does for a stream of HTTP/2, which has
    /// a reset of its own. Cancellation-safe.
    pub async fn gone(&mut self) {
        match self {
            Self::H1(body) => gone_h1(body).await,
            Self::Piped(body) => body.gone().await,
            Self::Empty | Self::H2(_) => std::future::pending().await,
        }
    }

    /// Consumes the piece returned last. Call this before abandoning the body.
    pub fn settle(&mut self) {
        match self {
            Self::H1(body) => settle_h1(body),
            Self::Piped(body) => body.settle(),
            Self::Empty | Self::H2(_) => {}
        }
    }
}

/// How many unread bytes a connection may hold that is watched for its end.
const READ_AHEAD: usize = 16 * 1024;

/// How often a connection is looked at that holds so much.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

async fn gone_h1(body: &mut H1BodyIn<'_>) {
    settle_h1(body);

    // The end of a connection stands behind the bytes that the peer sent before, so read those.
    while body.input.bytes().len() < READ_AHEAD {
        match body.input.fill(body.io).await {
            // The peer has sent another request and then its last byte: it still reads.
            Ok(0) if body.reader.is_done() && !body.input.is_empty() => break,
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }

    while !body
        .io
        .with(|stream| meltemi_net::socket::is_reset(stream.socket()))
    {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn settle_h1(body: &mut H1BodyIn<'_>) {
    if body.lent > 0 {
        body.reader.consume(body.input, body.lent);
        body.lent = 0;
    }
}

fn h2_error(error: h2::Error) -> BodyError {
    if error.is_io() {
        let lost = || io::Error::from(io::ErrorKind::ConnectionReset);
        return BodyError::Io(error.into_io().unwrap_or_else(lost));
    }
    match error.is_reset() && error.is_remote() {
        true => BodyError::Reset,
        false => BodyError::Malformed("the stream broke the protocol"),
    }
}

/// A body that goes out.
#[derive(Debug)]
pub enum BodyOut<'a> {
    /// Drops the body.
    Discard,
    /// To an HTTP/1.1 connection.
    H1 {
        io: &'a Io,
        /// A head that waits to go out with the first piece.
        head: Vec<u8>,
        /// In chunks.
        chunked: bool,
        /// The head allows no body: a filter may have made it a 204 of a response with one. What
        /// follows would be read as another response, so it is dropped.
        is_bodyless: bool,
    },
    /// To an HTTP/2 stream.
    H2(BodySender),
}

impl BodyOut<'_> {
    /// Sends what waits.
    pub async fn flush(&mut self) -> io::Result<()> {
        if let Self::H1 { io, head, .. } = self
            && !head.is_empty()
        {
            io.write_all([head, b"", b""]).await?;
            head.clear();
        }
        Ok(())
    }

    /// Sends one piece.
    pub async fn data(&mut self, data: Data<'_>) -> io::Result<()> {
        match self {
            Self::Discard => Ok(()),
            Self::H1 {
                io,
                head,
                chunked,
                is_bodyless,
            } => {
                let bytes = data.as_slice();
                if bytes.is_empty() || *is_bodyless {
                    return Ok(());
                }
                if *chunked {
                    let mut digits = [0_u8; 18];
                    head.extend_from_slice(chunk_size(bytes.len(), &mut digits));
                    io.write_all([head, bytes, b"\r\n"]).await?;
                } else {
                    io.write_all([head, bytes, b""]).await?;
                }

                head.clear();
                Ok(())
            }
            Self::H2(sender) => sender.send(data.into_bytes()).await,
        }
    }

    /// Sends the last piece of a body whose end is known with it.
    pub async fn last(&mut self, data: Data<'_>) -> io::Result<()> {
        if let Self::H1 {
            io,
            head,
            chunked: true,
            ..
        } = self
        {
            let bytes = data.as_slice();
            let mut digits = [0_u8; 18];
            if bytes.is_empty() {
                head.extend_from_slice(b"0\r\n\r\n");
                io.write_all([head, b"", b""]).await?;
            } else {
                head.extend_from_slice(chunk_size(bytes.len(), &mut digits));
                io.write_all([head, bytes, b"\r\n0\r\n\r\n"]).await?;
            }

            head.clear();
            return Ok(());
        }

        self.data(data).await?;
        self.finish(None).await
    }

    /// Ends the body.
    pub async fn finish(&mut self, trailers: Option<HeaderMap>) -> io::Result<()> {
        match self {
            Self::Discard => Ok(()),
            Self::H1 {
                io, head, chunked, ..
            } => {
                if *chunked {
                    head.extend_from_slice(b"0\r\n\r\n");
                }
                if !head.is_empty() {
                    io.write_all([head, b"", b""]).await?;
                    head.clear();
                }
                Ok(())
            }
            Self::H2(sender) => sender.finish(trailers),
        }
    }

    /// Ready once the peer of a stream wants no more of it: it reset the stream, or its connection
    /// ended. A connection of HTTP/1.1 is watched where it is read.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            Self::Discard | Self::H1 { .. } => Poll::Pending,
            Self::H2(sender) => sender.poll_gone(cx),
        }
    }

    /// Breaks the body off, so that the peer cannot take it for whole.
    pub fn abort(&mut self, reason: h2::Reason) {
        if let Self::H2(sender) = self {
            sender.reset(reason);
        }
    }
}

fn chunk_size(n: usize, digits: &mut [u8; 18]) -> &[u8] {
    digits[16..].copy_from_slice(b"\r\n");
    let (mut at, mut rest) = (16, n);
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            return &digits[at..];
        }
    }
}

/// What looks on while [`pump`] moves a body.
#[derive(Clone, Copy)]
pub struct Flow<'a> {
    /// Counts the bytes.
    pub moved: &'a Cell<u64>,
    /// Counts the messages of gRPC, where a metric wants them.
    pub messages: Option<&'a Cell<MessageCount>>,
    /// Keeps a copy of the body's beginning.
    pub tee: Option<&'a RefCell<Tee>>,
    /// Bounds the bodies that wait for a reader.
    pub stalls: &'a Stalls,
}

/// Moves a body from one side to the other, to its end.
pub async fn pump(
    from: &mut BodyIn<'_>,
    to: &mut BodyOut<'_>,
    flow: Flow<'_>,
    on_trailers: impl FnOnce(&mut HeaderMap),
) -> Result<(), PumpError> {
    let Flow {
        moved,
        messages,
        tee,
        stalls,
    } = flow;
    let may_stall = from.waits_here();

    loop {
        let ended = {
            let mut next = pin!(from.next());
            let piece = match poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await {
                Poll::Ready(piece) => piece,
                Poll::Pending => {
                    // Nothing there yet: the head must not wait for it, nor anything for somebody
                    // who has gone.
                    to.flush().await.map_err(PumpError::Write)?;
                    poll_fn(|cx| match next.as_mut().poll(cx) {
                        Poll::Ready(piece) => Poll::Ready(Ok(piece)),
                        Poll::Pending => to.poll_gone(cx).map(|gone| Err(PumpError::Write(gone))),
                    })
                    .await?
                }
            };

            match piece.map_err(PumpError::Read)? {
                Some(data) => {
                    moved.set(moved.get() + data.as_slice().len() as u64);
                    if let Some(messages) = messages {
                        let mut count = messages.get();
                        count.see(data.as_slice());
                        messages.set(count);
                    }

                    if let Some(tee) = tee {
                        tee.borrow_mut().see(data.as_slice());
                    }
                    let write = to.data(data);
                    let written = match may_stall {
                        true => stalls.watch(write).await.map_err(PumpError::Read)?,
                        false => write.await,
                    };
                    written.map_err(PumpError::Write)?;
                    false
                }
                None => true,
            }
        };

        if ended {
            let mut trailers = from.trailers().await.map_err(PumpError::Read)?;
            if let Some(tee) = tee {
                tee.borrow_mut().end(trailers.as_ref());
            }
            if let Some(trailers) = &mut trailers {
                on_trailers(trailers);
            }
            return to.finish(trailers).await.map_err(PumpError::Write);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        assert_eq!(chunk_size(0, &mut [0; 18]), b"0\r\n");
        assert_eq!(chunk_size(0xbeef, &mut [0; 18]), b"beef\r\n");
        assert_eq!(
            chunk_size(usize::MAX, &mut [0; 18]),
            b"ffffffffffffffff\r\n"
        );
    }
}
