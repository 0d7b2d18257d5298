//! When to ask again. Pure.

use std::time::{Duration, SystemTime};

/// Which part of a certificate's life is left when it is rotated.
/// Source: Istio `SECRET_GRACE_PERIOD_RATIO`, `SECRET_GRACE_PERIOD_RATIO_JITTER`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotation {
    /// 0.5: at half of its life.
    pub grace_ratio: f64,
    /// 0.01: one per cent of its life earlier or later.
    pub jitter: f64,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            grace_ratio: 0.5,
            jitter: 0.01,
        }
    }
}

impl Rotation {
    /// How long to wait from `now`, when the certificate was obtained, until it is rotated.
    /// Backdating does not count as life. Never less than a tenth of a second, so that a CA that
    /// hands out dead certificates is not flooded.
    pub fn delay(&self, now: SystemTime, not_after: SystemTime, random: u64) -> Duration {
        const LEAST: Duration = Duration::from_millis(100);
        let life = not_after.duration_since(now).unwrap_or_default();
        // 53 bits are what a float holds.
        let unit = (random >> 11) as f64 / (1u64 << 53) as f64;
        let grace = (self.grace_ratio + (2.0 * unit - 1.0) * self.jitter).clamp(0.0, 1.0);
        life.mul_f64(1.0 - grace).max(LEAST)
    }
}

/// The delay before an attempt after `failures` failed ones: doubling from half a second to 15 s,
/// between half of that and all of it. Never more than half of what is `left` of the certificate in
/// use, so that one that is about to end is asked for again before it does; one that has ended is
/// in no hurry.
pub fn retry_delay(failures: u32, left: Duration, random: u64) -> Duration {
    const LEAST: Duration = Duration::from_millis(250);

    let bound = Duration::from_millis(500)
        .saturating_mul(1 << failures.saturating_sub(1).min(8))
        .min(Duration::from_secs(15));
    let half = bound / 2;
    let most = if left.is_zero() {
        bound
    } else {
        (left / 2).max(LEAST)
    };

    let random = random
        % (u64::try_from(half.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_add(1));

    (half + Duration::from_millis(random)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_is_at_half_of_life_give_or_take_one_per_cent() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let day = Duration::from_secs(86_400);
        for life in [Duration::from_secs(30), day] {
            let (mut least, mut most) = (life, Duration::ZERO);
            for step in 0..1000u64 {
                let delay =
                    Rotation::default().delay(now, now + life, step.wrapping_mul(u64::MAX / 999));
                (least, most) = (least.min(delay), most.max(delay));
            }

            assert!(
                least >= life.mul_f64(0.489) && least < life.mul_f64(0.4925),
                "{least:?} of {life:?}"
            );

            assert!(
                most <= life.mul_f64(0.511) && most > life.mul_f64(0.5075),
                "{most:?} of {life:?}"
            );
        }
    }

    #[test]
    fn a_dead_certificate_does_not_spin() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(
            Rotation::default().delay(now, now - Duration::from_secs(5), 7),
            Duration::from_millis(100)
        );
    }

    #[test]
    fn retries_slow_down_to_a_bound() {
        for left in [Duration::ZERO, Duration::from_secs(3600)] {
            assert_eq!(retry_delay(1, left, 0), Duration::from_millis(250));
            assert_eq!(retry_delay(1, left, 250), Duration::from_millis(500));
            for failures in 0..u32::from(u8::MAX) {
                assert!(retry_delay(failures, left, u64::MAX) <= Duration::from_secs(15));
            }
            assert!(retry_delay(40, left, 0) >= Duration::from_millis(7_500));
        }
    }

    #[test]
    fn a_certificate_that_is_about_to_end_is_asked_for_in_time() {
        let mut left = Duration::from_secs(14);
        for failures in 5.. {
            let delay = retry_delay(failures, left, u64::MAX);
            assert!(
                delay <= (left / 2).max(Duration::from_millis(250)),
                "{delay:?} of {left:?}"
            );

            let Some(next) = left.checked_sub(delay).filter(|next| !next.is_zero()) else {
                assert!(
                    left <= Duration::from_millis(500),
                    "attempts go on to the end, not up to {left:?}"
                );
                break;
            };

            left = next;
        }
    }
}
