//! The router: picks an endpoint, forwards, retries, and turns what goes wrong into an answer.

pub mod attempt;
pub mod attempts;
pub mod durations;
pub mod headers;
pub mod mirror;
pub mod plan;
pub mod retry;
pub mod timeout;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use meltemi_filters::head::{HttpVersion, Known, RequestHead};
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::route::{RetryPolicy, RouteAction};

use self::attempt::{Client, Forwarding};
use self::attempts::attempts;
use self::durations::Timeouts;
use self::headers::{remove_asking, rewrite};
use self::plan::Plan;
use self::retry::Retries;
use self::timeout::Clocks;
use crate::body::BodyIn;
use crate::body::tee::{DEFAULT_LIMIT, Lost, Tee};
use crate::exchange::state::{Ended, Exchange};
use crate::record::StreamInfo;
use crate::respond::Responder;
use crate::upstream::cluster::WorkerCluster;
use crate::upstream::live::Resource;

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
    let cluster = find_cluster(exchange, plan)?;
    check_upgrade(exchange, plan, head)?;

    let http = exchange.http;
    let router = &http.filters.router;
    let timeouts = Timeouts::of(exchange.http, action, head, &cluster, router);
    timeouts.tell(head, Duration::ZERO, router.suppress_envoy_headers);
    rewrite(exchange, plan, head, router.suppress_envoy_headers);
    // Envoy looks for these headers after the route has changed the request's.
    let policy = RetryPolicy::of_request(action.retry.as_deref(), head);
    remove_asking(head);
    let hash = hash(exchange, plan, head);

    let live = &cluster.entry.live;
    let Some(_place) = live.admit(action.high_priority, Resource::Requests) else {
        exchange.info.attempts += 1;
        let threshold = Resource::Requests.threshold();
        return Err(overflow(Cause::Breaker(
            plan.cluster_name.clone(),
            threshold,
        )));
    };

    let mirrors = mirror::chosen(exchange, plan, head);
    let has_body = !body.is_empty();
    let keeps = (policy.is_some() || !mirrors.is_empty()) && has_body;
    let tee = keeps.then(|| {
        let limit = copy_limit(exchange, action, head.version);
        RefCell::new(Tee::new(limit, exchange.worker.copy_budget.clone()))
    });
    let clocks = Clocks::new(timeouts, !has_body, exchange.info.start)
        .ending_with(exchange.conn, exchange.worker.common.drain_time);

    let forwarding = Forwarding {
        plan,
        cluster: &cluster,
        clocks: &clocks,
        router,
        tee: tee.as_ref(),
        stalls: &exchange.worker.stalls,
        hash,
        has_body,
    };
    let mut client = Client {
        body: &mut body,
        responder,
    };
    let mut retries = Retries::new(policy.as_deref());
    let result = attempts(&forwarding, exchange, head, &mut client, &mut retries).await;

    // Without an endpoint Envoy mirrors nothing either.
    let is_mirrored = !mirrors.is_empty() && exchange.info.upstream.is_some();
    if let (true, Some(tee)) = (is_mirrored, &tee) {
        read_on(&mut body, tee, &exchange.info).await;
    }

    body.settle();
    let copy = tee.map(RefCell::into_inner);
    let lost = copy.as_ref().and_then(Tee::lost);
    if lost.and_then(Lost::reason).is_some() {
        cluster.counts.copies_abandoned.inc();
    }
    if is_mirrored {
        let (worker, limit) = (exchange.worker, clocks.timeouts().total);
        mirror::fire(worker, exchange.conn, mirrors, copy, limit);
    }

    result
}

/// Copies the part of the body that is here already and that no upstream has taken, without waiting
/// for more: mirrors get a request although its own upstream could not be reached.
async fn read_on(body: &mut BodyIn<'_>, tee: &RefCell<Tee>, info: &StreamInfo) {
    let is_done = || tee.borrow().is_whole() || tee.borrow().lost().is_some();
    if is_done() {
        return;
    }

    let rest = async {
        while let Ok(Some(piece)) = body.next().await {
            info.received
                .set(info.received.get() + piece.as_slice().len() as u64);
            tee.borrow_mut().see(piece.as_slice());
            if is_done() {
                return;
            }
        }
        if body.is_empty()
            && let Ok(trailers) = body.trailers().await
        {
            tee.borrow_mut().end(trailers.as_ref());
        }
    };
    let mut rest = pin!(rest);
    poll_fn(|cx| {
        let _ = rest.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// How many bytes of a request's body are kept for another attempt or a mirror. As in Envoy the
/// listener's limit is for HTTP/1.1 alone, and 0 stands for none there.
fn copy_limit(exchange: &Exchange<'_>, action: &RouteAction, version: HttpVersion) -> u64 {
    let of_listener = match version {
        HttpVersion::Http10 | HttpVersion::Http11 => exchange.view.listener.buffer_limit,
        HttpVersion::Http2 | HttpVersion::Http3 => None,
    };
    let of_listener = of_listener.map(|limit| match limit {
        0 => u64::MAX,
        limit => u64::from(limit),
    });

    action.copy_limit.or(of_listener).unwrap_or(DEFAULT_LIMIT)
}

/// The cluster, unless it is unknown or drops the request.
fn find_cluster(exchange: &mut Exchange<'_>, plan: &Plan<'_>) -> Result<Rc<WorkerCluster>, Reply> {
    let name = &plan.cluster_name;
    let Some(cluster) = exchange.worker.cluster(name) else {
        return Err(reply(
            plan.forward.action.cluster_not_found_status,
            "",
            "cluster_not_found",
            Cause::NoCluster(name.clone()),
            ResponseFlag::NoClusterFound,
        ));
    };

    exchange.info.counts = Some(cluster.counts.clone());
    let random = exchange.worker.random();
    if cluster.entry.endpoints.drops(random).is_some() {
        return Err(reply(
            503,
            "drop overload",
            "drop_overload",
            Cause::Drop(name.clone()),
            ResponseFlag::DropOverload,
        ));
    }

    Ok(cluster)
}

/// Refuses CONNECT, which nothing here turns into a tunnel, and upgrades that the route does not
/// allow.
fn check_upgrade(
    exchange: &Exchange<'_>,
    plan: &Plan<'_>,
    head: &RequestHead,
) -> Result<(), Reply> {
    let is_allowed = match plan.upgrade {
        _ if head.method() == "CONNECT" => false,
        false => true,
        true => {
            let protocol = head.fields().known_str(Known::Upgrade).unwrap_or_default();
            let upgrades = &plan.forward.action.upgrades;
            upgrades.allow(protocol, &exchange.http.upgrades)
        }
    };

    if is_allowed {
        return Ok(());
    }
    let cause = Cause::Upgrade(plan.label().clone());
    Err(Box::new(LocalReply::new(403, "", "upgrade_failed", cause)))
}

/// What consistent hashing goes by. Call this after the request's headers have been rewritten: the
/// request as it is forwarded binds the client.
fn hash(exchange: &mut Exchange<'_>, plan: &Plan<'_>, head: &RequestHead) -> Option<u64> {
    let policy = &plan.forward.action.hash;
    if policy.is_empty() {
        return None;
    }

    let conn = &exchange.conn.info;
    let outcome = policy.hash(head, exchange.remote.ip(), (conn.remote, conn.local));
    let cookie = outcome.set_cookie;
    exchange.info.set_cookie = cookie.map(|(cookie, value)| cookie.header_value(&value));

    outcome.hash
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
