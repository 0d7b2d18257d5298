//! Forwards DNS queries to upstream name servers over sockets that the capture rules leave alone.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use meltemi_net::ConnectOptions;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use crate::BoxFuture;

/// Answers queries for names outside the mesh.
pub trait Forwarder: Send + Sync + 'static {
    /// Forwards one query unchanged over the transport that the client used and returns the raw
    /// answer. Limited in time. Cancellation safe.
    fn forward<'a>(&'a self, query: &'a [u8], over_tcp: bool)
    -> BoxFuture<'a, io::Result<Vec<u8>>>;
}

/// Sends each query to the name servers in order until one answers, at most 2 s each.
#[derive(Debug, Clone)]
pub struct UpstreamForwarder {
    upstreams: Vec<SocketAddr>,
    mark: Option<u32>,
}

/// Limit for the answer of one name server.
const TIMEOUT: Duration = Duration::from_secs(2);

impl UpstreamForwarder {
    /// Creates a forwarder; `mark` is the SO_MARK that the capture rules leave alone.
    pub fn new(upstreams: Vec<SocketAddr>, mark: Option<u32>) -> Self {
        Self { upstreams, mark }
    }

    /// Asks one name server over UDP. Each query has a socket and so a random source port of its
    /// own, which makes forged answers harder (RFC 5452).
    async fn over_udp(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = Socket::new(
            Domain::for_address(upstream),
            Type::DGRAM.nonblocking(),
            Some(Protocol::UDP),
        )?;

        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        let any: IpAddr = if upstream.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };

        socket.bind(&SocketAddr::new(any, 0).into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.connect(upstream).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; 65_535];

        loop {
            let length = socket.recv(&mut buffer).await?;
            // Ignore everything but the answer to this query: a late answer to another one, or a
            // forged one, must not end the wait.
            if length >= 12 && buffer[..2] == query[..2] && buffer[2] & 0x80 != 0 {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }

    async fn over_tcp(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let options = ConnectOptions {
            mark: self.mark,
            ..ConnectOptions::default()
        };

        let mut stream = meltemi_net::connect(upstream, &options).await?;
        stream
            .write_all(&[&length.to_be_bytes(), query].concat())
            .await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;

        Ok(answer)
    }
}

impl Forwarder for UpstreamForwarder {
    fn forward<'a>(
        &'a self,
        query: &'a [u8],
        over_tcp: bool,
    ) -> BoxFuture<'a, io::Result<Vec<u8>>> {
        Box::pin(async move {
            if query.len() < 12 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut last =
                io::Error::new(io::ErrorKind::NotFound, "there is no upstream name server");
            for &upstream in &self.upstreams {
                let attempt = async {
                    match over_tcp {
                        true => self.over_tcp(upstream, query).await,
                        false => self.over_udp(upstream, query).await,
                    }
                };

                match tokio::time::timeout(TIMEOUT, attempt).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::ErrorKind::TimedOut.into(),
                }
            }

            Err(last)
        })
    }
}
