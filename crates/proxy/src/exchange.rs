//! One request and its response, whichever protocols carry them: prepare, filter, route, forward or
//! answer, log.

pub mod state;

use std::rc::Rc;

use bytes::Bytes;
use meltemi_filters::head::{Known, RequestHead};
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::route::{Chosen, RequireTls, RouteContext, RouteDecision, RouteTable};

use self::state::{Ended, Exchange};
use crate::body::{BodyIn, Data};
use crate::counts::ActiveRequest;
use crate::downstream::{ChainView, Downstream};
use crate::grpc::{grpc_of_http, percent};
use crate::log_facts::LogFacts;
use crate::prepare;
use crate::report;
use crate::respond::{BodyFraming, Responder};
use crate::router;
use crate::steps::{self, Stop};
use crate::worker::Worker;

/// A request that has come.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// The worker.
    pub worker: &'a Rc<Worker>,
    /// The connection.
    pub conn: &'a Rc<Downstream>,
    /// What it runs under, to its end.
    pub view: Rc<ChainView>,
    /// Its head.
    pub head: &'a mut RequestHead,
    /// It asks for an upgrade.
    pub upgrade: bool,
    /// Its body.
    pub body: BodyIn<'a>,
    /// The way back.
    pub responder: Responder<'a>,
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
    } = incoming;

    let Some(http) = view.http.clone() else {
        return Ended::Broken;
    };
    let _active = view.counts.clone().map(ActiveRequest::of);
    let mut exchange = Exchange::new(worker, conn, &view, &http);
    exchange.info.protocol = Some(head.version);
    if head.is_grpc() && steps::counts_messages(&http.filters) {
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

    log(&exchange, head);

    ended
}

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
    let internal;
    match prepare::request(exchange.worker, exchange.http, exchange.conn, head) {
        Ok(client) => {
            exchange.remote = client.remote;
            exchange.info.remote = Some(client.remote);
            internal = client.internal;
        }
        Err(reply) => return answer(exchange, None, head, responder, *reply).await,
    }

    let table = exchange.view.routes.clone();
    if let Some(table) = &table {
        if !internal {
            for name in &table.settings.internal_only_headers {
                head.remove(name);
            }
        }
        if let Some(reply) = insists_on_tls(table, head, internal) {
            return answer(exchange, None, head, responder, reply).await;
        }
    }

    let decision = table.as_ref().and_then(|table| {
        let context = RouteContext {
            random: exchange.info.random,
            metadata: &exchange.info.state.metadata,
            conn: Some(&exchange.conn.info),
        };
        table.select(head, &context)
    });

    if let Some(decision) = &decision {
        exchange.info.route = Some(decision.route.name.clone());
        exchange.info.position = Some(decision.position);
        exchange.info.host = Some(decision.host.name.clone());
    }

    let named = match decision.as_ref().map(|decision| decision.chosen) {
        Some(Chosen::Forward(forward)) => match forward.cluster_name() {
            Some(name) => Some(name.clone()),
            None => forward.cluster(head).map(Into::into),
        },
        _ => None,
    };

    // Whoever answers from here on: this is where the request was going.
    exchange.info.cluster = named
        .clone()
        .filter(|name| exchange.worker.cluster(name).is_some());
    exchange.in_mesh = named
        .as_deref()
        .is_some_and(|name| exchange.worker.is_in_mesh(name));
    {
        let inputs = exchange.filter_inputs(decision.as_ref(), named.as_deref());
        let left = responder.left(&mut body);
        match steps::request(
            &exchange.http.filters,
            inputs,
            head,
            &mut exchange.info,
            left,
        )
        .await
        {
            Ok(()) => {}
            Err(Stop::Reply(reply)) => {
                return answer(exchange, decision.as_ref(), head, responder, *reply).await;
            }
            Err(Stop::Gone) => return exchange.gone(),
        }
    }

    let Some(decision) = decision else {
        let table = table
            .as_ref()
            .map_or_else(|| "(not yet there)".into(), |table| table.name.clone());
        let reply = LocalReply::new(404, "", "route_not_found", Cause::NoRoute(table))
            .flagged(ResponseFlag::NoRouteFound);
        return answer(exchange, None, head, responder, reply).await;
    };

    match decision.chosen {
        Chosen::Forward(forward) => {
            let Some(cluster) = named else {
                let cause = Cause::NoCluster("(header missing)".into());
                let reply = LocalReply::new(
                    forward.action.cluster_not_found_status,
                    "",
                    "cluster_not_found",
                    cause,
                )
                .flagged(ResponseFlag::NoClusterFound);
                return answer(exchange, Some(&decision), head, responder, reply).await;
            };

            let plan = router::plan::Plan {
                decision: &decision,
                forward,
                cluster_name: cluster,
                upgrade,
            };

            match router::forward(exchange, &plan, head, body, &mut responder).await {
                Ok(ended) => ended,
                Err(mut reply) => {
                    if forward.action.response_attempt_count
                        && reply
                            .flag
                            .is_some_and(|flag| flag != ResponseFlag::NoClusterFound)
                    {
                        let attempts = exchange.info.attempts.max(1).to_string();
                        reply
                            .headers
                            .push(("x-envoy-attempt-count".into(), attempts.into()));
                    }

                    answer(exchange, Some(&decision), head, responder, *reply).await
                }
            }
        }
        Chosen::Redirect(redirect) => {
            let location = redirect.location(head, &decision.route.matcher.path);
            let reply = LocalReply::new(
                redirect.status,
                "",
                "direct_response",
                Cause::Route(decision.label().clone()),
            )
            .header("location", location);
            answer(exchange, Some(&decision), head, responder, reply).await
        }
        Chosen::Direct(direct) => {
            let cause = Cause::Route(decision.label().clone());
            let reply =
                LocalReply::new(direct.status, direct.body.clone(), "direct_response", cause);
            answer(exchange, Some(&decision), head, responder, reply).await
        }
        Chosen::NonForwarding => {
            let cause = Cause::Route(decision.label().clone());
            let reply = LocalReply::new(404, "", "non_forwarding_action", cause);
            answer(exchange, Some(&decision), head, responder, reply).await
        }
    }
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
    reply: LocalReply,
) -> Ended {
    if head.fields().has(Known::Upgrade) || head.method() == "CONNECT" {
        // What the client has sent for the other protocol must not be read as a request (A6, A7).
        responder.close_after();
    }

    exchange.info.note(&reply);
    exchange.worker.causes.reply(&reply.cause, reply.flag);
    let mut body = reply.body.clone();
    exchange.response.clear();
    exchange.response.status = reply.status;
    if head.is_grpc() {
        // Errors of gRPC travel as status, not as body: a response of trailers only.
        exchange.response.status = 200;
        exchange
            .response
            .append("content-type", b"application/grpc");
        let status = reply
            .grpc_status
            .unwrap_or_else(|| grpc_of_http(reply.status));
        exchange
            .response
            .append("grpc-status", status.to_string().as_bytes());
        if !body.is_empty() {
            exchange
                .response
                .append("grpc-message", percent(&body).as_bytes());
        }

        body = Bytes::new();
    } else {
        if !body.is_empty() {
            exchange.response.append("content-type", b"text/plain");
        }
        if !matches!(reply.status, 204 | 304) {
            exchange
                .response
                .append("content-length", body.len().to_string().as_bytes());
        }
    }

    for (name, value) in &reply.headers {
        exchange.response.set(name, value);
    }
    if let Some(decision) = decision
        && matches!(decision.chosen, Chosen::Direct(_) | Chosen::Redirect(_))
    {
        router::headers::apply_response_headers(exchange, decision, head);
    }

    exchange.finish_head(decision, head, true);
    let framing = match head.method() == "HEAD" || matches!(reply.status, 204 | 304) {
        true => BodyFraming::Nothing,
        false if body.is_empty() => BodyFraming::Empty,
        false => BodyFraming::Body,
    };

    let sent = async {
        let mut out = responder.start(&mut exchange.response, framing)?;
        if framing == BodyFraming::Body {
            exchange.info.sent.set(body.len() as u64);
            out.last(Data::Owned(body)).await
        } else {
            out.finish(None).await
        }
    };

    // A client that reads nothing holds its stream no longer than one that says nothing (B7).
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

/// Answers what never became a request.
pub async fn reply_only(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    view: Rc<ChainView>,
    head: &mut RequestHead,
    responder: Responder<'_>,
    reply: LocalReply,
) {
    let Some(http) = view.http.clone() else {
        return;
    };
    let _active = view.counts.clone().map(ActiveRequest::of);
    let mut exchange = Exchange::new(worker, conn, &view, &http);
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

    if let Some(counts) = &exchange.view.counts {
        counts.codes.note(exchange.info.status);
    }
}
