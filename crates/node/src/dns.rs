//! DNS answers about names of the mesh, which the node gives itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
        targets: &[],
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

/// `localhost` and the names below it. RFC 6761 §6.3: they are never asked of anybody else.
pub(crate) fn is_localhost(name: &str) -> bool {
    name.strip_suffix("localhost")
        .is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// The loopback address of the queried type.
pub(crate) fn loopback(record: RecordType) -> Vec<IpAddr> {
    match record {
        RecordType::A => vec![Ipv4Addr::LOCALHOST.into()],
        RecordType::AAAA => vec![Ipv6Addr::LOCALHOST.into()],
        _ => Vec::new(),
    }
}

/// The transport of an answer.
pub(crate) fn transport(tcp: bool) -> Transport {
    if tcp { Transport::Tcp } else { Transport::Udp }
}
