//! Fixed addresses and ports of the mesh's own network. They are the same for every mesh, since
//! each has network namespaces of its own.

use std::net::Ipv4Addr;

use meltemi_types::Cidr;

/// DNS suffix for which the mesh is authoritative: such names are never forwarded.
pub(crate) const DOMAIN: &str = "cluster.local";
/// Address of the router, where the control plane, the resolver and the relay listen.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 44, 0, 1);
/// Second address of the router's resolver. Capture rules leave it alone, so that the sidecar's own
/// queries are not redirected to the sidecar.
pub(crate) const PROXY_RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 44, 255, 253);
/// Prefix length of the workloads' block, 10.44.0.0/16.
pub(crate) const POD_PREFIX: u8 = 16;
/// Port of the control plane on the router.
pub(crate) const CONTROL_PORT: u16 = 15012;
/// Port of the relay on the router.
pub(crate) const RELAY_PORT: u16 = 15001;

/// The address block of the workloads.
pub(crate) fn pods() -> Cidr {
    Cidr::v4(10, 44, 0, 0, POD_PREFIX)
}

/// Blocks that exist only inside the mesh and that the relay never dials: pods, Services, and
/// addresses allocated to ServiceEntries.
pub(crate) fn inside() -> Vec<Cidr> {
    vec![
        pods(),
        Cidr::v4(10, 45, 0, 0, 16),
        Cidr::v4(240, 240, 0, 0, 16),
    ]
}
