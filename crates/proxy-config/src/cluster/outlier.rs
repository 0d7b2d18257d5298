//! Outlier detection: when an endpoint that fails takes no load for a while.

use std::time::Duration;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::google::protobuf::{Duration as ProtoDuration, UInt32Value};

use crate::convert::{boolean, duration_or, not_honoured, number};

/// `OutlierDetection`, compiled, with Envoy's defaults (in brackets) filled in.
///
/// A field `enforcing_…` is the percentage of detected outliers that are ejected. Failures of local
/// origin are those without a response, such as a refused connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Consecutive responses with a status of 500 or above that make an outlier (5).
    pub consecutive_5xx: u32,
    /// For `consecutive_5xx` (100).
    pub enforcing_5xx: u32,
    /// Consecutive responses with status 502, 503 or 504 that make an outlier (5).
    pub consecutive_gateway: u32,
    /// For `consecutive_gateway` (0).
    pub enforcing_gateway: u32,
    /// Failures of local origin are counted apart from responses (no).
    pub split_local: bool,
    /// Consecutive failures of local origin that make an outlier (5).
    pub consecutive_local: u32,
    /// For `consecutive_local` (100).
    pub enforcing_local: u32,
    /// The time between two looks at rates and at ejections that are over (10 s).
    pub interval: Duration,
    /// An ejection lasts for this time, times the number of ejections so far (30 s).
    pub base_ejection: Duration,
    /// The upper bound of an ejection (300 s, or the base if that is longer).
    pub max_ejection: Duration,
    /// The upper bound of a random time that is added to each ejection (0).
    pub jitter: Duration,
    /// The percentage of endpoints that may be ejected at a time (10).
    pub max_ejection_percent: u32,
    /// One endpoint may be ejected whatever that percentage allows (no).
    pub always_eject_one: bool,
    /// Finds endpoints whose success rate is below that of the others.
    pub success_rate: SuccessRate,
    /// Finds endpoints that fail more often than a threshold.
    pub failure_percentage: FailurePercentage,
}

/// Finds endpoints whose success rate is below that of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// For responses (100).
    pub enforcing: u32,
    /// For failures of local origin, where they are counted apart (100).
    pub enforcing_local: u32,
    /// The number of endpoints with enough requests without which none is an outlier (5).
    pub minimum_hosts: u32,
    /// The number of requests in an interval that are enough (100).
    pub request_volume: u32,
    /// How far below the mean an outlier is, in standard deviations times 1000 (1900).
    pub stdev_factor: u32,
}

/// Finds endpoints that fail more often than a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailurePercentage {
    /// The percentage of failed requests from which on an endpoint is an outlier (85).
    pub threshold: u32,
    /// For responses (0).
    pub enforcing: u32,
    /// For failures of local origin, where they are counted apart (0).
    pub enforcing_local: u32,
    /// The number of endpoints with enough requests without which none is an outlier (5).
    pub minimum_hosts: u32,
    /// The number of requests in an interval that are enough (50).
    pub request_volume: u32,
}

impl OutlierDetection {
    pub(super) fn compile(
        message: &proto::OutlierDetection,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::OutlierDetection {
            consecutive_5xx,
            interval,
            base_ejection_time,
            max_ejection_percent,
            enforcing_consecutive_5xx,
            enforcing_success_rate,
            success_rate_minimum_hosts,
            success_rate_request_volume,
            success_rate_stdev_factor,
            consecutive_gateway_failure,
            enforcing_consecutive_gateway_failure,
            split_external_local_origin_errors,
            consecutive_local_origin_failure,
            enforcing_consecutive_local_origin_failure,
            enforcing_local_origin_success_rate,
            failure_percentage_threshold,
            enforcing_failure_percentage,
            enforcing_failure_percentage_local_origin,
            failure_percentage_minimum_hosts,
            failure_percentage_request_volume,
            max_ejection_time,
            max_ejection_time_jitter,
            monitors,
            always_eject_one_host,
            detect_degraded_hosts,
            // Concerns active health checks, of which there are none.
            successful_active_health_check_uneject_host: _,
        } = message;

        not_honoured!(scope, monitors);
        scope.unsupported(
            "detect_degraded_hosts",
            boolean(detect_degraded_hosts.as_ref(), false),
        );

        let seconds = |field, value: &Option<ProtoDuration>, default| {
            duration_or(field, value.as_ref(), Duration::from_secs(default), scope)
        };
        let base_ejection = seconds("base_ejection_time", base_ejection_time, 30)?;
        let max_ejection = seconds("max_ejection_time", max_ejection_time, 300)?;

        let count = |value: &Option<UInt32Value>, default| number(value.as_ref(), default);
        let percent = |value: &Option<UInt32Value>, default| count(value, default).min(100);

        Ok(Self {
            consecutive_5xx: count(consecutive_5xx, 5),
            enforcing_5xx: percent(enforcing_consecutive_5xx, 100),
            consecutive_gateway: count(consecutive_gateway_failure, 5),
            enforcing_gateway: percent(enforcing_consecutive_gateway_failure, 0),
            split_local: *split_external_local_origin_errors,
            consecutive_local: count(consecutive_local_origin_failure, 5),
            enforcing_local: percent(enforcing_consecutive_local_origin_failure, 100),
            interval: seconds("interval", interval, 10)?,
            base_ejection,
            max_ejection: max_ejection.max(base_ejection),
            jitter: seconds("max_ejection_time_jitter", max_ejection_time_jitter, 0)?,
            max_ejection_percent: percent(max_ejection_percent, 10),
            always_eject_one: boolean(always_eject_one_host.as_ref(), false),
            success_rate: SuccessRate {
                enforcing: percent(enforcing_success_rate, 100),
                enforcing_local: percent(enforcing_local_origin_success_rate, 100),
                minimum_hosts: count(success_rate_minimum_hosts, 5),
                request_volume: count(success_rate_request_volume, 100),
                stdev_factor: count(success_rate_stdev_factor, 1900),
            },
            failure_percentage: FailurePercentage {
                threshold: percent(failure_percentage_threshold, 85),
                enforcing: percent(enforcing_failure_percentage, 0),
                enforcing_local: percent(enforcing_failure_percentage_local_origin, 0),
                minimum_hosts: count(failure_percentage_minimum_hosts, 5),
                request_volume: count(failure_percentage_request_volume, 50),
            },
        })
    }
}
