//! Why an attempt brought no response, and the answer that the client gets in its place.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::route::AttemptFailure;

use crate::http1::client::ReadError;
use crate::router::retry::Resend;
use crate::router::timeout::{Clocks, Limit};
use crate::upstream::cluster::WorkerHost;
use crate::upstream::response::NoResponse;

/// Why there was no response.
#[derive(Debug)]
pub struct Failure {
    /// As retry policies see it; `None` is never retried.
    pub kind: Option<AttemptFailure>,
    /// Envoy's flag, where it has one.
    pub flag: Option<ResponseFlag>,
    /// Envoy's reset reason.
    pub reason: &'static str,
    /// Why the transport failed.
    pub transport: String,
    /// What caused it.
    pub cause: Cause,
    /// A time limit passed, and the status that says so.
    pub limit: Option<(Limit, u16)>,
    /// Whether the request may be sent again outside the retry policy.
    pub resend: Resend,
    /// Counts against the endpoint.
    pub blames_host: bool,
}

impl Failure {
    /// A time limit passed.
    pub fn limit(limit: Limit, route: &Arc<str>, clocks: &Clocks) -> Self {
        // A client that has not sent all yet is itself the slow one.
        let slow = match clocks.is_uploaded() {
            true => 504,
            false => 408,
        };
        let status = match limit {
            Limit::Total | Limit::PerTry | Limit::PerTryIdle
                if clocks.timeouts().has_alt_response =>
            {
                204
            }
            Limit::Total | Limit::PerTry | Limit::PerTryIdle | Limit::Upstream => 504,
            Limit::Idle | Limit::Stream => slow,
            Limit::Request => 408,
            Limit::Drain => 503,
        };
        Self {
            kind: limit
                .is_of_attempt()
                .then_some(AttemptFailure::PerTryTimeout),
            flag: limit.flag(),
            reason: "",
            transport: String::new(),
            cause: clocks.cause(limit, route),
            limit: Some((limit, status)),
            resend: Resend::No,
            blames_host: limit == Limit::Total || limit.is_of_attempt(),
        }
    }

    /// The upstream, or the way to it, failed.
    pub(super) fn of(
        cluster: &Arc<str>,
        host: &WorkerHost,
        kind: AttemptFailure,
        flag: ResponseFlag,
        reason: &'static str,
        how: String,
    ) -> Self {
        let cause = Cause::Endpoint(cluster.clone(), host.address, how.into());
        Self {
            kind: Some(kind),
            flag: Some(flag),
            reason,
            transport: String::new(),
            cause,
            limit: None,
            resend: Resend::No,
            blames_host: true,
        }
    }

    /// The client's body breaks the protocol.
    pub(super) fn bad_request_body(how: &'static str) -> Self {
        Self {
            kind: None,
            flag: Some(ResponseFlag::DownstreamProtocolError),
            reason: "",
            transport: String::new(),
            cause: Cause::Protocol(how.into()),
            limit: None,
            resend: Resend::No,
            blames_host: false,
        }
    }

    /// The answer, in Envoy's words. `is_retried`: this attempt was not the first.
    pub fn reply(self, is_retried: bool) -> Box<LocalReply> {
        let (status, body, details): (u16, Cow<'static, str>, Cow<'static, str>) = match self.limit
        {
            Some((limit, status)) => {
                let body = match status {
                    204 => "",
                    _ => limit.body(),
                };
                (status, body.into(), limit.details().into())
            }
            None if self.flag == Some(ResponseFlag::DownstreamProtocolError) => {
                (400, "Bad Request".into(), "http1.codec_error".into())
            }
            None => {
                let how = if is_retried {
                    "retried and the latest reset reason: "
                } else {
                    "reset reason: "
                };

                let body = format!(
                    "upstream connect error or disconnect/reset before headers. {how}{}",
                    self.reason
                );

                let mut details = format!(
                    "upstream_reset_before_response_started{{{}",
                    self.reason.replace(' ', "_")
                );

                // Why a transport failed is for us to know: not in the body.
                if !self.transport.is_empty() {
                    details.push('|');
                    details.push_str(&self.transport.replace(' ', "_"));
                }

                details.push('}');
                let status = if self.flag == Some(ResponseFlag::UpstreamProtocolError) {
                    502
                } else {
                    503
                };

                (status, body.into(), details.into())
            }
        };

        let body = Bytes::from(body.into_owned());
        let mut reply = LocalReply::new(status, body, details, self.cause);
        reply.flag = self.flag;
        reply.grpc_status = self.limit.and_then(|(limit, _)| limit.grpc_status());

        // Envoy: every request that a circuit breaker drops.
        Box::new(match self.flag {
            Some(ResponseFlag::UpstreamOverflow) => reply.header("x-envoy-overloaded", "true"),
            _ => reply,
        })
    }
}

/// No response head came. `stale`: the connection carried another request before, and ended so long
/// after the last byte of this one.
pub(super) fn read_failure(
    cluster: &Arc<str>,
    host: &WorkerHost,
    error: NoResponse,
    write_error: Option<String>,
    nothing_sent: bool,
    stale: Option<Duration>,
) -> Failure {
    match error {
        NoResponse::H2(error) => h2_failure(cluster, host, &error),
        NoResponse::BadHead(how) => Failure::of(
            cluster,
            host,
            AttemptFailure::Reset,
            ResponseFlag::UpstreamProtocolError,
            "protocol error",
            how.to_owned(),
        ),
        NoResponse::H1(ReadError::Malformed(refusal)) => Failure::of(
            cluster,
            host,
            AttemptFailure::Reset,
            ResponseFlag::UpstreamProtocolError,
            "protocol error",
            refusal.details.to_owned(),
        ),
        NoResponse::H1(error @ ReadError::Truncated) => Failure::of(
            cluster,
            host,
            AttemptFailure::Reset,
            ResponseFlag::UpstreamProtocolError,
            "protocol error",
            error.to_string(),
        ),
        NoResponse::H1(error) => {
            let resend = match (stale, &error) {
                (Some(after), ReadError::Closed | ReadError::Io(_)) => Resend::Stale(after),
                _ => Resend::No,
            };

            // Once a byte has gone out the upstream may have acted on it.
            let kind = if nothing_sent {
                AttemptFailure::ResetBeforeRequest
            } else {
                AttemptFailure::Reset
            };

            let how = write_error.unwrap_or_else(|| error.to_string());
            let failure = Failure::of(
                cluster,
                host,
                kind,
                ResponseFlag::UpstreamConnectionTermination,
                "connection termination",
                how,
            );

            Failure { resend, ..failure }
        }
    }
}

/// An HTTP/2 stream failed.
pub(super) fn h2_failure(cluster: &Arc<str>, host: &WorkerHost, error: &h2::Error) -> Failure {
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote());
    let (kind, flag, reason) = if refused {
        (
            AttemptFailure::Refused,
            ResponseFlag::UpstreamRemoteReset,
            "remote refused stream reset",
        )
    } else if error.is_reset() && error.is_remote() {
        (
            AttemptFailure::Reset,
            ResponseFlag::UpstreamRemoteReset,
            "remote reset",
        )
    } else if error.is_io() {
        (
            AttemptFailure::Reset,
            ResponseFlag::UpstreamConnectionTermination,
            "connection termination",
        )
    } else {
        (
            AttemptFailure::Reset,
            ResponseFlag::UpstreamProtocolError,
            "protocol error",
        )
    };

    // RFC 9113 §8.7: nothing of such a stream was processed.
    let is_unprocessed = error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away()
            && error.is_remote()
            && error.reason() == Some(h2::Reason::NO_ERROR));
    let failure = Failure::of(cluster, host, kind, flag, reason, error.to_string());
    match is_unprocessed {
        true => Failure {
            resend: Resend::Always,
            ..failure
        },
        false => failure,
    }
}
