//! Descriptors handed over a Unix socket (SCM_RIGHTS), one packet at a time, and the one exchange
//! in which a process inside a network namespace gets a listening socket of another one.
//!
//! The transport is SOCK_SEQPACKET, so a message is a packet. The exchange is one
//! [`ListenRequest`], one [`ListenReply`], in turn, any number of times on a connection. A reply of
//! [`ListenReply::Socket`] carries exactly one descriptor.
//!
//! | bytes | message |
//! |---|---|
//! | `L` text | a listening socket at `ip:port` is asked for |
//! | `S` text + descriptor | the socket, and the address it listens on |
//! | `E` text | refused, and why |

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;

/// Longest packet in bytes; a socket's send buffer may refuse one of half this size.
pub const MAX_MESSAGE: usize = 400 * 1024;
/// Most descriptors in a packet; the kernel closes those that a peer sends beyond.
pub const MAX_FDS: usize = 64;

/// Asks for a listening TCP socket at this address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenRequest(pub SocketAddr);

/// The server's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenReply {
    /// A socket travels beside the packet; it listens on this address.
    Socket(SocketAddr),
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

fn address(bytes: &[u8]) -> io::Result<SocketAddr> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| bad("not an address"))
}

impl ListenRequest {
    /// Encodes the request as a packet.
    pub fn encode(&self) -> Vec<u8> {
        format!("L{}", self.0).into_bytes()
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> io::Result<Self> {
        match split(packet)? {
            (b'L', at) => address(at).map(Self),
            _ => Err(bad("only listening sockets are handed out here")),
        }
    }
}

impl ListenReply {
    /// Encodes the reply as a packet; the descriptor is sent beside it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Socket(address) => format!("S{address}").into_bytes(),
            Self::Refused(why) => format!("E{why}").into_bytes(),
        }
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> io::Result<Self> {
        match split(packet)? {
            (b'S', at) => address(at).map(Self::Socket),
            (b'E', why) => Ok(Self::Refused(String::from_utf8_lossy(why).into_owned())),
            _ => Err(bad("unknown reply")),
        }
    }
}

/// Sends one packet with descriptors. Blocks if the socket is in blocking mode.
pub fn send(socket: impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if packet.len() > MAX_MESSAGE {
        return Err(rustix::io::Errno::MSGSIZE.into());
    }
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

/// Receives one packet with its descriptors, which are close-on-exec. An empty packet means that
/// the peer closed the connection. Blocks if the socket is in blocking mode.
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

    if received.flags.contains(ReturnFlags::TRUNC) {
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

/// Two connected sockets, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn connect_blocking(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn listen_blocking(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

fn accept_blocking(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?)
}

/// Sends one request and blocks until the reply arrives. For code outside of a tokio runtime.
pub fn ask_blocking(
    path: &Path,
    request: ListenRequest,
) -> io::Result<(ListenReply, Option<OwnedFd>)> {
    let socket = connect_blocking(path)?;
    send(&socket, &request.encode(), &[])?;
    let (packet, fds) = receive(&socket)?;
    Ok((ListenReply::decode(&packet)?, fds.into_iter().next()))
}

#[expect(unsafe_code, reason = "an OwnedFd keeps what register asks for")]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its descriptor open, and the same one, for as long as it lives.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// An asynchronous packet socket.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Takes over a connected or accepted socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        register(socket).map(Self)
    }

    /// Connects to a server at `path`. This does not block: connecting to a Unix socket does not
    /// wait for the peer to accept.
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

    /// Receives one packet. Cancellation safe.
    pub async fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(result) = ready.try_io(|inner| receive(inner.get_ref())) {
                return result;
            }
        }
    }
}

/// An asynchronous listener for [`Channel`]s.
#[derive(Debug)]
pub struct ChannelListener(AsyncFd<OwnedFd>);

impl ChannelListener {
    /// Listens at `path`, which must not exist.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = listen_blocking(path)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        register(socket).map(Self)
    }

    /// Accepts the next client. Cancellation safe.
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
    async fn a_listening_socket_is_passed_to_the_client() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("dialler");
        let server = ChannelListener::bind(&path).expect("binds");
        let serve = async {
            let client = server.accept().await.expect("a client");
            let (packet, _) = client.receive().await.expect("a packet");
            let ListenRequest(at) = ListenRequest::decode(&packet).expect("a request");
            let listener = std::net::TcpListener::bind(at).expect("binds");
            let reply = ListenReply::Socket(listener.local_addr().expect("bound"));
            client
                .send(&reply.encode(), &[listener.as_fd()])
                .await
                .expect("sent");
        };

        let ask = async {
            let channel = Channel::connect(&path).expect("connects");
            let request = ListenRequest("127.0.0.1:0".parse().expect("literal"));
            channel.send(&request.encode(), &[]).await.expect("sent");
            let (packet, fds) = channel.receive().await.expect("a packet");
            let reply = ListenReply::decode(&packet).expect("a reply");
            (reply, fds.into_iter().next())
        };

        let ((), (reply, fd)) = tokio::join!(serve, ask);
        let listener = std::net::TcpListener::from(fd.expect("a descriptor"));
        assert_eq!(
            reply,
            ListenReply::Socket(listener.local_addr().expect("still bound"))
        );
    }

    #[test]
    fn malformed_messages_are_refused() {
        assert!(ListenRequest::decode(b"").is_err());
        assert!(ListenRequest::decode(b"L999.1.1.1:1").is_err());
        assert!(ListenRequest::decode(b"Ca:1").is_err());
        assert!(ListenReply::decode(b"?").is_err());

        for reply in [
            ListenReply::Refused("the port is taken".into()),
            ListenReply::Socket("[::1]:80".parse().expect("literal")),
        ] {
            assert_eq!(
                ListenReply::decode(&reply.encode()).expect("round trip"),
                reply
            );
        }
    }

    #[test]
    fn a_packet_beyond_the_limit_is_not_sent() {
        let (a, _b) = pair().expect("sockets");
        assert!(send(&a, &vec![0; MAX_MESSAGE + 1], &[]).is_err());
    }
}
