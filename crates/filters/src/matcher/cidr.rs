//! Address ranges.

use std::fmt;
use std::net::IpAddr;

use meltemi_proto::envoy::config::core::v3::CidrRange;
use meltemi_types::Cidr as Network;

use crate::conn::canonical;
use crate::finding::{Rejection, Scope};

/// An address range. An IPv4-mapped IPv6 address counts as IPv4, on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr(Network);

impl Cidr {
    /// A range; `None` if the prefix is longer than the address. Bits after the prefix are cleared.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let network = match (address, canonical(address)) {
            // A mapped range keeps its meaning only if it lies within the mapped block.
            (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if length >= 96 => {
                Network::new(mapped, length - 96)
            }
            (original, _) => Network::new(original, length),
        };
        network.map(Self)
    }

    /// Exactly one address.
    pub fn host(address: IpAddr) -> Self {
        Self(Network::host(canonical(address)))
    }

    /// Compiles Envoy's message; an absent length is 0, as Envoy has it.
    pub fn compile(message: &CidrRange, scope: &mut Scope) -> Result<Self, Rejection> {
        let CidrRange {
            address_prefix,
            prefix_len,
        } = message;

        let length = prefix_len.as_ref().map_or(0, |length| length.value);
        Self::parse(address_prefix, length).ok_or_else(|| {
            scope.reject(format!(
                "{address_prefix:?}/{length} is not an address range"
            ))
        })
    }

    /// An address as text, without octal or short forms, and a length.
    pub fn parse(address: &str, length: u32) -> Option<Self> {
        Self::new(address.parse().ok()?, u8::try_from(length).ok()?)
    }

    /// Whether the address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(canonical(address))
    }

    /// The length of the prefix.
    pub fn length(&self) -> u8 {
        self.0.prefix()
    }

    /// The range of this length that holds the address, for lookups by prefix. A length beyond the
    /// address's own is cut to it.
    pub fn containing(address: IpAddr, length: u8) -> Self {
        let address = canonical(address);
        Self(Network::new(address, length).unwrap_or_else(|| Network::host(address)))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        let (address, length) = text.split_once('/').expect("has a slash");
        Cidr::parse(address, length.parse().expect("number")).expect("is a range")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("is an address")
    }

    #[test]
    fn ranges_hold_what_they_say() {
        assert!(cidr("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(!cidr("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(cidr("0.0.0.0/0").contains(ip("1.2.3.4")));
        assert!(!cidr("0.0.0.0/0").contains(ip("::1")));
        assert!(cidr("fe80::/10").contains(ip("fe80::1")));
        assert!(cidr("10.1.2.3/32").contains(ip("10.1.2.3")));
        assert_eq!(cidr("10.1.2.3/8").to_string(), "10.0.0.0/8");
    }

    #[test]
    fn mapped_addresses_are_no_way_around() {
        assert!(cidr("10.0.0.0/8").contains(ip("::ffff:10.0.0.1")));
        assert!(cidr("::ffff:10.0.0.0/104").contains(ip("10.0.0.1")));
        assert!(Cidr::host(ip("::ffff:10.0.0.1")).contains(ip("10.0.0.1")));
    }

    #[test]
    fn odd_spellings_are_refused() {
        for (address, length) in [
            ("010.0.0.1", 8),
            ("10.1", 8),
            ("fe80::1%eth0", 64),
            ("10.0.0.0", 33),
            ("", 0),
        ] {
            assert!(Cidr::parse(address, length).is_none(), "{address}/{length}");
        }
    }
}
