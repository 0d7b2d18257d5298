//! The accept loop.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::places::{Place, Places};

/// How long the loop rests when the system hands out no connection: others will close theirs.
const PAUSE: Duration = Duration::from_millis(50);

/// The answer of a handler.
pub type Answer = Response<Full<Bytes>>;

/// How much a server takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// The fate of a connection beyond them.
    pub when_full: WhenFull,
    /// A client whose next request has not come whole by then is cut off.
    pub header_timeout: Duration,
    /// Largest request head in bytes; hyper asks for at least 8192.
    pub head_bytes: usize,
    /// A connection is asked to end after this time; `None`: it lasts as long as its client likes.
    pub connection_time: Option<Duration>,
    /// A connection that was asked to end is cut off after this time.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            when_full: WhenFull::Wait,
            header_timeout: Duration::from_secs(10),
            head_bytes: 64 * 1024,
            connection_time: None,
            grace: Duration::from_secs(2),
        }
    }
}

/// The fate of a connection beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It stays in the listener's queue until another one ends.
    Wait,
    /// It takes the place of another one, see [`Places`](crate::Places). For listeners that
    /// strangers reach: one of them must not take the room of all others.
    Evict,
}

/// A listening socket.
pub trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The client's address.
    type Peer: Clone + Send + 'static;

    /// The address that counts as the client's, if it has one.
    fn source(peer: &Self::Peer) -> Option<IpAddr>;

    /// The next connection; cancellation safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    fn source(peer: &SocketAddr) -> Option<IpAddr> {
        Some(peer.ip())
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Without it the connection works all the same, a little later.
        let _ = stream.set_nodelay(true);
        Ok((stream, peer))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    type Peer = ();

    fn source((): &()) -> Option<IpAddr> {
        None
    }

    async fn accept(&self) -> io::Result<(UnixStream, ())> {
        let (stream, _) = UnixListener::accept(self).await?;
        Ok((stream, ()))
    }
}

/// Answers each request with `handler`, until `stop` is ready; then asks the open connections to
/// end, and returns when they have, or after [`Limits::grace`]. Dropped earlier, it ends them at
/// once.
pub async fn serve<L, H, F>(listener: L, limits: Limits, handler: H, stop: impl Future<Output = ()>)
where
    L: Accept,
    H: Fn(Request<Incoming>, L::Peer) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Places::new(limits.connections);
    let room = Arc::new(Semaphore::new(limits.connections));
    let (ending, ended) = watch::channel(false);
    let mut open = JoinSet::new();

    let accepting = async {
        loop {
            let room = match limits.when_full {
                WhenFull::Wait => room.clone().acquire_owned().await.ok(),
                WhenFull::Evict => None,
            };

            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };

            // Where connections wait for room, none of them ever loses its place.
            let place = places.admit(L::source(&peer));
            let connection =
                connection(stream, peer, limits, handler.clone(), ended.clone(), place);
            open.spawn(async move {
                connection.await;
                drop(room);
            });

            // Tasks that have ended leave the set.
            while open.try_join_next().is_some() {}
        }
    };

    tokio::select! {
        () = stop => {}
        () = accepting => {}
    }

    ending.send_replace(true);
    let all = async { while open.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(limits.grace, all).await;
}

async fn connection<S, P, H, F>(
    stream: S,
    peer: P,
    limits: Limits,
    handler: H,
    mut ending: watch::Receiver<bool>,
    mut place: Place,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone,
    H: Fn(Request<Incoming>, P) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(move |request| {
        let answer = handler(request, peer.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });

    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.head_bytes)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);

    let time_is_up = async {
        match limits.connection_time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };

    let stopping = async {
        // An error means that the server is gone, which stops the connection as well.
        let _ = ending.wait_for(|ending| *ending).await;
    };

    tokio::select! {
        // The client sees for itself that its connection broke.
        result = serving.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "a connection broke");
            }
            return;
        }
        () = time_is_up => {}
        () = stopping => {}
        () = place.lost() => {}
    }

    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(limits.grace, serving).await;
}
