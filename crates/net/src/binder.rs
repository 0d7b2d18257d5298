//! Sources of listening sockets: the operating system, or also the process that publishes a
//! gateway's ports on the machine.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use crate::fdpass::{self, ListenReply, ListenRequest};
use crate::socket::{ListenOptions, is_taken, listen};

/// Opens listening sockets for the workers. Called when a listener is added, outside of the
/// workers' threads; may block briefly.
pub trait Binder: Send + Sync {
    /// Opens non-blocking sockets for `count` workers. Returns a multiple of `count`: `count`
    /// sockets per address, and the first `count` are on `options.address`.
    fn bind(&self, options: &ListenOptions, count: usize) -> io::Result<Vec<TcpListener>>;
}

/// Opens sockets in this process's network namespace.
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

        // With port 0 the system has chosen a port for the first socket: the others share it.
        for _ in 1..count {
            sockets.push(listen(&ListenOptions {
                address,
                ..options.clone()
            })?);
        }

        Ok(sockets)
    }
}

/// Opens sockets like [`OsBinder`], and for each port requests one more over [`fdpass`] from a
/// process in another network namespace. A gateway is reached from the machine this way. If the
/// request is refused, the port is served in this namespace only, with a warning in the log.
#[derive(Debug, Clone)]
pub struct PublishingBinder {
    /// Unix socket of the process that opens the sockets.
    pub path: PathBuf,
}

impl Binder for PublishingBinder {
    fn bind(&self, options: &ListenOptions, count: usize) -> io::Result<Vec<TcpListener>> {
        let mut sockets = OsBinder.bind(options, count)?;
        match ask(&self.path, options.address)
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
        {
            Ok(socket) => {
                // The reply carries one socket, which all workers share.
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
