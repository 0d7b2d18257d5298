//! Maglev: a table in which every endpoint holds its share. Source: Envoy `maglev_lb.cc`, the
//! Maglev paper §3.4.

use crate::hash::xxh64;

/// A table of `size` slots; a hash modulo `size` names the slot of its endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Maglev {
    table: Vec<u32>,
}

/// Envoy's bound on the size of a table.
pub(crate) const MAX_TABLE: u64 = 5_000_011;

const EMPTY: u32 = u32::MAX;

struct Entry {
    host: u32,
    offset: u64,
    skip: u64,
    weight: f64,
    next: u64,
    target: f64,
}

impl Maglev {
    /// A table of endpoints: number, normalised weight, key. The size must be a prime.
    pub(crate) fn new(hosts: &[(u32, f64, &str)], size: u64) -> Self {
        if size < 2 {
            return Self::default();
        }
        let max_weight = hosts
            .iter()
            .map(|(_, weight, _)| *weight)
            .fold(0.0, f64::max);

        let mut entries: Vec<Entry> = hosts
            .iter()
            .filter(|(_, weight, _)| *weight > 0.0)
            .map(|(host, weight, key)| Entry {
                host: *host,
                offset: xxh64(key.as_bytes(), 0) % size,
                skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
                weight: *weight,
                next: 0,
                target: 0.0,
            })
            .collect();

        if entries.is_empty() {
            return Self::default();
        }
        let mut table = vec![EMPTY; size as usize];
        let mut filled = 0;
        let mut round = 1.0;

        loop {
            for entry in &mut entries {
                // The heaviest endpoint takes a slot in every round, the others in as many rounds
                // as their weight allows.
                if round * entry.weight < entry.target {
                    continue;
                }
                entry.target += max_weight;
                let mut slot = entry.slot(size);
                while table[slot as usize] != EMPTY {
                    entry.next += 1;
                    slot = entry.slot(size);
                }

                table[slot as usize] = entry.host;
                entry.next += 1;
                filled += 1;
                if filled == size {
                    return Self { table };
                }
            }

            round += 1.0;
        }
    }

    /// The endpoint of a hash. Each further attempt looks at another slot.
    pub(crate) fn find(&self, hash: u64, attempt: u32) -> Option<u32> {
        // Envoy perturbs the hash by the attempt's number in the same way.
        let hash = if attempt > 0 {
            hash ^ (u64::MAX - u64::from(attempt) + 1)
        } else {
            hash
        };
        let slot = hash.checked_rem(self.table.len() as u64)?;
        self.table.get(slot as usize).copied()
    }

    #[cfg(test)]
    pub(crate) fn counts(&self, hosts: usize) -> Vec<usize> {
        let mut counts = vec![0; hosts];
        self.table
            .iter()
            .for_each(|host| counts[*host as usize] += 1);
        counts
    }
}

impl Entry {
    fn slot(&self, size: u64) -> u64 {
        (self.offset + self.skip * self.next % size) % size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_further_attempt_looks_elsewhere_and_where_envoy_looks() {
        // A table of slots that name themselves.
        let maglev = Maglev {
            table: (0..10_007).collect(),
        };
        for hash in [0, 1, 12_345_678_901_234_567_890] {
            // Envoy: `hash ^= ~0ULL - attempt + 1`.
            let envoys = |attempt: u64| ((hash ^ (u64::MAX - attempt + 1)) % 10_007) as u32;
            let mut found: Vec<u32> = (1..5)
                .map(|attempt| maglev.find(hash, attempt).expect("full"))
                .collect();
            assert_eq!(found, (1..5).map(envoys).collect::<Vec<_>>());
            found.push(maglev.find(hash, 0).expect("full"));
            found.sort_unstable();
            found.dedup();
            assert_eq!(found.len(), 5, "{hash}");
        }
    }
}
