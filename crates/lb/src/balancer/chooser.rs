//! How one endpoint of one priority is chosen: lists by weight, a ring or a table of hashes.

use smallvec::SmallVec;

use crate::config::{Config, Policy};
use crate::host::{Host, LocalitySpec};
use crate::maglev::{MAX_TABLE, Maglev};
use crate::ring::Ring;
use crate::weighted::Weighted;

/// Chooses among the endpoints of one priority that have one health.
#[derive(Debug)]
pub(super) enum Chooser {
    /// First a locality by its weight, then an endpoint of that locality. Without locality weights
    /// `lists` holds one list and `localities` is empty.
    Lists {
        localities: Weighted,
        lists: Vec<Weighted>,
    },
    Ring(Ring),
    Maglev(Maglev),
}

/// The endpoints of one locality and the load that the locality takes.
struct LocalityShare {
    weight: u32,
    members: Vec<u32>,
}

/// An endpoint for a hash table: its number, its share of all load (shares sum to 1), its hash key.
type Hashed<'a> = (u32, f64, &'a str);

impl Chooser {
    /// Builds a chooser among `chosen`. `everyone` also holds the priority's endpoints of other
    /// health: a locality takes less load the more of its endpoints are missing from `chosen`.
    pub(super) fn build(
        config: &Config,
        hosts: &[Host],
        localities: &[LocalitySpec],
        everyone: &[u32],
        chosen: &[u32],
    ) -> Self {
        let shares = config
            .locality_weighted
            .then(|| locality_shares(config, hosts, localities, everyone, chosen));
        let hashed = || match &shares {
            None => hashed_by_weight(hosts, chosen),
            Some(shares) => hashed_by_locality(hosts, shares),
        };

        match config.policy {
            Policy::RingHash {
                min_size,
                max_size,
                function,
            } => Self::Ring(Ring::new(&hashed(), min_size, max_size, function)),
            Policy::Maglev { table_size } => {
                Self::Maglev(Maglev::new(&hashed(), table_size.min(MAX_TABLE)))
            }
            Policy::RoundRobin
            | Policy::LeastRequest { .. }
            | Policy::Random
            | Policy::OriginalDst => Self::lists(config.policy, hosts, chosen, shares),
        }
    }

    /// A chooser without endpoints.
    pub(super) fn empty() -> Self {
        Self::Lists {
            localities: Weighted::default(),
            lists: vec![Weighted::default()],
        }
    }

    fn lists(
        policy: Policy,
        hosts: &[Host],
        chosen: &[u32],
        shares: Option<Vec<LocalityShare>>,
    ) -> Self {
        let in_turn = policy == Policy::RoundRobin;
        let list = |members: &[u32]| {
            Weighted::new(members.iter().map(|n| (*n, weight(hosts, *n))), in_turn)
        };

        let shares = shares.unwrap_or_default();
        let weights = shares.iter().enumerate();
        let localities = Weighted::new(weights.map(|(at, share)| (at as u32, share.weight)), false);

        // Where no locality has a weight, localities do not count.
        let lists = match localities.is_empty() {
            true => vec![list(chosen)],
            false => shares.iter().map(|share| list(&share.members)).collect(),
        };

        Self::Lists { localities, lists }
    }

    /// Whether there is no endpoint to choose.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Lists { lists, .. } => lists.iter().all(Weighted::is_empty),
            Self::Ring(ring) => ring.find(0).is_none(),
            Self::Maglev(table) => table.find(0, 0).is_none(),
        }
    }
}

fn weight(hosts: &[Host], number: u32) -> u32 {
    hosts[number as usize].weight.max(1)
}

fn total_weight(hosts: &[Host], members: &[u32]) -> f64 {
    let weights = members.iter().map(|n| f64::from(weight(hosts, *n)));
    weights.sum()
}

fn hashed_by_weight<'a>(hosts: &'a [Host], chosen: &[u32]) -> Vec<Hashed<'a>> {
    let total = total_weight(hosts, chosen);
    let hashed = chosen.iter().map(|number| {
        let share = f64::from(weight(hosts, *number)) / total;
        (*number, share, &*hosts[*number as usize].hash_key)
    });
    hashed.collect()
}

/// Each locality's share is divided among its endpoints by their weights.
fn hashed_by_locality<'a>(hosts: &'a [Host], shares: &[LocalityShare]) -> Vec<Hashed<'a>> {
    let total: f64 = shares.iter().map(|share| f64::from(share.weight)).sum();
    let mut hashed = Vec::new();
    for LocalityShare { weight, members } in shares.iter().filter(|share| share.weight > 0) {
        let share = f64::from(*weight) / total;
        let within = total_weight(hosts, members);
        hashed.extend(members.iter().map(|number| {
            let part = share * f64::from(self::weight(hosts, *number)) / within;
            (*number, part, &*hosts[*number as usize].hash_key)
        }));
    }

    hashed
}

/// The load of each locality that has endpoints in this priority, in the order of localities: its
/// own weight times how much of it is usable (Envoy: `HostSetImpl::effectiveLocalityWeight`).
fn locality_shares(
    config: &Config,
    hosts: &[Host],
    localities: &[LocalitySpec],
    everyone: &[u32],
    chosen: &[u32],
) -> Vec<LocalityShare> {
    let locality = |number: &u32| hosts[*number as usize].locality;
    let mut numbers: SmallVec<[u32; 8]> = everyone.iter().map(locality).collect();
    numbers.sort_unstable();
    numbers.dedup();

    let share = |own: u32| {
        let is_own = |number: &&u32| locality(number) == own;
        let members: Vec<u32> = chosen.iter().filter(is_own).copied().collect();
        let total = everyone.iter().filter(is_own).count() as u64;
        let weight = u64::from(localities.get(own as usize).map_or(0, |spec| spec.weight));

        // In percent, so that a light locality with half of its endpoints is not rounded away.
        let usable = (u64::from(config.overprovisioning_factor) * members.len() as u64)
            .checked_div(total)
            .unwrap_or(0);
        let effective = weight * usable.min(100);

        // Half of the product fits 32 bits for nearly every weight; a locality that takes load at
        // all keeps at least 1.
        let halved = u32::try_from(effective / 2).unwrap_or(u32::MAX);
        LocalityShare {
            weight: halved.max(u32::from(effective > 0)),
            members,
        }
    };

    numbers.into_iter().map(share).collect()
}
