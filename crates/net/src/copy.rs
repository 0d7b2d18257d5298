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

/// How long the last words of a side that failed may take to reach the other.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
        Self {
            buffer,
            at: 0,
            ended: false,
            done: false,
            unflushed: false,
        }
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
                        Poll::Ready(Ok(0)) => {
                            return Poll::Ready(Err(Side::Writer(io::ErrorKind::WriteZero.into())));
                        }
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
                    // What it said before has still to arrive.
                    self.ended = true;
                    return Poll::Ready(Err(Side::Reader(error)));
                }
            }
        }
    }

    /// Passes on what there still is, whatever becomes of the reader.
    fn finish<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        buffers: &Buffers,
        moved: &Cell<u64>,
    ) -> Poll<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.poll(cx, reader, writer, buffers, moved) {
                // It is not read again.
                Poll::Ready(Err(Side::Reader(_))) => {}
                polled => return polled.map(|_| ()),
            }
        }
    }
}

/// Copies until both directions ended, one failed, or nothing moved for too long. When a side ends
/// its sending, the other side's sending goes on (half-close). `first` are bytes of the downstream,
/// and of the upstream, that were read already.
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
    let mut timer = options
        .idle
        .map(|idle| (idle, Box::pin(tokio::time::sleep(idle)), u64::MAX));

    // How it will end, and how long the side that is left may take to hear what it has still to be
    // told.
    let mut failure: Option<(CopyEnd, Pin<Box<Sleep>>)> = None;

    poll_fn(|cx| {
        if failure.is_none() {
            let forth_state = forth.poll(cx, downstream, upstream, buffers, &meter.received);
            let end = match forth_state {
                Poll::Ready(Err(side)) => Some(failed(side, true)),
                _ => match back.poll(cx, upstream, downstream, buffers, &meter.sent) {
                    Poll::Ready(Err(side)) => Some(failed(side, false)),
                    _ => None,
                },
            };
            failure = end.map(|end| (end, Box::pin(tokio::time::sleep(LAST_WORDS))));
        }

        if let Some((end, timer)) = &mut failure {
            let told = match end {
                CopyEnd::Upstream(_) => back.finish(cx, upstream, downstream, buffers, &meter.sent),
                _ => forth.finish(cx, downstream, upstream, buffers, &meter.received),
            };

            ready!(if told.is_ready() {
                Poll::Ready(())
            } else {
                timer.as_mut().poll(cx)
            });

            return Poll::Ready(failure.take().map_or(CopyEnd::Closed, |(end, _)| end));
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

/// The timer is moved only when it fires or when bytes moved, so an active copy touches it once a
/// wake-up.
fn poll_idle(
    cx: &mut Context<'_>,
    idle: Duration,
    mut sleep: Pin<&mut Sleep>,
    seen: &mut u64,
    total: u64,
) -> Poll<()> {
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
            server
                .read_to_string(&mut heard)
                .await
                .expect("read to the end");

            server
                .write_all(b"late answer")
                .await
                .expect("the way back is open");

            server.shutdown().await.expect("closed");
            let mut answer = String::new();
            client
                .read_to_string(&mut answer)
                .await
                .expect("read to the end");

            (heard, answer)
        };

        let (end, (heard, answer)) = tokio::join!(copy, talk);
        assert!(matches!(end, CopyEnd::Closed));
        assert_eq!(
            (heard.as_str(), answer.as_str()),
            ("first question", "late answer")
        );

        assert_eq!((meter.received.get(), meter.sent.get()), (14, 11));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_copy() {
        let (_client, mut down) = duplex(64);
        let (mut up, _server) = duplex(64);
        let options = CopyOptions {
            idle: Some(Duration::from_secs(3600)),
        };
        let end = copy_both_ways(
            &mut down,
            &mut up,
            Default::default(),
            options,
            &Buffers::default(),
            &Meter::default(),
        )
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

    /// Passes on what is written to it only when it is flushed, as TLS may, and then bit by bit.
    struct Lazy(tokio::io::DuplexStream, Vec<u8>);

    impl AsyncRead for Lazy {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Lazy {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            while !this.1.is_empty() {
                let n = ready!(Pin::new(&mut this.0).poll_write(cx, &this.1))?;
                this.1.drain(..n);
            }
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            ready!(self.as_mut().poll_flush(cx))?;
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// Says what it has to say, and then that it was reset.
    struct Reset(Option<&'static [u8]>);

    impl AsyncRead for Reset {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(last) = self.0.take() else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            buf.put_slice(last);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Reset {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn the_last_words_of_a_side_that_fails_arrive() {
        for first in [&b""[..], b"a question that nobody hears"] {
            let (mut client, down) = duplex(4);
            let mut down = Lazy(down, Vec::new());
            let (buffers, meter) = (Buffers::default(), Meter::default());
            let mut up = Reset(Some(b"last words"));
            let first = (first.to_vec(), Vec::new());
            let copy = copy_both_ways(
                &mut down,
                &mut up,
                first,
                CopyOptions::default(),
                &buffers,
                &meter,
            );

            let mut heard = Vec::new();
            let (end, read) = tokio::join!(copy, client.read_to_end(&mut heard));
            read.expect("an end in order");
            assert!(matches!(end, CopyEnd::Upstream(_)), "{end:?}");
            assert_eq!(heard, b"last words");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_for_last_words_to_be_heard() {
        let (_client, down) = duplex(4);
        let mut down = Lazy(down, Vec::new());
        let mut up = Reset(Some(b"last words"));
        let (buffers, meter) = (Buffers::default(), Meter::default());
        let end = copy_both_ways(
            &mut down,
            &mut up,
            Default::default(),
            CopyOptions::default(),
            &buffers,
            &meter,
        )
        .await;

        assert!(matches!(end, CopyEnd::Upstream(_)), "{end:?}");
    }
}
