//! The way out for what no workload answers: connections that the router's rules redirected here are dialled from the
//! machine's own network and copied both ways.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meltemi_redirect::Cidr;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::dialler::Dialler;

/// Connections to the outside at a time; further ones wait in the listener's queue.
const CONNECTIONS: usize = 4096;

/// Accepts for ever.
pub(crate) async fn serve(listener: TcpListener, dialler: Arc<Dialler>, inside: Vec<Cidr>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let inside: Arc<[Cidr]> = inside.into();
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "relay cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (dialler, inside) = (Arc::clone(&dialler), Arc::clone(&inside));
        tokio::spawn(async move {
            relay(stream, &dialler, &inside).await;
            drop(permit);
        });
    }
}

async fn relay(mut inner: TcpStream, dialler: &Dialler, inside: &[Cidr]) {
    let Some(to) = original_destination(&inner) else { return reset(&inner) };
    // A service's own address that no sidecar and no rule took: nothing outside answers it.
    if inside.iter().any(|block| block.contains(to.ip())) || is_own(&inner, to.ip()) {
        return reset(&inner);
    }
    let dialled = dialler.connect(to).await.and_then(TcpStream::from_std);
    match dialled {
        Ok(mut outer) => {
            let _ = (inner.set_nodelay(true), outer.set_nodelay(true));
            if tokio::io::copy_bidirectional(&mut inner, &mut outer).await.is_err() {
                reset(&inner);
                reset(&outer);
            }
        }
        Err(error) => {
            tracing::debug!(%to, %error, "the outside did not answer");
            reset(&inner);
        }
    }
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    SockRef::from(stream).original_dst_v4().ok()?.as_socket()
}

fn is_own(stream: &TcpStream, to: IpAddr) -> bool {
    // Called without a redirect: relaying it would call ourselves.
    stream.local_addr().is_ok_and(|own| own.ip() == to)
}

/// The connection ends with a reset, as a refused one would.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
