//! The dial map: redirects outside names and addresses to addresses of this machine, for tests
//! without internet.
//!
//! The format is a YAML mapping. A key is a name (`*.example.org` covers all names below
//! `example.org`) or an IPv4 address, with or without a port. A value is an address with a port. A
//! mapped name resolves to an address of 198.18.0.0/15, the block for benchmarks (RFC 2544), and a
//! connection to that address is redirected.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};

/// Redirections of outside names and addresses, and the addresses assigned to mapped names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DialMap {
    entries: BTreeMap<String, SocketAddr>,
    assigned: HashMap<Ipv4Addr, String>,
    by_name: HashMap<String, Ipv4Addr>,
}

/// Why a text is not a dial map.
#[derive(Debug, thiserror::Error)]
pub enum DialMapError {
    /// The text is not a YAML mapping of strings.
    #[error("a dialler map is a YAML mapping like `httpbin.org:80: 127.0.0.1:18080`: {0}")]
    Syntax(String),
    /// A value is not an address with a port.
    #[error(
        "dialler map: {key} leads to {value:?}, which is no address with port such as 127.0.0.1:18080"
    )]
    Value {
        /// Key of the entry.
        key: String,
        /// Value of the entry.
        value: String,
    },
}

impl DialMap {
    /// Parses a map; an empty text is an empty map.
    pub fn parse(text: &str) -> Result<Self, DialMapError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let raw: BTreeMap<String, String> =
            serde_saphyr::from_str(text).map_err(|e| DialMapError::Syntax(e.to_string()))?;
        let mut entries = BTreeMap::new();
        for (key, value) in raw {
            match value.parse() {
                Ok(to) => entries.insert(key.to_ascii_lowercase(), to),
                Err(_) => return Err(DialMapError::Value { key, value }),
            };
        }

        Ok(Self {
            entries,
            ..Self::default()
        })
    }

    /// The address that a mapped name resolves to, assigned at the first call; `None` for a name
    /// that is not mapped.
    pub(crate) fn address_of(&mut self, name: &str) -> Option<Ipv4Addr> {
        let is_mapped = self
            .entries
            .keys()
            .any(|key| covers(key.rsplit_once(':').map_or(key.as_str(), |(n, _)| n), name));

        if !is_mapped {
            return None;
        }
        if let Some(address) = self.by_name.get(name) {
            return Some(*address);
        }

        // 198.18.0.1 to 198.19.255.254.
        let index = u32::try_from(self.by_name.len())
            .ok()
            .filter(|i| *i < 0x1_fffe)?;
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + index);
        self.assigned.insert(address, name.to_owned());
        self.by_name.insert(name.to_owned(), address);

        Some(address)
    }

    /// The redirected address of a connection to `to`; `None` if it is not mapped. An entry with a
    /// port wins over one without.
    pub(crate) fn target_of(&self, to: SocketAddr) -> Option<SocketAddr> {
        let SocketAddr::V4(v4) = to else { return None };
        let called = self
            .assigned
            .get(v4.ip())
            .cloned()
            .unwrap_or_else(|| v4.ip().to_string());

        let port = to.port().to_string();
        let matches = |key: &str, with_port: bool| match (key.rsplit_once(':'), with_port) {
            (Some((name, p)), true) => p == port && covers(name, &called),
            (None, false) => covers(key, &called),
            _ => false,
        };

        let find = |with_port| {
            self.entries
                .iter()
                .find(|(key, _)| matches(key, with_port))
                .map(|(_, to)| *to)
        };

        find(true).or_else(|| find(false))
    }
}

fn covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => name
            .strip_suffix(domain)
            .is_some_and(|head| head.len() > 1 && head.ends_with('.')),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_names_and_addresses_are_redirected() {
        let mut map =
            DialMap::parse("httpbin.org:443: 127.0.0.1:1443\nhttpbin.org: 127.0.0.1:1080\n'*.wiki.org': 127.0.0.1:2\n203.0.113.5:80: 127.0.0.1:3\n")
                .unwrap();
        let at = |address, port| SocketAddr::from((address, port));
        let local = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let httpbin = map.address_of("httpbin.org").unwrap();

        assert_eq!(map.address_of("httpbin.org"), Some(httpbin));
        assert_eq!(map.target_of(at(httpbin, 443)), local(1443));
        assert_eq!(map.target_of(at(httpbin, 80)), local(1080));
        let english = map.address_of("en.wiki.org").unwrap();
        assert_ne!(english, httpbin);
        assert_eq!(map.target_of(at(english, 9)), local(2));
        assert_eq!(map.address_of("wiki.org"), None);
        let plain = Ipv4Addr::new(203, 0, 113, 5);
        assert_eq!(map.target_of(at(plain, 80)), local(3));
        assert_eq!(map.target_of(at(plain, 81)), None);
    }

    #[test]
    fn a_bad_map_says_which_entry() {
        assert!(
            DialMap::parse("a: nowhere")
                .unwrap_err()
                .to_string()
                .contains("a leads to \"nowhere\"")
        );
        assert!(DialMap::parse("- a").is_err());
        assert_eq!(DialMap::parse("").unwrap(), DialMap::default());
    }
}
