//! Sockets handed over a Unix socket (SCM_RIGHTS): how a process inside a network namespace gets
//! connections and listening sockets of another one, and answers to DNS queries from there.
//!
//! The transport is SOCK_SEQPACKET, so a message is a packet: one [`Request`], one [`Reply`], in
//! turn, any number of times on a connection. A reply of [`Reply::Socket`] carries exactly one
//! descriptor.
//!
//! | bytes | message |
//! |---|---|
//! | `C` text | connect to `ip:port` or `name:port` |
//! | `L` text | a listening socket at `ip:port` |
//! | `D` bytes | a DNS message; the answer is the resolver's |
//! | `S` text + descriptor | the socket, and its address as the server sees it |
//! | `A` bytes | the DNS answer |
//! | `E` text | refused, and why |

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;

/// Longest message: a DNS message over TCP and one letter.
pub const MAX_MESSAGE: usize = 65_536 + 1;
/// Most descriptors in a message; what a peer sends beyond is closed by the kernel.
const MAX_FDS: usize = 4;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A TCP connection to `ip:port` or `name:port`.
    Connect(String),
    /// A listening TCP socket at this address.
    Listen(SocketAddr),
    /// A DNS message in wire format.
    Dns(Vec<u8>),
}

/// What a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A socket, with its address: the peer's of a connection, the local one of a listener.
    Socket(SocketAddr),
    /// A DNS message in wire format.
    Answer(Vec<u8>),
    /// Refused, and why; shown to users.
    Refused(String),
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn split(packet: &[u8]) -> io::Result<(u8, &[u8])> {
    packet
        .split_first()
        .map(|(tag, rest)| (*tag, rest))
        .ok_or_else(|| bad("empty message"))
}

fn text(bytes: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| bad("message is not UTF-8"))
}

fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(body.len() + 1);
    packet.push(tag);
    packet.extend_from_slice(body);
    packet
}

impl Request {
    /// The packet.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Connect(to) => tagged(b'C', to.as_bytes()),
            Self::Listen(address) => tagged(b'L', address.to_string().as_bytes()),
            Self::Dns(query) => tagged(b'D', query),
        }
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> io::Result<Self> {
        match split(packet)? {
            (b'C', to) => Ok(Self::Connect(text(to)?.to_owned())),
            (b'L', at) => text(at)?
                .parse()
                .map(Self::Listen)
                .map_err(|_| bad("not an address")),
            (b'D', query) => Ok(Self::Dns(query.to_vec())),
            _ => Err(bad("unknown request")),
        }
    }
}

impl Reply {
    /// The packet, without its descriptor.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Socket(address) => tagged(b'S', address.to_string().as_bytes()),
            Self::Answer(answer) => tagged(b'A', answer),
            Self::Refused(why) => tagged(b'E', why.as_bytes()),
        }
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> io::Result<Self> {
        match split(packet)? {
            (b'S', at) => text(at)?
                .parse()
                .map(Self::Socket)
                .map_err(|_| bad("not an address")),
            (b'A', answer) => Ok(Self::Answer(answer.to_vec())),
            (b'E', why) => Ok(Self::Refused(String::from_utf8_lossy(why).into_owned())),
            _ => Err(bad("unknown reply")),
        }
    }
}

/// Sends one packet with descriptors; blocks if the socket does.
pub fn send(socket: impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(bad("too many descriptors"));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;

    Ok(())
}

/// Receives one packet with its descriptors (close-on-exec); blocks if the socket does. An empty
/// packet means that the peer is gone.
pub fn receive(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut packet = vec![0; MAX_MESSAGE];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut packet)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;

    if received.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(bad("message too long"));
    }
    packet.truncate(received.bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }

    Ok((packet, fds))
}

fn seqpacket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | flags,
        None,
    )?)
}

/// A blocking connection to a server at `path`.
pub fn connect_blocking(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket(SocketFlags::empty())?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A blocking listener at `path`, which must not exist.
pub fn listen_blocking(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket(SocketFlags::empty())?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Accepts on [`listen_blocking`]'s socket.
pub fn accept_blocking(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?)
}

/// Asks once and waits, blocking: for start-up, before there is a runtime.
pub fn ask_blocking(path: &Path, request: &Request) -> io::Result<(Reply, Option<OwnedFd>)> {
    let socket = connect_blocking(path)?;
    send(&socket, &request.encode(), &[])?;
    let (packet, fds) = receive(&socket)?;
    Ok((Reply::decode(&packet)?, fds.into_iter().next()))
}

#[allow(unsafe_code)]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its descriptor open, and the same one, for as long as it lives.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// A packet socket inside a tokio runtime.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Takes a connected or accepted socket over.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        register(socket).map(Self)
    }

    /// Connects to a server at `path`. Connecting to a Unix socket does not wait for the peer.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::new(connect_blocking(path)?)
    }

    /// Sends one packet.
    pub async fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(result) = ready.try_io(|inner| send(inner.get_ref(), packet, fds)) {
                return result;
            }
        }
    }

    /// Receives one packet; cancellation-safe.
    pub async fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(result) = ready.try_io(|inner| receive(inner.get_ref())) {
                return result;
            }
        }
    }

    /// One request, one reply. Not cancellation-safe: drop the channel with the future.
    pub async fn ask(&self, request: &Request) -> io::Result<(Reply, Option<OwnedFd>)> {
        self.send(&request.encode(), &[]).await?;
        let (packet, fds) = self.receive().await?;
        Ok((Reply::decode(&packet)?, fds.into_iter().next()))
    }
}

/// A listener for [`Channel`]s inside a tokio runtime.
#[derive(Debug)]
pub struct ChannelListener(AsyncFd<OwnedFd>);

impl ChannelListener {
    /// Listens at `path`, which must not exist.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = listen_blocking(path)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        register(socket).map(Self)
    }

    /// The next client; cancellation-safe.
    pub async fn accept(&self) -> io::Result<Channel> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(result) = ready.try_io(|inner| accept_blocking(inner.get_ref())) {
                return Channel::new(result?);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listening_socket_crosses_over() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("dialler");
        let server = ChannelListener::bind(&path).expect("binds");
        let serve = async {
            let client = server.accept().await.expect("a client");
            let (packet, _) = client.receive().await.expect("a packet");
            let Request::Listen(at) = Request::decode(&packet).expect("a request") else {
                panic!("asked to listen")
            };
            let listener = std::net::TcpListener::bind(at).expect("binds");
            let reply = Reply::Socket(listener.local_addr().expect("bound"));
            client
                .send(&reply.encode(), &[listener.as_fd()])
                .await
                .expect("sent");
        };

        let ask = async {
            let channel = Channel::connect(&path).expect("connects");
            channel
                .ask(&Request::Listen("127.0.0.1:0".parse().expect("literal")))
                .await
                .expect("a reply")
        };

        let ((), (reply, fd)) = tokio::join!(serve, ask);
        let listener = std::net::TcpListener::from(fd.expect("a descriptor"));
        assert_eq!(
            reply,
            Reply::Socket(listener.local_addr().expect("still bound"))
        );
    }

    #[test]
    fn junk_is_refused() {
        assert!(Request::decode(b"").is_err());
        assert!(Request::decode(b"L999.1.1.1:1").is_err());
        assert!(Reply::decode(b"?").is_err());
        for request in [Request::Connect("a:1".into()), Request::Dns(vec![1, 2])] {
            assert_eq!(
                Request::decode(&request.encode()).expect("round trip"),
                request
            );
        }
    }
}
