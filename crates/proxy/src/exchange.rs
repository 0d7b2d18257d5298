//! One request and its response, whichever protocols carry them: prepare, filter, route, forward or
//! answer, log.

pub mod state;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use meltemi_filters::grpc::status_of_http;
use meltemi_filters::head::{Known, RequestHead, ResponseHead};
use meltemi_filters::http::Direction;
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::route::{
    Chosen, Forward, RequireTls, RouteContext, RouteDecision, RouteTable,
};

use self::state::{Ended, Exchange};
use crate::body::{BodyIn, Data};
use crate::counts::ActiveRequest;
use crate::decorate;
use crate::downstream::{ChainView, Downstream};
use crate::grpc::percent;
use crate::log_facts::LogFacts;
use crate::prepare;
use crate::report;
use crate::respond::{BodyFraming, Responder};
use crate::router;
use crate::router::plan::Plan;
use crate::steps::{self, Progress, Stop};
use crate::worker::Worker;

/// A request that has come.
#[derive(Debug)]
pub struct Incoming<'a> {
    pub worker: &'a Rc<Worker>,
    pub conn: &'a Rc<Downstream>,
    /// The configuration that the request keeps to its end.
    pub view: Rc<ChainView>,
    pub head: &'a mut RequestHead,
    /// It asks for an upgrade.
    pub upgrade: bool,
    pub body: BodyIn<'a>,
    /// The way back.
    pub responder: Responder<'a>,
    /// When the first byte of the head came, if the rest took time to follow.
    pub begun: Option<Instant>,
}

/// Serves one request to its end.
pub async fn serve(incoming: Incoming<'_>) -> Ended {
    let Incoming {
        worker,
        conn,
        view,
        head,
        upgrade,
        body,
        responder,
        begun,
    } = incoming;

    let (Some(http), Some(counts)) = (view.http.clone(), view.counts.clone()) else {
        return Ended::Broken;
    };
    let _active = ActiveRequest::of(counts.clone());
    let mut exchange = Exchange::new(worker, conn, &view, &http, &counts);
    if let Some(begun) = begun {
        exchange.info.begun_at(begun);
    }
    exchange.info.protocol = Some(head.version);
    exchange.is_head = head.method() == "HEAD";
    if http.filters.grpc_stats && head.is_grpc() {
        exchange.info.messages = Some(Rc::default());
    }
    let ended = tokio::select! {
        biased;
        ended = stages(&mut exchange, head, upgrade, body, responder) => ended,
        () = conn.overdue(worker.common.drain_time) => {
            exchange.info.end(ResponseFlag::LocalReset, "connection_drained", conn.drain_cause());
            Ended::Broken
        }
    };

    let (response, info) = (&exchange.response, &mut exchange.info);
    steps::done(&http.filters, &counts, head, response, info);
    log(&exchange, head);

    ended
}

/// Prepares, filters and routes the request, and forwards or answers it.
async fn stages(
    exchange: &mut Exchange<'_>,
    head: &mut RequestHead,
    upgrade: bool,
    mut body: BodyIn<'_>,
    mut responder: Responder<'_>,
) -> Ended {
    if body.is_empty() {
        exchange.info.request_end.set(Some(exchange.info.start));
    }
    let table = exchange.view.routes.clone();
    if let Err(reply) = sanitise(exchange, head, table.as_deref()) {
        return answer(exchange, None, head, responder, *reply).await;
    }

    let (mut decision, mut cluster) = route(exchange, head, table.as_deref());
    if exchange.http.passes_operations {
        let operation = decision
            .as_ref()
            .and_then(|decision| decision.route.operation.as_ref());
        let direction = exchange.view.listener.direction;
        exchange.operation = decorate::request(direction, operation, head.fields_mut());
    }
    let mut place = 0;
    loop {
        let inputs = exchange.filter_inputs(decision.as_ref(), cluster.as_deref());
        let info = &mut exchange.info;
        match steps::request(inputs, place, head, &mut body, &mut responder, info).await {
            Ok(Progress::Through) => break,
            Ok(Progress::Reroute(next)) => {
                place = next;
                (decision, cluster) = route(exchange, head, table.as_deref());
            }
            Err(Stop::Reply(reply)) => {
                return answer(exchange, decision.as_ref(), head, responder, *reply).await;
            }
            Err(Stop::Gone) => return exchange.gone(),
        }
    }

    if !upgrade {
        let inputs = exchange.filter_inputs(decision.as_ref(), cluster.as_deref());
        steps::data::filtered(Direction::Request, inputs, &mut body, &mut exchange.info);
    }

    let Some(decision) = decision else {
        let reply = no_route(table.as_deref());
        return answer(exchange, None, head, responder, reply).await;
    };
    let reply = match decision.chosen {
        Chosen::Forward(forward) => {
            let Some(cluster_name) = cluster else {
                let reply = no_cluster_header(forward);
                return answer(exchange, Some(&decision), head, responder, reply).await;
            };
            let plan = Plan {
                decision: &decision,
                forward,
                cluster_name,
                upgrade,
            };

            match router::forward(exchange, &plan, head, body, &mut responder).await {
                Ok(ended) => return ended,
                Err(reply) => with_attempts(*reply, exchange, forward),
            }
        }
        Chosen::Redirect(redirect) => {
            let location = redirect.location(head, &decision.route.matcher.path);
            of_route(&decision, redirect.status, "direct_response").header("location", location)
        }
        Chosen::Direct(direct) => LocalReply {
            body: direct.body.clone(),
            ..of_route(&decision, direct.status, "direct_response")
        },
        Chosen::NonForwarding => of_route(&decision, 404, "non_forwarding_action"),
    };

    answer(exchange, Some(&decision), head, responder, reply).await
}

/// Sanitises the request as the connection manager and the route table say. `Err` is the answer to
/// a request that goes no further.
fn sanitise(
    exchange: &mut Exchange<'_>,
    head: &mut RequestHead,
    table: Option<&RouteTable>,
) -> Result<(), Box<LocalReply>> {
    let client = prepare::request(exchange.worker, exchange.http, exchange.conn, head)?;
    exchange.remote = client.remote;
    exchange.info.remote = Some(client.remote);
    let Some(table) = table else { return Ok(()) };

    if !client.internal {
        for name in &table.settings.internal_only_headers {
            head.remove(name);
        }
    }

    match insists_on_tls(table, head, client.internal) {
        Some(reply) => Err(Box::new(reply)),
        None => Ok(()),
    }
}

/// The route of the request and its cluster, both noted in the record.
fn route<'t>(
    exchange: &mut Exchange<'_>,
    head: &RequestHead,
    table: Option<&'t RouteTable>,
) -> (Option<RouteDecision<'t>>, Option<Arc<str>>) {
    let decision = table.and_then(|table| select_route(exchange, head, table));
    let cluster = note_destination(exchange, head, decision.as_ref());
    (decision, cluster)
}

/// The route of the request, noted in the record.
fn select_route<'t>(
    exchange: &mut Exchange<'_>,
    head: &RequestHead,
    table: &'t RouteTable,
) -> Option<RouteDecision<'t>> {
    let context = RouteContext {
        random: exchange.info.random,
        metadata: &exchange.info.state.metadata,
        conn: Some(&exchange.conn.info),
    };
    let decision = table.select(head, &context)?;

    exchange.info.route = Some(decision.route.name.clone());
    exchange.info.position = Some(decision.position);
    exchange.info.host = Some(decision.host.name.clone());

    Some(decision)
}

/// The name of the cluster that the request goes to, noted in the record for whichever stage
/// answers it from here on.
fn note_destination(
    exchange: &mut Exchange<'_>,
    head: &RequestHead,
    decision: Option<&RouteDecision<'_>>,
) -> Option<Arc<str>> {
    let cluster: Option<Arc<str>> = match decision.map(|decision| decision.chosen) {
        Some(Chosen::Forward(forward)) => match forward.cluster_name() {
            Some(name) => Some(name.clone()),
            None => forward.cluster(head).map(Into::into),
        },
        _ => None,
    };

    let is_known = |name: &Arc<str>| exchange.worker.cluster(name).is_some();
    let in_mesh = |name: &str| exchange.worker.is_in_mesh(name);
    let known = cluster.clone().filter(is_known);
    exchange.in_mesh = cluster.as_deref().is_some_and(in_mesh);
    exchange.info.cluster = known;

    cluster
}

/// The answer where no route matches.
fn no_route(table: Option<&RouteTable>) -> LocalReply {
    let table = table.map_or_else(|| "(not yet there)".into(), |table| table.name.clone());
    let reply = LocalReply::new(404, "", "route_not_found", Cause::NoRoute(table));
    reply.flagged(ResponseFlag::NoRouteFound)
}

/// The answer where the header that names the cluster is missing.
fn no_cluster_header(forward: Forward<'_>) -> LocalReply {
    let status = forward.action.cluster_not_found_status;
    let cause = Cause::NoCluster("(header missing)".into());
    let reply = LocalReply::new(status, "", "cluster_not_found", cause);
    reply.flagged(ResponseFlag::NoClusterFound)
}

/// The answer of a route itself, without a body.
fn of_route(decision: &RouteDecision<'_>, status: u16, details: &'static str) -> LocalReply {
    LocalReply::new(status, "", details, Cause::Route(decision.label().clone()))
}

/// Tells the number of attempts in an answer that stands in for an upstream's, where the route asks
/// for it.
fn with_attempts(
    mut reply: LocalReply,
    exchange: &Exchange<'_>,
    forward: Forward<'_>,
) -> LocalReply {
    let is_of_upstream = reply
        .flag
        .is_some_and(|flag| flag != ResponseFlag::NoClusterFound);
    if forward.action.response_attempt_count && is_of_upstream {
        let attempts = exchange.info.attempts.max(1).to_string();
        let header = ("x-envoy-attempt-count".into(), attempts.into());
        reply.headers.push(header);
    }

    reply
}

/// A virtual host that is only for HTTPS sends others there.
fn insists_on_tls(table: &RouteTable, head: &RequestHead, internal: bool) -> Option<LocalReply> {
    let host = table.host(head.authority())?;
    let insists = match host.requires_tls {
        RequireTls::No => false,
        RequireTls::External => !internal,
        RequireTls::All => true,
    };

    if !insists || head.scheme() == "https" {
        return None;
    }
    let location = format!("https://{}{}", head.authority(), head.path());

    Some(
        LocalReply::new(301, "", "direct_response", Cause::Route(host.name.clone()))
            .header("location", location),
    )
}

/// Sends a local reply.
async fn answer(
    exchange: &mut Exchange<'_>,
    decision: Option<&RouteDecision<'_>>,
    head: &RequestHead,
    mut responder: Responder<'_>,
    mut reply: LocalReply,
) -> Ended {
    if head.fields().has(Known::Upgrade) || head.method() == "CONNECT" {
        // RFC 9110 §7.8, §9.3.6: bytes that the client sent for the other protocol must not be read
        // as a request.
        responder.close_after();
    }

    let body = loop {
        exchange.info.note(&reply);
        exchange.worker.causes.reply(&reply.cause, reply.flag);
        let body = write_reply(exchange, decision, head, &reply);

        match exchange.finish_head(decision, head, None).await {
            Ok(()) => break body,
            // A filter answers in place of this answer; none does so twice.
            Err(other) => reply = *other,
        }
    };

    let framing = BodyFraming::of(exchange.is_head, exchange.response.status, body.is_empty());

    let sent = async {
        let mut out = responder.start(&mut exchange.response, framing)?;
        if framing == BodyFraming::Body {
            exchange.info.sent.set(body.len() as u64);
            out.last(Data::Owned(body)).await
        } else {
            out.finish(None).await
        }
    };

    // A client that does not read its response may hold the stream no longer than a silent one.
    // Envoy: HttpConnectionManager.stream_idle_timeout.
    let sent = match exchange.http.stream_idle_timeout {
        None => Ok(sent.await),
        Some(idle) => tokio::time::timeout(idle, sent).await,
    };

    match sent {
        Ok(Ok(())) => Ended::Whole,
        Ok(Err(_)) => {
            exchange
                .info
                .state
                .flags
                .insert(ResponseFlag::DownstreamConnectionTermination);
            Ended::Gone
        }
        Err(_) => {
            exchange
                .info
                .state
                .flags
                .insert(ResponseFlag::StreamIdleTimeout);
            Ended::Gone
        }
    }
}

/// Writes the head of a local reply, and returns its body. Source: Envoy
/// `Utility::prepareLocalReply`.
fn write_reply(
    exchange: &mut Exchange<'_>,
    decision: Option<&RouteDecision<'_>>,
    head: &RequestHead,
    reply: &LocalReply,
) -> Bytes {
    exchange.response.clear();
    exchange.response.status = reply.status;

    // A route changes the headers of every answer. As in Envoy, the answer of a route itself has its
    // own headers before that, an answer in the place of an upstream's sets them afterwards.
    let is_of_route =
        decision.is_some_and(|decision| !matches!(decision.chosen, Chosen::Forward(_)));
    if is_of_route {
        set_headers(reply, &mut exchange.response);
    }
    if let Some(decision) = decision {
        router::headers::apply_response_headers(exchange, decision, head);
    }
    if !is_of_route {
        set_headers(reply, &mut exchange.response);
    }

    let response = &mut exchange.response;
    match head.is_grpc() {
        true => write_grpc_status(reply, response),
        false => write_framing(reply, response),
    }
}

/// Sets a local reply's own headers. They replace those of the proxy, but several may have one
/// name.
fn set_headers(reply: &LocalReply, response: &mut ResponseHead) {
    for (name, _) in &reply.headers {
        response.remove(name);
    }
    for (name, value) in &reply.headers {
        response.append(name, value);
    }
}

/// The length and, unless it is set, the type of a local reply's body, which is returned.
fn write_framing(reply: &LocalReply, response: &mut ResponseHead) -> Bytes {
    let body = &reply.body;
    if body.is_empty() {
        response.remove("content-type");
    } else if !response.fields().has(Known::ContentType) {
        response.append("content-type", b"text/plain");
    }
    response.remove("content-length");
    if !matches!(reply.status, 204 | 304) {
        response.append("content-length", body.len().to_string().as_bytes());
    }
    body.clone()
}

/// Errors of gRPC travel as status, not as body: a response of trailers only.
fn write_grpc_status(reply: &LocalReply, response: &mut ResponseHead) -> Bytes {
    let status = reply.grpc_status;
    let status = status.unwrap_or_else(|| status_of_http(reply.status));
    response.status = 200;
    for name in [
        "content-type",
        "content-length",
        "grpc-status",
        "grpc-message",
    ] {
        response.remove(name);
    }

    response.append("content-type", b"application/grpc");
    response.append("grpc-status", status.to_string().as_bytes());
    if !reply.body.is_empty() {
        response.append("grpc-message", percent(&reply.body).as_bytes());
    }
    Bytes::new()
}

/// Answers what never became a request.
pub async fn reply_only(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    view: Rc<ChainView>,
    head: &mut RequestHead,
    responder: Responder<'_>,
    reply: LocalReply,
    begun: Option<Instant>,
) {
    let (Some(http), Some(counts)) = (view.http.clone(), view.counts.clone()) else {
        return;
    };
    let _active = ActiveRequest::of(counts.clone());
    let mut exchange = Exchange::new(worker, conn, &view, &http, &counts);
    if let Some(begun) = begun {
        exchange.info.begun_at(begun);
    }
    exchange.info.protocol = Some(head.version);
    answer(&mut exchange, None, head, responder, reply).await;
    log(&exchange, head);
}

/// Logs and counts a request that has ended.
fn log(exchange: &Exchange<'_>, request: &RequestHead) {
    let facts = LogFacts {
        request: Some(request),
        response: Some(&exchange.response),
        trailers: exchange.trailers.as_ref(),
        worker: Some(exchange.worker),
        ..LogFacts::new(&exchange.info, exchange.conn, exchange.view)
    };

    facts.write(exchange.worker, &exchange.http.access_logs);
    report::http(exchange, request);
    if let Some(counts) = &exchange.info.counts {
        counts.codes.note(exchange.info.status);
    }

    exchange.counts.codes.note(exchange.info.status);
}
