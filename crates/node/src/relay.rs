//! The way out for what no workload answers: connections that the router's rules redirected here
//! are dialled from the machine's own network and copied both ways.
//!
//! What is for a service's own address goes to one of its endpoints, as kube-proxy would have it: a
//! proxy passes such connections on as they are when its configuration does not know the service
//! (Sidecar, PASSTHROUGH, excluded ports).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meltemi_types::{Cidr, Keepalive};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::dialler::Dialler;
use crate::services::Services;

/// Connections to the outside at a time; further ones wait in the listener's queue.
const CONNECTIONS: usize = 4096;

/// What connections are decided by.
pub(crate) struct Relay {
    pub(crate) dialler: Arc<Dialler>,
    /// Blocks that are the mesh's own: nothing outside answers them.
    pub(crate) inside: Vec<Cidr>,
    pub(crate) services: watch::Receiver<Arc<Services>>,
    /// Deals connections to endpoints round robin.
    pub(crate) turn: AtomicUsize,
}

/// Accepts for ever.
pub(crate) async fn serve(listener: TcpListener, relay: Relay) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let relay = Arc::new(relay);
    loop {
        let permit = Arc::clone(&permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");

        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "relay cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };

        let relay = Arc::clone(&relay);
        tokio::spawn(async move {
            relay.carry(stream).await;
            drop(permit);
        });
    }
}

impl Relay {
    async fn carry(&self, mut inner: TcpStream) {
        let Some(to) = original_destination(&inner) else {
            return reset(&inner);
        };
        match self.dial(&inner, to).await {
            Ok(mut outer) => {
                for stream in [&inner, &outer] {
                    let _ = (stream.set_nodelay(true), keep_alive(stream));
                }
                if tokio::io::copy_bidirectional(&mut inner, &mut outer)
                    .await
                    .is_err()
                {
                    reset(&inner);
                    reset(&outer);
                }
            }
            Err(error) => {
                tracing::debug!(%to, %error, "nobody answered");
                reset(&inner);
            }
        }
    }

    async fn dial(&self, inner: &TcpStream, to: SocketAddr) -> std::io::Result<TcpStream> {
        let endpoint = self
            .services
            .borrow()
            .endpoint(to, self.turn.fetch_add(1, Ordering::Relaxed));

        if let Some(endpoint) = endpoint {
            return TcpStream::connect(endpoint).await;
        }
        if self.inside.iter().any(|block| block.contains(to.ip())) || is_own(inner, to.ip()) {
            return Err(std::io::ErrorKind::AddrNotAvailable.into());
        }

        self.dialler.connect(to).await.and_then(TcpStream::from_std)
    }
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    SockRef::from(stream).original_dst_v4().ok()?.as_socket()
}

fn is_own(stream: &TcpStream, to: IpAddr) -> bool {
    // Called without a redirect: relaying it would call ourselves.
    stream.local_addr().is_ok_and(|own| own.ip() == to)
}

/// Somebody who vanished, as over a suspend, is noticed within a minute and a half; else the
/// connection would be kept for ever.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    let probes = Keepalive {
        probes: Some(3),
        time: Some(Duration::from_secs(60)),
        interval: Some(Duration::from_secs(10)),
    };
    meltemi_net::socket::set_keepalive(stream.into(), &probes)
}

/// The connection ends with a reset, as a refused one would.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_remote_that_vanished_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        keep_alive(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(60)
        );

        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(10)
        );

        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }
}
