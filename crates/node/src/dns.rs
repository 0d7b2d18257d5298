//! Answers that the node gives itself.

use std::net::{IpAddr, Ipv4Addr};

use meltemi_dns::{Answer, RecordType, ResponseCode, Transport};

/// Seconds: clients soon see the addresses of a service that changed.
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

/// The addresses that a question of this type asks for: the node's network has IPv4 alone.
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
