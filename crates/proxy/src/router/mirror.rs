//! Copies of requests to other clusters; their responses are discarded.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meltemi_filters::head::RequestHead;
use meltemi_proxy_config::route::{Mirror, RouteAction, WeightedCluster};

use crate::body::tee::{Lost, Tee};
use crate::downstream::Downstream;
use crate::upstream::fetch::{FetchRequest, ResponseBody, fetch};
use crate::worker::Worker;

/// A mirrored request may take so long.
const LIMIT: Duration = Duration::from_secs(15);

/// A mirror that takes this request.
pub struct Shot {
    cluster: Arc<str>,
    host: Option<String>,
}

/// The mirrors that this request goes to. A mirror sees the host that the route sends, `weighted`
/// being the cluster that takes the request itself.
pub fn chosen(
    action: &RouteAction,
    weighted: Option<&WeightedCluster>,
    random: u64,
    head: &RequestHead,
) -> Vec<Shot> {
    if action.mirrors.is_empty() {
        return Vec::new();
    }

    // A host taken from the endpoint is known only once one is chosen; Envoy mirrors without it.
    let mut rewritten = Vec::new();
    let has_new = action.rewrite_host(weighted, head, None, &mut rewritten);
    let rewritten = has_new.then(|| String::from_utf8_lossy(&rewritten).into_owned());
    let sent = rewritten.as_deref().unwrap_or(head.authority());
    let mut state = random;
    let hit = |mirror: &&Mirror| mirror.fraction.hits(meltemi_lb::random::next(&mut state));
    let shot = |mirror: &Mirror| {
        let host = match (&mirror.host_rewrite, mirror.keep_host) {
            (Some(host), _) => Some(host.to_string()),
            (None, true) => rewritten.clone(),
            (None, false) => Some(shadow(sent)),
        };
        Some(Shot {
            cluster: mirror.cluster.name(head)?.into(),
            host,
        })
    };

    action.mirrors.iter().filter(hit).filter_map(shot).collect()
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

/// Sends the copies, if the whole body was kept. One that is too long for that is counted.
pub fn fire(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    shots: &[Shot],
    head: &RequestHead,
    tee: Option<Tee>,
) {
    let (body, charge) = match tee.map(Tee::into_body) {
        None => (Bytes::new(), None),
        Some(Ok((body, charge))) => (body, Some(Rc::new(charge))),
        Some(Err(lost)) => {
            if let Some(reason) = lost.and_then(Lost::reason) {
                shots.iter().for_each(|_| worker.causes.unmirrored(reason));
            }
            return;
        }
    };

    for shot in shots {
        let mut head = head.clone();
        // Nobody speaks the other protocol with a mirror.
        head.remove("upgrade");
        if let Some(host) = &shot.host {
            head.set_authority(host);
        }
        let (worker, conn, cluster, body) = (
            worker.clone(),
            conn.clone(),
            shot.cluster.clone(),
            body.clone(),
        );

        let charge = charge.clone();
        tokio::task::spawn_local(async move {
            // The body stays in the worker's budget until the last mirror has it.
            let _charge = charge;
            let request = FetchRequest {
                head,
                body,
                timeout: LIMIT,
                response_body: ResponseBody::Discard,
                downstream: Some(&conn),
            };
            // The response is discarded, so a failure only matters to an operator who debugs the
            // mirror.
            if let Err(error) = fetch(&worker, &cluster, request).await {
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
