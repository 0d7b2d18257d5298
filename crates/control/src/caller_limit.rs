//! How much each caller gets of something: one that asks without end must not keep the CA busy, nor
//! wash the lines of others out of a log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Callers that are remembered.
const REMEMBERED: usize = 20_000;

/// What each caller may still have, by name and address.
#[derive(Debug)]
pub(crate) struct CallerLimit {
    /// So much at once.
    burst: u32,
    /// After this time there is one more.
    refill: Duration,
    callers: Mutex<HashMap<(String, String), Bucket>>,
}

/// What a caller has taken: the time at which its bucket is full again.
#[derive(Debug)]
struct Bucket {
    full_at: Instant,
}

impl CallerLimit {
    pub(crate) fn new(burst: u32, refill: Duration) -> Self {
        Self {
            burst,
            refill,
            callers: Mutex::default(),
        }
    }

    /// Takes one; false if there is none.
    pub(crate) fn admit(&self, name: &str, address: &str, now: Instant) -> bool {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= REMEMBERED {
            callers.retain(|_, bucket| bucket.full_at > now);
        }

        let key = (name.to_owned(), address.to_owned());
        if callers.len() >= REMEMBERED && !callers.contains_key(&key) {
            return false;
        }
        let bucket = callers.entry(key).or_insert(Bucket { full_at: now });
        let full_at = bucket.full_at.max(now) + self.refill;
        if full_at > now + self.refill * self.burst {
            return false;
        }
        bucket.full_at = full_at;

        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_a_burst_and_then_one_a_second_and_others_have_theirs() {
        const SECOND: Duration = Duration::from_secs(1);
        let (limit, start) = (CallerLimit::new(100, SECOND), Instant::now());
        let admitted = |n: u32, at: Instant| (0..n).filter(|_| limit.admit("a", "1", at)).count();

        assert_eq!(admitted(1000, start), 100);
        assert_eq!(admitted(1000, start + SECOND * 5), 5);
        assert!(limit.admit("b", "1", start) && limit.admit("a", "2", start));
        assert_eq!(admitted(1000, start + SECOND * 1000), 100, "and no more");
    }
}
