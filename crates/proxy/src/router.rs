//! The router: picks an endpoint, forwards, retries, and turns what goes wrong into an answer.

pub mod attempt;
pub mod durations;
pub mod headers;
pub mod mirror;
pub mod plan;
pub mod timeout;

use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use meltemi_filters::head::{Known, RequestHead};
use meltemi_filters::{Cause, LocalReply, ResponseFlag};

use crate::body::{BodyIn, Tee};
use crate::exchange::state::{Ended, Exchange};
use crate::respond::Responder;
use crate::steps;
use crate::upstream::carrier::is_idempotent;
use crate::upstream::cluster::{PickRequest, WorkerCluster, WorkerHost};
use crate::upstream::live::{Resource, epoch_ms};
use crate::upstream::outlier::HostResult;
use attempt::carrier;
use attempt::failure::Failure;
use attempt::send::is_bodyless;
use durations::Timeouts;
use headers::{rewrite, rewrite_host};
use plan::{AttemptEnd, Plan, Retries, may_retry};
use timeout::Clocks;

/// How much of a request body is kept for another attempt or a mirror; `docs/configuration.md` says
/// so of mirrors.
const REPLAY_BYTES: usize = 64 * 1024;

type Reply = Box<LocalReply>;

fn reply(
    status: u16,
    body: impl Into<bytes::Bytes>,
    details: impl Into<std::borrow::Cow<'static, str>>,
    cause: Cause,
    flag: ResponseFlag,
) -> Reply {
    Box::new(LocalReply::new(status, body, details, cause).flagged(flag))
}

/// Forwards a request. `Err` is the answer instead of an upstream's.
pub async fn forward(
    exchange: &mut Exchange<'_>,
    plan: &Plan<'_>,
    head: &mut RequestHead,
    mut body: BodyIn<'_>,
    responder: &mut Responder<'_>,
) -> Result<Ended, Reply> {
    let action = plan.forward.action;
    let name = &plan.cluster_name;
    let Some(cluster) = exchange.worker.cluster(name) else {
        let cause = Cause::NoCluster(name.clone());
        return Err(reply(
            action.cluster_not_found_status,
            "",
            "cluster_not_found",
            cause,
            ResponseFlag::NoClusterFound,
        ));
    };

    exchange.info.counts = Some(cluster.counts.clone());
    if cluster
        .entry
        .endpoints
        .drops(exchange.worker.random())
        .is_some()
    {
        let cause = Cause::Drop(name.clone());
        return Err(reply(
            503,
            "drop overload",
            "drop_overload",
            cause,
            ResponseFlag::DropOverload,
        ));
    }

    if head.method() == "CONNECT" {
        // Nothing here turns a request into a tunnel.
        let cause = Cause::Upgrade(plan.decision.label().clone());
        return Err(Box::new(LocalReply::new(403, "", "upgrade_failed", cause)));
    }

    if plan.upgrade {
        let protocol = head.fields().known_str(Known::Upgrade).unwrap_or_default();
        if !action.upgrades.allow(protocol, &exchange.http.upgrades) {
            let cause = Cause::Upgrade(plan.decision.label().clone());
            return Err(Box::new(LocalReply::new(403, "", "upgrade_failed", cause)));
        }
    }

    let router = steps::router(&exchange.http.filters)
        .cloned()
        .unwrap_or_default();
    let policy = action.retry.as_deref().filter(|policy| policy.admits(head));
    let timeouts = Timeouts::of(exchange.http, action, head, &cluster, &router);
    timeouts.tell(head, Duration::ZERO, router.suppress_envoy_headers);
    rewrite(exchange, plan, head, router.suppress_envoy_headers);

    // What binds a client is its request as it is forwarded.
    let hash = if action.hash.is_empty() {
        None
    } else {
        let ends = (exchange.conn.info.remote, exchange.conn.info.local);
        let outcome = action.hash.hash(head, exchange.remote.ip(), ends);
        exchange.info.set_cookie = outcome
            .set_cookie
            .map(|(cookie, value)| cookie.header_value(&value));
        outcome.hash
    };

    let live = &cluster.entry.live;
    let Some(_place) = live.admit(action.high_priority, Resource::Requests) else {
        let cause = Cause::Breaker(name.clone(), Resource::Requests.threshold());
        return Err(overflow(cause));
    };

    let mirrors = mirror::chosen(action, exchange.worker.random(), head);
    let has_body = !body.is_empty();
    let mut retries = Retries {
        left: policy.map_or(0, |policy| policy.num_retries),
        policy,
        done: 0,
        permit: None,
        tried: Vec::new(),
        failed_priorities: Vec::new(),
        exhausted: false,
        stale: false,
        has_body,
    };

    let keeps = (policy.is_some() || !mirrors.is_empty()) && has_body;
    let tee = keeps.then(|| RefCell::new(Tee::new(REPLAY_BYTES)));
    let clocks = Clocks::new(timeouts, !has_body, exchange.info.start)
        .ending_with(exchange.conn, exchange.worker.common.drain_time);
    let result = attempts(
        exchange,
        plan,
        head,
        &mut body,
        tee.as_ref(),
        responder,
        &cluster,
        hash,
        &mut retries,
        &clocks,
        &router,
    )
    .await;

    body.settle();
    if !mirrors.is_empty() {
        mirror::fire(
            exchange.worker,
            exchange.conn,
            &mirrors,
            head,
            tee.map(RefCell::into_inner),
        );
    }

    result
}

fn overflow(cause: Cause) -> Reply {
    let body = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
    let reply = LocalReply::new(
        503,
        body,
        "upstream_reset_before_response_started{overflow}",
        cause,
    );

    // Envoy tells a client that looks for it why.
    Box::new(
        reply
            .flagged(ResponseFlag::UpstreamOverflow)
            .header("x-envoy-overloaded", "true"),
    )
}

#[allow(clippy::too_many_arguments)]
async fn attempts(
    exchange: &mut Exchange<'_>,
    plan: &Plan<'_>,
    head: &mut RequestHead,
    body: &mut BodyIn<'_>,
    tee: Option<&RefCell<Tee>>,
    responder: &mut Responder<'_>,
    cluster: &WorkerCluster,
    hash: Option<u64>,
    retries: &mut Retries<'_>,
    clocks: &Clocks,
    router: &meltemi_filters::http::Router,
) -> Result<Ended, Reply> {
    let action = plan.forward.action;
    let name = &plan.cluster_name;
    let live = cluster.entry.live.clone();
    let subset = plan.forward.metadata_match();

    loop {
        let now = epoch_ms(Instant::now());
        let picked = cluster.pick(&PickRequest {
            random: exchange.worker.random(),
            hash,
            subset,
            tried: if retries
                .policy
                .is_some_and(|policy| policy.avoid_previous_hosts)
            {
                &retries.tried
            } else {
                &[]
            },
            attempts: retries
                .policy
                .map_or(1, |policy| policy.host_selection_attempts),
            failed_priorities: &retries.failed_priorities,
            original: Some(exchange.conn.info.local),
            now,
        });

        let Some((host, priority)) = picked else {
            let cause = Cause::NoEndpoint(name.clone());
            return Err(reply(
                503,
                "no healthy upstream",
                "no_healthy_upstream",
                cause,
                ResponseFlag::NoHealthyUpstream,
            ));
        };

        exchange.info.attempts += 1;
        exchange.info.upstream = Some(host.address);
        if action.request_attempt_count {
            head.fields_mut().set(
                "x-envoy-attempt-count",
                exchange.info.attempts.to_string().as_bytes(),
            );
        }

        rewrite_host(plan, head, &host, router.suppress_envoy_headers);
        clocks.begin_attempt(
            action
                .retry
                .as_ref()
                .and_then(|policy| policy.per_try_idle_timeout),
        );

        let end = one(
            exchange, plan, head, body, tee, responder, cluster, &host, retries, clocks, router,
        )
        .await;

        let failure = match end {
            AttemptEnd::Ended(ended) => return Ok(ended),
            AttemptEnd::Again => None,
            AttemptEnd::Failed(failure) => Some(failure),
        };

        if let Some(failure) = failure {
            if failure.blames_host {
                live.report(
                    &host.live,
                    HostResult::LocalFailure,
                    epoch_ms(Instant::now()),
                );
            }

            if let Some((limit, _)) = failure.limit {
                limit.count(&cluster.counts);
            }
            exchange
                .info
                .transport_failure
                .clone_from(&failure.transport);
            let replayable = tee.map_or(!retries.has_body, |tee| !tee.borrow().lost);

            // RFC 9112 §9.3.1: an idempotent request may be sent again by itself if a connection
            // that had been used before turns out to be closed.
            if failure.stale && !retries.stale && replayable && is_idempotent(head.method()) {
                retries.stale = true;
                exchange.info.attempts -= 1;
                continue;
            }

            if !(replayable
                && may_retry(retries, cluster, action.high_priority, |policy| {
                    failure
                        .kind
                        .is_some_and(|kind| policy.retries_failure(kind))
                }))
            {
                let exhausted = retries.exhausted && failure.kind.is_some();
                if exhausted {
                    exchange
                        .info
                        .state
                        .flags
                        .insert(ResponseFlag::UpstreamRetryLimitExceeded);
                }
                return Err(failure.reply(retries.done));
            }
        }

        retries.tried.push(host.address);
        retries.done += 1;
        if let Some(every) = retries.policy.and_then(|policy| policy.previous_priorities)
            && retries.done.is_multiple_of(every)
            && !retries.failed_priorities.contains(&priority)
        {
            retries.failed_priorities.push(priority);
        }

        if let Some(policy) = retries.policy {
            let pause = policy.backoff(retries.done, exchange.worker.random());
            let limit = tokio::select! {
                biased;
                limit = clocks.sleep(pause) => limit,
                () = responder.left(body) => return Ok(exchange.gone()),
            };

            if let Some(limit) = limit {
                limit.count(&cluster.counts);
                return Err(Failure::limit(limit, plan.label(), clocks).reply(0));
            }

            clocks
                .timeouts()
                .tell(head, clocks.elapsed(), router.suppress_envoy_headers);
        }
    }
}

#[allow(clippy::too_many_arguments)]
async fn one(
    exchange: &mut Exchange<'_>,
    plan: &Plan<'_>,
    head: &RequestHead,
    body: &mut BodyIn<'_>,
    tee: Option<&RefCell<Tee>>,
    responder: &mut Responder<'_>,
    cluster: &WorkerCluster,
    host: &std::rc::Rc<WorkerHost>,
    retries: &mut Retries<'_>,
    clocks: &Clocks,
    router: &meltemi_filters::http::Router,
) -> AttemptEnd {
    let bodyless = is_bodyless(body, tee);
    let carrier = match carrier::obtain(
        exchange, plan, head, body, bodyless, responder, cluster, host, clocks,
    )
    .await
    {
        Ok(carrier) => carrier,
        Err(end) => return end,
    };

    cluster.entry.live.totals.requests.fetch_add(1, Relaxed);
    let _active = host.live.begin();
    let facts = carrier.facts();
    exchange.info.workload = exchange.worker.series.workload(host);
    exchange.info.upstream_protocol = Some(carrier.version());
    exchange.info.upstream_local = facts.local;
    exchange
        .info
        .upstream_principal
        .clone_from(&facts.principal);

    attempt::run(
        exchange, plan, head, body, bodyless, tee, responder, cluster, host, carrier, retries,
        clocks, router,
    )
    .await
}
