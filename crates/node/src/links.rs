//! The node's links: a bridge in the router's namespace and a veth pair for every workload, created
//! by rtnetlink so that the machine need not have `ip`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use libc::{
    AF_INET, IFA_ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND,
    IFLA_LINKINFO, IFLA_MASTER, IFLA_NET_NS_FD, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN,
    RTA_GATEWAY, RTA_OIF, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTN_UNICAST,
    RTPROT_BOOT,
};
use meltemi_redirect::netlink::{Family, Messages, NLM_F_CREATE, NLM_F_EXCL, Socket};

use crate::netns::Netns;
use crate::sys;

/// Name of the bridge in the router's namespace.
pub(crate) const BRIDGE: &str = "mesh";

/// `linux/veth.h`: the attributes of the other end.
const VETH_INFO_PEER: u16 = 1;

/// Creates the bridge in the calling process's network namespace and gives it the addresses
/// `address` and `second`.
pub(crate) fn set_up_router(address: Ipv4Addr, prefix: u8, second: Ipv4Addr) -> io::Result<()> {
    crate::netns::settings();
    let route = Socket::open(Family::Route)?;
    up(&route, "lo")?;
    let mut m = Messages::default();
    m.push(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        &link(0, false),
        |a| {
            // Else it is the lowest of its ports' addresses, which come and go.
            a.text(IFLA_IFNAME, BRIDGE)
                .bytes(IFLA_ADDRESS, &hardware_address(address))
                .nest(IFLA_LINKINFO, |a| {
                    a.text(IFLA_INFO_KIND, "bridge");
                });
        },
    );

    route.request(m)?;
    up(&route, BRIDGE)?;
    add_address(&route, BRIDGE, address, prefix)?;
    add_address(&route, BRIDGE, second, 32)?;

    // Connections of the router's own processes are redirected to the relay. The kernel looks up a
    // route before it applies the redirect, so there must be one.
    default_route(&route, BRIDGE, None)
}

/// Creates a veth pair between the bridge and a workload's namespace, whose end is `eth0` with
/// `address` and a default route to `router`.
pub(crate) fn connect_workload(
    netns: &Netns,
    address: Ipv4Addr,
    prefix: u8,
    router: Ipv4Addr,
) -> io::Result<()> {
    let route = Socket::open(Family::Route)?;
    let name = outer_name(address);
    let fd: RawFd = netns.raw();
    let bridge = sys::interface_index(BRIDGE)?;
    let mut m = Messages::default();

    m.push(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        &link(0, true),
        |a| {
            a.text(IFLA_IFNAME, &name)
                .ne32(IFLA_MASTER, bridge)
                .nest(IFLA_LINKINFO, |a| {
                    a.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |a| {
                        a.nest(VETH_INFO_PEER, |a| {
                            a.raw(&link(0, false))
                                .text(IFLA_IFNAME, "eth0")
                                .bytes(IFLA_ADDRESS, &hardware_address(address));
                            a.ne32(IFLA_NET_NS_FD, fd.cast_unsigned());
                        });
                    });
                });
        },
    );

    route.request(m)?;

    netns.run(|| {
        let route = Socket::open(Family::Route)?;
        up(&route, "lo")?;
        up(&route, "eth0")?;
        add_address(&route, "eth0", address, prefix)?;
        default_route(&route, "eth0", Some(router))
    })
}

/// Deletes a workload's veth pair. The kernel would delete it with the namespace, but only some
/// time after the last process ended.
pub(crate) fn disconnect_workload(address: Ipv4Addr) -> io::Result<()> {
    let route = Socket::open(Family::Route)?;
    let index = sys::interface_index(&outer_name(address))?;
    let mut m = Messages::default();
    let mut header = link(0, false);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    m.push(RTM_DELLINK, 0, &header, |_| {});
    route.request(m)
}

/// A hardware address derived from the IP address. A workload that is recreated with the same IP
/// address keeps its hardware address, so ARP caches of other workloads stay valid.
fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0, a, b, c, d]
}

/// Name of the bridge's end of a workload's veth pair, derived from the address: `pod0.7` for
/// 10.44.0.7.
fn outer_name(address: Ipv4Addr) -> String {
    let [_, _, c, d] = address.octets();
    format!("pod{c}.{d}")
}

/// `ifinfomsg`: family, type, index, flags, change mask.
fn link(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8] = u8::from(up);
    header[12] = u8::from(up);
    header
}

fn up(route: &Socket, name: &str) -> io::Result<()> {
    let mut m = Messages::default();
    m.push(
        RTM_NEWLINK,
        0,
        &link(sys::interface_index(name)?, true),
        |_| {},
    );
    route.request(m)
}

fn add_address(route: &Socket, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut header = [AF_INET as u8, prefix, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&sys::interface_index(name)?.to_ne_bytes());
    let mut m = Messages::default();
    m.push(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &header, |a| {
        a.bytes(IFA_ADDRESS, &address.octets())
            .bytes(IFA_LOCAL, &address.octets());
    });
    route.request(m)
}

fn default_route(route: &Socket, name: &str, gateway: Option<Ipv4Addr>) -> io::Result<()> {
    let scope = match gateway {
        Some(_) => RT_SCOPE_UNIVERSE,
        None => RT_SCOPE_LINK,
    };

    // struct rtmsg: family, prefix lengths of destination and source, type of service, table,
    // protocol, scope, type, flags.
    let header = [
        AF_INET as u8,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        scope,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];

    let index = sys::interface_index(name)?;
    let mut m = Messages::default();
    m.push(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header, |a| {
        a.ne32(RTA_OIF, index);
        if let Some(gateway) = gateway {
            a.bytes(RTA_GATEWAY, &gateway.octets());
        }
    });

    route.request(m)
}
