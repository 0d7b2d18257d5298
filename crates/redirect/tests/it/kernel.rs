//! The netlink form, in a user and network namespace of the test's own.
//!
//! The test harness has threads, and a process with threads cannot enter a user namespace: so each
//! test runs itself again in a child that entered the namespaces before it became this program.
#![expect(unsafe_code, reason = "the test enters a namespace of its own")]

use std::ffi::CString;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use meltemi_redirect::netlink::{Family, Messages, NLM_F_CREATE, NLM_F_EXCL, Socket};
use meltemi_redirect::rules::Transport;
use meltemi_redirect::{Exempt, RouterPlan, ServicePlan, ServiceRule, SidecarPlan, apply, remove};
use meltemi_types::Cidr;
use socket2::{Domain, SockRef, Type};

const INSIDE: &str = "MELTEMI_TEST_INSIDE";

/// Runs `body` in fresh namespaces; a machine that forbids them is a visible skip.
fn in_namespaces(test: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "--nocapture", test])
        .env(INSIDE, "1");
    let maps = [
        (c"/proc/self/setgroups", CString::from(c"deny")),
        (
            c"/proc/self/uid_map",
            CString::new(format!("0 {} 1", unsafe { libc::geteuid() })).unwrap(),
        ),
        (
            c"/proc/self/gid_map",
            CString::new(format!("0 {} 1", unsafe { libc::getegid() })).unwrap(),
        ),
    ];

    // SAFETY: only system calls on memory prepared before the fork.
    unsafe {
        command.pre_exec(move || {
            if libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) != 0 {
                return Err(io::Error::last_os_error());
            }
            for (path, text) in &maps {
                let fd = libc::open(path.as_ptr(), libc::O_WRONLY);
                let bytes = text.as_bytes();
                if fd < 0 || libc::write(fd, bytes.as_ptr().cast(), bytes.len()) < 0 {
                    return Err(io::Error::last_os_error());
                }
                libc::close(fd);
            }

            Ok(())
        });
    }

    match command.status() {
        Ok(status) => assert!(
            status.success(),
            "{test} failed inside its namespaces: {status}"
        ),
        Err(e) => crate::skip(
            test,
            &format!("user and network namespaces are not available here: {e}"),
        ),
    }
}

/// `lo` up, and a veth pair whose one end is the pod's interface with a default route.
fn pod_network() {
    const NEW_LINK: u16 = 16;
    const NEW_ADDRESS: u16 = 20;
    const NEW_ROUTE: u16 = 24;

    let route = Socket::open(Family::Route).unwrap();
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let link = |index: i32, up: bool| {
        let mut header = [0_u8; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8] = u8::from(up);
        header[12] = u8::from(up);
        header
    };

    let mut m = Messages::default();
    m.push(NEW_LINK, create, &link(0, false), |a| {
        a.text(3, "eth0").nest(18, |a| {
            a.text(1, "veth").nest(2, |a| {
                a.nest(1, |a| {
                    a.raw(&[0; 16]).text(3, "far");
                });
            });
        });
    });

    route.request(m).unwrap();
    let index = |name: &str| {
        let name = CString::new(name).unwrap();
        // SAFETY: a zero-terminated name that lives through the call.
        unsafe { libc::if_nametoindex(name.as_ptr()) }.cast_signed()
    };

    for name in ["lo", "eth0", "far"] {
        let mut m = Messages::default();
        m.push(NEW_LINK, 0, &link(index(name), true), |_| {});
        route.request(m).unwrap();
    }

    let mut m = Messages::default();
    let mut header = [2, 16, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index("eth0").to_ne_bytes());
    m.push(NEW_ADDRESS, create, &header, |a| {
        a.bytes(2, &[10, 44, 0, 2]);
    });
    route.request(m).unwrap();
    let mut m = Messages::default();

    // rtmsg: AF_INET, no prefix, table main, protocol boot, scope link, unicast.
    m.push(
        NEW_ROUTE,
        create,
        &[2, 0, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0],
        |a| {
            a.ne32(4, index("eth0").cast_unsigned());
        },
    );

    route.request(m).unwrap();
}

fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).unwrap()
}

/// Connects, optionally from a source address and with a mark; returns what the listener saw.
fn call(
    to: &str,
    source: Option<Ipv4Addr>,
    mark: u32,
    at: &TcpListener,
) -> (SocketAddr, Option<SocketAddr>) {
    let to: SocketAddr = to.parse().unwrap();
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if mark != 0 {
        socket.set_mark(mark).unwrap();
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    }
    socket.connect(&to.into()).unwrap();
    let mut client = TcpStream::from(socket);
    let (mut server, peer) = at.accept().unwrap();
    client.write_all(b"ping").unwrap();
    let mut got = [0; 4];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
    let original = SockRef::from(&server)
        .original_dst_v4()
        .ok()
        .and_then(|a| a.as_socket());

    (peer, original)
}

#[test]
fn a_sidecar_is_captured_and_its_proxy_is_not() {
    in_namespaces("kernel::a_sidecar_is_captured_and_its_proxy_is_not", || {
        pod_network();
        let plan = SidecarPlan::new(Exempt::Mark(1337));

        // Twice: the second run replaces the first.
        apply(&plan.rules()).unwrap();
        apply(&plan.rules()).unwrap();

        let outbound = listen("127.0.0.1:15001");
        let inbound = listen("0.0.0.0:15006");
        let application = listen("0.0.0.0:9080");
        let to = |address: &str| Some(address.parse::<SocketAddr>().unwrap());

        // A service address, and any other one that leaves the pod.
        assert_eq!(
            call("10.45.0.7:9080", None, 0, &outbound).1,
            to("10.45.0.7:9080")
        );

        assert_eq!(
            call("203.0.113.9:443", None, 0, &outbound).1,
            to("203.0.113.9:443")
        );

        // The application to itself, by loopback and by the pod's address.
        call("127.0.0.1:9080", None, 0, &application);
        call("10.44.0.2:9080", None, 0, &application);

        // The proxy to its own pod passes the inbound side.
        assert_eq!(
            call("10.44.0.2:9080", None, 1337, &inbound).1,
            to("10.44.0.2:9080")
        );

        // The inbound side to the application does not.
        let (peer, _) = call(
            "10.44.0.2:9080",
            Some(Ipv4Addr::new(127, 0, 0, 6)),
            1337,
            &application,
        );

        assert_eq!(peer.ip(), Ipv4Addr::new(127, 0, 0, 6));

        // DNS of the application goes to the proxy and is answered as if by the one who was asked.
        let resolver = UdpSocket::bind("127.0.0.1:15053").unwrap();
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.connect("10.44.0.1:53").unwrap();
        client.send(b"query").unwrap();
        let mut buffer = [0; 16];
        let (length, peer) = resolver.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"query");
        resolver.send_to(b"answer", peer).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"answer");

        // The resolver's own query from the very port that the application just used leaves all the
        // same.
        let port = client.local_addr().unwrap().port();
        drop(client);
        let own = socket2::Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        own.set_mark(1337).unwrap();
        own.bind(&SocketAddr::from((Ipv4Addr::new(10, 44, 0, 2), port)).into())
            .unwrap();
        own.connect(&SocketAddr::from(([10, 44, 0, 1], 53)).into())
            .unwrap();
        own.send(b"forwarded").unwrap();
        let other = UdpSocket::bind("0.0.0.0:0").unwrap();
        other.send_to(b"next", "10.44.0.1:53").unwrap();
        let length = resolver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"next");

        remove(false).unwrap();
        remove(false).unwrap();
        call("10.44.0.2:9080", None, 1337, &application);
    });
}

#[test]
fn a_router_relays_what_is_not_a_pod() {
    in_namespaces("kernel::a_router_relays_what_is_not_a_pod", || {
        pod_network();
        let plan = RouterPlan {
            bridge: "eth0",
            pods: Cidr::v4(10, 44, 0, 0, 16),
            relay_port: 15001,
            dns_port: 53,
        };

        apply(&plan.rules()).unwrap();
        let relay = listen("0.0.0.0:15001");
        let own = listen("10.44.0.2:15012");
        assert_eq!(
            call("203.0.113.9:443", None, 0, &relay).1,
            "203.0.113.9:443".parse().ok()
        );

        call("10.44.0.2:15012", None, 0, &own);
    });
}

#[test]
fn services_are_dealt_round_robin() {
    in_namespaces("kernel::services_are_dealt_round_robin", || {
        pod_network();
        let endpoints: Vec<TcpListener> = (0..3).map(|_| listen("10.44.0.2:0")).collect();
        let rule = ServiceRule {
            address: "10.45.0.7".parse().unwrap(),
            port: 80,
            transport: Transport::Tcp,
            endpoints: endpoints.iter().map(|l| l.local_addr().unwrap()).collect(),
        };

        apply(
            &ServicePlan {
                services: vec![rule],
            }
            .rules(),
        )
        .unwrap();

        for _ in 0..3 {
            for endpoint in &endpoints {
                call("10.45.0.7:80", None, 0, endpoint);
            }
        }
    });
}
