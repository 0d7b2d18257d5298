//! The node's network: a bridge in the router's namespace, a veth pair for every workload. By
//! netlink: a user's machine need not have `ip`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use meltemi_redirect::netlink::{Family, Messages, NLM_F_CREATE, NLM_F_EXCL, Socket};

use crate::netns::Netns;
use crate::sys;

/// The bridge in the router's namespace.
pub(crate) const BRIDGE: &str = "mesh";

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;

/// Brings up the router's side in the calling process's namespace, with a second address beside its
/// own.
pub(crate) fn set_up_router(address: Ipv4Addr, prefix: u8, second: Ipv4Addr) -> io::Result<()> {
    crate::netns::settings();
    let route = Socket::open(Family::Route)?;
    up(&route, "lo")?;
    let mut m = Messages::default();
    m.push(NEW_LINK, NLM_F_CREATE | NLM_F_EXCL, &link(0, false), |a| {
        // Else it is the lowest of its ports' addresses, which come and go.
        a.text(IFLA_IFNAME, BRIDGE)
            .bytes(IFLA_ADDRESS, &hardware_address(address))
            .nest(IFLA_LINKINFO, |a| {
                a.text(1, "bridge");
            });
    });

    route.request(m)?;
    up(&route, BRIDGE)?;
    add_address(&route, BRIDGE, address, prefix)?;
    add_address(&route, BRIDGE, second, 32)?;

    // Processes of the router's namespace reach the outside by the relay: a packet needs a route
    // before it can be redirected.
    default_route(&route, BRIDGE, None)
}

/// Connects a workload's namespace to the bridge and gives it its address.
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

    m.push(NEW_LINK, NLM_F_CREATE | NLM_F_EXCL, &link(0, true), |a| {
        a.text(IFLA_IFNAME, &name)
            .ne32(IFLA_MASTER, bridge)
            .nest(IFLA_LINKINFO, |a| {
                a.text(1, "veth").nest(2, |a| {
                    a.nest(1, |a| {
                        a.raw(&link(0, false))
                            .text(IFLA_IFNAME, "eth0")
                            .bytes(IFLA_ADDRESS, &hardware_address(address));
                        a.ne32(IFLA_NET_NS_FD, fd.cast_unsigned());
                    });
                });
            });
    });

    route.request(m)?;

    netns.run(|| {
        let route = Socket::open(Family::Route)?;
        up(&route, "lo")?;
        up(&route, "eth0")?;
        add_address(&route, "eth0", address, prefix)?;
        default_route(&route, "eth0", Some(router))
    })
}

/// Takes a workload's cable out at once; a namespace whose last process just ended would do so only
/// some time later.
pub(crate) fn disconnect_workload(address: Ipv4Addr) -> io::Result<()> {
    let route = Socket::open(Family::Route)?;
    let index = sys::interface_index(&outer_name(address))?;
    let mut m = Messages::default();
    let mut header = link(0, false);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    m.push(DELETE_LINK, 0, &header, |_| {});
    route.request(m)
}

/// A workload that is made anew under its old address is found at once: the others' ARP caches hold
/// what was true before, and would be believed for ten seconds.
fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0, a, b, c, d]
}

/// Name of the bridge's end of a workload's pair: the address tells whose it is.
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
        NEW_LINK,
        0,
        &link(sys::interface_index(name)?, true),
        |_| {},
    );
    route.request(m)
}

fn add_address(route: &Socket, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    // ifaddrmsg: AF_INET, prefix length, flags, scope universe, index.
    let mut header = [2, prefix, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&sys::interface_index(name)?.to_ne_bytes());
    let mut m = Messages::default();
    m.push(NEW_ADDRESS, NLM_F_CREATE | NLM_F_EXCL, &header, |a| {
        a.bytes(1, &address.octets()).bytes(2, &address.octets());
    });
    route.request(m)
}

fn default_route(route: &Socket, name: &str, gateway: Option<Ipv4Addr>) -> io::Result<()> {
    // rtmsg: AF_INET, prefix 0, …, table main, protocol boot, scope link without a gateway,
    // unicast.
    let scope = if gateway.is_some() { 0 } else { 253 };
    let index = sys::interface_index(name)?;
    let mut m = Messages::default();
    m.push(
        NEW_ROUTE,
        NLM_F_CREATE | NLM_F_EXCL,
        &[2, 0, 0, 0, 254, 3, scope, 1, 0, 0, 0, 0],
        |a| {
            a.ne32(4, index);
            if let Some(gateway) = gateway {
                a.bytes(5, &gateway.octets());
            }
        },
    );

    route.request(m)
}
