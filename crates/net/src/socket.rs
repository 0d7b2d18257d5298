//! Opens listening and connected TCP sockets with the options that a proxy needs, and reads the
//! original destination of redirected connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use meltemi_types::Keepalive;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Options of a listening socket.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// Address to bind; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Connections that the kernel queues before they are accepted.
    pub backlog: u32,
    /// IP_TRANSPARENT, for TPROXY capture; needs CAP_NET_ADMIN.
    pub transparent: bool,
    /// IP_FREEBIND: the address need not exist yet.
    pub freebind: bool,
    /// SO_REUSEPORT, with which every worker has its own socket on the port.
    pub reuse_port: bool,
}

impl ListenOptions {
    /// Envoy's defaults: backlog 4096, SO_REUSEPORT on, everything else off.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            backlog: 4096,
            transparent: false,
            freebind: false,
            reuse_port: true,
        }
    }
}

/// Options of an outgoing connection.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// SO_MARK, by which capture rules recognise the proxy's own connections.
    pub mark: Option<u32>,
    /// Local address, for example 127.0.0.6 for inbound passthrough. Ignored if its family differs
    /// from the destination's.
    pub source: Option<IpAddr>,
    /// Keepalive settings; `None` sends no probes.
    pub keepalive: Option<Keepalive>,
}

/// Opens a non-blocking listening socket.
pub fn listen(options: &ListenOptions) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(options.address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;

    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    match options.address {
        SocketAddr::V4(_) => {
            if options.transparent {
                socket.set_ip_transparent_v4(true)?;
            }
            if options.freebind {
                socket.set_freebind_v4(true)?;
            }
        }
        SocketAddr::V6(_) => {
            // `[::]` must not accept IPv4 as well, since a listener's address names its family.
            socket.set_only_v6(true)?;
            if options.freebind {
                socket.set_freebind_v6(true)?;
            }
        }
    }

    socket.bind(&options.address.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;

    Ok(socket.into())
}

/// Whether a socket listens on the address already. With SO_REUSEPORT, a second process of the same
/// user could bind the port without an error and would get a part of the connections. This probe
/// therefore binds without SO_REUSEPORT.
pub fn is_taken(address: SocketAddr) -> bool {
    if address.port() == 0 {
        return false;
    }
    let probe = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .and_then(|socket| {
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1)
    });

    matches!(probe, Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}

/// Connects, without a time limit of its own. Cancellation safe: dropping the future closes the
/// socket.
pub async fn connect(to: SocketAddr, options: &ConnectOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(to),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;

    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    if let Some(source) = options
        .source
        .filter(|source| source.is_ipv4() == to.is_ipv4())
    {
        // Let the kernel choose the port at connect time, when it can share one port between
        // several destinations.
        bind_address_no_port(&socket);
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }

    if let Some(keepalive) = &options.keepalive {
        set_keepalive(SockRef::from(&socket), keepalive)?;
    }
    socket.set_tcp_nodelay(true)?;

    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Sets IP_BIND_ADDRESS_NO_PORT. Without it, one source address is limited to as many connections
/// as there are ports.
#[expect(unsafe_code, reason = "socket options that no safe wrapper offers")]
fn bind_address_no_port(socket: &Socket) {
    use std::os::fd::AsRawFd;

    let on: libc::c_int = 1;

    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the option takes an
    // int of that size. Failing leaves the early choice of a port, which is no error.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

/// Turns TCP keepalive on with the given settings.
pub fn set_keepalive(socket: SockRef<'_>, keepalive: &Keepalive) -> io::Result<()> {
    let mut params = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        params = params.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        params = params.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        params = params.with_retries(probes);
    }
    socket.set_keepalive(true)?;

    socket.set_tcp_keepalive(&params)
}

/// The destination of a connection before a REDIRECT rule changed it (SO_ORIGINAL_DST); `None` if
/// the connection was not redirected.
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let local = stream.local_addr().ok()?;
    let address = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(address) if address.ip().to_ipv4_mapped().is_some() => {
            socket.original_dst_v4()
        }
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };

    // The kernel answers ENOENT or ENOPROTOOPT if it does not track the connection; then it was not
    // redirected.
    address.ok()?.as_socket()
}

/// Whether the connection is over in both directions: the peer has reset it. Reads nothing.
pub fn is_reset(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // If the kernel cannot say, the connection counts as alive; its next use will tell.
    poll(&mut polled, Some(&at_once)).is_ok()
        && polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Makes the close of the connection send RST instead of FIN.
pub fn reset_on_close(stream: &TcpStream) {
    // If this fails, the connection is closed with FIN, which does no harm.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_detected_despite_reuse_port() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("literal");
        let first = listen(&ListenOptions::new(any)).expect("listens");
        let address = first.local_addr().expect("bound");
        assert!(is_taken(address));
        listen(&ListenOptions::new(address)).expect("a second worker's socket");
        drop(first);
    }

    #[tokio::test]
    async fn a_connection_without_redirect_has_no_other_destination() {
        let listener =
            listen(&ListenOptions::new("127.0.0.1:0".parse().expect("literal"))).expect("listens");
        let listener = tokio::net::TcpListener::from_std(listener).expect("non-blocking");
        let address = listener.local_addr().expect("bound");
        let options = ConnectOptions {
            source: Some("127.0.0.6".parse().expect("literal")),
            ..Default::default()
        };

        let (client, served) = tokio::join!(connect(address, &options), listener.accept());
        let (served, peer) = served.expect("accepted");
        assert_eq!(peer.ip().to_string(), "127.0.0.6");
        assert_eq!(
            client.expect("connected").peer_addr().expect("peer"),
            address
        );

        let original = original_destination(&served);
        assert!(
            original.is_none() || original == Some(address),
            "{original:?}"
        );
    }
}
