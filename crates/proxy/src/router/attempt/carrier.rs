//! How an attempt gets the connection or stream that carries it.

use std::rc::Rc;

use meltemi_filters::head::{HttpVersion, RequestHead};
use meltemi_filters::{Cause, ResponseFlag};
use meltemi_proxy_config::route::AttemptFailure;

use super::failure::{Failure, h2_failure};
use crate::body::BodyIn;
use crate::exchange::state::Exchange;
use crate::peer_exchange;
use crate::respond::Responder;
use crate::router::plan::{AttemptEnd, Plan};
use crate::router::timeout::Clocks;
use crate::tls::is_http2;
use crate::upstream::acquire::{ConnectRequest, NotAcquired};
use crate::upstream::carrier::{Carrier, NotOpened};
use crate::upstream::cluster::{WorkerCluster, WorkerHost};

/// Gets a connection or stream. `Err` is how the attempt ends without one.
#[allow(clippy::too_many_arguments)]
pub(crate) async fn obtain(
    exchange: &mut Exchange<'_>,
    plan: &Plan<'_>,
    head: &RequestHead,
    body: &mut BodyIn<'_>,
    bodyless: bool,
    responder: &mut Responder<'_>,
    cluster: &WorkerCluster,
    host: &Rc<WorkerHost>,
    clocks: &Clocks,
) -> Result<Carrier, AttemptEnd> {
    let http2 = head.version == HttpVersion::Http2;
    let mut from_state: Option<Vec<Box<str>>> = exchange
        .info
        .state
        .filter_state
        .upstream_alpn()
        .map(|list| list.map(Into::into).collect());

    let overrides = exchange.info.state.alpn.clone();
    if plan.upgrade {
        // What is spoken here is HTTP/1.1, whatever the cluster's requests are carried by
        // otherwise.
        let own = from_state.take().or_else(|| {
            let listed = overrides
                .as_deref()
                .map(|overrides| overrides.http11.to_vec());
            listed.filter(|list| !list.is_empty()).or_else(|| {
                let terms = host.transport.tls()?;

                // The preamble that this one promises is for bytes, not for requests.
                Some(
                    terms
                        .common
                        .alpn
                        .iter()
                        .filter(|name| ***name != *peer_exchange::ALPN)
                        .cloned()
                        .collect(),
                )
            })
        });

        from_state = own.map(without_http2);
    }

    let alpn: Option<&[Box<str>]> = match (&from_state, overrides.as_deref()) {
        (Some(list), _) => Some(list),
        (None, Some(overrides)) => {
            use meltemi_proxy_config::cluster::UpstreamProtocol::{Auto, Downstream, Http1, Http2};
            let list = match (cluster.entry.cluster.protocol, http2) {
                (Http2, _) | (Downstream | Auto, true) => &overrides.http2,
                (Http1, _) | (Downstream | Auto, false) if head.version == HttpVersion::Http10 => {
                    &overrides.http10
                }
                _ => &overrides.http11,
            };
            (!list.is_empty()).then_some(list)
        }
        (None, None) => None,
    };

    let server_name: Option<Box<str>> = exchange
        .info
        .state
        .filter_state
        .upstream_server_name()
        .map(Into::into);

    let connect = ConnectRequest {
        cluster,
        host,
        alpn,
        server_name: server_name.as_deref(),
        http2_downstream: http2,
        authority: match &cluster.entry.cluster.http.auto_sni_header {
            Some(name) => head
                .get_str(name)
                .filter(|host| !host.is_empty())
                .unwrap_or(head.authority()),
            None => head.authority(),
        },
        http1_only: plan.upgrade,
        high: plan.forward.action.high_priority,
        downstream: Some(exchange.conn),
    };

    let opened = tokio::select! {
        biased;
        opened = Carrier::open(exchange.worker, &connect, head, bodyless) => opened,
        limit = clocks.expired() => return Err(AttemptEnd::Failed(Failure::limit(limit, plan.label(), clocks))),
        () = responder.left(body) => return Err(AttemptEnd::Ended(exchange.gone())),
    };

    opened.map_err(|error| AttemptEnd::Failed(not_opened(plan, host, &error)))
}

/// What may be offered where HTTP/1.1 will be spoken. An empty list stays one: whoever offers
/// nothing agrees on nothing.
fn without_http2(mut list: Vec<Box<str>>) -> Vec<Box<str>> {
    let had_any = !list.is_empty();
    list.retain(|name| !is_http2(name.as_bytes()));
    if list.is_empty() && had_any {
        list.push("http/1.1".into());
    }
    list
}

fn not_opened(plan: &Plan<'_>, host: &WorkerHost, error: &NotOpened) -> Failure {
    match error {
        NotOpened::Acquire(error) => not_acquired(plan, host, error),
        NotOpened::Head(details) => cannot_cross(details),
        NotOpened::Stream(error) => h2_failure(&plan.cluster_name, host, error),
    }
}

fn not_acquired(plan: &Plan<'_>, host: &WorkerHost, error: &NotAcquired) -> Failure {
    let blames_host = error.blames_host();
    Failure {
        kind: blames_host.then_some(AttemptFailure::Connect),
        flag: error.flag(),
        reason: error.reset_reason(),
        transport: error.transport(),
        cause: error.cause(&plan.cluster_name, host),
        limit: None,
        stale: false,
        blames_host,
    }
}

fn cannot_cross(details: &'static str) -> Failure {
    Failure {
        kind: None,
        flag: ResponseFlag::UpstreamProtocolError,
        reason: "protocol error",
        transport: details.to_owned(),
        cause: Cause::Protocol(details.into()),
        limit: None,
        stale: false,
        blames_host: false,
    }
}
