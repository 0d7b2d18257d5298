//! Fault injection: `envoy.filters.http.fault`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use meltemi_proto::envoy::extensions::filters::common::fault::v3::FaultDelay;
use meltemi_proto::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use meltemi_proto::envoy::extensions::filters::http::fault::v3 as proto;

use crate::finding::{Rejection, Scope};
use crate::flag::ResponseFlag;
use crate::http::context::RequestContext;
use crate::http::phase::{Call, Event, Step};
use crate::matcher::{Fraction, HeaderMatch};
use crate::reply::{Cause, LocalReply};

/// Delays and aborts, and the requests that they are injected into.
#[derive(Debug)]
pub struct Fault {
    delay: Option<(Delay, Fraction)>,
    abort: Option<(Abort, Fraction)>,
    abort_body: Bytes,
    /// Only requests to this cluster; all if empty.
    cluster: Box<str>,
    headers: Box<[HeaderMatch]>,
    max_active: Option<u32>,
    active: Arc<AtomicU32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delay {
    Fixed(Duration),
    /// `x-envoy-fault-delay-request`, in milliseconds.
    Header,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Abort {
    Http(u16),
    Grpc(u32),
    /// `x-envoy-fault-abort-request`, `x-envoy-fault-abort-grpc-request`.
    Header,
}

/// Kept by a stream with an active fault: counts it for as long as the stream lives.
struct ActiveFault(Arc<AtomicU32>);

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fault {
    /// Compiles Envoy's message.
    pub fn compile(message: &proto::HttpFault, scope: &mut Scope) -> Result<Self, Rejection> {
        let proto::HttpFault {
            delay,
            abort,
            upstream_cluster,
            headers,
            downstream_nodes,
            max_active_faults,
            response_rate_limit,
            // Keys of a runtime layer, of which there is none.
            delay_percent_runtime: _,
            abort_percent_runtime: _,
            delay_duration_runtime: _,
            abort_http_status_runtime: _,
            max_active_faults_runtime: _,
            response_rate_limit_percent_runtime: _,
            abort_grpc_status_runtime: _,
            // No counters of the downstream's cluster are kept that this could switch off.
            disable_downstream_cluster_stats: _,
            filter_metadata,
        } = message;

        scope.unsupported("response_rate_limit", response_rate_limit.is_some());
        scope.unsupported("filter_metadata", filter_metadata.is_some());
        if !downstream_nodes.is_empty() {
            // Without the condition, faults would be injected into the requests of other clients.
            return scope.refuse("downstream_nodes is unknown");
        }

        let body = abort
            .as_ref()
            .map(|abort| abort.response_body.clone())
            .unwrap_or_default();

        Ok(Self {
            delay: compile_delay(delay.as_ref(), scope)?,
            abort: compile_abort(abort.as_ref(), scope)?,
            abort_body: if body.is_empty() {
                Bytes::from_static(b"fault filter abort")
            } else {
                body.into()
            },
            cluster: upstream_cluster.as_str().into(),
            headers: HeaderMatch::compile_all("headers", headers, scope)?,
            max_active: max_active_faults.as_ref().map(|max| max.value),
            active: Arc::new(AtomicU32::new(0)),
        })
    }

    /// Delays, then aborts.
    pub(crate) fn on_request(&self, event: Event<'_>, cx: &mut RequestContext<'_>) -> Step {
        match event {
            Event::Head => self.on_head(cx),
            // The delay is over. Only a request that the fault is meant for was delayed.
            Event::Called(_) | Event::Held { .. } => {
                let active = cx.take();
                self.abort(active, cx)
            }
        }
    }

    fn on_head(&self, cx: &mut RequestContext<'_>) -> Step {
        let wanted = (self.cluster.is_empty() || cx.cluster == Some(&self.cluster))
            && self.headers.iter().all(|matcher| matcher.is_match(cx.head));
        if !wanted {
            return Step::Continue;
        }
        if let Some((delay, fraction)) = &self.delay
            && let Some(delay) = delay.of(cx)
            && !delay.is_zero()
            && fraction.hits(cx.entropy.draw())
            && let Some(active) = self.activate()
        {
            cx.flag(ResponseFlag::DelayInjected);
            cx.keep(active);
            return Step::Call(Call::Sleep(delay));
        }

        self.abort(None, cx)
    }

    /// Aborts, or lets the request go on; `active` if it was delayed, which counts already.
    fn abort(&self, active: Option<ActiveFault>, cx: &mut RequestContext<'_>) -> Step {
        let Some((abort, fraction)) = &self.abort else {
            return Step::Continue;
        };
        let Some(abort) = abort.of(cx) else {
            return Step::Continue;
        };

        let hit = fraction.hits(cx.entropy.draw());
        let active = match active {
            None if hit => self.activate(),
            active => active,
        };
        let Some(active) = active else {
            return Step::Continue;
        };

        // A delay counts as active until the stream ends, whether or not an abort follows.
        cx.keep(active);
        if !hit {
            return Step::Continue;
        }

        cx.flag(ResponseFlag::FaultInjected);
        let (status, grpc_status) = match abort {
            Abort::Http(status) => (status, None),
            // As Envoy: a client that does not speak gRPC gets 200 and the text.
            Abort::Grpc(status) => (200, Some(status)),
            Abort::Header => return Step::Continue,
        };

        let cause = Cause::Fault("envoy.filters.http.fault".into());
        let mut reply =
            LocalReply::new(status, self.abort_body.clone(), "fault_filter_abort", cause)
                .flagged(ResponseFlag::FaultInjected);
        reply.grpc_status = grpc_status;

        reply.into()
    }

    /// Counts the fault; `None` if too many are active.
    fn activate(&self) -> Option<ActiveFault> {
        let max = self.max_active.unwrap_or(u32::MAX);
        let counted = self
            .active
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < max).then_some(n + 1)
            });

        counted.is_ok().then(|| ActiveFault(self.active.clone()))
    }
}

impl Delay {
    fn of(self, cx: &RequestContext<'_>) -> Option<Duration> {
        match self {
            Self::Fixed(delay) => Some(delay),
            // A client may ask for no more than an hour.
            Self::Header => number(cx, "x-envoy-fault-delay-request")
                .map(|ms| Duration::from_millis(ms).min(Duration::from_secs(3600))),
        }
    }
}

impl Abort {
    fn of(self, cx: &RequestContext<'_>) -> Option<Self> {
        match self {
            Self::Header => {
                let http = number(cx, "x-envoy-fault-abort-request")
                    .and_then(|status| u16::try_from(status).ok())
                    .filter(|status| (200..600).contains(status));
                let grpc = || {
                    number(cx, "x-envoy-fault-abort-grpc-request")
                        .and_then(|status| u32::try_from(status).ok())
                };
                http.map(Self::Http).or_else(|| grpc().map(Self::Grpc))
            }
            fixed => Some(fixed),
        }
    }
}

fn number(cx: &RequestContext<'_>, name: &str) -> Option<u64> {
    cx.head.get_str(name)?.trim().parse().ok()
}
fn compile_delay(
    message: Option<&FaultDelay>,
    scope: &mut Scope,
) -> Result<Option<(Delay, Fraction)>, Rejection> {
    let Some(message) = message else {
        return Ok(None);
    };
    let FaultDelay {
        percentage,
        fault_delay_secifier,
    } = message;

    let delay = match fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(fixed)) => {
            let fixed = scope.duration("delay.fixed_delay", Some(fixed))?;
            Delay::Fixed(fixed.unwrap_or_default())
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => Delay::Header,
        None => return scope.refuse("delay without fixed_delay or header_delay"),
    };

    let share = Fraction::from_option(percentage.as_ref(), Fraction::NONE);
    Ok(Some((delay, share)))
}

fn compile_abort(
    message: Option<&proto::FaultAbort>,
    scope: &mut Scope,
) -> Result<Option<(Abort, Fraction)>, Rejection> {
    let Some(message) = message else {
        return Ok(None);
    };
    let proto::FaultAbort {
        percentage,
        error_type,
        // Read beside the abort.
        response_body: _,
    } = message;

    let abort = match error_type {
        Some(proto::fault_abort::ErrorType::HttpStatus(status)) => match u16::try_from(*status) {
            Ok(status @ 200..600) => Abort::Http(status),
            _ => return scope.refuse("abort.http_status is not a status"),
        },
        Some(proto::fault_abort::ErrorType::GrpcStatus(status)) => Abort::Grpc(*status),
        Some(proto::fault_abort::ErrorType::HeaderAbort(_)) => Abort::Header,
        None => return scope.refuse("abort without status"),
    };

    let share = Fraction::from_option(percentage.as_ref(), Fraction::NONE);
    Ok(Some((abort, share)))
}
