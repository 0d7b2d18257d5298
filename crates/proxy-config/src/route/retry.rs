//! Retry policies.

use std::time::Duration;

use meltemi_filters::matcher::HeaderMatch;
use meltemi_filters::{Rejection, RequestHead, ResponseHead, Scope};
use meltemi_proto::envoy::config::route::v3 as proto;

/// `RetryPolicy`, compiled.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// What is retried.
    pub on: RetryOn,
    /// Attempts beyond the first. Default 1.
    pub num_retries: u32,
    /// Limit of one attempt; `None`: the request's.
    pub per_try_timeout: Option<Duration>,
    /// Limit of silence within one attempt.
    pub per_try_idle_timeout: Option<Duration>,
    /// Statuses for `retriable-status-codes`.
    pub status_codes: Box<[u16]>,
    /// Response headers for `retriable-headers`; any of them.
    pub response_headers: Box<[HeaderMatch]>,
    /// Only requests with any of these are retried; all if empty.
    pub request_headers: Box<[HeaderMatch]>,
    /// Base of the back-off. Default 25 ms.
    pub backoff_base: Duration,
    /// Its bound. Default ten times the base.
    pub backoff_max: Duration,
    /// Endpoints that failed already are avoided.
    pub avoid_previous_hosts: bool,
    /// Priorities that failed are left after so many attempts at them.
    pub previous_priorities: Option<u32>,
    /// How often another endpoint is drawn before one that was tried is taken. Default 1.
    pub host_selection_attempts: u32,
}

macro_rules! retry_on {
    ($($name:ident = $bit:literal, $word:literal;)*) => {
        /// Conditions for a retry, as a set.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct RetryOn(u32);

        #[allow(missing_docs)]
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
    /// Whether all of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether nothing is retried.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Reads a comma-separated list; unknown words are handed to `unknown`.
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

/// How an attempt failed before a response came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptFailure {
    /// No connection could be made.
    Connect,
    /// The stream was refused: it was never processed (REFUSED_STREAM, GOAWAY below its id).
    Refused,
    /// The connection ended before a byte of the request was written to it.
    ResetBeforeRequest,
    /// The stream or connection was reset.
    Reset,
    /// The attempt took too long.
    PerTryTimeout,
}

impl RetryPolicy {
    /// Compiles Envoy's message.
    pub fn compile(message: &proto::RetryPolicy, scope: &mut Scope) -> Result<Self, Rejection> {
        let mut codes: Vec<u16> = message
            .retriable_status_codes
            .iter()
            .filter_map(|c| u16::try_from(*c).ok())
            .collect();

        let mut unknown = Vec::new();
        let mut on = RetryOn::parse(&message.retry_on, |word| unknown.push(word.to_owned()));
        for word in unknown {
            // Istio's spelling of a retriable status.
            match word
                .parse::<u16>()
                .ok()
                .filter(|code| (100..600).contains(code))
            {
                Some(code) => {
                    codes.push(code);
                    on = on.union(RetryOn::RETRIABLE_STATUS_CODES);
                }
                None => scope.warn("retry_on", format!("unknown condition {word:?}")),
            }
        }

        let mut avoid_previous_hosts = false;
        for (index, predicate) in message.retry_host_predicate.iter().enumerate() {
            match predicate.name.as_str() {
                "envoy.retry_host_predicates.previous_hosts" => avoid_previous_hosts = true,
                name => scope.warn(
                    &format!("retry_host_predicate[{index}]"),
                    format!("{name:?} is not honoured"),
                ),
            }
        }

        let previous_priorities = match &message.retry_priority {
            Some(priority) if priority.name.ends_with("previous_priorities") => {
                use proto::retry_policy::retry_priority::ConfigType;
                type Config = meltemi_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
                let update = match &priority.config_type {
                    Some(ConfigType::TypedConfig(any)) => {
                        scope.unpack::<Config>(any)?.update_frequency
                    }
                    None => 1,
                };
                Some(u32::try_from(update).unwrap_or(1).max(1))
            }
            Some(priority) => {
                scope.warn(
                    "retry_priority",
                    format!("{:?} is not honoured", priority.name),
                );
                None
            }
            None => None,
        };

        scope.unsupported(
            "rate_limited_retry_back_off",
            message.rate_limited_retry_back_off.is_some(),
        );

        scope.unsupported(
            "retry_options_predicates",
            !message.retry_options_predicates.is_empty(),
        );

        let backoff = message.retry_back_off.as_ref();
        let base = scope
            .duration(
                "retry_back_off.base_interval",
                backoff.and_then(|b| b.base_interval.as_ref()),
            )?
            .filter(|base| !base.is_zero())
            .unwrap_or(Duration::from_millis(25));

        let max = scope.duration(
            "retry_back_off.max_interval",
            backoff.and_then(|b| b.max_interval.as_ref()),
        )?;

        if max.is_some_and(|max| max < base) {
            return scope.refuse("retry_back_off.max_interval is less than base_interval");
        }

        Ok(Self {
            on,
            num_retries: message.num_retries.as_ref().map_or(1, |n| n.value),
            per_try_timeout: scope
                .duration("per_try_timeout", message.per_try_timeout.as_ref())?
                .filter(|t| !t.is_zero()),
            per_try_idle_timeout: scope
                .duration(
                    "per_try_idle_timeout",
                    message.per_try_idle_timeout.as_ref(),
                )?
                .filter(|t| !t.is_zero()),
            status_codes: codes.into(),
            response_headers: HeaderMatch::compile_all(
                "retriable_headers",
                &message.retriable_headers,
                scope,
            )?,
            request_headers: HeaderMatch::compile_all(
                "retriable_request_headers",
                &message.retriable_request_headers,
                scope,
            )?,
            backoff_base: base,
            backoff_max: max.unwrap_or(base * 10),
            avoid_previous_hosts,
            previous_priorities,
            host_selection_attempts: u32::try_from(message.host_selection_retry_max_attempts)
                .unwrap_or(0)
                .max(1),
        })
    }

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

        // Envoy counts a reset as a 5xx, since it would become one.
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

    /// Whether a response is thrown away for another attempt.
    pub fn retries_response(&self, head: &ResponseHead) -> bool {
        let on = |one| self.on.contains(one);

        // It comes from a proxy, which has said what it is. Of one that is overloaded Envoy thinks
        // no such thing.
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

        const GRPC: RetryOn = RetryOn(0b11111 << 11);

        if self.on.0 & GRPC.0 == 0 {
            return false;
        }

        // Only a trailers-only response can still be retried.
        match head.get_str("grpc-status") {
            Some("1") => on(RetryOn::GRPC_CANCELLED),
            Some("4") => on(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some("8") => on(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some("13") => on(RetryOn::GRPC_INTERNAL),
            Some("14") => on(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    /// How long to wait before the given retry (the first is 1): full jitter over an exponential
    /// back-off.
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
    use super::*;

    fn policy(retry_on: &str) -> RetryPolicy {
        let message = proto::RetryPolicy {
            retry_on: retry_on.into(),
            ..Default::default()
        };
        RetryPolicy::compile(&message, &mut Scope::new()).expect("compiles")
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
