//! Where listening sockets come from.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use crate::fdpass::{self, ListenReply, ListenRequest};
use crate::socket::{ListenOptions, is_taken, listen};

/// Opens listening sockets, one for each worker. Called rarely, off the workers' threads; may block
/// briefly.
pub trait Binder: Send + Sync {
    /// Non-blocking sockets for `count` workers, a multiple of `count` of them; the first `count`
    /// share one address.
    fn bind(&self, options: &ListenOptions, count: usize) -> io::Result<Vec<TcpListener>>;
}

/// Asks the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsBinder;

impl Binder for OsBinder {
    fn bind(&self, options: &ListenOptions, count: usize) -> io::Result<Vec<TcpListener>> {
        if is_taken(options.address) {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is taken", options.address),
            ));
        }

        let first = listen(options)?;
        let address = first.local_addr()?;
        let mut sockets = vec![first];

        for _ in 1..count {
            sockets.push(listen(&ListenOptions {
                address,
                ..options.clone()
            })?);
        }

        Ok(sockets)
    }
}

/// Beside the operating system's sockets, one more for each port from a process in another network
/// namespace, over
/// [`fdpass`]: a gateway's way to be reached from the machine. A port that the other side refuses is served here alone.
#[derive(Debug, Clone)]
pub struct PublishingBinder {
    /// The server's socket.
    pub path: PathBuf,
}

impl Binder for PublishingBinder {
    fn bind(&self, options: &ListenOptions, count: usize) -> io::Result<Vec<TcpListener>> {
        let mut sockets = OsBinder.bind(options, count)?;
        match ask(&self.path, options.address)
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
        {
            Ok(socket) => {
                // All workers share the one socket that comes back.
                let copies = (1..count)
                    .map(|_| socket.try_clone())
                    .collect::<io::Result<Vec<_>>>()?;
                sockets.extend(copies);
                sockets.push(socket);
            }
            Err(error) => {
                tracing::warn!(address = %options.address, %error, "the port is not published")
            }
        }

        Ok(sockets)
    }
}

fn ask(path: &std::path::Path, address: SocketAddr) -> io::Result<TcpListener> {
    match fdpass::ask_blocking(path, ListenRequest(address))? {
        (ListenReply::Socket(_), Some(fd)) => Ok(TcpListener::from(fd)),
        (ListenReply::Refused(why), _) => Err(io::Error::other(format!("{address}: {why}"))),
        (other, _) => Err(io::Error::other(format!(
            "{address}: unexpected reply {other:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_one_port() {
        let options = ListenOptions::new("127.0.0.1:0".parse().expect("literal"));
        let sockets = OsBinder.bind(&options, 3).expect("binds");
        let ports: Vec<_> = sockets
            .iter()
            .map(|s| s.local_addr().expect("bound").port())
            .collect();

        assert!(ports.iter().all(|port| *port == ports[0]));
        let taken = ListenOptions::new(sockets[0].local_addr().expect("bound"));
        assert_eq!(
            OsBinder.bind(&taken, 1).expect_err("taken").kind(),
            io::ErrorKind::AddrInUse
        );
    }
}
