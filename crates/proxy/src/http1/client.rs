//! An HTTP/1.1 connection to an upstream, one exchange at a time.

use std::io;
use std::task::{Context, Waker};
use std::time::Instant;

use meltemi_filters::head::ResponseHead;
use meltemi_net::Buffers;

use super::codec::{self, Limits, Refusal, ResponseTerms};
use super::input::Input;
use crate::io::{Io, Stream};

/// Interim responses that one exchange may bring.
pub const MAX_INTERIM: usize = 16;

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection failed before the first byte of a response.
    #[error("{0}")]
    Io(io::Error),
    /// The connection ended before the first byte of a response.
    #[error("connection closed before a response")]
    Closed,
    /// The connection ended inside a head.
    #[error("connection closed inside a response head")]
    Truncated,
    /// The connection was reset inside a head, or ended between an interim response and the final
    /// one.
    #[error("connection ended before the final response")]
    Unfinished,
    /// The upstream broke the protocol.
    #[error("malformed response: {}", .0.details)]
    Malformed(Refusal),
}

/// A connection, and bytes that were read from it beyond the last response.
#[derive(Debug)]
pub struct H1Connection {
    pub io: Io,
    /// Its unread bytes.
    pub input: Input,
    /// Requests that it has carried and that have ended.
    pub requests: u32,
    /// Since when it waits in a pool.
    pub idle_since: Instant,
}

impl H1Connection {
    /// Takes a connected stream over.
    pub fn new(stream: Stream, buffers: Buffers) -> Self {
        Self {
            io: Io::new(stream),
            input: Input::new(buffers, Vec::new()),
            requests: 0,
            idle_since: Instant::now(),
        }
    }

    /// Whether it still waits in silence. Costs no system call unless the socket has something to
    /// say.
    pub fn is_quiet(&self) -> bool {
        self.input.is_empty()
            && self
                .io
                .poll_broken(&mut Context::from_waker(Waker::noop()))
                .is_pending()
    }
}

/// Reads the next final response head. Interim responses but 101 are dropped. Cancellation-safe
/// until it has read the first byte of a head.
pub async fn read_head(
    io: &Io,
    input: &mut Input,
    method: &str,
    limits: &Limits,
    head: &mut ResponseHead,
) -> Result<ResponseTerms, ReadError> {
    let mut interim = 0;
    let mut scanned = 0;
    loop {
        if !input.is_empty() {
            let read = codec::read_response(input.bytes(), &mut scanned, limits, method, head);
            if let Some((n, terms)) = read.map_err(ReadError::Malformed)? {
                input.consume(n);
                if head.status >= 200 || head.status == 101 {
                    return Ok(terms);
                }
                interim += 1;
                scanned = 0;
                if interim > MAX_INTERIM {
                    let refusal = Refusal {
                        status: 502,
                        details: "http1.too_many_interim_responses",
                    };
                    return Err(ReadError::Malformed(refusal));
                }

                continue;
            }
        }

        let began = !input.is_empty() || interim > 0;
        match input.fill(io).await {
            Ok(0) if !input.is_empty() => return Err(ReadError::Truncated),
            Ok(0) | Err(_) if began => return Err(ReadError::Unfinished),
            Ok(0) => return Err(ReadError::Closed),
            Err(error) => return Err(ReadError::Io(error)),
            Ok(_) => {}
        }
    }
}
