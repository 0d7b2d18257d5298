//! Copies of requests to other clusters; their responses are discarded.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::head::RequestHead;
use meltemi_proxy_config::route::Mirror;

use super::headers::{header_facts, rewrite_host};
use super::plan::Plan;
use crate::body::tee::{KeptBody, Lost, Tee};
use crate::downstream::Downstream;
use crate::exchange::state::Exchange;
use crate::upstream::fetch::{FetchRequest, ResponseBody, fetch};
use crate::worker::Worker;

/// How long a mirrored request may take where the route has no timeout.
const LIMIT: Duration = Duration::from_secs(15);

/// The copy of a request for one mirror.
pub struct Shot {
    cluster: Arc<str>,
    head: RequestHead,
}

/// The copies for the mirrors that this request goes to, as the route sends it: a host that is
/// taken from the endpoint is known only once one is chosen, so mirrors see the request's own.
pub fn chosen(exchange: &Exchange<'_>, plan: &Plan<'_>, head: &RequestHead) -> Vec<Shot> {
    let mirrors = &plan.forward.action.mirrors;
    if mirrors.is_empty() {
        return Vec::new();
    }

    let mut copy = head.clone();
    let suppress = exchange.http.filters.router.suppress_envoy_headers;
    rewrite_host(plan, &mut copy, None, suppress);
    if plan.forward.action.request_attempt_count {
        copy.set("x-envoy-attempt-count", b"1");
    }
    // Nobody speaks the other protocol with a mirror.
    copy.remove("upgrade");

    let mut state = exchange.worker.random();
    let hit = |mirror: &&Mirror| mirror.fraction.hits(meltemi_lb::random::next(&mut state));
    let shot = |mirror: &Mirror| {
        let mut head = copy.clone();
        match (&mirror.host_rewrite, mirror.keep_host) {
            (Some(host), _) => head.set_authority(host),
            (None, true) => {}
            (None, false) => head.set_authority(&shadow(copy.authority())),
        }
        mirror
            .request_headers
            .apply(&mut head, &header_facts(exchange));

        Some(Shot {
            cluster: mirror.cluster.name(&copy)?.into(),
            head,
        })
    };

    mirrors.iter().filter(hit).filter_map(shot).collect()
}

/// Envoy appends `-shadow` to the host, before a port.
fn shadow(authority: &str) -> String {
    match authority
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
    {
        Some((host, port)) => format!("{host}-shadow:{port}"),
        None => format!("{authority}-shadow"),
    }
}

/// Sends the copies, if the whole body was kept. One that is too long for that is counted. As with
/// Envoy the route's timeout `limit` is theirs as well.
pub fn fire(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    shots: Vec<Shot>,
    tee: Option<Tee>,
    limit: Option<Duration>,
) {
    let kept = match tee.map(Tee::into_body) {
        None => KeptBody::default(),
        Some(Ok(kept)) => kept,
        Some(Err(lost)) => {
            if let Some(reason) = lost.and_then(Lost::reason) {
                shots.iter().for_each(|_| worker.causes.unmirrored(reason));
            }
            return;
        }
    };

    for shot in shots {
        let (worker, conn, kept) = (worker.clone(), conn.clone(), kept.clone());
        tokio::task::spawn_local(async move {
            // The whole of it moves here, with its share of the worker's budget.
            let kept = kept;
            let request = FetchRequest {
                head: shot.head,
                body: kept.bytes.clone(),
                trailers: kept.trailers.clone(),
                timeout: limit.unwrap_or(LIMIT),
                response_body: ResponseBody::Discard,
                downstream: Some(&conn),
            };
            // The response is discarded, so a failure only matters to an operator who debugs the
            // mirror.
            if let Err(error) = fetch(&worker, &shot.cluster, request).await {
                tracing::debug!(%error, "mirror failed");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadows_keep_their_port() {
        assert_eq!(shadow("a.b:80"), "a.b-shadow:80");
        assert_eq!(shadow("a.b"), "a.b-shadow");
    }
}
