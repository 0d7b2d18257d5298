//! One request on a connection of its own.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Sends a request over a connected stream and reads the whole answer. A body longer than
/// `max_body` bytes is an error.
///
/// The connection is driven here, not in a task: it ends when the caller stops waiting.
pub async fn call<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: Request<Full<Bytes>>,
    max_body: usize,
) -> io::Result<Response<Bytes>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;

    let exchange = async {
        let (head, body) = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?
            .into_parts();
        let body = Limited::new(body, max_body)
            .collect()
            .await
            .map_err(io::Error::other)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };

    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        done = &mut exchange => done,
        ended = connection => {
            ended.map_err(io::Error::other)?;
            exchange.await
        }
    }
}

/// Connects to `address` and [`call`]s; all of it takes no longer than `within`, or the error is
/// [`io::ErrorKind::TimedOut`].
pub async fn call_at(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
    max_body: usize,
    within: Duration,
) -> io::Result<Response<Bytes>> {
    let exchange = async { call(TcpStream::connect(address).await?, request, max_body).await };
    tokio::time::timeout(within, exchange)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
