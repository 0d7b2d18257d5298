//! DNS answers about names of the mesh, which the node gives itself.

use std::net::{IpAddr, Ipv4Addr};

use meltemi_dns::{Answer, RecordType, ResponseCode, Transport};

/// Time to live in seconds. It is short, so that clients see changed addresses of a service soon.
const TTL: u32 = 5;

/// An answer about a name of the mesh.
pub(crate) fn answer<'a>(
    code: ResponseCode,
    alias: Option<&'a str>,
    addresses: &'a [IpAddr],
) -> Answer<'a> {
    Answer {
        code,
        authoritative: true,
        alias,
        addresses,
        ttl: TTL,
    }
}

/// The addresses of the queried type. The node's network has IPv4 only, so other types get none.
pub(crate) fn of_type(addresses: &[Ipv4Addr], record: RecordType) -> Vec<IpAddr> {
    match record {
        RecordType::A => addresses.iter().copied().map(IpAddr::V4).collect(),
        _ => Vec::new(),
    }
}

/// The transport of an answer.
pub(crate) fn transport(tcp: bool) -> Transport {
    if tcp { Transport::Tcp } else { Transport::Udp }
}
