//! Addresses and ports of the mesh's own network, the same on every machine.

use std::net::Ipv4Addr;

use meltemi_types::Cidr;

/// Suffix of the names that the mesh alone decides about.
pub(crate) const DOMAIN: &str = "cluster.local";
/// Address of the router: control plane, resolver, relay.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 44, 0, 1);
/// The router's resolver once more, under an address that capture leaves alone: proxies ask it.
pub(crate) const PROXY_RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 44, 255, 253);
/// Prefix length of the workloads' block, 10.44.0.0/16.
pub(crate) const POD_PREFIX: u8 = 16;
/// Port of the control plane on the router.
pub(crate) const CONTROL_PORT: u16 = 15012;
/// Port of the relay on the router.
pub(crate) const RELAY_PORT: u16 = 15001;

/// The workloads' block of addresses.
pub(crate) fn pods() -> Cidr {
    Cidr::v4(10, 44, 0, 0, POD_PREFIX)
}

/// Blocks that are the mesh's own and are never dialled outside: pods, services, allocated
/// ServiceEntry addresses.
pub(crate) fn inside() -> Vec<Cidr> {
    vec![
        pods(),
        Cidr::v4(10, 45, 0, 0, 16),
        Cidr::v4(240, 240, 0, 0, 16),
    ]
}
