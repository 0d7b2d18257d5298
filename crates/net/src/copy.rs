//! Bytes from one stream to another and back, each direction ending on its own.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use crate::buffers::Buffers;

/// Bytes so far, readable while the copy runs.
#[derive(Debug, Default)]
pub struct Meter {
    /// From the downstream to the upstream.
    pub received: Cell<u64>,
    /// From the upstream to the downstream.
    pub sent: Cell<u64>,
}

/// Bounds of a copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// End when no byte moved in either direction for so long.
    pub idle: Option<Duration>,
}

/// How a copy ended.
#[derive(Debug)]
pub enum CopyEnd {
    /// Both directions ended in order.
    Closed,
    /// No byte for [`CopyOptions::idle`].
    Idle,
    /// The downstream failed.
    Downstream(io::Error),
    /// The upstream failed.
    Upstream(io::Error),
}

enum Side {
    Reader(io::Error),
    Writer(io::Error),
}

struct Direction {
    buffer: Option<Vec<u8>>,
    at: usize,
    ended: bool,
    done: bool,
    unflushed: bool,
}

impl Direction {
    /// `first` goes out before anything that is read.
    fn new(first: Vec<u8>) -> Self {
        let buffer = (!first.is_empty()).then_some(first);
        Self { buffer, at: 0, ended: false, done: false, unflushed: false }
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        buffers: &Buffers,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if let Some(buffer) = self.buffer.take() {
                while self.at < buffer.len() {
                    match Pin::new(&mut *writer).poll_write(cx, &buffer[self.at..]) {
                        Poll::Pending => {
                            self.buffer = Some(buffer);
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(Side::Writer(io::ErrorKind::WriteZero.into()))),
                        Poll::Ready(Ok(n)) => {
                            self.at += n;
                            self.unflushed = true;
                            moved.set(moved.get() + n as u64);
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Side::Writer(error))),
                    }
                }
                buffers.give(buffer);
                self.at = 0;
            }
            if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Side::Writer)?;
                self.done = true;
                continue;
            }
            let mut buffer = buffers.take();
            match poll_read_buf(Pin::new(&mut *reader), cx, &mut buffer) {
                Poll::Pending => {
                    // Nobody keeps a buffer while waiting.
                    buffers.give(buffer);
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Side::Writer)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    buffers.give(buffer);
                    self.ended = true;
                }
                Poll::Ready(Ok(_)) => self.buffer = Some(buffer),
                Poll::Ready(Err(error)) => {
                    buffers.give(buffer);
                    return Poll::Ready(Err(Side::Reader(error)));
                }
            }
        }
    }
}

/// Copies until both directions ended, one failed, or nothing moved for too long. When a side ends its sending, the
/// other side's sending goes on (half-close). `first` are bytes of the downstream, and of the upstream, that were read
/// already.
pub async fn copy_both_ways<D, U>(
    downstream: &mut D,
    upstream: &mut U,
    first: (Vec<u8>, Vec<u8>),
    options: CopyOptions,
    buffers: &Buffers,
    meter: &Meter,
) -> CopyEnd
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut forth = Direction::new(first.0);
    let mut back = Direction::new(first.1);
    let mut timer = options.idle.map(|idle| (idle, Box::pin(tokio::time::sleep(idle)), u64::MAX));
    poll_fn(|cx| {
        let forth_state = forth.poll(cx, downstream, upstream, buffers, &meter.received);
        let back_state = back.poll(cx, upstream, downstream, buffers, &meter.sent);
        if let Poll::Ready(Err(side)) = forth_state {
            return Poll::Ready(failed(side, true));
        }
        if let Poll::Ready(Err(side)) = back_state {
            return Poll::Ready(failed(side, false));
        }
        if forth.done && back.done {
            return Poll::Ready(CopyEnd::Closed);
        }
        if let Some((idle, sleep, seen)) = &mut timer {
            let total = meter.received.get() + meter.sent.get();
            if poll_idle(cx, *idle, sleep.as_mut(), seen, total).is_ready() {
                return Poll::Ready(CopyEnd::Idle);
            }
        }
        Poll::Pending
    })
    .await
}

fn failed(side: Side, forward: bool) -> CopyEnd {
    match (side, forward) {
        (Side::Reader(error), true) | (Side::Writer(error), false) => CopyEnd::Downstream(error),
        (Side::Writer(error), true) | (Side::Reader(error), false) => CopyEnd::Upstream(error),
    }
}

/// The timer is moved only when it fires or when bytes moved, so an active copy touches it once a wake-up.
fn poll_idle(cx: &mut Context<'_>, idle: Duration, mut sleep: Pin<&mut Sleep>, seen: &mut u64, total: u64) -> Poll<()> {
    if *seen != total {
        *seen = total;
        sleep.as_mut().reset(Instant::now() + idle);
    }
    sleep.poll(cx)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn each_direction_ends_on_its_own() {
        let (mut client, mut down) = duplex(64);
        let (mut up, mut server) = duplex(64);
        let (buffers, meter) = (Buffers::default(), Meter::default());
        let copy = copy_both_ways(
            &mut down,
            &mut up,
            (b"first ".to_vec(), Vec::new()),
            CopyOptions::default(),
            &buffers,
            &meter,
        );
        let talk = async {
            client.write_all(b"question").await.expect("written");
            client.shutdown().await.expect("half-closed");
            let mut heard = String::new();
            server.read_to_string(&mut heard).await.expect("read to the end");
            server.write_all(b"late answer").await.expect("the way back is open");
            server.shutdown().await.expect("closed");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("read to the end");
            (heard, answer)
        };
        let (end, (heard, answer)) = tokio::join!(copy, talk);
        assert!(matches!(end, CopyEnd::Closed));
        assert_eq!((heard.as_str(), answer.as_str()), ("first question", "late answer"));
        assert_eq!((meter.received.get(), meter.sent.get()), (14, 11));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_copy() {
        let (_client, mut down) = duplex(64);
        let (mut up, _server) = duplex(64);
        let options = CopyOptions { idle: Some(Duration::from_secs(3600)) };
        let end =
            copy_both_ways(&mut down, &mut up, Default::default(), options, &Buffers::default(), &Meter::default())
                .await;
        assert!(matches!(end, CopyEnd::Idle));
    }

    #[tokio::test]
    async fn a_failing_side_is_named() {
        let (client, mut down) = duplex(64);
        let (mut up, server) = duplex(64);
        drop(server);
        let end = copy_both_ways(
            &mut down,
            &mut up,
            (b"x".to_vec(), Vec::new()),
            CopyOptions::default(),
            &Buffers::default(),
            &Meter::default(),
        )
        .await;
        assert!(matches!(end, CopyEnd::Upstream(_)), "{end:?}");
        drop(client);
    }
}
