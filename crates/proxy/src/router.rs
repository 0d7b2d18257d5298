//! The router: picks an endpoint, forwards, retries, and turns what goes wrong into an answer.

pub mod attempt;
pub mod durations;
pub mod mirror;
pub mod timeout;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use meltemi_filters::head::{Known, RequestHead};
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::route::{Forward, RetryPolicy, RouteDecision};

use crate::body::{BodyIn, Tee};
use crate::exchange::run::{Ended, Run};
use crate::log_facts::{LogFacts, NO_LOG_TYPE};
use crate::respond::Responder;
use crate::steps;
use crate::upstream::cluster::{Wish, WorkerCluster, WorkerHost};
use crate::upstream::live::{Resource, epoch_ms};
use crate::upstream::outlier::HostResult;
use attempt::{AttemptEnd, Failure, carrier};
use durations::Timeouts;
use timeout::Clocks;

/// How much of a request body is kept for another attempt or a mirror; `docs/configuration.md` says
/// so of mirrors.
const REPLAY_BYTES: usize = 64 * 1024;

/// What was decided for a request.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The route.
    pub decision: &'a RouteDecision<'a>,
    /// What it does.
    pub forward: Forward<'a>,
    /// The cluster.
    pub cluster_name: Arc<str>,
    /// The client asks for an upgrade.
    pub upgrade: bool,
}

/// Retries that are left, and what they cost.
pub(crate) struct Retries<'a> {
    policy: Option<&'a RetryPolicy>,
    left: u32,
    done: u32,
    permit: Option<crate::upstream::live::Permit>,
    tried: Vec<SocketAddr>,
    failed_priorities: Vec<u32>,
    /// Another attempt was wanted and there was none left.
    exhausted: bool,
    /// A pooled connection turned out to be dead once already.
    stale: bool,
    /// The request came with a body, whether or not that has been read since.
    has_body: bool,
}

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
    run: &mut Run<'_>,
    plan: &Plan<'_>,
    head: &mut RequestHead,
    mut body: BodyIn<'_>,
    responder: &mut Responder<'_>,
) -> Result<Ended, Reply> {
    let action = plan.forward.action;
    let name = &plan.cluster_name;
    let Some(cluster) = run.worker.cluster(name) else {
        let cause = Cause::NoCluster(name.clone());
        return Err(reply(
            action.cluster_not_found_status,
            "",
            "cluster_not_found",
            cause,
            ResponseFlag::NoClusterFound,
        ));
    };

    run.info.counts = Some(cluster.counts.clone());
    if cluster.entry.endpoints.drops(run.worker.random()).is_some() {
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
        if !action.allows_upgrade(protocol, run.http) {
            let cause = Cause::Upgrade(plan.decision.label().clone());
            return Err(Box::new(LocalReply::new(403, "", "upgrade_failed", cause)));
        }
    }

    let router = steps::router(&run.http.filters)
        .cloned()
        .unwrap_or_default();
    let policy = action.retry.as_deref().filter(|policy| policy.admits(head));
    let timeouts = Timeouts::of(run, plan, head, &cluster, &router);
    timeouts.tell(head, Duration::ZERO, router.suppress_envoy_headers);
    rewrite(run, plan, head, router.suppress_envoy_headers);

    // What binds a client is its request as it is forwarded.
    let hash = if action.hash.is_empty() {
        None
    } else {
        let ends = (run.conn.info.remote, run.conn.info.local);
        let outcome = action.hash.hash(head, run.remote.ip(), ends);
        run.info.set_cookie = outcome
            .set_cookie
            .map(|(cookie, value)| cookie.header_value(&value));
        outcome.hash
    };

    let live = &cluster.entry.live;
    let Some(_place) = live.admit(action.high_priority, Resource::Requests) else {
        let cause = Cause::Breaker(name.clone(), Resource::Requests.threshold());
        return Err(overflow(cause));
    };

    let mirrors = mirror::chosen(action, run.worker.random(), head);
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
    let clocks = Clocks::new(timeouts, !has_body, run.info.start)
        .ending_with(run.conn, run.worker.common.drain_time);
    let result = attempts(
        run,
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
            run.worker,
            run.conn,
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
    run: &mut Run<'_>,
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
        let picked = cluster.pick(&Wish {
            random: run.worker.random(),
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
            original: Some(run.conn.info.local),
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

        run.info.attempts += 1;
        run.info.upstream = Some(host.address);
        if action.request_attempt_count {
            head.fields_mut().set(
                "x-envoy-attempt-count",
                run.info.attempts.to_string().as_bytes(),
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
            run, plan, head, body, tee, responder, cluster, &host, retries, clocks, router,
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
            run.info.transport_failure.clone_from(&failure.transport);
            let replayable = tee.map_or(!retries.has_body, |tee| !tee.borrow().lost);

            // RFC 9112 §9.3.1: an idempotent request may be sent again by itself if a connection
            // that had been used before turns out to be closed.
            if failure.stale && !retries.stale && replayable && is_idempotent(head.method()) {
                retries.stale = true;
                run.info.attempts -= 1;
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
                    run.info
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
            let pause = policy.backoff(retries.done, run.worker.random());
            let limit = tokio::select! {
                biased;
                limit = clocks.sleep(pause) => limit,
                () = responder.left(body) => return Ok(run.gone()),
            };

            if let Some(limit) = limit {
                limit.count(&cluster.counts);
                return Err(Failure::limit(limit, plan, clocks).reply(0));
            }

            clocks
                .timeouts()
                .tell(head, clocks.elapsed(), router.suppress_envoy_headers);
        }
    }
}

/// Whether another attempt may be made; takes it from what is left.
pub(crate) fn may_retry(
    retries: &mut Retries<'_>,
    cluster: &WorkerCluster,
    high: bool,
    wants: impl FnOnce(&RetryPolicy) -> bool,
) -> bool {
    let Some(policy) = retries.policy else {
        return false;
    };
    if !wants(policy) {
        return false;
    }
    if retries.left == 0 {
        retries.exhausted = true;
        cluster.counts.retry_limit_exceeded.inc();
        return false;
    }

    // The place of the retry before is given back first.
    retries.permit = None;
    let live = &cluster.entry.live;
    let budget = cluster.entry.cluster.breakers[usize::from(high)].retry_budget;
    let permit = match budget {
        Some(budget) => {
            let active =
                u64::from(live.in_use(Resource::Requests) + live.in_use(Resource::Pending));
            let free = u64::from(live.in_use(Resource::Retries)) < budget.allowed(active);
            if free {
                Some(live.admit_over(high, Resource::Retries))
            } else {
                live.refuse(Resource::Retries)
            }
        }
        None => live.admit(high, Resource::Retries),
    };

    let Some(permit) = permit else { return false };
    retries.permit = Some(permit);
    retries.left -= 1;
    cluster.counts.retries.inc();

    true
}

#[allow(clippy::too_many_arguments)]
async fn one(
    run: &mut Run<'_>,
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
    let carrier =
        match carrier::obtain(run, plan, head, body, tee, responder, cluster, host, clocks).await {
            Ok(carrier) => carrier,
            Err(end) => return end,
        };

    cluster.entry.live.totals.requests.fetch_add(1, Relaxed);
    let _active = host.live.begin();
    let facts = carrier.facts();
    run.info.workload = run.worker.series.workload(host);
    run.info.upstream_protocol = Some(carrier.version());
    run.info.upstream_local = facts.local;
    run.info.upstream_principal.clone_from(&facts.principal);

    attempt::run(
        run, plan, head, body, tee, responder, cluster, host, carrier, retries, clocks, router,
    )
    .await
}

fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "TRACE"
    )
}

/// Request headers, path: once, before the first attempt.
fn rewrite(run: &Run<'_>, plan: &Plan<'_>, head: &mut RequestHead, suppress: bool) {
    let decision = plan.decision;
    let mut original = None;
    for ops in decision.request_headers() {
        // Templates may name fields that the operations before have changed.
        let before = head.clone();
        let facts = LogFacts {
            request: Some(&before),
            ..header_facts(run)
        };
        ops.apply(head, &facts);
    }

    {
        let mut scratch = run.worker.scratch.borrow_mut();
        scratch.clear();
        if decision.route.rewrite_path(head, &mut scratch)
            && let Ok(path) = std::str::from_utf8(&scratch)
        {
            original = Some(head.path().to_owned());
            head.set_path(path);
        }
    }

    if let (Some(original), false) = (original, suppress) {
        head.fields_mut()
            .set("x-envoy-original-path", original.as_bytes());
    }
}

fn rewrite_host(plan: &Plan<'_>, head: &mut RequestHead, host: &WorkerHost, suppress: bool) {
    let action = plan.forward.action;
    if action.host_rewrite.is_none()
        && plan
            .forward
            .weighted
            .is_none_or(|weighted| weighted.host_rewrite.is_none())
    {
        return;
    }

    let endpoint = host.endpoint.as_ref().map(|endpoint| &*endpoint.hostname);
    let mut new = Vec::new();

    if action.rewrite_host(plan.forward.weighted, head, endpoint, &mut new)
        && let Ok(new) = std::str::from_utf8(&new)
        && new != head.authority()
    {
        let old = head.authority().to_owned();
        if !suppress {
            head.fields_mut()
                .set("x-envoy-original-host", old.as_bytes());
        }

        if action.append_x_forwarded_host {
            head.fields_mut()
                .append_joined("x-forwarded-host", b",", old.as_bytes());
        }

        head.set_authority(new);
    }
}

/// What templates of headers can ask for.
fn header_facts<'a>(run: &'a Run<'_>) -> LogFacts<'a> {
    LogFacts {
        worker: Some(run.worker),
        log_type: Some(NO_LOG_TYPE),
        ..LogFacts::new(&run.info, run.conn, run.view)
    }
}

/// Response headers of route, virtual host, table and weighted cluster.
pub fn apply_response_headers(
    run: &mut Run<'_>,
    decision: &RouteDecision<'_>,
    request: &RequestHead,
) {
    let mut all = decision.response_headers().peekable();
    if all.peek().is_none() {
        return;
    }
    run.info.status = run.response.status;
    let mut response = std::mem::take(&mut run.response);
    for ops in all {
        let before = response.clone();
        let facts = LogFacts {
            request: Some(request),
            response: Some(&before),
            ..header_facts(run)
        };
        ops.apply(&mut response, &facts);
    }

    run.response = response;
}
