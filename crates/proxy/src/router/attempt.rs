//! One attempt on one connection: the request up, the response down, both at once.

pub(crate) mod carrier;
pub(crate) mod failure;
pub(crate) mod send;
mod tunnel;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use failure::{Failure, read_failure};
use meltemi_filters::head::RequestHead;
use meltemi_filters::http::Router;
use meltemi_filters::{Cause, ResponseFlag};
use meltemi_proxy_config::route::AttemptFailure;
use send::send_body;
use tunnel::tunnel;

use super::headers::apply_response_headers;
use super::plan::{AttemptEnd, Plan, Retries, may_retry};
use super::timeout::{Clocks, Limit};
use crate::body::{BodyIn, BodyOut, PumpError, Tee, pump};
use crate::exchange::state::{Ended, Exchange};
use crate::grpc::effective_status;
use crate::http1::body::{BodyError, BodyReader};
use crate::http1::codec::{Framing, Limits};
use crate::respond::{BodyFraming, Responder};
use crate::upstream::carrier::Carrier;
use crate::upstream::cluster::{WorkerCluster, WorkerHost};
use crate::upstream::live::epoch_ms;
use crate::upstream::outlier::HostResult;
use crate::upstream::response::{NoResponse, ResponseSource, ResponseStart};

enum UploadEnd {
    /// The request body broke off.
    Broken(BodyError),
    /// The downstream closed after its request.
    Gone,
}

enum First {
    Head(Result<ResponseStart, NoResponse>),
    Upload(UploadEnd),
    Limit(Limit),
    Gone,
}

/// Runs the attempt to its end.
#[allow(clippy::too_many_arguments)]
pub(crate) async fn run(
    exchange: &mut Exchange<'_>,
    plan: &Plan<'_>,
    head: &RequestHead,
    body: &mut BodyIn<'_>,
    bodyless: bool,
    tee: Option<&RefCell<Tee>>,
    responder: &mut Responder<'_>,
    cluster: &WorkerCluster,
    host: &Rc<WorkerHost>,
    mut carrier: Carrier,
    retries: &mut Retries<'_>,
    clocks: &Clocks,
    router: &Router,
) -> AttemptEnd {
    let started = Instant::now();
    let limits = Limits {
        fields: cluster.entry.cluster.http.max_head_fields as usize,
        ..Limits::default()
    };

    let reused = carrier.is_reused();
    let buffers = &exchange.worker.buffers;
    let (mut upstream, mut to) = carrier.split(head, bodyless, plan.upgrade, buffers);
    let sent_before = upstream.sent();
    let uploaded = Cell::new(false);
    let write_failed: Cell<Option<String>> = Cell::new(None);
    let received = Cell::new(exchange.info.received.get());
    let sent = Cell::new(0_u64);
    let messages = exchange.info.messages.clone();
    let counted = messages.as_deref().map(|messages| &messages.requests);
    let mut response = std::mem::take(&mut exchange.response);
    let mut upload = Box::pin(async {
        match send_body(body, &mut to, tee, &received, counted).await {
            Ok(()) => {
                uploaded.set(true);
                clocks.uploaded();
            }
            Err(PumpError::Write(error)) => {
                // The upstream may have answered early; its answer, or its end, will tell.
                write_failed.set(Some(error.to_string()));
                std::future::pending::<()>().await;
            }
            Err(PumpError::Read(error)) => {
                to.abort(h2::Reason::CANCEL);
                return UploadEnd::Broken(error);
            }
        }

        body.gone().await;
        UploadEnd::Gone
    });

    let first = {
        let mut read = pin!(upstream.head(head.method(), &limits, &mut response));
        poll_fn(|cx| {
            // Upload first: the request must be on its way before a response can come.
            if let Poll::Ready(end) = upload.as_mut().poll(cx) {
                return Poll::Ready(First::Upload(end));
            }
            if let Poll::Ready(read) = read.as_mut().poll(cx) {
                return Poll::Ready(First::Head(read));
            }
            if responder.poll_gone(cx).is_ready() {
                return Poll::Ready(First::Gone);
            }
            clocks.poll(cx, received.get()).map(First::Limit)
        })
        .await
    };

    exchange.info.received.set(received.get());
    if uploaded.get() {
        exchange.info.request_end.set(Some(
            exchange.info.request_end.get().unwrap_or_else(Instant::now),
        ));
    }

    let arrived = match first {
        First::Head(Ok(arrived)) => arrived,
        First::Head(Err(error)) => {
            drop(upload);
            exchange.response = response;
            let nothing_sent = upstream.sent() == sent_before;
            return AttemptEnd::Failed(read_failure(
                &plan.cluster_name,
                host,
                error,
                write_failed.take(),
                nothing_sent,
                reused,
            ));
        }
        First::Upload(UploadEnd::Gone) | First::Gone => return AttemptEnd::Ended(exchange.gone()),
        First::Upload(UploadEnd::Broken(error)) => {
            drop(upload);
            exchange.response = response;
            if let BodyError::Malformed(how) = error {
                responder.close_after();
                let cause = Cause::Protocol(how.into());
                let failure = Failure {
                    kind: None,
                    flag: ResponseFlag::DownstreamProtocolError,
                    reason: "",
                    transport: String::new(),
                    cause,
                    limit: None,
                    stale: false,
                    blames_host: false,
                };

                return AttemptEnd::Failed(failure);
            }

            return AttemptEnd::Ended(exchange.gone());
        }
        First::Limit(limit) => {
            drop(upload);
            exchange.response = response;
            if !uploaded.get() {
                responder.close_after();
            }
            return AttemptEnd::Failed(Failure::limit(limit, plan.label(), clocks));
        }
    };

    // A response: the endpoint is effective_status, and perhaps another one asked instead.
    let now = epoch_ms(Instant::now());
    cluster.entry.live.report(
        &host.live,
        HostResult::Status(effective_status(head.is_grpc(), &response)),
        now,
    );

    let switching = arrived.terms.framing == Framing::Empty && response.status == 101;
    let replayable = match tee {
        Some(tee) => !tee.borrow().lost,
        None => bodyless,
    };

    let mut wanted = false;
    if !switching && replayable {
        let again = may_retry(
            retries,
            cluster,
            plan.forward.action.high_priority,
            |policy| {
                wanted = policy.retries_response(&response);
                wanted
            },
        );

        if again {
            drop(upload);
            exchange.response = response;
            return AttemptEnd::Again;
        }
    }

    if retries.done > 0 && !wanted {
        cluster.counts.retry_success.inc();
    }
    if wanted && retries.exhausted {
        exchange
            .info
            .state
            .flags
            .insert(ResponseFlag::UpstreamRetryLimitExceeded);
    }

    if let Some(tee) = tee
        && !tee.borrow().whole
    {
        // Only mirrors still want the rest.
        if plan.forward.action.mirrors.is_empty() {
            tee.borrow_mut().give_up();
        }
    }

    clocks.responded();
    exchange.info.response_start = Some(Instant::now());
    exchange.info.details = Cow::Borrowed("via_upstream");
    if switching && !plan.upgrade {
        drop(upload);
        exchange.response = response;
        let how = "unexpected 101".to_owned();
        return AttemptEnd::Failed(Failure::of(
            &plan.cluster_name,
            host,
            AttemptFailure::Reset,
            ResponseFlag::UpstreamProtocolError,
            "protocol error",
            how,
        ));
    }

    if !router.suppress_envoy_headers {
        let took = started.elapsed().as_millis();
        let mut digits = itoa::Buffer::new();
        response.fields_mut().set(
            "x-envoy-upstream-service-time",
            digits.format(took).as_bytes(),
        );
    }

    if plan.forward.action.response_attempt_count {
        response.fields_mut().set(
            "x-envoy-attempt-count",
            exchange.info.attempts.to_string().as_bytes(),
        );
    }

    if let Some(cookie) = exchange.info.set_cookie.take() {
        response.append("set-cookie", cookie.as_bytes());
    }
    exchange.response = response;
    apply_response_headers(exchange, plan.decision, head);
    exchange.finish_head(Some(plan.decision), head, false);

    if switching {
        drop(upload);
        let ResponseSource::H1 { io, input } = upstream else {
            return AttemptEnd::Ended(exchange.gone());
        };
        return tunnel(exchange, plan, body, responder, io, input, clocks).await;
    }

    if plan.upgrade {
        // Bytes that the client sent for the other protocol must not be read as a request (A6).
        responder.close_after();
    }

    let framing = match arrived.terms.framing {
        _ if head.method() == "HEAD" || matches!(exchange.response.status, 204 | 304) => {
            BodyFraming::Nothing
        }
        Framing::Empty => BodyFraming::Empty,
        _ => BodyFraming::Body,
    };

    let mut out = match responder.start(&mut exchange.response, framing) {
        Ok(out) => out,
        Err(_) => return AttemptEnd::Ended(exchange.gone()),
    };

    let mut reader = BodyReader::new(arrived.terms.framing);
    let no_continue = Cell::new(false);
    let trailers: RefCell<Option<http::HeaderMap>> = RefCell::default();
    let keep_alive = arrived.terms.keep_alive;
    let mut from = match upstream {
        // A response without body brings none, whatever the stream still holds: a client could not
        // tell it from an answer.
        ResponseSource::H2 { .. } if framing != BodyFraming::Body => BodyIn::Empty,
        upstream => upstream.body(arrived, &mut reader, &no_continue),
    };

    enum Second {
        Down(Result<(), PumpError>),
        Limit(Limit),
        Gone,
        UploadBroken,
    }

    let second = {
        let mut upload_over = false;

        // Only gRPC has messages to count.
        let counted = messages
            .as_deref()
            .filter(|_| exchange.response.is_grpc())
            .map(|messages| &messages.responses);

        let mut down = pin!(pump(&mut from, &mut out, &sent, counted, None, |map| {
            *trailers.borrow_mut() = Some(map.clone());
        }));
        poll_fn(|cx| {
            if let Poll::Ready(result) = down.as_mut().poll(cx) {
                return Poll::Ready(Second::Down(result));
            }
            if !upload_over && let Poll::Ready(end) = upload.as_mut().poll(cx) {
                match end {
                    UploadEnd::Gone => return Poll::Ready(Second::Gone),
                    UploadEnd::Broken(_) => {
                        upload_over = true;
                        return Poll::Ready(Second::UploadBroken);
                    }
                }
            }

            clocks
                .poll(cx, received.get() + sent.get())
                .map(Second::Limit)
        })
        .await
    };

    let whole_upload = uploaded.get();
    drop(upload);
    from.settle();
    drop(from);
    exchange.info.received.set(received.get());
    exchange.info.sent.set(sent.get());
    if let Some(map) = trailers.take() {
        if let Some(status) = map.get("grpc-status").and_then(|value| value.to_str().ok()) {
            exchange.info.grpc_status = status.parse().ok();
        }
        exchange.trailers = Some(map);
    }

    if let BodyOut::H1 { head, .. } = &mut out {
        exchange.worker.buffers.give(std::mem::take(head));
    }
    if let BodyOut::H1 { head, .. } = &mut to {
        exchange.worker.buffers.give(std::mem::take(head));
    }
    let ended = match second {
        Second::Down(Ok(())) => Ended::Whole,
        Second::Down(Err(PumpError::Read(error))) => {
            let (flag, reason) = match error {
                BodyError::Reset => (ResponseFlag::UpstreamRemoteReset, "remote_reset"),
                BodyError::Malformed(_) => (ResponseFlag::UpstreamProtocolError, "protocol_error"),
                _ => (
                    ResponseFlag::UpstreamConnectionTermination,
                    "connection_termination",
                ),
            };

            let cause = Cause::Endpoint(
                plan.cluster_name.clone(),
                host.address,
                error.to_string().into(),
            );

            exchange.info.end(
                flag,
                format!("upstream_reset_after_response_started{{{reason}}}"),
                Some(cause),
            );

            cluster
                .entry
                .live
                .report(&host.live, HostResult::LocalFailure, now);

            out.abort(h2::Reason::INTERNAL_ERROR);
            Ended::Broken
        }
        Second::Limit(limit) => {
            limit.count(&cluster.counts);
            let failure = Failure::limit(limit, plan.label(), clocks);
            exchange
                .info
                .end(failure.flag, limit.details(), Some(failure.cause));
            out.abort(h2::Reason::INTERNAL_ERROR);
            Ended::Broken
        }
        Second::Down(Err(PumpError::Write(_))) | Second::Gone | Second::UploadBroken => {
            exchange.info.end(
                ResponseFlag::DownstreamConnectionTermination,
                "downstream_remote_disconnect",
                None,
            );
            out.abort(h2::Reason::CANCEL);
            Ended::Gone
        }
    };

    drop(to);
    if ended == Ended::Whole && whole_upload && keep_alive && reader.is_done() {
        carrier.give_back(host);
    }

    AttemptEnd::Ended(ended)
}
