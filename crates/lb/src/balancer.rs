//! The balancer: resolves the subset, chooses a priority by its load, then an endpoint by policy.

mod chooser;
mod group;

use std::collections::HashMap;

use self::chooser::Chooser;
use self::group::Group;
use crate::config::{Config, Policy};
use crate::host::{Health, Host, LocalitySpec};
use crate::priority::PriorityLoad;
use crate::random::{below, next};
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

/// The position of round robin; one for each worker and cluster. Start it at a random number, or
/// all workers begin with the same endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor(pub u64);

impl Cursor {
    /// Takes the next turn for a caller that draws an endpoint itself, for example among resolved
    /// addresses. Returns a number below `count`; 0 if `count` is 0.
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

/// The facts of one request that a choice depends on.
pub struct PickContext<'a> {
    /// 64 random bits.
    pub random: u64,
    /// The hash for ring and Maglev; without one, a random number replaces it.
    pub hash: Option<u64>,
    /// Active requests of an endpoint, for least request.
    pub active: &'a dyn Fn(u32) -> u32,
    /// The position of round robin.
    pub cursor: &'a mut Cursor,
    /// Metadata that the endpoint must have.
    pub subset: Option<&'a SubsetMatch>,
    /// Endpoints that earlier attempts tried; another is taken if one can be drawn.
    pub avoid: &'a dyn Fn(u32) -> bool,
    /// How many endpoints are drawn before one to avoid is taken; at least 1. Envoy:
    /// `host_selection_retry_max_attempts`.
    pub attempts: u32,
    /// Priorities that a retry avoids while another one has endpoints. Envoy: `retry_priority`.
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

/// The endpoint that a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// The endpoint's index in the list that the balancer was built from.
    pub host: u32,
    /// The endpoint's priority.
    pub priority: u32,
    /// The priority is in panic, so the endpoint's health did not count.
    pub panic: bool,
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
                let is_admitted = |host: &u32| subsets.default.admits(&hosts[*host as usize]);
                let admitted: Vec<u32> = everyone.iter().copied().filter(is_admitted).collect();
                group(&admitted)
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

    /// Chooses an endpoint. `None` if no endpoint may take the request (response flag UH).
    pub fn pick(&self, context: &mut PickContext<'_>) -> Option<Pick> {
        let group = self.group(context.subset)?;
        let mut state = context.random;
        let mut fallback = None;

        for attempt in 0..context.attempts.max(1) {
            // Consistent hashing chooses the priority by the hash as well, so that a client keeps
            // its endpoint.
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
        self.all.loads()
    }

    /// The number of endpoints.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// The endpoints that a request with these criteria may go to.
    fn group(&self, wanted: Option<&SubsetMatch>) -> Option<&Group> {
        let Some(config) = &self.config.subsets else {
            return Some(&self.all);
        };

        match resolve(config, wanted, |wanted| self.subsets.contains_key(wanted)) {
            Resolved::Subset(subset) => self.subsets.get(&*subset),
            Resolved::Any => Some(&self.all),
            Resolved::Default => Some(self.default.as_ref().unwrap_or(&self.all)),
            Resolved::Nothing => None,
        }
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
                // A further attempt walks on to the next endpoint that was not tried.
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

    /// Draws several endpoints by weight and takes the one with the fewest requests for its
    /// weight; the first drawn wins a tie.
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

            // Compares load / weight without a division.
            let other_load = load(other);
            if other_load * weight(best) < best_load * weight(other) {
                (best, best_load) = (other, other_load);
            }
        }

        Some(best)
    }
}

#[cfg(test)]
mod tests;
