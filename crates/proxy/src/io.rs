//! One connection's bytes, plain or under TLS, with reading and writing that may go on at the same
//! time.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::io::poll_read_buf;

/// A TCP stream, perhaps under TLS.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    /// Either side of TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}

/// A stream that one future reads while another writes, on the same thread. It is borrowed only
/// inside a poll.
#[derive(Debug)]
pub struct Io {
    stream: RefCell<Stream>,
    tls: bool,
    sent: Cell<u64>,
}

impl Io {
    /// Wraps a stream.
    pub fn new(stream: Stream) -> Self {
        let tls = matches!(stream, Stream::Tls(_));
        Self {
            stream: RefCell::new(stream),
            tls,
            sent: Cell::new(0),
        }
    }

    /// Looks at the stream.
    pub fn with<T>(&self, look: impl FnOnce(&Stream) -> T) -> T {
        look(&self.stream.borrow())
    }

    /// Reads what there is into the buffer's spare room; 0 is the end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        poll_read_buf(Pin::new(&mut *self.stream.borrow_mut()), cx, buffer)
    }

    /// Whether a connection that should be silent has ended or spoken; reads nothing from it unless
    /// it has.
    pub fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0_u8; 1];
        let mut buf = ReadBuf::new(&mut byte);
        Pin::new(&mut *self.stream.borrow_mut())
            .poll_read(cx, &mut buf)
            .map(|_| ())
    }

    /// Changes whenever [`Io::write_all`] may have sent something.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Writes all of the slices, one after the other, and flushes TLS.
    pub async fn write_all(&self, parts: [&[u8]; 3]) -> io::Result<()> {
        let mut written = 0;
        let total = parts[0].len() + parts[1].len() + parts[2].len();
        poll_fn(|cx| {
            let mut stream = self.stream.borrow_mut();
            while written < total {
                let n = {
                    let mut slices = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
                    let (mut used, mut skip) = (0, written);
                    for part in parts {
                        let rest = &part[skip.min(part.len())..];
                        skip -= skip.min(part.len());
                        if !rest.is_empty() {
                            slices[used] = IoSlice::new(rest);
                            used += 1;
                        }
                    }

                    let taken = match &slices[..used] {
                        [one] => ready!(Pin::new(&mut *stream).poll_write(cx, one)),
                        several => ready!(Pin::new(&mut *stream).poll_write_vectored(cx, several)),
                    };

                    if self.tls && taken.is_err() {
                        // Some of its records may have gone out before.
                        self.sent.set(self.sent.get() + 1);
                    }

                    taken?
                };

                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                written += n;
                self.sent.set(self.sent.get() + n as u64);
            }

            Poll::Ready(io::Result::Ok(()))
        })
        .await?;

        if self.tls {
            poll_fn(|cx| Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx)).await?;
        }

        Ok(())
    }

    /// Ends our sending.
    pub async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|cx| Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)).await
    }
}

/// An [`Io`] as an owned stream, for tunnels, which need both directions by value.
#[derive(Debug)]
pub struct IoRef<'a>(pub &'a Io);

impl AsyncRead for IoRef<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, buf)
    }
}

impl AsyncWrite for IoRef<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}

/// A stream some of whose first bytes were read already.
#[derive(Debug)]
pub struct Prefixed {
    first: Vec<u8>,
    at: usize,
    stream: Stream,
}

impl Prefixed {
    /// `first` comes before what `stream` has still to say.
    pub fn new(first: Vec<u8>, stream: Stream) -> Self {
        Self {
            first,
            at: 0,
            stream,
        }
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.at < this.first.len() {
            let n = buf.remaining().min(this.first.len() - this.at);
            buf.put_slice(&this.first[this.at..this.at + n]);
            this.at += n;
            if this.at == this.first.len() {
                this.first = Vec::new();
                this.at = 0;
            }
            return Poll::Ready(Ok(()));
        }

        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
