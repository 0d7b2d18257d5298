//! Address blocks, as capture rules name them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// A block of addresses in CIDR form; host bits are cleared on construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no address block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address block; write one like 10.0.0.0/8")]
pub struct CidrError(String);

impl Cidr {
    /// A block; `None` when the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(a) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(a) & mask).into())
            }
            IpAddr::V6(a) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((u128::from(a) & mask).into())
            }
            _ => return None,
        };

        Some(Self { address, prefix })
    }

    /// An IPv4 block from constants.
    ///
    /// # Panics
    /// When the prefix is longer than 32.
    pub fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self::new(Ipv4Addr::new(a, b, c, d).into(), prefix)
            .expect("prefix of an IPv4 block is at most 32")
    }

    /// The block of exactly one address.
    pub fn host(address: IpAddr) -> Self {
        Self {
            address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
        }
    }

    /// First address of the block.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Number of leading bits that all addresses of the block share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// True when `address` lies in the block; families never mix.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.prefix).is_some_and(|block| block.address == self.address)
            && address.is_ipv4() == self.address.is_ipv4()
    }

    /// Network mask in network order: 4 or 16 bytes.
    pub(crate) fn mask(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(_) => u32::MAX
                .checked_shl(32 - u32::from(self.prefix))
                .unwrap_or(0)
                .to_be_bytes()
                .to_vec(),
            IpAddr::V6(_) => u128::MAX
                .checked_shl(128 - u32::from(self.prefix))
                .unwrap_or(0)
                .to_be_bytes()
                .to_vec(),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let bad = || CidrError(text.to_owned());
        let Some((address, prefix)) = text.split_once('/') else {
            return text.parse().map(Self::host).map_err(|_| bad());
        };
        let address = address.parse().map_err(|_| bad())?;
        Self::new(address, prefix.parse().map_err(|_| bad())?).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_clears_host_bits() {
        assert_eq!(
            "10.44.3.9/16".parse::<Cidr>().unwrap(),
            Cidr::v4(10, 44, 0, 0, 16)
        );

        assert_eq!("10.1.2.3".parse::<Cidr>().unwrap().prefix(), 32);
        assert_eq!("0.0.0.0/0".parse::<Cidr>().unwrap().mask(), [0; 4]);
        assert_eq!("fd00::1/8".parse::<Cidr>().unwrap().to_string(), "fd00::/8");

        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "::/129",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn families_never_mix() {
        let all = Cidr::v4(0, 0, 0, 0, 0);
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
    }
}
