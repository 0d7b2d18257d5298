//! Outlier detection: an endpoint that answers badly is out of service for a while. Source: Envoy
//! `OutlierDetection`.
//!
//! What requests meet is counted in atomics. Who comes back, whose rates are bad and whose past is
//! forgiven is looked at once an interval, by whichever worker is the first to ask afterwards:
//! there is no timer, and a cluster without requests costs nothing.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use meltemi_lb::random;
use meltemi_proxy_config::cluster::OutlierDetection;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostResult {
    /// A response with this status.
    Status(u16),
    /// No connection, a reset or a time-out.
    LocalFailure,
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// 5xx in a row, local failures among them unless they count apart.
    Consecutive5xx,
    /// 502, 503, 504 in a row.
    ConsecutiveGatewayFailure,
    /// Local failures in a row.
    ConsecutiveLocalOriginFailure,
    /// Worse than the others.
    SuccessRate,
    /// The same, by local failures.
    LocalOriginSuccessRate,
    /// Too many failures.
    FailurePercentage,
    /// The same, by local failures.
    LocalOriginFailurePercentage,
}

impl Reason {
    /// All, with the end of their counters' names in Envoy.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Consecutive5xx, "consecutive_5xx"),
        (
            Self::ConsecutiveGatewayFailure,
            "consecutive_gateway_failure",
        ),
        (
            Self::ConsecutiveLocalOriginFailure,
            "consecutive_local_origin_failure",
        ),
        (Self::SuccessRate, "success_rate"),
        (Self::LocalOriginSuccessRate, "local_origin_success_rate"),
        (Self::FailurePercentage, "failure_percentage"),
        (
            Self::LocalOriginFailurePercentage,
            "local_origin_failure_percentage",
        ),
    ];
}

/// What one cluster's endpoints are judged by, and how often it happened.
#[derive(Debug)]
pub struct Outlier {
    terms: OutlierDetection,
    /// Whether rates are looked at: by answers, by local failures.
    rated: [bool; 2],
    /// The time of the next sweep, in milliseconds; 0 before the first.
    next_look: AtomicU64,
    noise: AtomicU64,
    detected: [AtomicU64; Reason::ALL.len()],
    enforced: [AtomicU64; Reason::ALL.len()],
    /// Ejections that did not happen since too many endpoints were out.
    pub overflow: AtomicU64,
}

/// One endpoint's record. Times are milliseconds of the same clock, 0 is never.
#[derive(Debug, Default)]
pub struct Record {
    ejected_at: AtomicU64,
    returns_at: AtomicU64,
    returned_at: AtomicU64,
    /// How many times the base an ejection lasts.
    backoff: AtomicU32,
    /// Consecutive 5xx, gateway failures, local failures.
    rows: [AtomicU32; 3],
    /// By answers, and by local failures where they count apart.
    rates: [Rate; 2],
}

/// Requests since the last look.
#[derive(Debug, Default)]
struct Rate {
    total: AtomicU64,
    well: AtomicU64,
}

impl Rate {
    fn count(&self, well: bool) {
        self.total.fetch_add(1, Relaxed);
        if well {
            self.well.fetch_add(1, Relaxed);
        }
    }

    /// Successes in percent, and of how many requests; begins anew.
    fn take(&self) -> (f64, u64) {
        let (total, well) = (self.total.swap(0, Relaxed), self.well.swap(0, Relaxed));
        (100.0 * well.min(total) as f64 / total.max(1) as f64, total)
    }
}

impl Record {
    /// Whether it is out of service.
    pub fn is_ejected(&self) -> bool {
        self.ejected_at.load(Relaxed) != 0
    }

    /// Counts a failure in a row or ends the row; true if the row has reached `limit`, and begins
    /// anew.
    fn row(&self, reason: Reason, failed: bool, limit: u32) -> bool {
        let row = &self.rows[reason as usize];
        if !failed {
            // Most requests: read, do not write.
            if row.load(Relaxed) != 0 {
                row.store(0, Relaxed);
            }
            return false;
        }

        let reached = limit > 0 && row.fetch_add(1, Relaxed) + 1 >= limit && !self.is_ejected();
        if reached {
            row.store(0, Relaxed);
        }

        reached
    }
}

impl Outlier {
    /// Creates a detector with no ejected host.
    pub fn new(terms: OutlierDetection) -> Self {
        let (success, failure) = (&terms.success_rate, &terms.failure_percentage);
        let by_local =
            terms.split_local && (success.enforcing_local > 0 || failure.enforcing_local > 0);
        Self {
            rated: [success.enforcing > 0 || failure.enforcing > 0, by_local],
            terms,
            next_look: AtomicU64::new(0),
            noise: AtomicU64::new(RandomState::new().hash_one(())),
            detected: Default::default(),
            enforced: Default::default(),
            overflow: AtomicU64::new(0),
        }
    }

    /// How often endpoints deserved it and how often they were ejected.
    pub fn ejections(&self, reason: Reason) -> (u64, u64) {
        (
            self.detected[reason as usize].load(Relaxed),
            self.enforced[reason as usize].load(Relaxed),
        )
    }

    /// Takes in how a request ended; says for what the endpoint should be ejected now.
    pub fn note(&self, record: &Record, result: HostResult) -> [Option<Reason>; 2] {
        let terms = &self.terms;
        let row = |reason, failed, limit| record.row(reason, failed, limit).then_some(reason);
        if terms.split_local {
            let failed = result == HostResult::LocalFailure;
            if self.rated[1] {
                record.rates[1].count(!failed);
            }
            let by_local = row(
                Reason::ConsecutiveLocalOriginFailure,
                failed,
                terms.consecutive_local,
            );

            if failed {
                return [by_local, None];
            }
        }

        let status = match result {
            // Envoy makes a 503 or a 504 of it.
            HostResult::LocalFailure => 503,
            HostResult::Status(status) => status,
        };

        let failed = (500..600).contains(&status);
        if self.rated[0] {
            record.rates[0].count(!failed);
        }
        let is_gateway = matches!(status, 502..=504);

        [
            row(
                Reason::ConsecutiveGatewayFailure,
                is_gateway,
                terms.consecutive_gateway,
            ),
            row(Reason::Consecutive5xx, failed, terms.consecutive_5xx),
        ]
    }

    fn enforcing(&self, reason: Reason) -> u32 {
        let terms = &self.terms;
        match reason {
            Reason::Consecutive5xx => terms.enforcing_5xx,
            Reason::ConsecutiveGatewayFailure => terms.enforcing_gateway,
            Reason::ConsecutiveLocalOriginFailure => terms.enforcing_local,
            Reason::SuccessRate => terms.success_rate.enforcing,
            Reason::LocalOriginSuccessRate => terms.success_rate.enforcing_local,
            Reason::FailurePercentage => terms.failure_percentage.enforcing,
            Reason::LocalOriginFailurePercentage => terms.failure_percentage.enforcing_local,
        }
    }

    /// Ejects one of a cluster's endpoints, unless too many are out or the dice say no.
    pub fn eject<'a>(
        &self,
        record: &Record,
        reason: Reason,
        now: u64,
        all: impl Iterator<Item = &'a Record> + Clone,
    ) -> bool {
        if record.is_ejected() {
            return false;
        }
        self.detected[reason as usize].fetch_add(1, Relaxed);
        let (count, out) = (
            all.clone().count(),
            all.filter(|record| record.is_ejected()).count(),
        );

        let fits = (out + 1) * 100 <= self.terms.max_ejection_percent as usize * count;
        if !(fits || out == 0 && self.terms.always_eject_one) {
            self.overflow.fetch_add(1, Relaxed);
            return false;
        }

        if self.draw(100) >= u64::from(self.enforcing(reason)) {
            return false;
        }
        let backoff = record.backoff.load(Relaxed);
        if self.terms.base_ejection.saturating_mul(backoff)
            < self.terms.max_ejection + self.terms.base_ejection
        {
            record.backoff.store(backoff + 1, Relaxed);
        }

        let length = self
            .terms
            .base_ejection
            .saturating_mul(record.backoff.load(Relaxed))
            .min(self.terms.max_ejection);

        record.returns_at.store(
            now + millis(length) + self.draw(millis(self.terms.jitter) + 1),
            Relaxed,
        );

        record.ejected_at.store(now.max(1), Relaxed);
        self.enforced[reason as usize].fetch_add(1, Relaxed);

        true
    }

    /// Whether an interval has passed since the last look; true to one asker only, who then calls
    /// [`Self::look`].
    pub fn is_due(&self, now: u64) -> bool {
        let next = self.next_look.load(Relaxed);
        if now < next {
            return false;
        }
        let taken = self
            .next_look
            .compare_exchange(next, now + self.interval(), Relaxed, Relaxed);
        taken.is_ok() && next != 0
    }

    /// The look at a cluster's endpoints that is due; says whether anybody went or came back.
    pub fn look<'a>(&self, now: u64, all: impl Iterator<Item = &'a Record> + Clone) -> bool {
        let mut changed = false;
        for record in all.clone().filter(|record| record.is_ejected()) {
            let due = record.returns_at.load(Relaxed);
            if due <= now {
                record.rows.iter().for_each(|row| row.store(0, Relaxed));
                record.returned_at.store(due, Relaxed);
                record.ejected_at.store(0, Relaxed);
                changed = true;
            }
        }

        let kinds = [
            (Reason::SuccessRate, Reason::FailurePercentage),
            (
                Reason::LocalOriginSuccessRate,
                Reason::LocalOriginFailurePercentage,
            ),
        ];

        for (index, (by_comparison, by_share)) in kinds
            .into_iter()
            .enumerate()
            .filter(|(index, _)| self.rated[*index])
        {
            changed |= self.look_at_rates(index, by_comparison, by_share, now, all.clone());
        }

        // Every interval in service makes the next ejection shorter by one base.
        for record in all.filter(|record| !record.is_ejected()) {
            let (since, backoff) = (
                record.returned_at.load(Relaxed),
                record.backoff.load(Relaxed),
            );

            if since != 0 && backoff != 0 {
                let intervals = (now - since.min(now)) / self.interval();
                record.backoff.store(
                    backoff - backoff.min(u32::try_from(intervals).unwrap_or(u32::MAX)),
                    Relaxed,
                );
                record
                    .returned_at
                    .store(since + intervals * self.interval(), Relaxed);
            }
        }

        changed
    }

    fn look_at_rates<'a>(
        &self,
        index: usize,
        by_comparison: Reason,
        by_share: Reason,
        now: u64,
        all: impl Iterator<Item = &'a Record> + Clone,
    ) -> bool {
        let rated: Vec<(&Record, f64, u64)> = all
            .clone()
            .map(|record| (record, record.rates[index].take()))
            .filter(|(record, (_, volume))| !record.is_ejected() && *volume > 0)
            .map(|(record, (rate, volume))| (record, rate, volume))
            .collect();

        let enough = |volume: u32, hosts: u32| {
            let enough: Vec<_> = rated
                .iter()
                .filter(|(_, _, requests)| *requests >= u64::from(volume))
                .collect();
            if enough.len() >= hosts as usize {
                enough
            } else {
                Vec::new()
            }
        };

        let mut changed = false;
        let terms = &self.terms.success_rate;
        let hosts = enough(terms.request_volume, terms.minimum_hosts);
        let mean = hosts.iter().map(|(_, rate, _)| rate).sum::<f64>() / hosts.len() as f64;
        let variance = hosts
            .iter()
            .map(|(_, rate, _)| (rate - mean).powi(2))
            .sum::<f64>()
            / hosts.len() as f64;

        let bound = mean - f64::from(terms.stdev_factor) / 1000.0 * variance.sqrt();
        for (record, ..) in hosts.iter().filter(|(_, rate, _)| *rate < bound) {
            changed |= self.eject(record, by_comparison, now, all.clone());
        }
        let terms = &self.terms.failure_percentage;
        let hosts = enough(terms.request_volume, terms.minimum_hosts);
        for (record, ..) in hosts
            .iter()
            .filter(|(_, rate, _)| 100.0 - rate >= f64::from(terms.threshold))
        {
            changed |= self.eject(record, by_share, now, all.clone());
        }

        changed
    }

    fn interval(&self) -> u64 {
        millis(self.terms.interval).max(1)
    }

    /// A random number below `bound`.
    fn draw(&self, bound: u64) -> u64 {
        random::mix(self.noise.fetch_add(random::STEP, Relaxed)) % bound
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests;
