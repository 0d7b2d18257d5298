//! When an endpoint is left out for a while.

use std::time::Duration;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::google::protobuf::UInt32Value;

use crate::convert::{boolean, number};

/// `OutlierDetection`, with Envoy's defaults (in brackets) filled in. Enforcing shares are percent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Consecutive 5xx (5).
    pub consecutive_5xx: u32,
    /// How often an ejection that these call for happens (100).
    pub enforcing_5xx: u32,
    /// Consecutive 502, 503, 504 (5).
    pub consecutive_gateway: u32,
    /// How often an ejection that these call for happens (0).
    pub enforcing_gateway: u32,
    /// Failures to connect and the like count apart from answers (no).
    pub split_local: bool,
    /// Consecutive failures of that kind (5).
    pub consecutive_local: u32,
    /// How often an ejection that these call for happens (100).
    pub enforcing_local: u32,
    /// How often ejections end and rates are looked at (10 s).
    pub interval: Duration,
    /// An ejection lasts so long times their number (30 s).
    pub base_ejection: Duration,
    /// But no longer than this (300 s, or the base if that is longer).
    pub max_ejection: Duration,
    /// Up to this much is added at random (0).
    pub jitter: Duration,
    /// No ejection may bring the share of endpoints that are out above so many percent (10).
    pub max_ejection_percent: u32,
    /// But one endpoint may always be out (no).
    pub always_eject_one: bool,
    /// Ejection of what is worse than the others.
    pub success_rate: SuccessRate,
    /// Ejection of what fails too often.
    pub failure_percentage: FailurePercentage,
}

/// Ejection of what is worse than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// Percent of ejections that happen (100).
    pub enforcing: u32,
    /// The same where local failures count apart (100).
    pub enforcing_local: u32,
    /// Endpoints with enough requests that must be there (5).
    pub minimum_hosts: u32,
    /// Requests in an interval that are enough (100).
    pub request_volume: u32,
    /// Standard deviations below the mean, times 1000 (1900).
    pub stdev_factor: u32,
}

/// Ejection of what fails too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailurePercentage {
    /// Percent of requests that are too many (85).
    pub threshold: u32,
    /// Percent of ejections that happen (0).
    pub enforcing: u32,
    /// The same where local failures count apart (0).
    pub enforcing_local: u32,
    /// Endpoints with enough requests that must be there (5).
    pub minimum_hosts: u32,
    /// Requests in an interval that are enough (50).
    pub request_volume: u32,
}

impl OutlierDetection {
    pub(super) fn compile(
        message: &proto::OutlierDetection,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        scope.unsupported("monitors", !message.monitors.is_empty());
        scope.unsupported(
            "detect_degraded_hosts",
            boolean(message.detect_degraded_hosts.as_ref(), false),
        );

        let time = |field: &str, value: Option<&_>, default: Duration| {
            Ok(scope
                .duration(field, value)?
                .filter(|time| !time.is_zero())
                .unwrap_or(default))
        };

        let second = Duration::from_secs(1);
        let interval = time("interval", message.interval.as_ref(), 10 * second)?;
        let base_ejection = time(
            "base_ejection_time",
            message.base_ejection_time.as_ref(),
            30 * second,
        )?;

        let max_ejection = time(
            "max_ejection_time",
            message.max_ejection_time.as_ref(),
            300 * second,
        )?;

        let jitter = time(
            "max_ejection_time_jitter",
            message.max_ejection_time_jitter.as_ref(),
            Duration::ZERO,
        )?;

        let percent = |value: Option<&UInt32Value>, default| number(value, default).min(100);

        Ok(Self {
            consecutive_5xx: number(message.consecutive_5xx.as_ref(), 5),
            enforcing_5xx: percent(message.enforcing_consecutive_5xx.as_ref(), 100),
            consecutive_gateway: number(message.consecutive_gateway_failure.as_ref(), 5),
            enforcing_gateway: percent(message.enforcing_consecutive_gateway_failure.as_ref(), 0),
            split_local: message.split_external_local_origin_errors,
            consecutive_local: number(message.consecutive_local_origin_failure.as_ref(), 5),
            enforcing_local: percent(
                message.enforcing_consecutive_local_origin_failure.as_ref(),
                100,
            ),
            interval,
            base_ejection,
            max_ejection: max_ejection.max(base_ejection),
            jitter,
            max_ejection_percent: percent(message.max_ejection_percent.as_ref(), 10),
            always_eject_one: boolean(message.always_eject_one_host.as_ref(), false),
            success_rate: SuccessRate {
                enforcing: percent(message.enforcing_success_rate.as_ref(), 100),
                enforcing_local: percent(message.enforcing_local_origin_success_rate.as_ref(), 100),
                minimum_hosts: number(message.success_rate_minimum_hosts.as_ref(), 5),
                request_volume: number(message.success_rate_request_volume.as_ref(), 100),
                stdev_factor: number(message.success_rate_stdev_factor.as_ref(), 1900),
            },
            failure_percentage: FailurePercentage {
                threshold: percent(message.failure_percentage_threshold.as_ref(), 85),
                enforcing: percent(message.enforcing_failure_percentage.as_ref(), 0),
                enforcing_local: percent(
                    message.enforcing_failure_percentage_local_origin.as_ref(),
                    0,
                ),
                minimum_hosts: number(message.failure_percentage_minimum_hosts.as_ref(), 5),
                request_volume: number(message.failure_percentage_request_volume.as_ref(), 50),
            },
        })
    }
}
