//! Networks in CIDR form.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// A network in CIDR form, with host bits cleared. A single address is a network of the full
/// prefix length, and is written without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr(IpNet);

/// The text is neither an IP address nor a network in CIDR form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an IP address nor a network in CIDR form")]
pub struct CidrError(String);

impl Cidr {
    /// Clears the host bits of `address`; `None` if the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let network = IpNet::new(address, prefix).ok()?;
        Some(Self(network.trunc()))
    }

    /// An IPv4 network from constants.
    ///
    /// # Panics
    /// If the prefix is longer than 32.
    pub fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self::new(Ipv4Addr::new(a, b, c, d).into(), prefix)
            .expect("the prefix of an IPv4 network is at most 32")
    }

    /// The network of exactly one address.
    pub fn host(address: IpAddr) -> Self {
        Self(address.into())
    }

    /// The first address of the network.
    pub fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// The number of leading bits that all addresses of the network share.
    pub fn prefix(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The network mask: as many leading ones as the prefix is long.
    pub fn mask(&self) -> IpAddr {
        self.0.netmask()
    }

    /// Whether the network is a single address.
    pub fn is_host(&self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// Whether `address` lies in the network. An address of the other family never does.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        // ipnet's parser takes octets with leading zeros, which some programs read as octal.
        let parsed = match text.split_once('/') {
            None => text.parse().ok().map(Self::host),
            Some((_, prefix)) if prefix.starts_with('+') => None,
            Some((address, prefix)) => address
                .parse()
                .ok()
                .zip(prefix.parse().ok())
                .and_then(|(address, prefix)| Self::new(address, prefix)),
        };
        parsed.ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            self.address().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a network")
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(cidr("10.44.3.9/16"), Cidr::v4(10, 44, 0, 0, 16));
        assert_eq!(cidr("fd00::1/8").to_string(), "fd00::/8");
        assert_eq!(cidr("10.1.2.3").prefix(), 32);
        assert_eq!(cidr("10.1.2.3/32").to_string(), "10.1.2.3");
        assert_eq!(cidr("0.0.0.0/0").mask(), IpAddr::from([0, 0, 0, 0]));
        assert_eq!(cidr("10.0.0.0/12").mask(), IpAddr::from([255, 240, 0, 0]));
    }

    #[test]
    fn families_never_mix() {
        let every = cidr("0.0.0.0/0");
        assert!(every.contains(IpAddr::from([203, 0, 113, 9])));
        assert!(!every.contains("::1".parse().unwrap()));
        assert!(!every.contains("::ffff:10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn odd_spellings_are_refused() {
        for wrong in [
            "",
            "10.0.0",
            "10.0.0/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "010.0.0.1",
            "010.0.0.0/8",
            "::/129",
            "a/8",
            "fe80::1%eth0",
            "fe80::1%eth0/64",
        ] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
