//! Ring hash: endpoints own points of a ring, and a hash goes to the next point. Source: Envoy
//! `ring_hash_lb.cc`.

use std::io::Write;

use crate::config::RingHashFunction;
use crate::hash::{STD_HASH_SEED, murmur2, xxh64};

/// Points of the ring, sorted: the point's hash and its endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ring {
    entries: Vec<(u64, u32)>,
}

/// Envoy's bound on the size of a ring.
pub(crate) const MAX_RING: u64 = 8 << 20;

impl Ring {
    /// Builds a ring from endpoints: number, share of the load (shares sum to 1), hash key.
    pub(crate) fn new(
        hosts: &[(u32, f64, &str)],
        min_size: u64,
        max_size: u64,
        function: RingHashFunction,
    ) -> Self {
        let min_weight = hosts
            .iter()
            .map(|(_, weight, _)| *weight)
            .fold(f64::INFINITY, f64::min);

        if !min_weight.is_finite() || min_weight <= 0.0 {
            return Self::default();
        }
        let max_size = max_size.min(MAX_RING);

        // Scale so that the lightest endpoint gets a whole number of entries, within the bounds.
        let scale = ((min_weight * min_size as f64).ceil() / min_weight).min(max_size as f64);
        let mut entries = Vec::with_capacity(scale.ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        let mut key = Vec::new();

        for (host, weight, name) in hosts {
            key.clear();
            key.extend_from_slice(name.as_bytes());
            key.push(b'_');
            let stem = key.len();
            target += scale * weight;
            let mut number = 0u64;
            while current < target {
                key.truncate(stem);

                // Writing to memory cannot fail.
                let _ = write!(key, "{number}");
                let hash = match function {
                    RingHashFunction::XxHash => xxh64(&key, 0),
                    RingHashFunction::Murmur2 => murmur2(&key, STD_HASH_SEED),
                };

                entries.push((hash, *host));
                number += 1;
                current += 1.0;
            }
        }

        entries.sort_unstable();

        Self { entries }
    }

    /// The endpoint of the first point at or after the hash, around the ring.
    pub(crate) fn find(&self, hash: u64) -> Option<u32> {
        self.walk(hash).next()
    }

    /// The endpoints of all points from the hash on, once around the ring; endpoints repeat.
    pub(crate) fn walk(&self, hash: u64) -> impl Iterator<Item = u32> {
        let at = self.entries.partition_point(|(entry, _)| *entry < hash);
        self.entries[at..]
            .iter()
            .chain(&self.entries[..at])
            .map(|(_, host)| *host)
    }
}
