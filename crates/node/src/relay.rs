//! Carries connections that leave the mesh. The router's rules redirect every connection to an
//! address outside the mesh to this relay, which connects from the machine's own network and copies
//! bytes in both directions.
//!
//! A connection to a Service's cluster IP goes to one of the Service's endpoints, as kube-proxy
//! does. Sidecars send such connections unchanged when their configuration lacks the Service
//! (Sidecar resource, PASSTHROUGH, excluded ports). The relay refuses all other addresses inside
//! the mesh.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meltemi_types::{Cidr, Keepalive};
use meltemi_web::Places;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::dialler::Dialler;
use crate::services::Services;

/// Maximum number of relayed connections; a further one takes the place of the eldest of the
/// workload that has most.
const CONNECTIONS: usize = 4096;

/// Decides where a redirected connection goes, and carries it there.
pub(crate) struct Relay {
    pub(crate) dialler: Arc<Dialler>,
    /// Address blocks of the mesh, which are never dialled outside.
    pub(crate) inside: Vec<Cidr>,
    pub(crate) services: watch::Receiver<Arc<Services>>,
    /// Round-robin counter over the endpoints of Services.
    pub(crate) turn: AtomicUsize,
}

/// Accepts connections for ever.
pub(crate) async fn serve(listener: TcpListener, relay: Relay) {
    let places = Places::new(CONNECTIONS);
    let relay = Arc::new(relay);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "relay cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };

        let relay = Arc::clone(&relay);
        let mut place = places.admit(Some(peer.ip()));
        tokio::spawn(async move { relay.carry(stream, place.lost()).await });
    }
}

impl Relay {
    /// Connects to the original destination and copies until both sides are closed, or `lost` is
    /// ready. A failure on either side resets both, so that the application sees an error instead of
    /// a clean end.
    async fn carry(&self, inner: TcpStream, lost: impl Future<Output = ()>) {
        let Some(to) = original_destination(&inner) else {
            return reset(&inner);
        };
        let mut lost = std::pin::pin!(lost);
        let dialled = tokio::select! {
            dialled = self.dial(&inner, to) => dialled,
            () = &mut lost => return reset(&inner),
        };
        match dialled {
            Ok(outer) => copy_until(inner, outer, lost).await,
            Err(error) => {
                tracing::debug!(%to, %error, "cannot connect");
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

/// Copies until both sides are closed. A failure on either side resets both.
pub(crate) async fn copy(inner: TcpStream, outer: TcpStream) {
    copy_until(inner, outer, std::future::pending()).await;
}

/// Like [`copy`]; resets both sides when `lost` is ready.
async fn copy_until(mut inner: TcpStream, mut outer: TcpStream, lost: impl Future<Output = ()>) {
    for stream in [&inner, &outer] {
        let _ = (stream.set_nodelay(true), keep_alive(stream));
    }
    let copied = tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut inner, &mut outer) => copied.is_ok(),
        () = lost => false,
    };
    if !copied {
        reset(&inner);
        reset(&outer);
    }
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    SockRef::from(stream).original_dst_v4().ok()?.as_socket()
}

/// Whether a connection was made to the relay's own address instead of being redirected to it.
/// Dialling its destination would connect the relay to itself.
fn is_own(stream: &TcpStream, to: IpAddr) -> bool {
    stream.local_addr().is_ok_and(|own| own.ip() == to)
}

/// Enables TCP keepalive, which closes the connection about 90 s after the peer vanished (as over a
/// suspend). Without it the connection would stay for ever.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    let probes = Keepalive {
        probes: Some(3),
        time: Some(Duration::from_secs(60)),
        interval: Some(Duration::from_secs(10)),
    };
    meltemi_net::socket::set_keepalive(stream.into(), &probes)
}

/// Makes the connection end with RST when it is dropped, as a refused connection does.
pub(crate) fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Both ends of a connection, the accepted one first.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, client) = tokio::join!(listener.accept(), client);
        (accepted.unwrap().0, client.unwrap())
    }

    #[tokio::test]
    async fn the_eldest_connection_of_the_greediest_workload_is_reset_for_a_newcomer() {
        let places = Places::new(2);
        let mut held = Vec::new();
        for workload in [2, 2, 3] {
            let (inner, application) = pair().await;
            let (remote, outer) = pair().await;
            let mut place = places.admit(Some([10, 44, 0, workload].into()));
            tokio::spawn(async move { copy_until(inner, outer, place.lost()).await });
            held.push((application, remote));
        }

        let (mut application, mut remote) = held.remove(0);
        for end in [&mut application, &mut remote] {
            let read = tokio::time::timeout(Duration::from_secs(10), end.read_u8());
            let error = read.await.expect("an end").expect_err("no clean end");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }

        for (application, remote) in &mut held {
            application.write_all(b"a").await.unwrap();
            assert_eq!(remote.read_u8().await.unwrap(), b'a');
        }
    }

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
