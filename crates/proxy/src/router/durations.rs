//! How long a forwarded request may take: what configuration says, what its own headers ask for,
//! and what its upstream is told of that.

use std::time::Duration;

use meltemi_filters::head::{Known, RequestHead};
use meltemi_filters::http::Router;
use meltemi_proxy_config::http::HttpConnectionManager;
use meltemi_proxy_config::route::{GrpcLimit, RouteAction};

use super::headers::TIMEOUT_ALT_RESPONSE;
use crate::grpc;
use crate::upstream::cluster::WorkerCluster;

/// Durations, as configuration and the request's own headers set them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timeouts {
    /// See [`super::timeout::Limit::Total`].
    pub total: Option<Duration>,
    /// See [`super::timeout::Limit::PerTry`]; shorter than the total.
    pub per_try: Option<Duration>,
    /// Whether `grpc-timeout` tells the upstream what holds for it.
    pub tells_grpc: bool,
    /// See [`super::timeout::Limit::Idle`].
    pub idle: Option<Duration>,
    /// See [`super::timeout::Limit::Stream`].
    pub stream: Option<Duration>,
    /// See [`super::timeout::Limit::Request`].
    pub request: Option<Duration>,
    /// See [`super::timeout::Limit::Upstream`].
    pub upstream: Option<Duration>,
    /// A request whose time is up is answered 204.
    pub has_alt_response: bool,
}

impl Timeouts {
    /// For one request, whose headers that ask for limits are used up. They count only from inside;
    /// `prepare` has dropped the others. Source: Envoy `FilterUtility::finalTimeout`.
    pub fn of(
        http: &HttpConnectionManager,
        action: &RouteAction,
        head: &mut RequestHead,
        cluster: &WorkerCluster,
        router: &Router,
    ) -> Self {
        let own = &action.timeouts;
        let asked_by_grpc = grpc::timeout_of(head);
        let of_response = own.grpc.filter(|_| head.is_grpc() && !own.of_stream);
        let mut total = own.request.unwrap_or_default();
        if let Some(limit) = of_response {
            total = of_grpc(asked_by_grpc, limit);
        }

        let stream = own.stream(http.max_stream_duration, asked_by_grpc);
        if own.of_stream && head.is_grpc() {
            tell_grpc_stream(head, stream, http.max_stream_duration);
        }

        let asked = |known| millis(head.fields().known_str(known)?);
        let expected =
            asked(Known::XEnvoyExpectedRqTimeoutMs).filter(|_| router.respect_expected_timeout);
        total = expected
            .or_else(|| asked(Known::XEnvoyUpstreamRqTimeoutMs))
            .unwrap_or(total);
        let per_try = asked(Known::XEnvoyUpstreamRqPerTryTimeoutMs).or_else(|| {
            action
                .retry
                .as_ref()
                .and_then(|policy| policy.per_try_timeout)
        });

        head.fields_mut()
            .remove_known(Known::XEnvoyUpstreamRqTimeoutMs);
        head.fields_mut()
            .remove_known(Known::XEnvoyUpstreamRqPerTryTimeoutMs);
        let set = |limit: &Duration| !limit.is_zero();
        let total = Some(total).filter(set);

        Self {
            total,
            per_try: per_try
                .filter(set)
                .filter(|per_try| total.is_none_or(|total| *per_try < total)),
            tells_grpc: of_response.is_some(),
            idle: own.idle.or(http.stream_idle_timeout),
            stream,
            request: http.request_timeout,
            upstream: cluster.entry.cluster.http.max_stream_duration,
            has_alt_response: head.fields().contains(TIMEOUT_ALT_RESPONSE),
        }
    }

    /// Tells the upstream how long its answer will be waited for, so long after the request's end.
    /// Source: Envoy `FilterUtility::setTimeoutHeaders`.
    pub fn tell(&self, head: &mut RequestHead, elapsed: Duration, suppress: bool) {
        let Some(limit) = self.per_try.or(self.total) else {
            return;
        };
        // Envoy counts whole milliseconds.
        let elapsed = elapsed - Duration::from_nanos(u64::from(elapsed.subsec_nanos() % 1_000_000));
        let left = match self.total {
            // 0 would mean no limit.
            Some(total) if elapsed >= total => Duration::from_millis(1),
            Some(total) => limit.min(total - elapsed),
            None => limit,
        };

        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            return;
        }
        let mut digits = itoa::Buffer::new();
        if !suppress {
            head.fields_mut().set(
                "x-envoy-expected-rq-timeout-ms",
                digits.format(left).as_bytes(),
            );
        }

        if self.tells_grpc {
            set_grpc_timeout(head, left);
        }
    }
}

/// Tells the upstream of a gRPC call how old the stream may become. Source: Envoy
/// `ActiveStream::refreshDurationTimeout`: where the route lifts the connection manager's limit, the
/// client's own `grpc-timeout` goes, too.
fn tell_grpc_stream(head: &mut RequestHead, stream: Option<Duration>, manager: Option<Duration>) {
    match stream {
        Some(limit) => {
            set_grpc_timeout(head, u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        }
        None if manager.is_some() => _ = head.fields_mut().remove_known(Known::GrpcTimeout),
        None => {}
    }
}

fn set_grpc_timeout(head: &mut RequestHead, ms: u64) {
    let (number, unit) = to_grpc(ms);
    let mut digits = itoa::Buffer::new();
    let mut value = [0; 24];
    let digits = digits.format(number).as_bytes();
    value[..digits.len()].copy_from_slice(digits);
    value[digits.len()] = unit;
    head.fields_mut()
        .set("grpc-timeout", &value[..=digits.len()]);
}

fn millis(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_millis)
}

/// What `grpc-timeout` asks for, less the offset unless nothing would be left, and no more than the
/// maximum. 0: no limit.
fn of_grpc(asked: Option<Duration>, GrpcLimit { max, offset }: GrpcLimit) -> Duration {
    let asked = asked.unwrap_or_default();
    let asked = if offset < asked {
        asked - offset
    } else {
        asked
    };
    match max {
        Some(max) if asked.is_zero() || asked > max => max,
        _ => asked,
    }
}

/// Milliseconds in eight digits of the smallest unit that has room for them.
fn to_grpc(ms: u64) -> (u64, u8) {
    const MOST: u64 = 99_999_999;
    let units = [(1, b'm'), (1000, b'S'), (60_000, b'M')];
    let fits = units
        .into_iter()
        .map(|(length, unit)| (ms / length, unit))
        .find(|(number, _)| *number <= MOST);
    fits.unwrap_or(((ms / 3_600_000).min(MOST), b'H'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_written_in_the_smallest_unit_with_room() {
        let units = [
            (1, (1, b'm')),
            (100_000_000, (100_000, b'S')),
            (600_000_000_000, (10_000_000, b'M')),
            (u64::MAX, (99_999_999, b'H')),
        ];

        for (ms, wanted) in units {
            assert_eq!(to_grpc(ms), wanted, "{ms}");
        }
    }

    #[test]
    fn no_client_switches_the_limit_off() {
        let s = Duration::from_secs;
        for (asked, offset, max, wanted) in [
            (None, 0, 30, 30),
            (Some(20), 0, 30, 20),
            (Some(20), 2, 30, 18),
            (Some(0), 0, 30, 30),
            (Some(1), 2, 30, 1),
            (Some(2), 2, 30, 2),
            (Some(40), 2, 30, 30),
            (Some(40), 2, 0, 38),
            (None, 0, 0, 0),
        ] {
            assert_eq!(
                of_grpc(
                    asked.map(s),
                    GrpcLimit {
                        max: Some(s(max)).filter(|max| !max.is_zero()),
                        offset: s(offset),
                    }
                ),
                s(wanted),
                "{asked:?} less {offset} of {max}"
            );
        }
    }
}
