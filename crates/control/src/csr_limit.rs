//! How many certificates a caller gets: one that asks without end must not keep the CA busy, nor wash
//! the lines of others out of the log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Certificates at once. A node with many replicas of one workload asks for all of them together.
const BURST: u32 = 100;
/// After this time there is one more.
const REFILL: Duration = Duration::from_secs(1);
/// Callers that are remembered.
const REMEMBERED: usize = 20_000;

/// The certificates that each caller may still have, by identity and address.
#[derive(Debug, Default)]
pub(crate) struct CsrLimit {
    callers: Mutex<HashMap<(String, String), Bucket>>,
}

/// What a caller has taken: the time at which its bucket is full again.
#[derive(Debug)]
struct Bucket {
    full_at: Instant,
}

impl CsrLimit {
    /// Takes one; false if there is none.
    pub(crate) fn admit(&self, identity: &str, address: &str, now: Instant) -> bool {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= REMEMBERED {
            callers.retain(|_, bucket| bucket.full_at > now);
        }

        let key = (identity.to_owned(), address.to_owned());
        if callers.len() >= REMEMBERED && !callers.contains_key(&key) {
            return false;
        }
        let bucket = callers.entry(key).or_insert(Bucket { full_at: now });
        let full_at = bucket.full_at.max(now) + REFILL;
        if full_at > now + REFILL * BURST {
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
        let (limit, start) = (CsrLimit::default(), Instant::now());
        let admitted = |n: u32, at: Instant| (0..n).filter(|_| limit.admit("a", "1", at)).count();

        assert_eq!(admitted(1000, start), 100);
        assert_eq!(admitted(1000, start + REFILL * 5), 5);
        assert!(limit.admit("b", "1", start) && limit.admit("a", "2", start));
        assert_eq!(admitted(1000, start + REFILL * 1000), 100, "and no more");
    }
}
