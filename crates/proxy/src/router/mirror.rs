//! Copies of requests to other clusters; nobody waits for their answers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meltemi_filters::head::{HttpVersion, RequestHead, ResponseHead};
use meltemi_proxy_config::route::{Mirror, RouteAction};

use crate::body::Tee;
use crate::downstream::Downstream;
use crate::http1::body::BodyReader;
use crate::http1::client::read_head;
use crate::http1::codec::{self, Limits};
use crate::http2::heads;
use crate::upstream::acquire::{ConnectRequest, acquire};
use crate::upstream::cluster::PickRequest;
use crate::upstream::live::{Resource, epoch_ms};
use crate::upstream::pool::Acquired;
use crate::worker::Worker;

/// A mirrored request may take so long.
const LIMIT: Duration = Duration::from_secs(15);

/// A mirror that takes this request.
pub struct Shot {
    cluster: Arc<str>,
    host: Option<String>,
}

/// The mirrors that this request goes to.
pub fn chosen(action: &RouteAction, random: u64, head: &RequestHead) -> Vec<Shot> {
    if action.mirrors.is_empty() {
        return Vec::new();
    }
    let mut state = random;
    let hit = |mirror: &&Mirror| mirror.fraction.hits(meltemi_lb::random::next(&mut state));
    let shot = |mirror: &Mirror| {
        let host = match (&mirror.host_rewrite, mirror.keep_host) {
            (Some(host), _) => Some(host.to_string()),
            (None, true) => None,
            (None, false) => Some(shadow(head.authority())),
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
    let body = match tee {
        None => Bytes::new(),
        Some(tee) if tee.whole && !tee.lost => tee.bytes.into(),
        Some(tee) => {
            if tee.lost {
                shots
                    .iter()
                    .for_each(|_| worker.causes.unmirrored("body_too_long"));
            }
            return;
        }
    };

    for shot in shots {
        let mut head = head.clone();
        if let Some(host) = &shot.host {
            head.set_authority(host);
        }
        let (worker, conn, cluster, body) = (
            worker.clone(),
            conn.clone(),
            shot.cluster.clone(),
            body.clone(),
        );

        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(LIMIT, send(&worker, &conn, &cluster, &head, body)).await;
        });
    }
}

async fn send(
    worker: &Rc<Worker>,
    conn: &Downstream,
    name: &str,
    head: &RequestHead,
    body: Bytes,
) -> Option<()> {
    let cluster = worker.cluster(name)?;
    let _place = cluster.entry.live.admit(false, Resource::Requests)?;
    let pick = PickRequest {
        random: worker.random(),
        hash: None,
        subset: None,
        tried: &[],
        attempts: 1,
        failed_priorities: &[],
        original: None,
        now: epoch_ms(Instant::now()),
    };

    let (host, _) = cluster.pick(&pick)?;
    let request = ConnectRequest {
        cluster: &cluster,
        host: &host,
        alpn: None,
        server_name: None,
        http2_downstream: head.version == HttpVersion::Http2,
        authority: head.authority(),
        http1_only: false,
        high: false,
        conn,
    };

    let _active = host.live.begin();
    match acquire(worker, &request).await.ok()? {
        Acquired::H1(mut pooled, lane, _) => {
            let mut out = worker.buffers.take();
            head.write_h1(&mut out);
            if !body.is_empty() && !head.fields().contains("content-length") {
                out.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
            }
            codec::end_head(&mut out, false, false);
            let connection = &mut pooled.connection;
            connection.io.write_all([&out, &body, b""]).await.ok()?;
            worker.buffers.give(out);
            let mut response = ResponseHead::default();
            let limits = Limits::default();
            let read = read_head(
                &connection.io,
                &mut connection.input,
                head.method(),
                &limits,
                &mut response,
            );

            let terms = read.await.ok()?;
            let mut reader = BodyReader::new(terms.framing);
            loop {
                match reader
                    .ready(&connection.io, &mut connection.input)
                    .await
                    .ok()?
                {
                    0 => break,
                    n => reader.consume(&mut connection.input, n),
                }
            }

            if terms.keep_alive && connection.input.is_empty() {
                host.pool.give_h1(lane, *pooled, Instant::now());
            }
        }
        Acquired::H2(shared) => {
            let request = heads::request_to(head).ok()?;
            let (response, mut send, _active) = shared
                .connection
                .open(request, body.is_empty())
                .await
                .ok()?;

            if !body.is_empty() {
                send.send_data(body, true).ok()?;
            }
            let mut stream = response.await.ok()?.into_body();
            while let Some(piece) = stream.data().await {
                let n = piece.ok()?.len();
                stream.flow_control().release_capacity(n).ok()?;
            }
        }
    }

    Some(())
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
