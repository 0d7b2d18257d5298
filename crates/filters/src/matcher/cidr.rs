//! Address ranges.

use std::net::IpAddr;

use meltemi_proto::envoy::config::core::v3::CidrRange;

use crate::conn::canonical;
use crate::finding::{Rejection, Scope};

/// An address range. An IPv4-mapped IPv6 address counts as IPv4, on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    v6: bool,
    length: u8,
    bits: u128,
}

impl Cidr {
    /// A range; `None` if the prefix is longer than the address. Bits after the prefix are cleared.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (address, length) = match (address, canonical(address)) {
            // A mapped range keeps its meaning only if it lies within the mapped block.
            (IpAddr::V6(_), IpAddr::V4(mapped)) if length >= 96 => {
                (IpAddr::V4(mapped), length - 96)
            }
            (original, _) => (original, length),
        };

        let (v6, bits, width) = spread(address);
        (length <= width).then(|| Self {
            v6,
            length,
            bits: bits & mask(length),
        })
    }

    /// Exactly one address.
    pub fn host(address: IpAddr) -> Self {
        let (v6, bits, length) = spread(canonical(address));
        Self { v6, length, bits }
    }

    /// Compiles Envoy's message; an absent length is 0, as Envoy has it.
    pub fn compile(message: &CidrRange, scope: &mut Scope) -> Result<Self, Rejection> {
        Self::parse(
            &message.address_prefix,
            message.prefix_len.as_ref().map_or(0, |length| length.value),
        )
        .ok_or_else(|| {
            let length = message.prefix_len.as_ref().map_or(0, |length| length.value);
            scope.reject(format!(
                "{:?}/{length} is not an address range",
                message.address_prefix
            ))
        })
    }

    /// An address as text, without octal or short forms, and a length.
    pub fn parse(address: &str, length: u32) -> Option<Self> {
        Self::new(address.parse().ok()?, u8::try_from(length).ok()?)
    }

    /// Whether the address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (v6, bits, _) = spread(canonical(address));
        v6 == self.v6 && bits & mask(self.length) == self.bits
    }

    /// The length of the prefix.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the range is of IPv6 addresses.
    pub fn is_v6(&self) -> bool {
        self.v6
    }

    /// The range of this length that holds the address, for lookups by prefix.
    pub fn containing(address: IpAddr, length: u8) -> Self {
        let (v6, bits, width) = spread(canonical(address));
        let length = length.min(width);
        Self {
            v6,
            length,
            bits: bits & mask(length),
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = match self.v6 {
            true => IpAddr::V6(self.bits.into()),
            false => IpAddr::V4(((self.bits >> 96) as u32).into()),
        };
        write!(f, "{address}/{}", self.length)
    }
}

/// The address' bits, left-aligned in 128, so that one mask serves both families.
fn spread(address: IpAddr) -> (bool, u128, u8) {
    match address {
        IpAddr::V4(address) => (false, u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (true, u128::from(address), 128),
    }
}

fn mask(length: u8) -> u128 {
    match length {
        0 => 0,
        length => u128::MAX << (128 - u32::from(length.min(128))),
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
