//! The connection or stream that carries an attempt.

use std::borrow::Cow;
use std::rc::Rc;

use meltemi_filters::head::{HttpVersion, RequestHead};
use meltemi_filters::http::StreamState;
use meltemi_filters::{Cause, ResponseFlag};
use meltemi_proxy_config::cluster::UpstreamProtocol;
use meltemi_proxy_config::route::AttemptFailure;

use super::failure::{Failure, h2_failure};
use super::{Client, Forwarding, Unanswered};
use crate::exchange::state::Exchange;
use crate::peer_exchange;
use crate::router::retry::Resend;
use crate::tls::is_http2;
use crate::upstream::acquire::{ConnectRequest, NotAcquired};
use crate::upstream::carrier::{Carrier, NotOpened};
use crate::upstream::cluster::{WorkerCluster, WorkerHost};

/// A list of ALPN names.
type Alpn = [Box<str>];

/// Gets a connection or stream from the endpoint's pool, or a new one, unless a limit passes or the
/// client leaves first.
pub async fn obtain(
    forwarding: &Forwarding<'_>,
    exchange: &Exchange<'_>,
    head: &RequestHead,
    client: &mut Client<'_, '_, '_>,
    host: &Rc<WorkerHost>,
    bodyless: bool,
) -> Result<Carrier, Unanswered> {
    let (plan, cluster, clocks) = (forwarding.plan, forwarding.cluster, forwarding.clocks);
    let state = &exchange.info.state;
    let alpn = alpn(state, plan.upgrade, head.version, cluster, host);
    let authority = match &cluster.entry.cluster.http.auto_sni_header {
        None => None,
        Some(name) => head.get_str(name).filter(|host| !host.is_empty()),
    };

    let connect = ConnectRequest {
        cluster,
        host,
        alpn: alpn.as_deref(),
        server_name: state.filter_state.upstream_server_name(),
        http2_downstream: head.version == HttpVersion::Http2,
        authority: authority.unwrap_or(head.authority()),
        http1_only: plan.upgrade,
        high: forwarding.high_priority(),
        downstream: Some(exchange.conn),
    };

    let opened = tokio::select! {
        biased;
        opened = Carrier::open(exchange.worker, &connect, head, bodyless) => opened,
        limit = clocks.expired() => {
            let failure = Failure::limit(limit, plan.label(), clocks);
            return Err(Unanswered::Failed(failure));
        }
        () = client.responder.left(client.body) => return Err(Unanswered::Gone),
    };

    let failed = |error| Unanswered::Failed(not_opened(forwarding, host, &error));
    opened.map_err(failed)
}

/// The ALPN list in the place of the transport's own, if filters or an upgrade ask for another one.
fn alpn<'s>(
    state: &'s StreamState,
    upgrade: bool,
    version: HttpVersion,
    cluster: &WorkerCluster,
    host: &WorkerHost,
) -> Option<Cow<'s, Alpn>> {
    let named = state.filter_state.upstream_alpn();
    let named = named.map(|list| list.map(Into::into).collect::<Vec<Box<str>>>());
    let overrides = state.alpn.as_deref();

    if upgrade {
        // An upgrade needs HTTP/1.1, whatever carries the cluster's other requests.
        let listed = || {
            let list = overrides.map(|overrides| overrides.http11.to_vec());
            list.filter(|list| !list.is_empty())
        };
        let own = named.or_else(listed).or_else(|| own_alpn(host));
        if let Some(list) = own {
            return Some(Cow::Owned(without_http2(list)));
        }
    } else if let Some(list) = named {
        return Some(Cow::Owned(list));
    }

    use UpstreamProtocol::{Auto, Downstream, Http1, Http2};
    let overrides = overrides?;
    let http2 = version == HttpVersion::Http2;
    let list = match (cluster.entry.cluster.protocol, http2) {
        (Http2, _) | (Downstream | Auto, true) => &overrides.http2,
        (Http1, _) | (Downstream | Auto, false) if version == HttpVersion::Http10 => {
            &overrides.http10
        }
        _ => &overrides.http11,
    };

    (!list.is_empty()).then_some(Cow::Borrowed(list))
}

/// The transport's list, without the protocol whose preamble is for bytes rather than requests.
fn own_alpn(host: &WorkerHost) -> Option<Vec<Box<str>>> {
    let terms = host.transport.tls()?;
    let list = terms.common.alpn.iter();
    let list = list.filter(|name| ***name != *peer_exchange::ALPN);

    Some(list.cloned().collect())
}

/// The names that may be offered where HTTP/1.1 will be spoken. An empty list stays empty: without
/// an offer nothing is agreed on.
fn without_http2(mut list: Vec<Box<str>>) -> Vec<Box<str>> {
    let had_any = !list.is_empty();
    list.retain(|name| !is_http2(name.as_bytes()));
    if list.is_empty() && had_any {
        list.push("http/1.1".into());
    }

    list
}

fn not_opened(forwarding: &Forwarding<'_>, host: &WorkerHost, error: &NotOpened) -> Failure {
    let cluster = &forwarding.plan.cluster_name;
    match error {
        NotOpened::Acquire(error) => not_acquired(forwarding, host, error),
        NotOpened::Head(details) => cannot_cross(details),
        NotOpened::Stream(error) => h2_failure(cluster, host, error),
    }
}

fn not_acquired(forwarding: &Forwarding<'_>, host: &WorkerHost, error: &NotAcquired) -> Failure {
    let blames_host = error.blames_host();
    Failure {
        kind: blames_host.then_some(AttemptFailure::Connect),
        flag: Some(error.flag()),
        reason: error.reset_reason(),
        transport: error.transport(),
        cause: error.cause(&forwarding.plan.cluster_name, host),
        limit: None,
        resend: Resend::No,
        blames_host,
    }
}

/// The head cannot be written as HTTP/2.
fn cannot_cross(details: &'static str) -> Failure {
    Failure {
        kind: None,
        flag: Some(ResponseFlag::UpstreamProtocolError),
        reason: "protocol error",
        transport: details.to_owned(),
        cause: Cause::Protocol(details.into()),
        limit: None,
        resend: Resend::No,
        blames_host: false,
    }
}
