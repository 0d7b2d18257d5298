//! Addresses for services that have none: by hash of the name, so that the same name gets the same
//! address in every build and after every restart, unless two names collide.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::{Cidr, ServiceKey};

/// Gives each of `wanting` an address of `pool` that is not in `taken`; what `held` it keeps.
/// `None` for those that the pool is too small for. IPv4 pools only; others give nothing.
pub(crate) fn allocate(
    pool: Cidr,
    wanting: &BTreeSet<ServiceKey>,
    held: &BTreeMap<ServiceKey, IpAddr>,
    taken: &BTreeSet<IpAddr>,
) -> BTreeMap<ServiceKey, Option<IpAddr>> {
    let mut used: BTreeSet<IpAddr> = taken.clone();
    let mut given = BTreeMap::new();

    // A service that has an address keeps it, before new services choose.
    for key in wanting {
        if let Some(ip) = held.get(key)
            && pool.contains(*ip)
            && used.insert(*ip)
        {
            given.insert(key.clone(), Some(*ip));
        }
    }

    for key in wanting {
        if !given.contains_key(key) {
            let ip = probe(pool, key, &used);
            used.extend(ip);
            given.insert(key.clone(), ip);
        }
    }

    given
}

fn probe(pool: Cidr, key: &ServiceKey, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let IpAddr::V4(base) = pool.address() else {
        return None;
    };

    // Neither the first address (the network's) nor the last (broadcast, where that means
    // anything).
    let size = 1_u64
        .checked_shl(32 - u32::from(pool.prefix()))?
        .checked_sub(2)
        .filter(|size| *size > 0)?;

    let start = hash(key) % size;

    (0..size)
        .map(|step| {
            let offset = 1 + (start + step) % size;
            IpAddr::V4(Ipv4Addr::from(
                u32::from(base) + u32::try_from(offset).unwrap_or(u32::MAX),
            ))
        })
        .find(|ip| !used.contains(ip))
}

/// FNV-1a, finished by a mix so that names which differ in the last letter do not lie side by side.
fn hash(key: &ServiceKey) -> u64 {
    let bytes = key
        .host
        .as_str()
        .bytes()
        .chain([b'/'])
        .chain(key.namespace.bytes());

    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);

    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hostname;

    fn key(name: &str) -> ServiceKey {
        ServiceKey {
            host: Hostname::new(name),
            namespace: "default".to_owned(),
        }
    }

    fn pool(text: &str) -> Cidr {
        text.parse().expect("a network")
    }

    #[test]
    fn a_name_keeps_its_address_whoever_comes_beside_it() {
        let net = pool("10.45.0.0/24");
        let one = allocate(
            net,
            &BTreeSet::from([key("reviews")]),
            &BTreeMap::new(),
            &BTreeSet::new(),
        );

        let all: BTreeSet<_> = (0..100)
            .map(|i| key(&format!("s{i}")))
            .chain([key("reviews")])
            .collect();

        let held = one
            .iter()
            .filter_map(|(key, ip)| Some((key.clone(), (*ip)?)))
            .collect();

        let many = allocate(net, &all, &held, &BTreeSet::new());
        assert_eq!(many[&key("reviews")], one[&key("reviews")]);
        let distinct: BTreeSet<_> = many.values().flatten().collect();
        assert_eq!(distinct.len(), 101);
    }

    #[test]
    fn explicit_addresses_are_left_alone_and_a_full_pool_gives_nothing() {
        let net = pool("10.45.0.0/30");
        let taken = BTreeSet::from(["10.45.0.1".parse().expect("an address")]);
        let given = allocate(
            net,
            &BTreeSet::from([key("a"), key("b")]),
            &BTreeMap::new(),
            &taken,
        );

        assert_eq!(given.values().filter(|ip| ip.is_some()).count(), 1);
        assert_eq!(
            given.values().flatten().next().map(ToString::to_string),
            Some("10.45.0.2".to_owned())
        );
    }
}
