//! Streams that a peer opens only to reset them (rapid reset, CVE-2023-44487).

use std::time::{Duration, Instant};

/// Abandoned streams within the time of [`WINDOW`], while most streams end so. Source: Envoy
/// `premature_reset_total_stream_count`; lower, since it is counted anew after that time.
const MAX_ABANDONED: u32 = 200;
/// How long streams are counted together. A client with short deadlines before a slow service
/// abandons streams for as long as it lives, and is no attacker.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts of one connection.
#[derive(Debug)]
pub(super) struct Resets {
    since: Instant,
    opened: u32,
    abandoned: u32,
}

impl Resets {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            opened: 0,
            abandoned: 0,
        }
    }

    /// A stream was opened.
    pub(super) fn open(&mut self, now: Instant) {
        if now.duration_since(self.since) > WINDOW {
            *self = Self::new(now);
        }
        self.opened += 1;
    }

    /// The peer gave a stream up soon after it had opened it.
    pub(super) fn abandon(&mut self) {
        self.abandoned += 1;
    }

    /// Whether the peer opens streams only to reset them.
    pub(super) fn is_flood(&self) -> bool {
        self.abandoned > MAX_ABANDONED && self.abandoned > self.opened / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many streams a second, all of them abandoned; the time at which they are a flood.
    fn flood_after(a_second: u32) -> Option<Duration> {
        let start = Instant::now();
        let mut resets = Resets::new(start);
        (0..a_second * 120).find_map(|n| {
            let time = Duration::from_secs(1) * n / a_second;
            resets.open(start + time);
            resets.abandon();
            resets.is_flood().then_some(time)
        })
    }

    #[test]
    fn short_deadlines_are_no_flood_however_long_they_last() {
        assert_eq!(flood_after(15), None);
        assert!(flood_after(1000).is_some_and(|time| time < Duration::from_secs(1)));
    }

    #[test]
    fn who_lets_most_streams_end_floods_nobody() {
        let now = Instant::now();
        let mut resets = Resets::new(now);
        for n in 0..10_000 {
            resets.open(now);
            if n % 3 == 0 {
                resets.abandon();
            }
        }
        assert!(!resets.is_flood());
    }
}
