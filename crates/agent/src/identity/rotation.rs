//! Computes when to renew a certificate and when to retry after a failure. Pure.

use std::time::{Duration, SystemTime};

/// The fraction of a certificate's lifetime that remains when it is renewed.
/// Source: Istio `SECRET_GRACE_PERIOD_RATIO`, `SECRET_GRACE_PERIOD_RATIO_JITTER`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotation {
    /// Remaining fraction, 0 to 1. Default 0.5.
    pub grace_ratio: f64,
    /// Largest random deviation from `grace_ratio` in either direction. Default 0.01.
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
    /// The delay from `now`, when the certificate was obtained, to its renewal. The lifetime counts
    /// from `now`, not from a backdated `notBefore`. At least 100 ms, so that a CA that issues
    /// expired certificates is not flooded.
    pub fn delay(&self, now: SystemTime, not_after: SystemTime, random: u64) -> Duration {
        const LEAST: Duration = Duration::from_millis(100);
        let life = not_after.duration_since(now).unwrap_or_default();
        // A f64 holds 53 bits exactly: `unit` is uniform in [0, 1).
        let unit = (random >> 11) as f64 / (1u64 << 53) as f64;
        let grace = (self.grace_ratio + (2.0 * unit - 1.0) * self.jitter).clamp(0.0, 1.0);
        life.mul_f64(1.0 - grace).max(LEAST)
    }
}

/// The delay before the next attempt after `failures` failures in a row: a random value between
/// half of a bound and the bound, which doubles from 0.5 s to 15 s. While the current certificate
/// is valid, the delay is at most half of its remaining validity (`remaining`, zero if expired), so
/// that attempts continue until it expires.
pub fn retry_delay(failures: u32, remaining: Duration, random: u64) -> Duration {
    const LEAST: Duration = Duration::from_millis(250);

    let bound = Duration::from_millis(500)
        .saturating_mul(1 << failures.saturating_sub(1).min(8))
        .min(Duration::from_secs(15));
    let half = bound / 2;
    let limit = if remaining.is_zero() {
        bound
    } else {
        (remaining / 2).max(LEAST)
    };

    let random = random
        % (u64::try_from(half.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_add(1));

    (half + Duration::from_millis(random)).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_half_of_the_lifetime_within_one_per_cent() {
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
    fn an_expired_certificate_is_not_renewed_in_a_busy_loop() {
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
    fn attempts_continue_until_the_certificate_expires() {
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
