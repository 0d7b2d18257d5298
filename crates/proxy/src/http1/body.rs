//! Bodies of HTTP/1.1 messages, piece by piece and in place.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use meltemi_filters::LocalReply;

use super::codec::Framing;
use super::input::Input;
use crate::io::Io;

/// Chunk extensions of one message, all together.
const MAX_EXTENSION_BYTES: usize = 16 * 1024;
/// The trailer section.
const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// What is left of a request body after its response is read and thrown away up to here; beyond,
/// the connection ends.
pub const DRAIN_BYTES: usize = 64 * 1024;

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// The connection ended too early.
    #[error("connection ended before the body did")]
    Truncated,
    /// The peer gave the stream up (HTTP/2).
    #[error("stream was reset")]
    Reset,
    /// The peer broke the protocol.
    #[error("malformed body: {0}")]
    Malformed(&'static str),
    /// A filter does not let it pass.
    #[error("refused by a filter: {}", .0.details)]
    Refused(Box<LocalReply>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Digits of a chunk size.
    Size {
        digits: u8,
        size: u64,
    },
    /// White space after the digits.
    AfterSize {
        size: u64,
    },
    /// After a semicolon, up to CR.
    Extension {
        size: u64,
    },
    /// LF after a chunk size line.
    SizeLf {
        size: u64,
    },
    /// Inside a chunk, or a body of known length.
    Data {
        left: u64,
        chunked: bool,
    },
    /// CR after a chunk.
    DataCr,
    /// LF after a chunk.
    DataLf,
    /// The trailer section.
    Trailers,
    UntilClose,
    Done,
}

/// Where in a body we are. The bytes stay in the connection's [`Input`].
#[derive(Debug)]
pub struct BodyReader {
    state: Cell<State>,
    extension_bytes: Cell<usize>,
}

impl BodyReader {
    /// At the beginning of a body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(left) => State::Data {
                left,
                chunked: false,
            },
            Framing::Chunked => State::Size { digits: 0, size: 0 },
            Framing::UntilClose => State::UntilClose,
        };

        Self {
            state: Cell::new(state),
            extension_bytes: Cell::new(0),
        }
    }

    /// Whether the whole body has been used up.
    pub fn is_done(&self) -> bool {
        self.state.get() == State::Done
    }

    /// Whether the rest of the body is certainly so short.
    pub fn has_at_most(&self, bytes: u64) -> bool {
        match self.state.get() {
            State::Done => true,
            State::Data {
                left,
                chunked: false,
            } => left <= bytes,
            _ => false,
        }
    }

    /// Makes payload available at the beginning of `input`: so many bytes, 0 at the end of the
    /// body.
    pub fn poll_ready(
        &self,
        cx: &mut Context<'_>,
        io: &Io,
        input: &mut Input,
    ) -> Poll<Result<usize, BodyError>> {
        loop {
            match self.advance(input)? {
                Some(n) => return Poll::Ready(Ok(n)),
                None => {
                    let read = match ready!(input.poll_fill(cx, io)) {
                        // TLS without close_notify: as Envoy has it, an end like that of a plain
                        // connection. A body whose length is known is cut either way.
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                        read => read?,
                    };

                    if read == 0 {
                        if self.state.get() == State::UntilClose {
                            self.state.set(State::Done);
                            return Poll::Ready(Ok(0));
                        }
                        return Poll::Ready(Err(BodyError::Truncated));
                    }
                }
            }
        }
    }

    /// See [`BodyReader::poll_ready`]; cancellation-safe.
    pub async fn ready(&self, io: &Io, input: &mut Input) -> Result<usize, BodyError> {
        poll_fn(|cx| self.poll_ready(cx, io, input)).await
    }

    /// Uses up `n` bytes of what [`BodyReader::poll_ready`] promised.
    pub fn consume(&self, input: &mut Input, n: usize) {
        input.consume(n);
        if let State::Data { left, chunked } = self.state.get() {
            let left = left.saturating_sub(n as u64);
            self.state.set(match (left, chunked) {
                (0, true) => State::DataCr,
                (0, false) => State::Done,
                _ => State::Data { left, chunked },
            });
        }
    }

    /// Works through framing bytes. `None`: more bytes are needed.
    pub(super) fn advance(&self, input: &mut Input) -> Result<Option<usize>, BodyError> {
        loop {
            match self.state.get() {
                State::Done => return Ok(Some(0)),
                State::UntilClose => {
                    let n = input.bytes().len();
                    return Ok((n > 0).then_some(n));
                }
                State::Data { left, .. } => {
                    let n = input
                        .bytes()
                        .len()
                        .min(usize::try_from(left).unwrap_or(usize::MAX));
                    return Ok((n > 0).then_some(n));
                }
                State::Trailers => return self.trailers(input),
                _ => {}
            }

            let Some(&byte) = input.bytes().first() else {
                return Ok(None);
            };
            self.state.set(self.framing_byte(byte)?);
            input.consume(1);
        }
    }

    fn framing_byte(&self, byte: u8) -> Result<State, BodyError> {
        Ok(match (self.state.get(), byte) {
            (State::Size { digits, size }, b) if b.is_ascii_hexdigit() => {
                // 15 digits are an exabyte; a 17th would overflow.
                if digits == 15 {
                    return Err(BodyError::Malformed("chunk size overflows"));
                }
                let digit = (b as char).to_digit(16).unwrap_or_default();
                State::Size {
                    digits: digits + 1,
                    size: size * 16 + u64::from(digit),
                }
            }
            (State::Size { digits: 0, .. }, _) => {
                return Err(BodyError::Malformed("chunk size is missing"));
            }
            (
                State::Size { size, .. } | State::AfterSize { size } | State::Extension { size },
                b'\r',
            ) => State::SizeLf { size },
            // RFC 9112 §7.1.1: an extension begins with a semicolon. A size such as `0 2`, which
            // two parsers may read differently, is refused.
            (State::Size { size, .. } | State::AfterSize { size }, b';') => {
                State::Extension { size }
            }
            (State::Size { size, .. } | State::AfterSize { size }, b' ' | b'\t') => {
                self.count_extension_byte()?;
                State::AfterSize { size }
            }
            (State::Extension { size }, b) if b == b'\t' || (b >= 0x20 && b != 0x7f) => {
                self.count_extension_byte()?;
                State::Extension { size }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::Trailers,
            (State::SizeLf { size }, b'\n') => State::Data {
                left: size,
                chunked: true,
            },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0, size: 0 },
            _ => return Err(BodyError::Malformed("bad chunk framing")),
        })
    }

    fn count_extension_byte(&self) -> Result<(), BodyError> {
        self.extension_bytes.set(self.extension_bytes.get() + 1);
        if self.extension_bytes.get() > MAX_EXTENSION_BYTES {
            return Err(BodyError::Malformed("chunk extensions are too long"));
        }
        Ok(())
    }

    /// Trailers are checked and dropped: Envoy does not forward them over HTTP/1.1 either.
    fn trailers(&self, input: &mut Input) -> Result<Option<usize>, BodyError> {
        let bytes = input.bytes();
        if bytes.starts_with(b"\r\n") {
            input.consume(2);
            self.state.set(State::Done);
            return Ok(Some(0));
        }

        match memchr::memmem::find(bytes, b"\r\n\r\n") {
            Some(end) => {
                let mut fields = [httparse::EMPTY_HEADER; 64];
                let whole = &bytes[..end + 4];
                let bare =
                    memchr::memchr_iter(b'\n', whole).any(|lf| lf == 0 || whole[lf - 1] != b'\r');
                match httparse::parse_headers(whole, &mut fields) {
                    Ok(httparse::Status::Complete(_)) if !bare => {}
                    _ => return Err(BodyError::Malformed("bad trailers")),
                }

                input.consume(end + 4);
                self.state.set(State::Done);
                Ok(Some(0))
            }
            None if bytes.len() > MAX_TRAILER_BYTES => {
                Err(BodyError::Malformed("trailers are too long"))
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use meltemi_net::Buffers;

    use super::*;

    fn decode(pieces: &[&[u8]], framing: Framing) -> Result<(Vec<u8>, Vec<u8>), BodyError> {
        let reader = BodyReader::new(framing);
        let (mut payload, mut waiting) = (Vec::new(), Vec::new());
        for piece in pieces {
            waiting.extend_from_slice(piece);
            let mut input = Input::new(Buffers::new(64), std::mem::take(&mut waiting));
            loop {
                match reader.advance(&mut input)? {
                    Some(0) => return Ok((payload, input.take())),
                    Some(n) => {
                        payload.extend_from_slice(&input.bytes()[..n]);
                        reader.consume(&mut input, n);
                    }
                    None => break,
                }
            }

            waiting = input.take();
        }

        Err(BodyError::Truncated)
    }

    #[test]
    fn chunks_come_out_whole_however_they_are_cut() {
        let text = b"4;x=y\r\nWiki\r\nA\r\npedia in  \r\n0\r\nx: y\r\n\r\nNEXT";
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        let (payload, _) = decode(&bytes, Framing::Chunked).expect("well formed");
        assert_eq!(payload, b"Wikipedia in  ");
        let (payload, rest) = decode(&[text], Framing::Chunked).expect("well formed");
        assert_eq!(
            (payload.as_slice(), rest.as_slice()),
            (&b"Wikipedia in  "[..], &b"NEXT"[..])
        );
    }

    #[test]
    fn white_space_may_follow_a_size() {
        let text = b"1 \r\na\r\n1 \t;x=y\r\nb\r\n0\r\n\r\n";
        let (payload, _) = decode(&[text], Framing::Chunked).expect("well formed");

        assert_eq!(payload, b"ab");
    }

    #[test]
    fn bad_chunks_are_refused() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(1 << 20));
        for bad in [
            "g\r\n",
            "\r\n",
            "1\na\n0\n\n",
            "1\r\nab\r\n0\r\n\r\n",
            "11111111111111111\r\n",
            "-1\r\n",
            "1 \0\r\n",
            "0 2\r\n\r\n",
            "1 x=y\r\na\r\n0\r\n\r\n",
            "0\r\nx y\r\n\r\n",
            "0\r\nx: y\nz: z\r\n\r\n",
            long.as_str(),
        ] {
            let result = decode(&[bad.as_bytes()], Framing::Chunked);
            assert!(
                matches!(result, Err(BodyError::Malformed(_))),
                "{:?}: {result:?}",
                &bad[..bad.len().min(30)]
            );
        }
    }

    #[test]
    fn a_length_is_exact() {
        let (payload, rest) = decode(&[b"ab", b"cdNEXT"], Framing::Length(4)).expect("enough");
        assert_eq!(
            (payload.as_slice(), rest.as_slice()),
            (&b"abcd"[..], &b"NEXT"[..])
        );
    }
}
