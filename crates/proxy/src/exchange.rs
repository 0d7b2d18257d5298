//! One request and its response, whichever protocols carry them: prepare, filter, route, forward or
//! answer, log.

pub mod run;

use std::rc::Rc;

use bytes::Bytes;
use meltemi_filters::head::{Known, RequestHead};
use meltemi_filters::{Cause, LocalReply, ResponseFlag};
use meltemi_proxy_config::route::{Chosen, RequireTls, RouteContext, RouteDecision, RouteTable};

use self::run::{Ended, Run};
use crate::body::{BodyIn, Data};
use crate::counts::ActiveRequest;
use crate::downstream::{ChainView, Downstream};
use crate::grpc::{grpc_of_http, percent};
use crate::log_facts::LogFacts;
use crate::prepare;
use crate::report;
use crate::respond::{Follows, Responder};
use crate::router;
use crate::steps::{self, Stop};
use crate::worker::Worker;

/// A request that has come.
#[derive(Debug)]
pub struct Exchange<'a> {
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
pub async fn serve(exchange: Exchange<'_>) -> Ended {
    let Exchange {
        worker,
        conn,
        view,
        head,
        upgrade,
        body,
        responder,
    } = exchange;

    let Some(http) = view.http.clone() else {
        return Ended::Broken;
    };
    let _active = view.counts.clone().map(ActiveRequest::of);
    let mut run = Run::new(worker, conn, &view, &http);
    run.info.protocol = Some(head.version);
    if head.is_grpc() && steps::counts_messages(&http.filters) {
        run.info.messages = Some(Rc::default());
    }
    let ended = tokio::select! {
        biased;
        ended = stages(&mut run, head, upgrade, body, responder) => ended,
        () = conn.overdue(worker.common.drain_time) => {
            run.info.end(ResponseFlag::LocalReset, "connection_drained", conn.drain_cause());
            Ended::Broken
        }
    };

    log(&run, head);

    ended
}

async fn stages(
    run: &mut Run<'_>,
    head: &mut RequestHead,
    upgrade: bool,
    mut body: BodyIn<'_>,
    mut responder: Responder<'_>,
) -> Ended {
    if body.is_empty() {
        run.info.request_end.set(Some(run.info.start));
    }
    let internal;
    match prepare::request(run.worker, run.http, run.conn, head) {
        Ok(client) => {
            run.remote = client.remote;
            run.info.remote = Some(client.remote);
            internal = client.internal;
        }
        Err(reply) => return answer(run, None, head, responder, *reply).await,
    }

    let table = run.view.routes.clone();
    if let Some(table) = &table {
        if !internal {
            for name in &table.settings.internal_only_headers {
                head.remove(name);
            }
        }
        if let Some(reply) = insists_on_tls(table, head, internal) {
            return answer(run, None, head, responder, reply).await;
        }
    }

    let decision = table.as_ref().and_then(|table| {
        let context = RouteContext {
            random: run.info.random,
            metadata: &run.info.state.metadata,
            conn: Some(&run.conn.info),
        };
        table.select(head, &context)
    });

    if let Some(decision) = &decision {
        run.info.route = Some(decision.route.name.clone());
        run.info.position = Some(decision.position);
        run.info.host = Some(decision.host.name.clone());
    }

    let named = match decision.as_ref().map(|decision| decision.chosen) {
        Some(Chosen::Forward(forward)) => match forward.cluster_name() {
            Some(name) => Some(name.clone()),
            None => forward.cluster(head).map(Into::into),
        },
        _ => None,
    };

    // Whoever answers from here on: this is where the request was going.
    run.info.cluster = named
        .clone()
        .filter(|name| run.worker.cluster(name).is_some());
    run.in_mesh = named
        .as_deref()
        .is_some_and(|name| run.worker.is_in_mesh(name));
    {
        let around = run.around(decision.as_ref(), named.as_deref());
        let left = responder.left(&mut body);
        match steps::request(&run.http.filters, around, head, &mut run.info, left).await {
            Ok(()) => {}
            Err(Stop::Reply(reply)) => {
                return answer(run, decision.as_ref(), head, responder, *reply).await;
            }
            Err(Stop::Gone) => return run.gone(),
        }
    }

    let Some(decision) = decision else {
        let table = table
            .as_ref()
            .map_or_else(|| "(not yet there)".into(), |table| table.name.clone());
        let reply = LocalReply::new(404, "", "route_not_found", Cause::NoRoute(table))
            .flagged(ResponseFlag::NoRouteFound);
        return answer(run, None, head, responder, reply).await;
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
                return answer(run, Some(&decision), head, responder, reply).await;
            };

            let plan = router::plan::Plan {
                decision: &decision,
                forward,
                cluster_name: cluster,
                upgrade,
            };

            match router::forward(run, &plan, head, body, &mut responder).await {
                Ok(ended) => ended,
                Err(mut reply) => {
                    if forward.action.response_attempt_count
                        && reply
                            .flag
                            .is_some_and(|flag| flag != ResponseFlag::NoClusterFound)
                    {
                        let attempts = run.info.attempts.max(1).to_string();
                        reply
                            .headers
                            .push(("x-envoy-attempt-count".into(), attempts.into()));
                    }

                    answer(run, Some(&decision), head, responder, *reply).await
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
            answer(run, Some(&decision), head, responder, reply).await
        }
        Chosen::Direct(direct) => {
            let cause = Cause::Route(decision.label().clone());
            let reply =
                LocalReply::new(direct.status, direct.body.clone(), "direct_response", cause);
            answer(run, Some(&decision), head, responder, reply).await
        }
        Chosen::NonForwarding => {
            let cause = Cause::Route(decision.label().clone());
            let reply = LocalReply::new(404, "", "non_forwarding_action", cause);
            answer(run, Some(&decision), head, responder, reply).await
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
    run: &mut Run<'_>,
    decision: Option<&RouteDecision<'_>>,
    head: &RequestHead,
    mut responder: Responder<'_>,
    reply: LocalReply,
) -> Ended {
    if head.fields().has(Known::Upgrade) || head.method() == "CONNECT" {
        // What the client has sent for the other protocol must not be read as a request (A6, A7).
        responder.close_after();
    }

    run.info.note(&reply);
    run.worker.causes.reply(&reply.cause, reply.flag);
    let mut body = reply.body.clone();
    run.response.clear();
    run.response.status = reply.status;
    if head.is_grpc() {
        // Errors of gRPC travel as status, not as body: a response of trailers only.
        run.response.status = 200;
        run.response.append("content-type", b"application/grpc");
        let status = reply
            .grpc_status
            .unwrap_or_else(|| grpc_of_http(reply.status));
        run.response
            .append("grpc-status", status.to_string().as_bytes());
        if !body.is_empty() {
            run.response
                .append("grpc-message", percent(&body).as_bytes());
        }

        body = Bytes::new();
    } else {
        if !body.is_empty() {
            run.response.append("content-type", b"text/plain");
        }
        if !matches!(reply.status, 204 | 304) {
            run.response
                .append("content-length", body.len().to_string().as_bytes());
        }
    }

    for (name, value) in &reply.headers {
        run.response.set(name, value);
    }
    if let Some(decision) = decision
        && matches!(decision.chosen, Chosen::Direct(_) | Chosen::Redirect(_))
    {
        router::headers::apply_response_headers(run, decision, head);
    }

    run.finish_head(decision, head, true);
    let follows = match head.method() == "HEAD" || matches!(reply.status, 204 | 304) {
        true => Follows::Nothing,
        false if body.is_empty() => Follows::Empty,
        false => Follows::Body,
    };

    let sent = async {
        let mut out = responder.start(&mut run.response, follows)?;
        if follows == Follows::Body {
            run.info.sent.set(body.len() as u64);
            out.last(Data::Owned(body)).await
        } else {
            out.finish(None).await
        }
    };

    // A client that reads nothing holds its stream no longer than one that says nothing (B7).
    let sent = match run.http.stream_idle_timeout {
        None => Ok(sent.await),
        Some(idle) => tokio::time::timeout(idle, sent).await,
    };

    match sent {
        Ok(Ok(())) => Ended::Whole,
        Ok(Err(_)) => {
            run.info
                .state
                .flags
                .insert(ResponseFlag::DownstreamConnectionTermination);
            Ended::Gone
        }
        Err(_) => {
            run.info.state.flags.insert(ResponseFlag::StreamIdleTimeout);
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
    let mut run = Run::new(worker, conn, &view, &http);
    run.info.protocol = Some(head.version);
    answer(&mut run, None, head, responder, reply).await;
    log(&run, head);
}

/// Logs and counts a request that has ended.
fn log(run: &Run<'_>, request: &RequestHead) {
    let facts = LogFacts {
        request: Some(request),
        response: Some(&run.response),
        trailers: run.trailers.as_ref(),
        worker: Some(run.worker),
        ..LogFacts::new(&run.info, run.conn, run.view)
    };

    facts.write(run.worker, &run.http.access_logs);
    report::http(run, request);
    if let Some(counts) = &run.info.counts {
        counts.codes.note(run.info.status);
    }

    if let Some(counts) = &run.view.counts {
        counts.codes.note(run.info.status);
    }
}
