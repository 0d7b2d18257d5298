//! Istio's exchange of peer metadata on TCP: both sides say who they are before the first byte of
//! the application. Source: Istio proxy `metadata_exchange.cc`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use meltemi_filters::peer_metadata::LocalPeer;
use meltemi_filters::peer_metadata::PeerInfo;
use meltemi_filters::peer_metadata::preamble::{self, Read};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// The protocol that both sides must have agreed on.
pub const ALPN: &str = "istio-peer-exchange";
/// A peer that agreed and is silent may be waiting for the application's first word (the server
/// speaks first, the client's proxy sends its part with its first bytes): then the connection goes
/// on, and its part may come later.
const PATIENCE: Duration = Duration::from_secs(1);

/// The peer's answer to our preamble.
#[derive(Debug)]
pub enum PeerAnswer {
    /// Its preamble; `None` if it sent something else, which belongs to the application.
    Peer(Option<Arc<PeerInfo>>),
    /// No whole preamble within [`PATIENCE`]: see [`LatePreamble`].
    NotYet,
}

/// Writes our preamble and reads the peer's. `bytes` holds the bytes that were read before; on
/// return it holds the application's, or the beginning of a preamble after [`PeerAnswer::NotYet`].
pub async fn exchange<S>(
    stream: &mut S,
    bytes: &mut Vec<u8>,
    local: &LocalPeer,
) -> io::Result<PeerAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream
        .write_all(&preamble::write(&local.id, &local.info))
        .await?;
    stream.flush().await?;
    let reading = async {
        loop {
            match preamble::read(bytes) {
                Read::More(_) if stream.read_buf(bytes).await? > 0 => {}
                Read::More(_) | Read::Absent => return Ok(PeerAnswer::Peer(None)),
                Read::Peer(length, peer) => {
                    bytes.drain(..length);
                    return Ok(PeerAnswer::Peer(peer));
                }
            }
        }
    };

    // Cancelled between two reads nothing is lost: what was read is in `bytes`.
    tokio::time::timeout(PATIENCE, reading)
        .await
        .unwrap_or(Ok(PeerAnswer::NotYet))
}

/// Wraps a stream and drops a preamble that arrives after [`PATIENCE`].
#[derive(Debug)]
pub struct LatePreamble<'a, S> {
    stream: &'a mut S,
    first: FirstBytes,
}

/// The peer's first bytes that the reader has not got yet.
#[derive(Debug)]
enum FirstBytes {
    /// None are left: reads go to the stream.
    Nothing,
    /// They may be the beginning of a preamble.
    Part(Vec<u8>),
    /// They are the application's.
    Rest(Vec<u8>),
}

impl<'a, S> LatePreamble<'a, S> {
    /// `begun` is the part of a preamble that was read before; `None`: no preamble is expected.
    pub fn new(stream: &'a mut S, begun: Option<Vec<u8>>) -> Self {
        Self {
            stream,
            first: begun.map_or(FirstBytes::Nothing, FirstBytes::Part),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LatePreamble<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, first } = &mut *self;
        if let FirstBytes::Part(begun) = first {
            let length = loop {
                match preamble::read(begun) {
                    Read::Peer(length, _) => break length,
                    Read::Absent => break 0,
                    Read::More(_) => {
                        let mut room = [0; 1024];
                        let mut piece = ReadBuf::new(&mut room);
                        ready!(Pin::new(&mut **stream).poll_read(cx, &mut piece))?;
                        if piece.filled().is_empty() {
                            break 0;
                        }
                        begun.extend_from_slice(piece.filled());
                    }
                }
            };

            *first = FirstBytes::Rest(begun.split_off(length));
        }

        if let FirstBytes::Rest(rest) = first {
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            rest.drain(..count);
            if rest.is_empty() {
                *first = FirstBytes::Nothing;
            }
            if count > 0 {
                return Poll::Ready(Ok(()));
            }
        }

        Pin::new(&mut **stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LatePreamble<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(workload: &str) -> LocalPeer {
        let info = PeerInfo {
            workload: workload.into(),
            namespace: "default".into(),
            ..PeerInfo::default()
        };

        LocalPeer {
            id: workload.into(),
            encoded: info.encode().into(),
            info,
        }
    }

    #[tokio::test]
    async fn both_sides_learn_of_each_other_and_no_byte_is_lost() {
        let (mut a, mut b) = tokio::io::duplex(4096);
        let (client, server) = (local("client"), local("server"));
        let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
        let ask = async {
            let heard = exchange(&mut a, &mut from_server, &client)
                .await
                .expect("exchanged");
            a.write_all(b"question").await.expect("written");
            heard
        };

        let (seen, heard) = tokio::join!(ask, exchange(&mut b, &mut from_client, &server));
        let name = |heard| match heard {
            PeerAnswer::Peer(Some(peer)) => peer.workload.to_string(),
            other => panic!("{other:?}"),
        };

        assert_eq!(name(seen), "server");
        assert_eq!(name(heard.expect("exchanged")), "client");
        let mut question = from_client;
        while question.len() < 8 {
            b.read_buf(&mut question).await.expect("read");
        }
        assert_eq!(question, b"question");
    }

    #[tokio::test]
    async fn a_peer_that_says_something_else_is_let_be() {
        let (mut a, mut b) = tokio::io::duplex(4096);
        b.write_all(b"SSH-2.0").await.expect("written");
        let mut bytes = Vec::new();
        let heard = exchange(&mut a, &mut bytes, &local("x"))
            .await
            .expect("goes on");
        assert!(matches!(heard, PeerAnswer::Peer(None)));
        assert_eq!(bytes, b"SSH-2.0");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_peer_says_late_is_never_the_applications() {
        let said = preamble::write("late", &local("late").info);
        for (already, later) in [(0, said.len()), (3, 5), (20, 1)] {
            let (mut a, mut b) = tokio::io::duplex(64 * 1024);
            b.write_all(&said[..already]).await.expect("written");
            let mut bytes = Vec::new();
            let heard = exchange(&mut a, &mut bytes, &local("x"))
                .await
                .expect("goes on");
            assert!(matches!(heard, PeerAnswer::NotYet));
            assert_eq!(bytes, said[..already]);
            let mut late = LatePreamble::new(&mut a, Some(bytes));
            b.write_all(&said[already..already + later])
                .await
                .expect("written");
            tokio::task::yield_now().await;
            b.write_all(&said[already + later..])
                .await
                .expect("written");

            // Bytes of the application may look like anything.
            b.write_all(&said[..12]).await.expect("written");
            b.shutdown().await.expect("shut");
            let mut heard = Vec::new();
            while late
                .read(&mut [0; 5][..])
                .await
                .map(|count| heard.push(count))
                .is_ok()
                && heard.last() != Some(&0)
            {}

            assert_eq!(heard.iter().sum::<usize>(), 12, "{already} {later}");
        }

        // A first byte that only begins like it.
        let (mut a, mut b) = tokio::io::duplex(64);
        b.write_all(&said[..1]).await.expect("written");
        b.shutdown().await.expect("shut");
        let mut heard = Vec::new();
        LatePreamble::new(&mut a, Some(Vec::new()))
            .read_to_end(&mut heard)
            .await
            .expect("read");

        assert_eq!(heard, said[..1]);
    }
}
