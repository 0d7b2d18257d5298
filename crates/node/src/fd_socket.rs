//! Messages with file descriptors over a `SOCK_SEQPACKET` Unix socket: one JSON value per message.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use meltemi_net::fdpass::{self, Channel};
pub use meltemi_net::fdpass::{MAX_FDS, pair};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Sends one message. Blocks if the socket is in blocking mode.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    fdpass::send(socket, &serde_json::to_vec(message)?, fds)
}

/// Receives one message; `None` when the peer closed its end. Blocks if the socket is in blocking
/// mode.
#[cfg(test)]
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    decode(fdpass::receive(socket)?)
}

fn decode<T: DeserializeOwned>(
    (packet, fds): (Vec<u8>, Vec<OwnedFd>),
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // A closed socket reads as an empty packet, and no JSON value is empty.
    if packet.is_empty() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&packet)?, fds)))
}

/// An asynchronous socket for these messages.
#[derive(Debug)]
pub struct FdSocket(Channel);

impl FdSocket {
    /// Takes over a connected socket. Must be called within a tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Channel::new(socket).map(Self)
    }

    /// Connects to the listener at `path`; must be called within a runtime.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Channel::connect(path).map(Self)
    }

    /// Sends one message. Cancellation safe: the message is sent whole or not at all.
    pub async fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.send(&serde_json::to_vec(message)?, fds).await
    }

    /// Receives one message; `None` when the peer closed its end. Cancellation safe.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        decode(self.0.receive().await?)
    }
}

impl From<Channel> for FdSocket {
    fn from(channel: Channel) -> Self {
        Self(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_with_their_message() {
        let (a, b) = pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send(&a, &"hello", &[write.as_fd()]).unwrap();
        drop(write);
        let (text, fds) = receive::<String>(&b).unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 1));
        rustix::io::write(&fds[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&read, &mut [0; 4]).unwrap(), 1);
        drop(a);
        assert!(receive::<String>(&b).unwrap().is_none());
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        let (a, b) = pair().unwrap();
        rustix::io::write(&a, b"{").unwrap();
        assert!(receive::<String>(&b).is_err());
    }
}
