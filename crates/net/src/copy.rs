//! Copies bytes between two streams in both directions. Each direction ends by itself (half-close).

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

/// Bytes copied so far, readable while the copy runs.
#[derive(Debug, Default)]
pub struct Meter {
    /// From the downstream to the upstream.
    pub received: Cell<u64>,
    /// From the upstream to the downstream.
    pub sent: Cell<u64>,
}

/// Limits of a copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// The copy ends after this time without a byte in either direction; `None` waits for ever.
    pub idle: Option<Duration>,
}

/// How a copy ended.
#[derive(Debug)]
pub enum CopyEnd {
    /// Both streams ended without an error.
    Closed,
    /// No byte moved for [`CopyOptions::idle`].
    Idle,
    /// Reading from or writing to the downstream failed.
    Downstream(io::Error),
    /// Reading from or writing to the upstream failed.
    Upstream(io::Error),
}

/// After one side failed: time to deliver the bytes that this side had sent before.
const FINAL_FLUSH: Duration = Duration::from_secs(1);

/// The end of a direction that failed.
enum DirectionError {
    Reader(io::Error),
    Writer(io::Error),
}

/// The state of one direction: read into `buffer`, then write from `written` on.
struct Direction {
    /// Bytes that were read and not completely written; `None` while waiting for the reader.
    buffer: Option<Vec<u8>>,
    /// Bytes of `buffer` that were written.
    written: usize,
    /// The reader has ended or failed.
    reader_ended: bool,
    /// The writer was shut down after the reader's end.
    is_done: bool,
    /// Bytes were written since the last flush.
    needs_flush: bool,
}

impl Direction {
    /// Starts a direction; the bytes `first` are written before anything is read.
    fn new(first: Vec<u8>) -> Self {
        let buffer = (!first.is_empty()).then_some(first);
        Self {
            buffer,
            written: 0,
            reader_ended: false,
            is_done: false,
            needs_flush: false,
        }
    }

    /// Copies until both sides are pending, the direction is done, or one side fails.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        buffers: &Buffers,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), DirectionError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.is_done {
                return Poll::Ready(Ok(()));
            }
            if let Some(buffer) = self.buffer.take() {
                while self.written < buffer.len() {
                    match Pin::new(&mut *writer).poll_write(cx, &buffer[self.written..]) {
                        Poll::Pending => {
                            self.buffer = Some(buffer);
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(0)) => {
                            return Poll::Ready(Err(DirectionError::Writer(
                                io::ErrorKind::WriteZero.into(),
                            )));
                        }
                        Poll::Ready(Ok(n)) => {
                            self.written += n;
                            self.needs_flush = true;
                            moved.set(moved.get() + n as u64);
                        }
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Err(DirectionError::Writer(error)));
                        }
                    }
                }

                buffers.give(buffer);
                self.written = 0;
            }

            if self.reader_ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(DirectionError::Writer)?;
                self.is_done = true;
                continue;
            }

            let mut buffer = buffers.take();
            match poll_read_buf(Pin::new(&mut *reader), cx, &mut buffer) {
                Poll::Pending => {
                    // Give the buffer back while waiting, and flush: TLS holds back written bytes
                    // until then.
                    buffers.give(buffer);
                    if self.needs_flush {
                        ready!(Pin::new(&mut *writer).poll_flush(cx))
                            .map_err(DirectionError::Writer)?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    buffers.give(buffer);
                    self.reader_ended = true;
                }
                Poll::Ready(Ok(_)) => self.buffer = Some(buffer),
                Poll::Ready(Err(error)) => {
                    buffers.give(buffer);
                    // No further read. `finish` still delivers what was read before.
                    self.reader_ended = true;
                    return Poll::Ready(Err(DirectionError::Reader(error)));
                }
            }
        }
    }

    /// Delivers the bytes that were already read and shuts the writer down, ignoring errors of the
    /// reader.
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
                // After this error `poll` does not read again, so the loop ends.
                Poll::Ready(Err(DirectionError::Reader(_))) => {}
                polled => return polled.map(|_| ()),
            }
        }
    }
}

/// Copies until both directions ended, a side failed, or [`CopyOptions::idle`] passed without a
/// byte. When one side ends its direction, the other direction continues (half-close). `first`
/// holds bytes that were already read, from the downstream and from the upstream.
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
    let mut to_upstream = Direction::new(first.0);
    let mut to_downstream = Direction::new(first.1);
    let mut timer = options
        .idle
        .map(|idle| (idle, Box::pin(tokio::time::sleep(idle)), u64::MAX));

    // Set once a side failed: the result, and the time limit for delivering its last bytes to the
    // other side.
    let mut failure: Option<(CopyEnd, Pin<Box<Sleep>>)> = None;

    poll_fn(|cx| {
        if failure.is_none() {
            let polled = to_upstream.poll(cx, downstream, upstream, buffers, &meter.received);
            let end = match polled {
                Poll::Ready(Err(error)) => Some(copy_end(error, true)),
                _ => match to_downstream.poll(cx, upstream, downstream, buffers, &meter.sent) {
                    Poll::Ready(Err(error)) => Some(copy_end(error, false)),
                    _ => None,
                },
            };
            failure = end.map(|end| (end, Box::pin(tokio::time::sleep(FINAL_FLUSH))));
        }

        if let Some((end, timer)) = &mut failure {
            // A side that failed may have sent bytes before: deliver them to the other side.
            let delivered = match end {
                CopyEnd::Upstream(_) => {
                    to_downstream.finish(cx, upstream, downstream, buffers, &meter.sent)
                }
                _ => to_upstream.finish(cx, downstream, upstream, buffers, &meter.received),
            };

            ready!(if delivered.is_ready() {
                Poll::Ready(())
            } else {
                timer.as_mut().poll(cx)
            });

            return Poll::Ready(failure.take().map_or(CopyEnd::Closed, |(end, _)| end));
        }

        if to_upstream.is_done && to_downstream.is_done {
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

/// Names the stream that failed.
fn copy_end(error: DirectionError, is_to_upstream: bool) -> CopyEnd {
    use DirectionError::{Reader, Writer};

    match (error, is_to_upstream) {
        (Reader(error), true) | (Writer(error), false) => CopyEnd::Downstream(error),
        (Writer(error), true) | (Reader(error), false) => CopyEnd::Upstream(error),
    }
}

/// Ready when no byte moved for `idle`. `seen` is the total at the last reset: the timer is reset
/// only if bytes moved since, at most once per wake-up.
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
    async fn an_idle_copy_ends() {
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
    async fn the_result_names_the_side_that_failed() {
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

    /// A writer that holds bytes back until it is flushed, as TLS may.
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

    /// A stream that yields its bytes once and then fails with a reset.
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
    async fn bytes_sent_before_a_failure_are_delivered() {
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
    async fn delivery_after_a_failure_is_limited_in_time() {
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
