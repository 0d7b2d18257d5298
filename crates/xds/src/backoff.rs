//! Exponential back-off with jitter between attempts to connect.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Limits of the delay between two attempts. Default: 100 ms to 5 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first delay.
    pub first: Duration,
    /// Upper bound of every delay.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(5),
        }
    }
}

impl Backoff {
    /// The delay after `failures` failures in a row (1 or more): a random value between half of a
    /// bound and the bound, which doubles with each failure.
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1 << failures.saturating_sub(1).min(16));
        let bound = doubled.min(self.longest);
        let half = bound / 2;
        let spread = u64::try_from(half.as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        half + Duration::from_nanos(random % spread)
    }
}

/// A random number that keeps clients from reconnecting in step. Not for secrets.
pub(crate) fn jitter() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_stay_there() {
        let backoff = Backoff {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(2),
        };

        for failures in 1..200 {
            let least = backoff.delay(failures, 0);
            let most = backoff.delay(failures, u64::MAX - 1);
            assert!(least <= most && most <= backoff.longest);
        }

        assert_eq!(backoff.delay(1, 0), Duration::from_millis(50));
        assert_eq!(backoff.delay(60, 0), Duration::from_secs(1));
    }
}
