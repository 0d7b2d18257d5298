//! Retry policies.

mod asked;
mod compile;
mod reset_header;

use std::time::Duration;

use meltemi_filters::matcher::HeaderMatch;
use meltemi_filters::{RequestHead, ResponseHead};
use meltemi_lb::SubsetMatch;

pub use reset_header::RateLimitedBackoff;

/// `RetryPolicy`, compiled.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// The conditions of which one must hold for another attempt.
    pub on: RetryOn,
    /// Attempts beyond the first. Default 1.
    pub num_retries: u32,
    /// The time limit of one attempt; `None`: the request's limit alone counts.
    pub per_try_timeout: Option<Duration>,
    /// The longest time without bytes within one attempt; `None`: no limit.
    pub per_try_idle_timeout: Option<Duration>,
    /// The statuses that [`RetryOn::RETRIABLE_STATUS_CODES`] means.
    pub status_codes: Box<[u16]>,
    /// [`RetryOn::RETRIABLE_HEADERS`] means a response that matches one of these.
    pub response_headers: Box<[HeaderMatch]>,
    /// A request must match one of these to be retried; if empty, every request is.
    pub request_headers: Box<[HeaderMatch]>,
    /// The bound of the first back-off; it doubles with each retry. Default 25 ms.
    pub backoff_base: Duration,
    /// The upper bound of every back-off. Default ten times the base.
    pub backoff_max: Duration,
    /// The back-off that a response may ask for; `None`: its headers are not looked at.
    pub rate_limited_backoff: Option<RateLimitedBackoff>,
    /// Another endpoint than those that were tried is chosen, if there is one.
    pub avoid_previous_hosts: bool,
    /// An endpoint whose metadata (`envoy.lb`) matches one of these is not chosen for a retry, if
    /// there is another one.
    pub omitted_hosts: Box<[SubsetMatch]>,
    /// The number of attempts at a priority after which the next one is used; `None`: priorities
    /// are chosen as for a first attempt.
    pub previous_priorities: Option<u32>,
    /// How often an endpoint is drawn before one that was tried is accepted. Default 1.
    pub host_selection_attempts: u32,
}

macro_rules! retry_on {
    ($($name:ident = $bit:literal, $word:literal;)*) => {
        /// A set of conditions for a retry. Each constant is the condition of Envoy's name.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct RetryOn(u32);

        impl RetryOn {
            $(pub const $name: Self = Self(1 << $bit);)*

            /// The condition of one word of `retry_on`.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$name),)* _ => None }
            }
        }
    };
}

retry_on! {
    FIVE_XX = 0, "5xx";
    GATEWAY_ERROR = 1, "gateway-error";
    RESET = 2, "reset";
    RESET_BEFORE_REQUEST = 3, "reset-before-request";
    CONNECT_FAILURE = 4, "connect-failure";
    ENVOY_RATELIMITED = 5, "envoy-ratelimited";
    RETRIABLE_4XX = 6, "retriable-4xx";
    REFUSED_STREAM = 7, "refused-stream";
    RETRIABLE_STATUS_CODES = 8, "retriable-status-codes";
    RETRIABLE_HEADERS = 9, "retriable-headers";
    HTTP3_POST_CONNECT_FAILURE = 10, "http3-post-connect-failure";
    GRPC_CANCELLED = 11, "cancelled";
    GRPC_DEADLINE_EXCEEDED = 12, "deadline-exceeded";
    GRPC_INTERNAL = 13, "internal";
    GRPC_RESOURCE_EXHAUSTED = 14, "resource-exhausted";
    GRPC_UNAVAILABLE = 15, "unavailable";
}

impl RetryOn {
    /// The conditions on a gRPC status.
    const GRPC: Self = Self(0b11111 << 11);

    /// Whether all of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The conditions of both sets.
    fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The conditions that are in both sets.
    fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The conditions that are not in the other set.
    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is retried.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Reads a comma-separated list, and hands each unknown word to `unknown`.
    pub fn parse(list: &str, mut unknown: impl FnMut(&str)) -> Self {
        list.split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .fold(Self::default(), |set, word| match Self::from_word(word) {
                Some(one) => set.union(one),
                None => {
                    unknown(word);
                    set
                }
            })
    }
}

/// How an attempt failed without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptFailure {
    /// No connection could be made.
    Connect,
    /// The upstream refused the stream and has processed none of it (REFUSED_STREAM, or GOAWAY with
    /// a lower stream id).
    Refused,
    /// The connection ended before a byte of the request was written to it.
    ResetBeforeRequest,
    /// The stream or connection was reset.
    Reset,
    /// The attempt took too long.
    PerTryTimeout,
}

impl RetryPolicy {
    /// Whether requests like this one may be retried at all.
    pub fn admits(&self, head: &RequestHead) -> bool {
        self.request_headers.is_empty()
            || self
                .request_headers
                .iter()
                .any(|matcher| matcher.is_match(head))
    }

    /// Whether an attempt that failed without a response is retried.
    pub fn retries_failure(&self, failure: AttemptFailure) -> bool {
        let any = |set: &[RetryOn]| set.iter().any(|one| self.on.contains(*one));

        // Without a retry the client would get a 503, so Envoy counts every such failure as a 5xx.
        let reset = any(&[RetryOn::RESET, RetryOn::FIVE_XX, RetryOn::GATEWAY_ERROR]);
        reset
            || match failure {
                AttemptFailure::Connect => {
                    any(&[RetryOn::CONNECT_FAILURE, RetryOn::RESET_BEFORE_REQUEST])
                }
                AttemptFailure::Refused => self.on.contains(RetryOn::REFUSED_STREAM),
                AttemptFailure::ResetBeforeRequest => {
                    self.on.contains(RetryOn::RESET_BEFORE_REQUEST)
                }
                AttemptFailure::Reset | AttemptFailure::PerTryTimeout => false,
            }
    }

    /// Whether a response is discarded for another attempt.
    pub fn retries_response(&self, head: &ResponseHead) -> bool {
        let on = |one| self.on.contains(one);

        // A rate-limited reply is retried only on `envoy-ratelimited`. Envoy has no such rule for
        // `x-envoy-overloaded`.
        if head.get("x-envoy-ratelimited").is_some() {
            return on(RetryOn::ENVOY_RATELIMITED);
        }
        let status = head.status;
        if on(RetryOn::FIVE_XX) && (500..600).contains(&status)
            || on(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status)
            || on(RetryOn::RETRIABLE_4XX) && status == 409
            || on(RetryOn::RETRIABLE_STATUS_CODES) && self.status_codes.contains(&status)
            || on(RetryOn::RETRIABLE_HEADERS)
                && self
                    .response_headers
                    .iter()
                    .any(|matcher| matcher.is_match(head))
        {
            return true;
        }

        if self.on.0 & RetryOn::GRPC.0 == 0 {
            return false;
        }

        // A gRPC status that follows a body comes too late: the response has been forwarded.
        match head.get_str("grpc-status") {
            Some("1") => on(RetryOn::GRPC_CANCELLED),
            Some("4") => on(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some("8") => on(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some("13") => on(RetryOn::GRPC_INTERNAL),
            Some("14") => on(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    /// The pause before a retry, the first of which is number 1: a random part of a bound that
    /// doubles with each retry.
    pub fn backoff(&self, retry: u32, random: u64) -> Duration {
        let exponent = retry.saturating_sub(1).min(20);
        let bound = self
            .backoff_base
            .saturating_mul(1 << exponent)
            .min(self.backoff_max);
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(random % nanos)
    }
}

#[cfg(test)]
mod tests {
    use meltemi_proto::envoy::config::route::v3 as proto;

    use super::*;

    fn policy(retry_on: &str) -> RetryPolicy {
        let message = proto::RetryPolicy {
            retry_on: retry_on.into(),
            ..Default::default()
        };
        RetryPolicy::compile(&message, &mut meltemi_filters::Scope::new()).expect("compiles")
    }

    #[test]
    fn istios_default_retries_no_503() {
        let default =
            policy("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes");
        assert!(default.retries_failure(AttemptFailure::Connect));
        assert!(default.retries_failure(AttemptFailure::Refused));
        assert!(!default.retries_failure(AttemptFailure::Reset));
        assert!(!default.retries_response(&ResponseHead::of(503)));
        let mut unavailable = ResponseHead::of(200);
        unavailable.append("grpc-status", b"14");
        assert!(default.retries_response(&unavailable));
    }

    #[test]
    fn numbers_are_statuses() {
        let policy = policy("503, gateway-error");
        assert!(policy.retries_response(&ResponseHead::of(503)));
        assert!(policy.retries_response(&ResponseHead::of(502)));
        assert!(!policy.retries_response(&ResponseHead::of(500)));
    }

    #[test]
    fn a_rate_limit_of_a_proxy_is_retried_only_where_that_is_asked_for() {
        let mut limited = ResponseHead::of(503);
        limited.append("x-envoy-ratelimited", b"true");
        assert!(!policy("5xx,gateway-error,503").retries_response(&limited));
        assert!(policy("envoy-ratelimited").retries_response(&limited));
        assert!(!policy("envoy-ratelimited").retries_response(&ResponseHead::of(503)));
    }

    #[test]
    fn backoff_stays_in_bounds() {
        let policy = policy("5xx");
        for retry in 1..100 {
            assert!(policy.backoff(retry, u64::MAX) <= Duration::from_millis(250));
        }
        assert!(policy.backoff(1, u64::MAX - 1) < Duration::from_millis(25));
    }
}
