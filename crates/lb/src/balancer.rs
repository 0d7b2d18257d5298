//! The balancer: priorities, localities, panic, subsets, and the policy at the end.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::config::{Config, Health, Host, LocalitySpec, Policy};
use crate::maglev::{MAX_TABLE, Maglev};
use crate::priority::{PriorityLoad, Tally, spread};
use crate::random::{below, next};
use crate::ring::Ring;
use crate::subset::{Resolved, SubsetMatch, members, resolve};
use crate::weighted::Weighted;

/// An immutable choice of endpoints. Build a new one when endpoints or their health change.
#[derive(Debug)]
pub struct Balancer {
    config: Config,
    all: Group,
    subsets: HashMap<SubsetMatch, Group>,
    default: Option<Group>,
    weights: Vec<u32>,
    priorities: Vec<u32>,
}

/// Where round robin is; one for each worker and cluster. Start it at a random number, or all
/// workers begin with the same endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor(pub u64);

/// What one choice depends on.
pub struct PickContext<'a> {
    /// 64 random bits.
    pub random: u64,
    /// What consistent hashing goes by; without it `random` does.
    pub hash: Option<u64>,
    /// Active requests of an endpoint, for least request.
    pub active: &'a dyn Fn(u32) -> u32,
    /// Where round robin is.
    pub cursor: &'a mut Cursor,
    /// Metadata that the endpoint must have.
    pub subset: Option<&'a SubsetMatch>,
    /// Endpoints to avoid if possible (tried already).
    pub avoid: &'a dyn Fn(u32) -> bool,
    /// How often another is drawn before one to avoid is taken; at least 1.
    pub attempts: u32,
    /// Priorities to leave out (retry_priority), unless none would be left.
    pub failed_priorities: &'a [u32],
}

impl std::fmt::Debug for PickContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PickContext")
            .field("random", &self.random)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

/// What was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// The endpoint's number.
    pub host: u32,
    /// Its priority.
    pub priority: u32,
    /// It was chosen in panic: its health did not count.
    pub panic: bool,
}

/// Endpoints that are balanced together: all of a cluster, or a subset.
#[derive(Debug)]
struct Group {
    priorities: Vec<Priority>,
    loads: Vec<PriorityLoad>,
}

#[derive(Debug)]
struct Priority {
    healthy: Chooser,
    degraded: Chooser,
}

/// How one endpoint of one priority is chosen.
#[derive(Debug)]
enum Chooser {
    /// Localities by weight, and endpoints within each. Without locality weights there is one of
    /// them.
    Lists {
        localities: Weighted,
        lists: Vec<Weighted>,
    },
    Ring(Ring),
    Maglev(Maglev),
}

impl Balancer {
    /// Builds a balancer. `localities` holds the localities that hosts refer to.
    pub fn build(
        config: &Config,
        hosts: &[Host],
        localities: &[LocalitySpec],
        health: impl Fn(u32) -> Health,
    ) -> Self {
        let everyone: Vec<u32> = (0..hosts.len() as u32).collect();
        let health: Vec<Health> = everyone.iter().map(|host| health(*host)).collect();
        let group = |members: &[u32]| Group::build(config, hosts, localities, &health, members);
        let subsets = config.subsets.as_ref();
        let default = subsets
            .filter(|subsets| !subsets.default.is_empty())
            .map(|subsets| {
                let admitted = everyone
                    .iter()
                    .copied()
                    .filter(|host| subsets.default.admits(&hosts[*host as usize]));
                group(&admitted.collect::<Vec<_>>())
            });

        let subsets = subsets
            .map(|subsets| {
                members(subsets, hosts)
                    .iter()
                    .map(|(key, members)| (key.clone(), group(members)))
                    .collect()
            })
            .unwrap_or_default();

        Self {
            all: group(&everyone),
            subsets,
            default,
            weights: hosts.iter().map(|host| host.weight.max(1)).collect(),
            priorities: hosts.iter().map(|host| host.priority).collect(),
            config: config.clone(),
        }
    }

    /// Chooses an endpoint. `None`: nobody may take it (flag UH).
    pub fn pick(&self, context: &mut PickContext<'_>) -> Option<Pick> {
        let group = match &self.config.subsets {
            None => &self.all,
            Some(config) => match resolve(config, context.subset, |wanted| {
                self.subsets.contains_key(wanted)
            }) {
                Resolved::Subset(subset) => self.subsets.get(&*subset)?,
                Resolved::Any => &self.all,
                Resolved::Default => self.default.as_ref().unwrap_or(&self.all),
                Resolved::Nothing => return None,
            },
        };

        let mut state = context.random;
        let mut fallback = None;
        for attempt in 0..context.attempts.max(1) {
            // Consistent hashing chooses the priority by the hash as well, so that a client stays
            // where it is.
            let point = context.hash.unwrap_or_else(|| next(&mut state));
            let (chooser, panic) = group.choose_priority(point, context.failed_priorities)?;
            let host = self.choose(chooser, attempt, &mut state, context)?;
            let pick = Pick {
                host,
                priority: *self.priorities.get(host as usize)?,
                panic,
            };

            if !(context.avoid)(host) {
                return Some(pick);
            }
            fallback = Some(pick);
        }

        fallback
    }

    /// The load of every priority, for reports.
    pub fn loads(&self) -> &[PriorityLoad] {
        &self.all.loads
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    fn choose(
        &self,
        chooser: &Chooser,
        attempt: u32,
        state: &mut u64,
        context: &mut PickContext<'_>,
    ) -> Option<u32> {
        match chooser {
            Chooser::Ring(ring) => {
                let hash = context.hash.unwrap_or_else(|| next(state));
                // Attempts walk on to the next endpoint that was not tried.
                match attempt {
                    0 => ring.find(hash),
                    _ => ring
                        .walk(hash)
                        .find(|host| !(context.avoid)(*host))
                        .or_else(|| ring.find(hash)),
                }
            }
            Chooser::Maglev(table) => {
                table.find(context.hash.unwrap_or_else(|| next(state)), attempt)
            }
            Chooser::Lists { localities, lists } => {
                let list = match lists.len() {
                    1 => lists.first()?,
                    _ => lists.get(localities.draw(next(state))? as usize)?,
                };

                match self.config.policy {
                    Policy::RoundRobin => {
                        let turn = context.cursor.0;
                        context.cursor.0 = turn.wrapping_add(1);
                        list.turn(turn)
                    }
                    Policy::LeastRequest { choices } => {
                        self.least_request(list, choices, state, context.active)
                    }
                    _ => list.draw(next(state)),
                }
            }
        }
    }

    /// The least loaded of several drawn by weight: the first drawn unless another has fewer
    /// requests for its weight.
    fn least_request(
        &self,
        list: &Weighted,
        choices: u32,
        state: &mut u64,
        active: &dyn Fn(u32) -> u32,
    ) -> Option<u32> {
        let mut best = list.draw(next(state))?;
        if list.len() == 1 {
            return Some(best);
        }
        let load = |host: u32| u64::from(active(host));
        let weight = |host: u32| u64::from(self.weights.get(host as usize).copied().unwrap_or(1));
        let mut best_load = load(best);

        for _ in 1..choices.max(2) {
            let other = list.draw(next(state))?;
            if other == best {
                continue;
            }
            let other_load = load(other);
            if other_load * weight(best) < best_load * weight(other) {
                (best, best_load) = (other, other_load);
            }
        }

        Some(best)
    }
}

impl Group {
    fn build(
        config: &Config,
        hosts: &[Host],
        localities: &[LocalitySpec],
        health: &[Health],
        members: &[u32],
    ) -> Self {
        let host = |number: u32| &hosts[number as usize];
        let count = members
            .iter()
            .map(|number| host(*number).priority as usize + 1)
            .max()
            .unwrap_or(0);

        // Priorities come from configuration; a gap costs an empty entry, a huge number must cost
        // no more than that.
        let count = count.min(128);
        let mut tallies = vec![Tally::default(); count];
        let mut by_priority: Vec<Vec<u32>> = vec![Vec::new(); count];

        for number in members {
            let priority = (host(*number).priority as usize).min(count.saturating_sub(1));
            tallies[priority].count(health[*number as usize]);
            if health[*number as usize] != Health::Excluded {
                by_priority[priority].push(*number);
            }
        }

        let loads = spread(
            &tallies,
            config.overprovisioning_factor,
            config.panic_threshold,
        );

        let priorities = by_priority.iter().zip(&loads).map(|(members, load)| {
            let having = |wanted: Health| -> Vec<u32> {
                let admitted = |number: &u32| load.panic || health[*number as usize] == wanted;
                members.iter().copied().filter(admitted).collect()
            };

            Priority {
                healthy: Chooser::build(
                    config,
                    hosts,
                    localities,
                    members,
                    &having(Health::Healthy),
                ),
                degraded: match load.degraded {
                    0 => Chooser::Lists {
                        localities: Weighted::default(),
                        lists: vec![Weighted::default()],
                    },
                    _ => Chooser::build(
                        config,
                        hosts,
                        localities,
                        members,
                        &having(Health::Degraded),
                    ),
                },
            }
        });

        Self {
            priorities: priorities.collect(),
            loads,
        }
    }

    fn choose_priority(&self, point: u64, failed: &[u32]) -> Option<(&Chooser, bool)> {
        if let [only] = self.priorities.as_slice() {
            let load = self.loads.first()?;
            // The common case: one priority, all of it healthy.
            return match load.degraded > 0 && point % 100 >= u64::from(load.healthy) {
                true => Some((&only.degraded, load.panic)),
                false => Some((&only.healthy, load.panic)),
            };
        }

        let usable = |priority: usize| !failed.contains(&(priority as u32));
        let total = |usable: &dyn Fn(usize) -> bool| -> u32 {
            let loads = self
                .loads
                .iter()
                .enumerate()
                .filter(|(priority, _)| usable(*priority));
            loads.map(|(_, load)| load.healthy + load.degraded).sum()
        };

        if !failed.is_empty() {
            let left = total(&usable);
            if left > 0 {
                return self.at(point % u64::from(left), &usable);
            }

            // Load that the failed priorities had goes to the first other one with endpoints.
            let other = self
                .priorities
                .iter()
                .enumerate()
                .find(|(at, priority)| usable(*at) && !priority.healthy.is_empty());

            if let Some((at, priority)) = other {
                return Some((&priority.healthy, self.loads[at].panic));
            }
        }

        self.at(point % 100, &|_| true)
    }

    fn at(&self, mut point: u64, usable: &dyn Fn(usize) -> bool) -> Option<(&Chooser, bool)> {
        for healthy in [true, false] {
            for (at, (priority, load)) in self.priorities.iter().zip(&self.loads).enumerate() {
                if !usable(at) {
                    continue;
                }
                let (share, chooser) = match healthy {
                    true => (load.healthy, &priority.healthy),
                    false => (load.degraded, &priority.degraded),
                };

                match point.checked_sub(u64::from(share)) {
                    None => return Some((chooser, load.panic)),
                    Some(rest) => point = rest,
                }
            }
        }

        None
    }
}

impl Chooser {
    fn build(
        config: &Config,
        hosts: &[Host],
        localities: &[LocalitySpec],
        everyone: &[u32],
        chosen: &[u32],
    ) -> Self {
        let weight = |number: &u32| hosts[*number as usize].weight.max(1);
        let shares = config
            .locality_weighted
            .then(|| locality_shares(config, hosts, localities, everyone, chosen));
        let normalised = || -> Vec<(u32, f64, &str)> {
            let key = |number: &u32| &*hosts[*number as usize].hash_key;
            match &shares {
                None => {
                    let total: f64 = chosen.iter().map(|number| f64::from(weight(number))).sum();
                    chosen
                        .iter()
                        .map(|number| (*number, f64::from(weight(number)) / total, key(number)))
                        .collect()
                }
                Some(shares) => {
                    let total: f64 = shares.iter().map(|(_, share, _)| f64::from(*share)).sum();
                    let mut list = Vec::with_capacity(chosen.len());
                    for (_, share, members) in shares.iter().filter(|(_, share, _)| *share > 0) {
                        let within: f64 =
                            members.iter().map(|number| f64::from(weight(number))).sum();
                        let share = f64::from(*share) / total;
                        list.extend(
                            members
                                .iter()
                                .map(|n| (*n, share * f64::from(weight(n)) / within, key(n))),
                        );
                    }

                    list
                }
            }
        };

        match config.policy {
            Policy::RingHash {
                min_size,
                max_size,
                function,
            } => Self::Ring(Ring::new(&normalised(), min_size, max_size, function)),
            Policy::Maglev { table_size } => {
                Self::Maglev(Maglev::new(&normalised(), table_size.min(MAX_TABLE)))
            }
            Policy::RoundRobin
            | Policy::LeastRequest { .. }
            | Policy::Random
            | Policy::OriginalDst => {
                let in_turn = config.policy == Policy::RoundRobin;
                let list = |members: &[u32]| {
                    Weighted::new(members.iter().map(|n| (*n, weight(n))), in_turn)
                };
                match shares {
                    None => Self::Lists {
                        localities: Weighted::default(),
                        lists: vec![list(chosen)],
                    },
                    Some(shares) => {
                        let numbered = shares
                            .iter()
                            .enumerate()
                            .map(|(at, (_, share, _))| (at as u32, *share));

                        let localities = Weighted::new(numbered, false);
                        let lists: Vec<Weighted> =
                            shares.iter().map(|(_, _, members)| list(members)).collect();
                        match localities.is_empty() {
                            // No locality has a weight: they do not count.
                            true => Self::Lists {
                                localities,
                                lists: vec![list(chosen)],
                            },
                            false => Self::Lists { localities, lists },
                        }
                    }
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Lists { lists, .. } => lists.iter().all(Weighted::is_empty),
            Self::Ring(ring) => ring.find(0).is_none(),
            Self::Maglev(table) => table.find(0, 0).is_none(),
        }
    }
}

/// The effective weight of each locality: its own times how much of it is usable. Source: Envoy
/// `HostSetImpl::effectiveLocalityWeight`.
fn locality_shares(
    config: &Config,
    hosts: &[Host],
    localities: &[LocalitySpec],
    everyone: &[u32],
    chosen: &[u32],
) -> Vec<(u32, u32, Vec<u32>)> {
    let locality = |number: &u32| hosts[*number as usize].locality;
    let mut numbers: SmallVec<[u32; 8]> = everyone.iter().map(locality).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let share = |own: u32| {
        let members: Vec<u32> = chosen
            .iter()
            .copied()
            .filter(|number| locality(number) == own)
            .collect();

        let total = everyone
            .iter()
            .filter(|number| locality(number) == own)
            .count() as u64;

        let weight = u64::from(localities.get(own as usize).map_or(0, |spec| spec.weight));
        let usable = (u64::from(config.overprovisioning_factor) * members.len() as u64)
            .checked_div(total)
            .unwrap_or(0);

        // Times 100, so that a light locality that is half well is not rounded away; then brought
        // into range.
        let effective = if members.is_empty() {
            0
        } else {
            weight * usable.min(100)
        };

        (
            own,
            u32::try_from(effective / 2)
                .unwrap_or(u32::MAX)
                .max(u32::from(effective > 0)),
            members,
        )
    };

    numbers.into_iter().map(share).collect()
}

/// A turn for a caller that draws a host itself, for example among resolved addresses.
impl Cursor {
    /// A number below `count`, one after the other.
    pub fn advance(&mut self, count: usize) -> usize {
        let turn = self.0;
        self.0 = turn.wrapping_add(1);
        match count {
            0 => 0,
            count => (turn % count as u64) as usize,
        }
    }

    /// A start that differs from worker to worker.
    pub fn seeded(random: u64) -> Self {
        Self(below(random, 1 << 32))
    }
}

#[cfg(test)]
mod tests;
