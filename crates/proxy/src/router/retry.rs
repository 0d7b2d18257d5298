//! When a request is sent again: the rules, without IO.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::ResponseFlag;
use meltemi_filters::head::ResponseHead;
use meltemi_lb::SubsetMatch;
use meltemi_proxy_config::cluster::RetryBudget;
use meltemi_proxy_config::route::RetryPolicy;

use crate::upstream::carrier::may_resend;
use crate::upstream::live::{ClusterLive, Permit, Resource};

/// Whether a failed request may be sent again, since nothing of it has had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resend {
    /// It may have had one.
    No,
    /// A pooled connection ended before it had answered anything, so long after the last byte of
    /// the request. RFC 9112 §9.3.1: a client may send an idempotent request again.
    Stale(Duration),
    /// The upstream says that it has not looked at the request.
    Always,
}

/// The retries of one request: those that are left, and what earlier attempts have shown.
#[derive(Debug)]
pub struct Retries<'a> {
    policy: Option<&'a RetryPolicy>,
    left: u32,
    done: u32,
    /// The retry's place in the circuit breaker or retry budget.
    permit: Option<Permit>,
    tried: Vec<SocketAddr>,
    failed_priorities: Vec<u32>,
    asked_pause: Option<Duration>,
    /// The request was sent again because a pooled connection was closed.
    is_resent: bool,
}

/// Whether a request is sent again, by its policy and the attempts that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The policy does not ask for another attempt.
    NotWanted,
    /// It does, and none is left: Envoy's `upstream_rq_retry_limit_exceeded`.
    Exhausted,
    /// It does, and the circuit breaker or retry budget has no place: Envoy's
    /// `upstream_rq_retry_overflow`.
    NoPlace,
    /// There is another attempt.
    Granted,
}

impl Verdict {
    /// Envoy's flag for a retry that the policy asked for and that was not made.
    pub fn flag(self) -> Option<ResponseFlag> {
        match self {
            Self::NotWanted | Self::Granted => None,
            Self::Exhausted => Some(ResponseFlag::UpstreamRetryLimitExceeded),
            Self::NoPlace => Some(ResponseFlag::UpstreamOverflow),
        }
    }
}

impl<'a> Retries<'a> {
    /// The first attempt is still to come.
    pub fn new(policy: Option<&'a RetryPolicy>) -> Self {
        Self {
            policy,
            left: policy.map_or(0, |policy| policy.num_retries),
            done: 0,
            permit: None,
            tried: Vec::new(),
            failed_priorities: Vec::new(),
            asked_pause: None,
            is_resent: false,
        }
    }

    /// The policy, if it admits this request.
    pub fn policy(&self) -> Option<&'a RetryPolicy> {
        self.policy
    }

    /// Attempts beyond the first.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// Endpoints that the next attempt avoids.
    pub fn avoided(&self) -> &[SocketAddr] {
        match self.policy {
            Some(policy) if policy.avoid_previous_hosts => &self.tried,
            _ => &[],
        }
    }

    /// Metadata of endpoints that the next attempt avoids.
    pub fn omitted(&self) -> &[SubsetMatch] {
        match self.policy {
            Some(policy) if self.done > 0 => &policy.omitted_hosts,
            _ => &[],
        }
    }

    /// Notes the pause that a response asks for which is retried, where the policy looks for one.
    pub fn note_asked_pause(&mut self, response: &ResponseHead, now: Duration, random: u64) {
        let policy = self.policy.and_then(|p| p.rate_limited_backoff.as_ref());
        self.asked_pause = policy.and_then(|backoff| backoff.asked(response, now, random));
    }

    /// The pause that the response before asked for; it counts once.
    pub fn take_asked_pause(&mut self) -> Option<Duration> {
        self.asked_pause.take()
    }

    /// Priorities that the next attempt leaves out.
    pub fn failed_priorities(&self) -> &[u32] {
        &self.failed_priorities
    }

    /// Decides on another attempt and takes it from what is left; `place` asks the circuit breaker
    /// or the retry budget.
    pub fn decide(
        &mut self,
        wants: impl FnOnce(&RetryPolicy) -> bool,
        place: impl FnOnce() -> Option<Permit>,
    ) -> Verdict {
        let Some(policy) = self.policy else {
            return Verdict::NotWanted;
        };
        if !wants(policy) {
            return Verdict::NotWanted;
        }
        if self.left == 0 {
            return Verdict::Exhausted;
        }

        // Release the previous retry's place before taking a new one.
        self.permit = None;
        self.permit = place();
        if self.permit.is_none() {
            return Verdict::NoPlace;
        }
        self.left -= 1;

        Verdict::Granted
    }

    /// Whether a request is sent again, outside the policy and once only. Ask the policy first: a
    /// failure that it names is retried within its `num_retries`.
    pub fn may_resend(&mut self, resend: Resend, method: &str) -> bool {
        let may = match resend {
            Resend::No => false,
            Resend::Stale(after) => may_resend(method, after),
            Resend::Always => true,
        };
        let resends = may && !self.is_resent;
        self.is_resent |= resends;
        resends
    }

    /// Notes an attempt that another one follows. `previous_priorities` of the policy leaves a
    /// priority out after so many attempts.
    pub fn note(&mut self, host: SocketAddr, priority: u32) {
        self.tried.push(host);
        self.done += 1;
        if let Some(every) = self.policy.and_then(|policy| policy.previous_priorities)
            && self.done.is_multiple_of(every)
            && !self.failed_priorities.contains(&priority)
        {
            self.failed_priorities.push(priority);
        }
    }
}

/// A retry's place: within the cluster's retry budget if it has one, else within `max_retries`.
pub fn place(live: &Arc<ClusterLive>, budget: Option<RetryBudget>, high: bool) -> Option<Permit> {
    let Some(budget) = budget else {
        return live.admit(high, Resource::Retries);
    };

    let active = u64::from(live.in_use(Resource::Requests) + live.in_use(Resource::Pending));
    if u64::from(live.in_use(Resource::Retries)) < budget.allowed(active) {
        Some(live.admit_over(high, Resource::Retries))
    } else {
        live.refuse(Resource::Retries)
    }
}

#[cfg(test)]
mod tests {
    use meltemi_proxy_config::route::RetryOn;

    use super::*;
    use crate::upstream::live::Thresholds;

    fn policy(retries: u32) -> RetryPolicy {
        RetryPolicy {
            on: RetryOn::default(),
            num_retries: retries,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            status_codes: Box::default(),
            response_headers: Box::default(),
            request_headers: Box::default(),
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            rate_limited_backoff: None,
            avoid_previous_hosts: false,
            omitted_hosts: Box::default(),
            previous_priorities: None,
            host_selection_attempts: 1,
        }
    }

    fn live(retries: u32) -> Arc<ClusterLive> {
        let thresholds = Thresholds {
            retries,
            ..Thresholds::default()
        };
        Arc::new(ClusterLive::new([thresholds; 2], None))
    }

    #[test]
    fn attempts_are_granted_until_none_is_left() {
        let (policy, live) = (policy(2), live(10));
        let mut retries = Retries::new(Some(&policy));
        let mut decide = |wants| retries.decide(|_| wants, || place(&live, None, false));

        assert_eq!(decide(false), Verdict::NotWanted);
        assert_eq!([decide(true), decide(true)], [Verdict::Granted; 2]);
        assert_eq!(decide(false), Verdict::NotWanted);
        assert_eq!(decide(true), Verdict::Exhausted);
        assert_eq!(
            Retries::new(None).decide(|_| true, || None),
            Verdict::NotWanted
        );
    }

    #[test]
    fn a_retry_holds_one_place_until_the_next_one_or_the_end() {
        let (policy, live) = (policy(5), live(1));
        let mut retries = Retries::new(Some(&policy));
        let mut other = Retries::new(Some(&policy));
        let take =
            |retries: &mut Retries<'_>| retries.decide(|_| true, || place(&live, None, false));

        assert_eq!(
            [take(&mut retries), take(&mut retries)],
            [Verdict::Granted; 2]
        );
        assert_eq!(take(&mut other), Verdict::NoPlace);
        drop(retries);
        assert_eq!(take(&mut other), Verdict::Granted);
        assert_eq!(live.in_use(Resource::Retries), 1);
    }

    #[test]
    fn a_budget_is_a_share_of_active_requests() {
        let live = live(0);
        let budget = Some(RetryBudget {
            percent: 50.0,
            min_concurrency: 1,
        });

        let first = place(&live, budget, false);
        assert!(first.is_some(), "the minimum, beyond max_retries");
        assert!(place(&live, budget, false).is_none());

        let _active: Vec<_> = (0..4)
            .map(|_| live.admit(false, Resource::Requests))
            .collect();
        assert!(place(&live, budget, false).is_some(), "half of four");
    }

    #[test]
    fn a_request_is_resent_once_and_only_where_that_does_no_harm() {
        let (soon, late) = (Resend::Stale(Duration::ZERO), Duration::from_secs(1));
        let mut retries = Retries::new(None);
        assert!(!retries.may_resend(Resend::No, "GET"));
        assert!(!retries.may_resend(soon, "DELETE"));
        assert!(!retries.may_resend(Resend::Stale(late), "GET"));
        assert!(retries.may_resend(soon, "GET"));
        assert!(!retries.may_resend(soon, "GET"));

        let mut retries = Retries::new(None);
        assert!(retries.may_resend(Resend::Always, "POST"));
        assert!(!retries.may_resend(Resend::Always, "POST"), "once only");
    }

    #[test]
    fn hosts_and_priorities_that_failed_are_left_out_where_the_policy_says_so() {
        let policy = RetryPolicy {
            avoid_previous_hosts: true,
            previous_priorities: Some(2),
            ..policy(9)
        };
        let host = |last| SocketAddr::from(([10, 0, 0, last], 80));
        let mut retries = Retries::new(Some(&policy));
        for (last, priority) in [(1, 0), (2, 0), (3, 1), (4, 0)] {
            retries.note(host(last), priority);
        }

        assert_eq!(retries.avoided(), [1, 2, 3, 4].map(host));
        assert_eq!(
            retries.failed_priorities(),
            [0],
            "each second attempt's, once"
        );
        assert_eq!(retries.done(), 4);
        let mut careless = Retries::new(None);
        careless.note(host(1), 0);
        assert!(careless.avoided().is_empty());
    }
}
