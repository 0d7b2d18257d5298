//! How load is spread over priorities. Source: Envoy
//! `LoadBalancerBase::recalculatePerPriorityState`.

use crate::host::Health;

/// Load of one priority, in percent, and whether it is in panic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PriorityLoad {
    /// Percent of requests that go to healthy endpoints (to all of them in panic).
    pub healthy: u32,
    /// Percent of requests that go to degraded endpoints.
    pub degraded: u32,
    /// Too few endpoints are usable, so all of them are used.
    pub panic: bool,
}

/// Counts of one priority's endpoints by health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) healthy: u32,
    pub(crate) degraded: u32,
    pub(crate) total: u32,
}

impl Tally {
    pub(crate) fn count(&mut self, health: Health) {
        match health {
            Health::Healthy => self.healthy += 1,
            Health::Degraded => self.degraded += 1,
            Health::Unhealthy => {}
            Health::Excluded => return,
        }
        self.total += 1;
    }

    fn in_panic(&self, threshold: f64) -> bool {
        let share = match self.total {
            0 => 0.0,
            total => 100.0 * f64::from(self.healthy + self.degraded) / f64::from(total),
        };
        share < threshold
    }
}

/// Spreads 100 percent of load over the priorities.
pub(crate) fn spread(tallies: &[Tally], factor: u32, panic_threshold: f64) -> Vec<PriorityLoad> {
    let availability = |usable: u32, total: u32| match total {
        0 => 0,
        total => (u64::from(factor) * u64::from(usable) / u64::from(total)).min(100) as u32,
    };

    let healthy: Vec<u32> = tallies
        .iter()
        .map(|tally| availability(tally.healthy, tally.total))
        .collect();

    let degraded: Vec<u32> = tallies
        .iter()
        .map(|tally| availability(tally.degraded, tally.total))
        .collect();

    let total = healthy
        .iter()
        .chain(&degraded)
        .fold(0u32, |sum, part| sum.saturating_add(*part))
        .min(100);

    let panic: Vec<bool> = tallies
        .iter()
        .map(|tally| total < 100 && tally.in_panic(panic_threshold))
        .collect();

    if !tallies.is_empty() && panic.iter().all(|panic| *panic) {
        return in_total_panic(tallies);
    }
    let mut loads: Vec<PriorityLoad> = panic
        .into_iter()
        .map(|panic| PriorityLoad {
            panic,
            ..Default::default()
        })
        .collect();

    if total == 0 {
        // No endpoint can take load. The first priority gets it, finds no endpoint and says so.
        if let Some(first) = loads.first_mut() {
            first.healthy = 100;
        }
        return loads;
    }

    let mut left = 100;
    for (load, part) in loads.iter_mut().zip(&healthy) {
        load.healthy = left.min(part * 100 / total);
        left -= load.healthy;
    }

    for (load, part) in loads.iter_mut().zip(&degraded) {
        load.degraded = left.min(part * 100 / total);
        left -= load.degraded;
    }

    // Rounding leaves a few percent over: the first priority that takes load gets them.
    if let Some(load) = loads.iter_mut().find(|load| load.healthy > 0) {
        load.healthy += left;
    } else if let Some(load) = loads.iter_mut().find(|load| load.degraded > 0) {
        load.degraded += left;
    }

    loads
}

/// The loads when every priority is in panic: in proportion to their numbers of endpoints.
fn in_total_panic(tallies: &[Tally]) -> Vec<PriorityLoad> {
    let hosts: u64 = tallies.iter().map(|tally| u64::from(tally.total)).sum();
    let mut left = 100;
    let mut loads: Vec<PriorityLoad> = tallies
        .iter()
        .map(|tally| {
            let healthy = (100 * u64::from(tally.total))
                .checked_div(hosts)
                .unwrap_or(0) as u32;
            left -= healthy;
            PriorityLoad {
                healthy,
                degraded: 0,
                panic: true,
            }
        })
        .collect();

    let first = loads.iter().position(|load| load.healthy > 0).unwrap_or(0);
    if let Some(load) = loads.get_mut(first) {
        load.healthy += left;
    }

    loads
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(healthy: u32, total: u32) -> Tally {
        Tally {
            healthy,
            degraded: 0,
            total,
        }
    }

    fn healthy(tallies: &[Tally], threshold: f64) -> Vec<u32> {
        spread(tallies, 140, threshold)
            .iter()
            .map(|load| load.healthy)
            .collect()
    }

    #[test]
    fn load_spills_as_envoys_documentation_says() {
        // Envoy "Priority levels": 100 % at P0 down to 72 %, then it spills.
        assert_eq!(healthy(&[tally(100, 100), tally(100, 100)], 50.0), [100, 0]);
        assert_eq!(healthy(&[tally(72, 100), tally(100, 100)], 50.0), [100, 0]);
        assert_eq!(healthy(&[tally(71, 100), tally(100, 100)], 50.0), [99, 1]);
        assert_eq!(healthy(&[tally(50, 100), tally(100, 100)], 50.0), [70, 30]);
        assert_eq!(healthy(&[tally(25, 100), tally(100, 100)], 50.0), [35, 65]);
        assert_eq!(healthy(&[tally(0, 100), tally(100, 100)], 50.0), [0, 100]);
        assert_eq!(healthy(&[tally(25, 100), tally(25, 100)], 0.0), [50, 50]);
    }

    #[test]
    fn panic_needs_too_little_everywhere() {
        assert!(spread(&[tally(1, 10)], 140, 50.0)[0].panic);
        assert!(
            !spread(&[tally(1, 10), tally(10, 10)], 140, 50.0)[0].panic,
            "the next priority takes it"
        );

        assert!(
            !spread(&[tally(0, 10)], 140, 0.0)[0].panic,
            "0 turns it off"
        );

        assert!(!spread(&[tally(5, 10)], 140, 50.0)[0].panic);
    }

    proptest! {
        #[test]
        fn all_load_goes_somewhere(
            tallies in prop::collection::vec((0u32..50, 0u32..50, 0u32..50), 1..5),
            threshold in 0.0f64..100.0,
        ) {
            let tallies: Vec<Tally> = tallies.into_iter()
                .map(|(healthy, degraded, bad)| Tally { healthy, degraded, total: healthy + degraded + bad })
                .collect();
            let loads = spread(&tallies, 140, threshold);
            prop_assert_eq!(loads.iter().map(|load| load.healthy + load.degraded).sum::<u32>(), 100);
        }
    }
}
