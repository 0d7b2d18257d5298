//! A group of endpoints that share one load: all of a cluster, or one subset. The group decides
//! which priority takes a request.

use super::chooser::Chooser;
use crate::config::Config;
use crate::host::{Health, Host, LocalitySpec};
use crate::priority::{PriorityLoad, Tally, spread};

/// Envoy's bound on priorities. A priority comes from configuration: a gap costs an empty entry,
/// and a huge number must cost no more than this many.
const MAX_PRIORITIES: usize = 128;

/// Endpoints that are balanced together.
#[derive(Debug)]
pub(super) struct Group {
    priorities: Vec<Priority>,
    loads: Vec<PriorityLoad>,
}

#[derive(Debug)]
struct Priority {
    healthy: Chooser,
    degraded: Chooser,
}

impl Group {
    /// Builds the group of `members`, which index `hosts` and `health`.
    pub(super) fn build(
        config: &Config,
        hosts: &[Host],
        localities: &[LocalitySpec],
        health: &[Health],
        members: &[u32],
    ) -> Self {
        let priority = |number: &u32| hosts[*number as usize].priority as usize;
        let count = members.iter().map(|number| priority(number) + 1).max();
        let count = count.unwrap_or(0).min(MAX_PRIORITIES);

        let mut tallies = vec![Tally::default(); count];
        let mut by_priority: Vec<Vec<u32>> = vec![Vec::new(); count];
        for number in members {
            let own = priority(number).min(count.saturating_sub(1));
            let health = health[*number as usize];
            tallies[own].count(health);
            if health != Health::Excluded {
                by_priority[own].push(*number);
            }
        }

        let loads = spread(
            &tallies,
            config.overprovisioning_factor,
            config.panic_threshold,
        );

        let priorities = by_priority.iter().zip(&loads).map(|(members, load)| {
            let with = |wanted: Health| -> Vec<u32> {
                // In panic an endpoint's health does not count.
                let admitted = |number: &u32| load.panic || health[*number as usize] == wanted;
                members.iter().copied().filter(admitted).collect()
            };

            let chooser =
                |chosen: &[u32]| Chooser::build(config, hosts, localities, members, chosen);

            Priority {
                healthy: chooser(&with(Health::Healthy)),
                degraded: match load.degraded {
                    0 => Chooser::empty(),
                    _ => chooser(&with(Health::Degraded)),
                },
            }
        });

        Self {
            priorities: priorities.collect(),
            loads,
        }
    }

    /// The load of every priority.
    pub(super) fn loads(&self) -> &[PriorityLoad] {
        &self.loads
    }

    /// Chooses a priority by its load, and says whether that priority is in panic. `failed` lists
    /// priorities that a retry avoids while another one has endpoints (Envoy:
    /// `retry_priority.previous_priorities`). `None` if no priority takes load.
    pub(super) fn choose_priority(&self, point: u64, failed: &[u32]) -> Option<(&Chooser, bool)> {
        // One priority is the common case.
        if let [only] = self.priorities.as_slice() {
            let load = self.loads.first()?;
            let to_degraded = load.degraded > 0 && point % 100 >= u64::from(load.healthy);
            let chooser = match to_degraded {
                true => &only.degraded,
                false => &only.healthy,
            };
            return Some((chooser, load.panic));
        }

        if failed.is_empty() {
            return self.at(point % 100, |_| true);
        }

        let is_usable = |priority: usize| !failed.contains(&(priority as u32));
        let loads = self.loads.iter().enumerate();
        let left: u32 = loads
            .filter(|(priority, _)| is_usable(*priority))
            .map(|(_, load)| load.healthy + load.degraded)
            .sum();
        if left > 0 {
            return self.at(point % u64::from(left), is_usable);
        }

        // The failed priorities had all the load: the first other one with endpoints takes it.
        let other = self
            .priorities
            .iter()
            .enumerate()
            .find(|(at, priority)| is_usable(*at) && !priority.healthy.is_empty());

        match other {
            Some((at, priority)) => Some((&priority.healthy, self.loads[at].panic)),
            None => self.at(point % 100, |_| true),
        }
    }

    /// The chooser that holds this point when the usable loads lie one after the other: all
    /// healthy shares first, then the degraded ones, as in Envoy's `choosePriority`.
    fn at(&self, mut point: u64, is_usable: impl Fn(usize) -> bool) -> Option<(&Chooser, bool)> {
        for healthy in [true, false] {
            for (at, (priority, load)) in self.priorities.iter().zip(&self.loads).enumerate() {
                if !is_usable(at) {
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
