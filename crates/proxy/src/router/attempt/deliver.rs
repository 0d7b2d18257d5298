//! A chosen response on its way to the client.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use http::HeaderMap;
use meltemi_filters::grpc::MessageCount;
use meltemi_filters::head::HttpVersion;
use meltemi_filters::{Cause, LocalReply, ResponseFlag};

use super::failure::Failure;
use super::send::{Upload, UploadEnd};
use super::{Attempt, Forwarding, Progress};
use crate::body::tee::Lost;
use crate::body::{BodyIn, BodyOut, Flow, PumpError, pump};
use crate::exchange::state::{Ended, Exchange};
use crate::http1::body::{BodyError, BodyReader};
use crate::http1::codec::Framing;
use crate::respond::{BodyFraming, Responder};
use crate::router::headers::apply_response_headers;
use crate::router::retry::{Retries, Verdict};
use crate::router::timeout::Limit;
use crate::upstream::cluster::WorkerHost;
use crate::upstream::live::epoch_ms;
use crate::upstream::outlier::HostResult;
use crate::upstream::response::{ResponseSource, ResponseStart};

/// How a response was delivered.
#[derive(Debug)]
pub struct Delivered {
    /// How it left the downstream connection.
    pub ended: Ended,
    /// Whether the upstream's connection may carry another request.
    pub reusable: bool,
}

/// What ended the passing on of a body.
enum BodyEnd {
    Down(Result<(), PumpError>),
    Limit(Limit),
    ClientGone,
}

/// Notes in record and counts that a response was chosen.
pub fn note_chosen(
    forwarding: &Forwarding<'_>,
    exchange: &mut Exchange<'_>,
    retries: &Retries<'_>,
    verdict: Verdict,
) {
    if retries.done() > 0 && verdict == Verdict::NotWanted {
        forwarding.cluster.counts.retry_success.inc();
    }
    let info = &mut exchange.info;
    if let Some(flag) = verdict.flag() {
        info.state.flags.insert(flag);
    }

    // Only mirrors still want the rest of the body.
    if let Some(tee) = forwarding.tee
        && !tee.borrow().is_whole()
        && forwarding.plan.forward.action.mirrors.is_empty()
    {
        tee.borrow_mut().give_up(Lost::Unneeded);
    }

    forwarding.clocks.responded();
    info.response_start = Some(Instant::now());
    info.details = Cow::Borrowed("via_upstream");
}

impl Attempt<'_, '_> {
    /// Finishes the head of a response without a body, see [`Attempt::deliver`]. It is then in
    /// [`Exchange::response`].
    pub async fn finish_head(
        &mut self,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Box<LocalReply>> {
        self.write_head(exchange);
        let decision = self.forwarding.plan.decision;
        exchange.finish_head(Some(decision), self.head, None).await
    }

    /// Adds the router's own fields to the head, and makes the route's changes.
    fn write_head(&mut self, exchange: &mut Exchange<'_>) {
        let mut response = std::mem::take(&mut self.response);
        let forwarding = self.forwarding;
        if !forwarding.router.suppress_envoy_headers {
            let mut digits = itoa::Buffer::new();
            let took = digits.format(self.started.elapsed().as_millis());
            let fields = response.fields_mut();
            fields.set("x-envoy-upstream-service-time", took.as_bytes());
        }

        let plan = forwarding.plan;
        if plan.forward.action.response_attempt_count {
            let attempts = exchange.info.attempts.to_string();
            let fields = response.fields_mut();
            fields.set("x-envoy-attempt-count", attempts.as_bytes());
        }
        if let Some(cookie) = exchange.info.set_cookie.take() {
            response.append("set-cookie", cookie.as_bytes());
        }

        exchange.response = response;
        apply_response_headers(exchange, plan.decision, self.head);
    }

    /// Finishes the head for the client (the router's own fields, then those of the route, then
    /// filters and connection manager), and passes head and body on, while the rest of the request
    /// may still go up. `Err` is a filter's answer in the response's place.
    pub async fn deliver(
        mut self,
        exchange: &mut Exchange<'_>,
        responder: &mut Responder<'_>,
        start: ResponseStart,
    ) -> Result<Delivered, Box<LocalReply>> {
        self.write_head(exchange);
        let Self {
            forwarding,
            head,
            host,
            progress,
            mut upload,
            source,
            ..
        } = self;

        let (keep_alive, upstream) = (start.terms.keep_alive, start.terms.framing);
        let status = exchange.response.status;
        let reader = BodyReader::new(upstream);
        let no_continue = Cell::new(false);
        let mut from = match source {
            // A response without body brings none, whatever the stream still holds: a client could
            // not tell it from another response.
            ResponseSource::H2 { .. }
                if BodyFraming::of(head.method() == "HEAD", status, upstream == Framing::Empty)
                    != BodyFraming::Body =>
            {
                BodyIn::Empty
            }
            source => source.body(start, &reader, &no_continue),
        };

        let decision = forwarding.plan.decision;
        let finished = exchange.finish_head(Some(decision), head, Some(&mut from));
        finished.await?;
        exchange.filter_response_body(decision, &mut from);

        if forwarding.plan.upgrade {
            // RFC 9110 §7.8: bytes that the client sent for the other protocol must not be read as
            // a request.
            responder.close_after();
        }

        let status = exchange.response.status;
        let framing = BodyFraming::of(exchange.is_head, status, upstream == Framing::Empty);
        let Ok(mut out) = responder.start(&mut exchange.response, framing) else {
            return Ok(Delivered {
                ended: exchange.gone(),
                reusable: false,
            });
        };

        // Only gRPC has messages to count.
        let messages = exchange.info.messages.as_deref();
        let messages = messages.filter(|_| exchange.response.is_grpc());
        let messages = messages.map(|messages| &messages.responses);
        let trailers = RefCell::default();
        let end = pass_body(
            forwarding,
            progress,
            &mut upload,
            &mut from,
            &mut out,
            messages,
            &trailers,
        )
        .await;
        drop(upload);
        from.settle();
        drop(from);

        note_sent(exchange, progress, trailers.take());
        if let BodyOut::H1 { head, .. } = &mut out {
            exchange.worker.buffers.give(std::mem::take(head));
        }
        let ended = conclude(forwarding, host, exchange, &mut out, end);
        let is_whole = ended == Ended::Whole && progress.is_uploaded();

        Ok(Delivered {
            ended,
            reusable: is_whole && keep_alive && reader.is_done(),
        })
    }
}

/// Passes the body down, until it ends, a limit has passed or the client leaves.
async fn pass_body(
    forwarding: &Forwarding<'_>,
    progress: &Progress,
    upload: &mut Upload<'_>,
    from: &mut BodyIn<'_>,
    out: &mut BodyOut<'_>,
    messages: Option<&Cell<MessageCount>>,
    trailers: &RefCell<Option<HeaderMap>>,
) -> BodyEnd {
    let keep_trailers = |map: &mut HeaderMap| _ = trailers.replace(Some(map.clone()));
    let flow = Flow {
        moved: &progress.sent,
        messages,
        tee: None,
        stalls: forwarding.stalls,
    };
    let mut down = pin!(async {
        let passed = pump(from, out, flow, keep_trailers).await;
        if let Err(PumpError::Read(_)) = &passed {
            // The head may still wait for the first piece: the client must see that there was an
            // answer. A write that fails changes nothing, since the body is broken off anyway.
            let _ = out.flush().await;
        }
        passed
    });

    poll_fn(|cx| {
        if let Poll::Ready(result) = down.as_mut().poll(cx) {
            return Poll::Ready(BodyEnd::Down(result));
        }

        // However the upload ends, this exchange cannot be finished.
        match upload.as_mut().poll(cx) {
            Poll::Ready(UploadEnd::Broken(error @ BodyError::Refused(_))) => {
                return Poll::Ready(BodyEnd::Down(Err(PumpError::Read(error))));
            }
            Poll::Ready(UploadEnd::Gone | UploadEnd::Broken(_)) => {
                return Poll::Ready(BodyEnd::ClientGone);
            }
            Poll::Pending => {}
        }

        let moved = progress.received.get() + progress.sent.get();
        forwarding.clocks.poll(cx, moved).map(BodyEnd::Limit)
    })
    .await
}

/// Notes bytes and trailers in the record.
fn note_sent(exchange: &mut Exchange<'_>, progress: &Progress, trailers: Option<HeaderMap>) {
    let info = &mut exchange.info;
    info.received.set(progress.received.get());
    info.sent.set(progress.sent.get());

    if let Some(map) = trailers {
        if let Some(status) = map.get("grpc-status").and_then(|value| value.to_str().ok()) {
            info.grpc_status = status.parse().ok();
        }
        exchange.trailers = Some(map);
    }
}

/// Notes how the body ended, and breaks off a response that is not whole.
fn conclude(
    forwarding: &Forwarding<'_>,
    host: &WorkerHost,
    exchange: &mut Exchange<'_>,
    out: &mut BodyOut<'_>,
    end: BodyEnd,
) -> Ended {
    let cluster = forwarding.cluster;
    match end {
        BodyEnd::Down(Ok(())) => Ended::Whole,
        // The client has the head of the response already: it can only be broken off.
        BodyEnd::Down(Err(PumpError::Read(BodyError::Refused(reply)))) => {
            exchange.info.note(&reply);
            out.abort(h2::Reason::INTERNAL_ERROR);
            Ended::Broken
        }
        BodyEnd::Down(Err(PumpError::Read(error))) => {
            let is_http2 = exchange.info.upstream_protocol == Some(HttpVersion::Http2);
            let (flag, reason) = match error {
                BodyError::Reset => (ResponseFlag::UpstreamRemoteReset, "remote_reset"),
                BodyError::Io(_) if is_http2 => (
                    ResponseFlag::UpstreamConnectionTermination,
                    "connection_termination",
                ),
                // Envoy: an HTTP/1 connection that ends within a body breaks the protocol.
                _ => (ResponseFlag::UpstreamProtocolError, "protocol_error"),
            };

            let name = forwarding.plan.cluster_name.clone();
            let cause = Cause::Endpoint(name, host.address, error.to_string().into());
            let details = format!("upstream_reset_after_response_started{{{reason}}}");
            exchange.info.end(flag, details, Some(cause));

            let now = epoch_ms(Instant::now());
            let live = &cluster.entry.live;
            live.report(&host.live, HostResult::LocalFailure, now);
            out.abort(h2::Reason::INTERNAL_ERROR);

            Ended::Broken
        }
        BodyEnd::Limit(limit) => {
            limit.count(&cluster.counts);
            let label = forwarding.plan.label();
            let failure = Failure::limit(limit, label, forwarding.clocks);
            let cause = Some(failure.cause);
            exchange.info.end(failure.flag, limit.details(), cause);
            out.abort(h2::Reason::INTERNAL_ERROR);

            Ended::Broken
        }
        BodyEnd::Down(Err(PumpError::Write(_))) | BodyEnd::ClientGone => {
            out.abort(h2::Reason::CANCEL);
            exchange.gone()
        }
    }
}
