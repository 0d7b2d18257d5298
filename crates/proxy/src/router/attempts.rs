//! The attempts at a forwarded request, one after the other.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use meltemi_filters::head::RequestHead;
use meltemi_filters::{Cause, ResponseFlag};

use super::attempt::failure::Failure;
use super::attempt::judge::{Judgement, decide, switches};
use super::attempt::obtain::obtain;
use super::attempt::send::{is_bodyless, upload};
use super::attempt::tunnel::tunnel;
use super::attempt::{Attempt, AttemptEnd, Client, Forwarding, Progress, Unanswered, deliver};
use super::headers::rewrite_host;
use super::retry::{Retries, Verdict};
use super::{Reply, reply};
use crate::exchange::state::{Ended, Exchange};
use crate::upstream::carrier::Carrier;
use crate::upstream::cluster::{PickRequest, WorkerHost};
use crate::upstream::live::epoch_ms;
use crate::upstream::outlier::HostResult;

/// Makes attempts until one has a response for the client, or none is left. `Err` is the answer in
/// the place of a response.
pub async fn attempts(
    forwarding: &Forwarding<'_>,
    exchange: &mut Exchange<'_>,
    head: &mut RequestHead,
    client: &mut Client<'_, '_, '_>,
    retries: &mut Retries<'_>,
) -> Result<Ended, Reply> {
    loop {
        exchange.info.attempts += 1;
        let Some((host, priority)) = pick(forwarding, exchange, retries) else {
            let cause = Cause::NoEndpoint(forwarding.plan.cluster_name.clone());
            return Err(reply(
                503,
                "no healthy upstream",
                "no_healthy_upstream",
                cause,
                ResponseFlag::NoHealthyUpstream,
            ));
        };

        begin(forwarding, exchange, head, &host);
        match send_attempt(forwarding, exchange, head, client, &host, retries).await {
            AttemptEnd::Ended(ended) => return Ok(ended),
            AttemptEnd::Replied(reply) => return Err(reply),
            AttemptEnd::Again => {}
            AttemptEnd::Failed(failure) => {
                note_failure(forwarding, exchange, &host, &failure);
                match after_failure(forwarding, retries, head, &failure) {
                    Next::Resend => continue,
                    Next::Retry => {}
                    Next::GiveUp(verdict) => {
                        if let Some(flag) = verdict.flag() {
                            exchange.info.state.flags.insert(flag);
                        }
                        return Err(failure.reply(exchange.info.attempts > 1));
                    }
                }
            }
        }

        retries.note(host.address, priority);
        if let Some(ended) = pause(forwarding, exchange, head, client, retries).await? {
            return Ok(ended);
        }
    }
}

/// The endpoint of the next attempt, with its priority.
fn pick(
    forwarding: &Forwarding<'_>,
    exchange: &Exchange<'_>,
    retries: &Retries<'_>,
) -> Option<(Rc<WorkerHost>, u32)> {
    let policy = retries.policy();
    forwarding.cluster.pick(&PickRequest {
        random: exchange.worker.random(),
        hash: forwarding.hash,
        subset: forwarding.plan.forward.metadata_match(),
        tried: retries.avoided(),
        omitted: retries.omitted(),
        attempts: policy.map_or(1, |policy| policy.host_selection_attempts),
        failed_priorities: retries.failed_priorities(),
        original: exchange.conn.info.original_destination(),
        now: epoch_ms(Instant::now()),
    })
}

/// Notes a new attempt in record, head and clocks.
fn begin(
    forwarding: &Forwarding<'_>,
    exchange: &mut Exchange<'_>,
    head: &mut RequestHead,
    host: &WorkerHost,
) {
    let action = forwarding.plan.forward.action;
    exchange.info.upstream = Some(host.address);
    if action.request_attempt_count {
        let attempts = exchange.info.attempts.to_string();
        let fields = head.fields_mut();
        fields.set("x-envoy-attempt-count", attempts.as_bytes());
    }

    let suppress = forwarding.router.suppress_envoy_headers;
    let endpoint = host.endpoint.as_ref().map(|endpoint| &*endpoint.hostname);
    rewrite_host(forwarding.plan, head, endpoint, suppress);
    let idle = action
        .retry
        .as_ref()
        .and_then(|policy| policy.per_try_idle_timeout);
    forwarding.clocks.begin_attempt(idle);
}

/// One attempt at an endpoint, from the connection to the end of its response.
async fn send_attempt(
    forwarding: &Forwarding<'_>,
    exchange: &mut Exchange<'_>,
    head: &RequestHead,
    client: &mut Client<'_, '_, '_>,
    host: &Rc<WorkerHost>,
    retries: &mut Retries<'_>,
) -> AttemptEnd {
    let bodyless = is_bodyless(client.body, forwarding.tee);
    let mut carrier = match obtain(forwarding, exchange, head, client, host, bodyless).await {
        Ok(carrier) => carrier,
        Err(unanswered) => return end_of(exchange, unanswered),
    };
    let live = &forwarding.cluster.entry.live;
    live.totals.requests.fetch_add(1, Relaxed);
    let _active = host.live.begin();
    note_upstream(exchange, host, &carrier);

    let (worker, upgrade) = (exchange.worker, forwarding.plan.upgrade);
    let progress = Progress::after(&exchange.info);
    let reused = carrier.is_reused();
    let (source, up) = carrier.split(head, bodyless, upgrade, &worker.buffers);
    let messages = exchange.info.messages.clone();
    let buffers = &worker.buffers;
    let upload = upload(forwarding, client.body, up, &progress, messages, buffers);
    let ends = (source, upload);
    let mut attempt = Attempt::new(forwarding, (head, host), ends, &progress, reused);

    // RFC 9110 §10.1.1: there is somebody to send the body to.
    client.responder.invite_body();
    let awaited = attempt.await_head(client.responder).await;
    progress.note(&exchange.info);
    let start = match awaited {
        Ok(start) => start,
        Err(unanswered) => return end_of(exchange, unanswered),
    };
    let verdict = match attempt.judge(&start, retries, worker.random()) {
        Judgement::Deliver(verdict) => verdict,
        Judgement::Retry => return AttemptEnd::Again,
        Judgement::Refuse(failure) => return AttemptEnd::Failed(failure),
    };

    // This response is chosen: from here on the exchange is its own.
    deliver::note_chosen(forwarding, exchange, retries, verdict);
    let is_switch = switches(&start, &attempt.response);
    if is_switch {
        if let Err(reply) = attempt.finish_head(exchange).await {
            return AttemptEnd::Replied(reply);
        }
        let source = attempt.into_source();
        let tunnelled = tunnel(forwarding, exchange, client, source);
        return AttemptEnd::Ended(tunnelled.await);
    }

    let delivered = match attempt.deliver(exchange, client.responder, start).await {
        Ok(delivered) => delivered,
        Err(reply) => return AttemptEnd::Replied(reply),
    };
    if delivered.reusable {
        carrier.give_back(host);
    }

    AttemptEnd::Ended(delivered.ended)
}

fn end_of(exchange: &mut Exchange<'_>, unanswered: Unanswered) -> AttemptEnd {
    match unanswered {
        Unanswered::Gone => AttemptEnd::Ended(exchange.gone()),
        Unanswered::Failed(failure) => AttemptEnd::Failed(failure),
        Unanswered::Refused(reply) => AttemptEnd::Replied(reply),
    }
}

/// Notes in the record who the request goes to.
fn note_upstream(exchange: &mut Exchange<'_>, host: &WorkerHost, carrier: &Carrier) {
    let facts = carrier.facts();
    let info = &mut exchange.info;
    info.workload = exchange.worker.series.workload(host);
    info.upstream_protocol = Some(carrier.version());
    info.upstream_local = facts.local;
    info.upstream_principal.clone_from(&facts.principal);
}

/// Notes a failed attempt in record, counts and outlier detection.
fn note_failure(
    forwarding: &Forwarding<'_>,
    exchange: &mut Exchange<'_>,
    host: &WorkerHost,
    failure: &Failure,
) {
    let cluster = forwarding.cluster;
    if failure.blames_host {
        let now = epoch_ms(Instant::now());
        let live = &cluster.entry.live;
        live.report(&host.live, HostResult::LocalFailure, now);
    }
    if let Some((limit, _)) = failure.limit {
        limit.count(&cluster.counts);
    }

    let info = &mut exchange.info;
    info.transport_failure.clone_from(&failure.transport);
}

/// What follows a failed attempt.
enum Next {
    /// Another attempt, which the policy does not ask for, without a pause.
    Resend,
    /// Another attempt, which has been granted.
    Retry,
    /// The client is answered.
    GiveUp(Verdict),
}

fn after_failure(
    forwarding: &Forwarding<'_>,
    retries: &mut Retries<'_>,
    head: &RequestHead,
    failure: &Failure,
) -> Next {
    let verdict = decide(forwarding, retries, |policy| {
        let kind = failure.kind;
        kind.is_some_and(|kind| policy.retries_failure(kind))
    });

    match verdict {
        Verdict::Granted => Next::Retry,
        Verdict::NotWanted
            if forwarding.is_replayable() && retries.may_resend(failure.resend, head.method()) =>
        {
            Next::Resend
        }
        verdict => Next::GiveUp(verdict),
    }
}

/// Waits as the policy says before the next attempt, and tells the upstream what is left of the
/// time. `Some`: the client left meanwhile.
async fn pause(
    forwarding: &Forwarding<'_>,
    exchange: &mut Exchange<'_>,
    head: &mut RequestHead,
    client: &mut Client<'_, '_, '_>,
    retries: &mut Retries<'_>,
) -> Result<Option<Ended>, Reply> {
    let Some(policy) = retries.policy() else {
        return Ok(None);
    };
    let clocks = forwarding.clocks;
    let pause = retries
        .take_asked_pause()
        .unwrap_or_else(|| policy.backoff(retries.done(), exchange.worker.random()));
    let limit = tokio::select! {
        biased;
        limit = clocks.sleep(pause) => limit,
        () = client.responder.left(client.body) => return Ok(Some(exchange.gone())),
    };

    if let Some(limit) = limit {
        limit.count(&forwarding.cluster.counts);
        let label = forwarding.plan.label();
        return Err(Failure::limit(limit, label, clocks).reply(false));
    }

    let suppress = forwarding.router.suppress_envoy_headers;
    let elapsed = clocks.elapsed();
    clocks.timeouts().tell(head, elapsed, suppress);

    Ok(None)
}
