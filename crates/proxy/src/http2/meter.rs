//! Watches the frames of an HTTP/2 connection, on either side, as they are read: frames that cost
//! work and carry nothing (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, RST_STREAM, CONTINUATION,
//! unknown ones) must stand in some proportion to those that carry something, and to what we send.
//! The codec limits what it must hold; it does not limit these.
//!
//! Costs a glance at nine bytes a frame, and a look at the clock only where there were very many.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use meltemi_net::inspect::H2_PREFACE;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Frames without payload that a peer may always send within [`WINDOW`]. Source: Envoy's limits of
/// 1,000 control frames in a queue and 100 PRIORITY frames a stream, seen over time.
const FREE: u64 = 1000;
/// The time that [`FREE`] is for.
const WINDOW: Duration = Duration::from_secs(1);
/// What a request pays for besides itself: its reset, its priority, windows.
const FOR_HEADERS: u64 = 4;
/// So many bytes that we send pay for one frame: less than a PONG has, so that no PING pays for the
/// next.
const SENT_BYTES: u64 = 32;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const FRAME_HEAD: usize = 9;

/// Finds frames in a stream of bytes, however it is cut.
#[derive(Debug)]
struct Scanner {
    head: [u8; FRAME_HEAD],
    filled: usize,
    skip: usize,
}

impl Scanner {
    fn after(preface: usize) -> Self {
        Self {
            head: [0; FRAME_HEAD],
            filled: 0,
            skip: preface,
        }
    }

    /// Tells each frame's type and length.
    fn see(&mut self, mut bytes: &[u8], mut frame: impl FnMut(u8, usize)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }

            let n = (FRAME_HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled == FRAME_HEAD {
                self.filled = 0;
                self.skip = self.head[..3]
                    .iter()
                    .fold(0, |length, byte| length << 8 | usize::from(*byte));
                frame(self.head[3], self.skip);
            }
        }
    }
}

/// What the frames of a connection have come to.
#[derive(Debug, Default)]
struct Balance {
    spent: u64,
    earned: u64,
    since: Option<Instant>,
}

impl Balance {
    fn frame(&mut self, kind: u8, length: usize) {
        match kind {
            HEADERS => self.earned += FOR_HEADERS,
            // Empty ones are counted by the codec.
            DATA => self.earned += u64::from(length > 0),
            _ => self.spent += 1,
        }
    }

    /// Whether there are too many; `sent` is what we have sent since the last look.
    fn is_flood(&mut self, sent: &Cell<u64>, now: impl FnOnce() -> Instant) -> bool {
        if self.spent < FREE || self.spent < FREE + self.earned + sent.get() / SENT_BYTES {
            return false;
        }
        let now = now();
        let fast = self
            .since
            .is_some_and(|since| now.duration_since(since) < WINDOW);
        *self = Self {
            since: Some(now),
            ..Self::default()
        };

        sent.set(0);

        fast
    }
}

/// Tells the connection's loop that its peer floods it.
#[derive(Debug, Default)]
pub struct Alarm {
    sent: Cell<u64>,
    raised: Cell<bool>,
}

impl Alarm {
    /// Ready once the peer floods. Wakes nobody: only a read raises it, and whoever polls the
    /// connection looks here next.
    pub fn poll(&self) -> Poll<()> {
        if self.raised.get() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// A stream whose frames are watched.
#[derive(Debug)]
pub struct Metered<S> {
    stream: S,
    scanner: Scanner,
    balance: Balance,
    alarm: Rc<Alarm>,
}

impl<S> Metered<S> {
    /// Watches what a client says, from the preface on.
    pub fn downstream(stream: S, alarm: Rc<Alarm>) -> Self {
        Self::after(H2_PREFACE.len(), stream, alarm)
    }

    /// Watches what a server says.
    pub fn upstream(stream: S, alarm: Rc<Alarm>) -> Self {
        Self::after(0, stream, alarm)
    }

    fn after(preface: usize, stream: S, alarm: Rc<Alarm>) -> Self {
        let balance = Balance {
            since: Some(Instant::now()),
            ..Balance::default()
        };

        Self {
            stream,
            scanner: Scanner::after(preface),
            balance,
            alarm,
        }
    }

    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &written {
            self.alarm.sent.set(self.alarm.sent.get() + *n as u64);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            let balance = &mut this.balance;
            this.scanner.see(&buf.filled()[before..], |kind, length| {
                balance.frame(kind, length)
            });
            if balance.is_flood(&this.alarm.sent, Instant::now) {
                this.alarm.raised.set(true);
            }
        }

        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.sent(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut bytes = H2_PREFACE.to_vec();
        bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0, 0, 0, 0, 1, 0, 0, 0, 1]);
        bytes.extend([0, 0, 2, 1, 5, 0, 0, 0, 1, 9, 9]);

        for size in 1..=bytes.len() {
            let (mut scanner, mut found) = (Scanner::after(H2_PREFACE.len()), Vec::new());
            for piece in bytes.chunks(size) {
                scanner.see(piece, |kind, length| found.push((kind, length)));
            }
            assert_eq!(found, [(4, 6), (0, 0), (1, 2)], "pieces of {size}");
        }
    }

    fn after(frames: &[(u8, usize)], rounds: u32, sent_each: u64, time: Duration) -> bool {
        let (start, sent) = (Instant::now(), Cell::new(0));
        let mut balance = Balance {
            since: Some(start),
            ..Balance::default()
        };

        (0..rounds).any(|round| {
            frames
                .iter()
                .for_each(|(kind, length)| balance.frame(*kind, *length));
            sent.set(sent.get() + sent_each);
            balance.is_flood(&sent, || start + time / rounds * round)
        })
    }

    #[test]
    fn what_carries_nothing_is_a_flood_only_if_it_is_fast_and_alone() {
        const PING: (u8, usize) = (6, 8);
        const WINDOW_UPDATE: (u8, usize) = (8, 4);

        let (fast, slow) = (Duration::from_millis(10), Duration::from_secs(3600));
        assert!(
            after(&[PING], 10_000, 17, fast),
            "answers do not pay for more questions"
        );

        assert!(!after(&[PING], 10_000, 17, slow), "keep-alive");
        assert!(after(&[WINDOW_UPDATE], 10_000, 0, fast));
        assert!(
            !after(&[WINDOW_UPDATE], 100_000, 16_384, fast),
            "a large download"
        );

        assert!(
            !after(
                &[(HEADERS, 20), PING, WINDOW_UPDATE, (3, 4)],
                100_000,
                50,
                fast
            ),
            "many requests"
        );

        assert!(
            !after(&[(DATA, 10), WINDOW_UPDATE], 100_000, 0, fast),
            "a chat"
        );
    }
}
