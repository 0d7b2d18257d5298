//! The back-off that a response asks for, in `retry-after` or a header like it.

use std::time::Duration;

use meltemi_filters::{Rejection, ResponseHead, Scope};
use meltemi_proto::envoy::config::route::v3::retry_policy as proto;

use crate::convert::{duration_or, header_name};

/// `RateLimitedRetryBackOff`, compiled.
#[derive(Debug, Clone)]
pub struct RateLimitedBackoff {
    headers: Box<[ResetHeader]>,
    /// A header that asks for more is ignored. Default 300 s.
    max: Duration,
}

/// A response header that says when a request may come again.
#[derive(Debug, Clone)]
struct ResetHeader {
    name: Box<str>,
    /// Seconds since 1970 instead of seconds from now.
    is_unix_time: bool,
}

impl RateLimitedBackoff {
    pub(super) fn compile(
        message: &proto::RateLimitedRetryBackOff,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::RateLimitedRetryBackOff {
            reset_headers,
            max_interval,
        } = message;

        let is_unix_time = proto::ResetHeaderFormat::UnixTimestamp as i32;
        let headers = reset_headers.iter().map(|header| ResetHeader {
            name: header_name(&header.name),
            is_unix_time: header.format == is_unix_time,
        });

        Ok(Self {
            headers: headers.collect(),
            max: duration_or(
                "rate_limited_retry_back_off.max_interval",
                max_interval.as_ref(),
                Duration::from_secs(300),
                scope,
            )?,
        })
    }

    /// The back-off that the response asks for, lengthened by a random part of up to a half, so that
    /// clients do not come back all at once. `now`: time since 1970. Source: Envoy
    /// `JitteredLowerBoundBackOffStrategy`.
    pub fn asked(&self, head: &ResponseHead, now: Duration, random: u64) -> Option<Duration> {
        let interval = |header: &ResetHeader| {
            let number: u64 = head.get_str(&header.name)?.trim().parse().ok()?;
            let seconds = match header.is_unix_time {
                true => number.checked_sub(now.as_secs())?,
                false => number,
            };
            let asked = Duration::from_secs(seconds);
            (!asked.is_zero() && asked <= self.max).then_some(asked)
        };

        let least = self.headers.iter().find_map(interval)?;
        let half = u64::try_from(least.as_millis() / 2).unwrap_or(u64::MAX);
        Some(least + Duration::from_millis(random % half.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_header_that_asks_for_a_time_within_the_limit_counts() {
        let header = |name: &str, format: proto::ResetHeaderFormat| proto::ResetHeader {
            name: name.into(),
            format: format as i32,
        };
        let message = proto::RateLimitedRetryBackOff {
            reset_headers: vec![
                header("Retry-After", proto::ResetHeaderFormat::Seconds),
                header("x-reset", proto::ResetHeaderFormat::UnixTimestamp),
            ],
            max_interval: Some(meltemi_proto::google::protobuf::Duration {
                seconds: 60,
                nanos: 0,
            }),
        };
        let backoff = RateLimitedBackoff::compile(&message, &mut Scope::new()).expect("compiles");
        let now = Duration::from_secs(1000);

        for (fields, wanted) in [
            (&[("retry-after", "2")][..], Some(2)),
            (&[("retry-after", "60"), ("x-reset", "1001")], Some(60)),
            (&[("retry-after", "61"), ("x-reset", "1001")], Some(1)),
            (&[("x-reset", "1060")], Some(60)),
            (&[("x-reset", "999")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "0")], None),
            (&[], None),
        ] {
            let mut head = ResponseHead::of(429);
            for (name, value) in fields {
                head.append(name, value.as_bytes());
            }
            let wanted = wanted.map(Duration::from_secs);
            assert_eq!(backoff.asked(&head, now, 0), wanted, "{fields:?}");

            let most = backoff.asked(&head, now, u64::MAX);
            assert!(most <= wanted.map(|least| least + least / 2), "{fields:?}");
        }
    }
}
