//! What the connection manager does to every request and response before and after filters, as
//! Envoy's `ConnectionManagerUtility` does.

use std::net::{IpAddr, SocketAddr};

use meltemi_filters::head::{Known, RequestHead, ResponseHead};
use meltemi_filters::{Cause, LocalReply};
use meltemi_proxy_config::http::{
    ForwardClientCert, HttpConnectionManager, ServerHeader, StripPort, Underscores,
};
use meltemi_proxy_config::normalize::PathOutcome;

use crate::downstream::Downstream;
use crate::uuid::uuid;
use crate::worker::Worker;

/// Fields by which the mesh steers its own proxies, beside those with a [`Known`] of their own: they
/// are removed from all requests from outside. Source: Envoy `mutateRequestHeaders`.
const FROM_INSIDE: [&str; 7] = [
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-ip-tags",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-alt-response",
];

/// Fields that the edge of the mesh removes as well.
const FROM_MESH: [&str; 2] = [
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
];

/// The client, after a look at `x-forwarded-for`.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// The client's address.
    pub remote: SocketAddr,
    /// The request comes from inside, so its `x-envoy-*` headers count.
    pub internal: bool,
}

/// Sanitises a request. An answer means that it goes no further.
pub fn request(
    worker: &Worker,
    http: &HttpConnectionManager,
    conn: &Downstream,
    head: &mut RequestHead,
) -> Result<Client, Box<LocalReply>> {
    let tls = conn.info.tls.is_some();
    underscores(http, head)?;
    host(http, conn, head);
    path(worker, http, head)?;
    let client = forwarded(http, conn, head);
    let edge = !client.internal && http.use_remote_address;
    if client.internal {
        head.fields_mut().set("x-envoy-internal", b"true");
    } else {
        let fields = head.fields_mut();
        // Most requests have no field of Envoy's, and cost one look at their names.
        fields.retain(|name, _| {
            let is_ours = name.starts_with("x-envoy-")
                && (FROM_INSIDE.contains(&name) || edge && FROM_MESH.contains(&name));
            !is_ours
        });
        if edge {
            fields.remove_known(Known::XEnvoyDecoratorOperation);
            fields.remove_known(Known::XEnvoyOriginalPath);
            fields.set(
                "x-envoy-external-address",
                client.remote.ip().to_string().as_bytes(),
            );
        }

        // Only the mesh itself may tune how we forward. Envoy: mutateRequestHeaders removes these
        // from external requests.
        for known in [
            Known::XEnvoyInternal,
            Known::XEnvoyRetriableStatusCodes,
            Known::XEnvoyRetryOn,
            Known::XEnvoyRetryGrpcOn,
            Known::XEnvoyMaxRetries,
            Known::XEnvoyUpstreamRqTimeoutMs,
            Known::XEnvoyUpstreamRqPerTryTimeoutMs,
            Known::XEnvoyExpectedRqTimeoutMs,
        ] {
            fields.remove_known(known);
        }
    }

    let scheme = if tls { "https" } else { "http" };
    let known = head.fields().known(Known::XForwardedProto);
    let trusted = known.is_some_and(|value| {
        value.eq_ignore_ascii_case(b"http") || value.eq_ignore_ascii_case(b"https")
    });
    if !trusted || (http.use_remote_address && http.xff_trusted_hops == 0) {
        head.fields_mut()
            .set("x-forwarded-proto", scheme.as_bytes());
        head.set_scheme(scheme);
    } else {
        let https = known.is_some_and(|value| value.eq_ignore_ascii_case(b"https"));
        head.set_scheme(if https { "https" } else { "http" });
    }

    if let Some(scheme) = &http.scheme_overwrite {
        head.set_scheme(scheme);
    }
    request_id(worker, http, head, edge);
    client_cert(http, conn, head);
    if !http.via.is_empty() {
        head.fields_mut()
            .append_joined("via", b", ", http.via.as_bytes());
    }

    Ok(client)
}

fn bad(details: &'static str) -> Box<LocalReply> {
    Box::new(LocalReply::new(
        400,
        "",
        details,
        Cause::Protocol(details.into()),
    ))
}

fn underscores(
    http: &HttpConnectionManager,
    head: &mut RequestHead,
) -> Result<(), Box<LocalReply>> {
    if http.underscores == Underscores::Allow || !head.iter().any(|(name, _)| name.contains('_')) {
        return Ok(());
    }
    if http.underscores == Underscores::Reject {
        return Err(bad("unexpected_underscore"));
    }
    head.fields_mut().retain(|name, _| !name.contains('_'));
    Ok(())
}

fn host(http: &HttpConnectionManager, conn: &Downstream, head: &mut RequestHead) {
    let host = head.authority();
    let mut kept = host;
    let port_at = host.rfind(':').filter(|at| !host[*at..].contains(']'));

    if let Some(at) = port_at {
        let strips = match http.strip_port {
            StripPort::Keep => false,
            StripPort::Any => true,
            StripPort::Matching => host[at + 1..].parse() == Ok(conn.info.local.port()),
        };
        if strips {
            kept = &host[..at];
        }
    }

    if http.strip_trailing_host_dot {
        if let Some(shorter) = kept.strip_suffix('.') {
            kept = shorter;
        } else if let Some((name, port)) = kept.split_once(".:") {
            let without = format!("{name}:{port}");
            head.set_authority(&without);
            return;
        }
    }

    if kept.len() != host.len() {
        let kept = kept.to_owned();
        head.set_authority(&kept);
    }
}

fn path(
    worker: &Worker,
    http: &HttpConnectionManager,
    head: &mut RequestHead,
) -> Result<(), Box<LocalReply>> {
    let mut scratch = worker.scratch.borrow_mut();
    let outcome = http.path.apply(head.path(), &mut scratch);
    match outcome {
        PathOutcome::Unchanged => Ok(()),
        PathOutcome::Changed => {
            let changed =
                std::str::from_utf8(&scratch).map_err(|_| bad("path_normalization_failed"))?;
            head.set_path(changed);
            Ok(())
        }
        PathOutcome::Redirect => {
            let location = scratch.clone();
            let cause = Cause::Protocol("path_normalization".into());
            Err(Box::new(
                LocalReply::new(307, "", "path_normalization_failed", cause)
                    .header("location", location),
            ))
        }
        PathOutcome::Reject(details) => Err(bad(details)),
    }
}

fn forwarded(http: &HttpConnectionManager, conn: &Downstream, head: &mut RequestHead) -> Client {
    let direct = conn.info.remote;

    // Nobody is, unless configuration says so: that a client comes from a private network proves
    // nothing.
    let internal = |ip: IpAddr| {
        http.internal_addresses
            .iter()
            .any(|range| range.contains(ip))
    };

    if http.use_remote_address {
        let hops = http.xff_trusted_hops as usize;
        let had = head.fields().has(Known::XForwardedFor);
        let remote = match hops {
            0 => direct.ip(),
            hops => nth_last(head, hops - 1).unwrap_or(direct.ip()),
        };

        let remote = SocketAddr::new(
            remote,
            if remote == direct.ip() {
                direct.port()
            } else {
                0
            },
        );

        let client = Client {
            remote,
            internal: !had && internal(direct.ip()),
        };

        if !http.skip_xff_append {
            let text = direct.ip().to_string();
            head.fields_mut()
                .append_joined("x-forwarded-for", b",", text.as_bytes());
        }

        return client;
    }

    let Some(last) = nth_last(head, http.xff_trusted_hops as usize) else {
        return Client {
            remote: direct,
            internal: false,
        };
    };

    let single = forwarded_for(head).count() == 1;

    Client {
        remote: SocketAddr::new(last, 0),
        internal: single && internal(last),
    }
}

/// The elements of `x-forwarded-for`, of all its lines.
fn forwarded_for(head: &RequestHead) -> impl Iterator<Item = &[u8]> {
    head.fields()
        .get_all("x-forwarded-for")
        .flat_map(|line| line.split(|byte| *byte == b','))
}

/// The n-th entry from the right, counted from 0; `None` if it is no address.
fn nth_last(head: &RequestHead, n: usize) -> Option<IpAddr> {
    if !head.fields().has(Known::XForwardedFor) {
        return None;
    }
    let at = forwarded_for(head).count().checked_sub(n)?.checked_sub(1)?;
    let text = std::str::from_utf8(forwarded_for(head).nth(at)?).ok()?;
    let ip: IpAddr = text.trim().parse().ok()?;
    Some(ip.to_canonical())
}

fn request_id(worker: &Worker, http: &HttpConnectionManager, head: &mut RequestHead, edge: bool) {
    if !http.generate_request_id {
        return;
    }
    if edge && !http.preserve_external_request_id {
        head.fields_mut().remove_known(Known::XRequestId);
    }
    if !head.fields().has(Known::XRequestId) {
        head.fields_mut()
            .append("x-request-id", &uuid(worker.random(), worker.random()));
    }
}

fn client_cert(http: &HttpConnectionManager, conn: &Downstream, head: &mut RequestHead) {
    let mutual = conn
        .info
        .tls
        .as_deref()
        .filter(|tls| tls.presented && tls.validated);

    let keep = match http.client_cert {
        ForwardClientCert::AlwaysForwardOnly => return,
        ForwardClientCert::Sanitize => false,
        ForwardClientCert::ForwardOnly => {
            if mutual.is_some() {
                return;
            }
            false
        }
        ForwardClientCert::AppendForward => mutual.is_some(),
        ForwardClientCert::SanitizeSet => false,
    };

    if !keep {
        head.fields_mut().remove_known(Known::XForwardedClientCert);
    }
    let sets = matches!(
        http.client_cert,
        ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet
    );

    let (Some(tls), true) = (mutual, sets) else {
        return;
    };
    let element = conn.xfcc(http.client_cert_parts, tls);
    head.fields_mut()
        .append_joined("x-forwarded-client-cert", b",", element.as_bytes());
}

/// Finishes a response.
pub fn response(
    worker: &Worker,
    http: &HttpConnectionManager,
    request: &RequestHead,
    head: &mut ResponseHead,
) {
    let fields = head.fields_mut();
    match http.server_header {
        ServerHeader::Overwrite => fields.set("server", http.server_name.as_bytes()),
        ServerHeader::AppendIfAbsent if !fields.has(Known::Server) => {
            fields.append("server", http.server_name.as_bytes())
        }
        ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
    }

    if !fields.has(Known::Date) {
        worker.with_date(|date| fields.append("date", date));
    }
    if !http.via.is_empty() {
        fields.append_joined("via", b", ", http.via.as_bytes());
    }

    if http.request_id_in_response
        && let Some(id) = request.fields().known(Known::XRequestId)
    {
        head.fields_mut().set("x-request-id", id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_most_addresses_count() {
        let mut head = RequestHead::of("GET", "a", "/");
        head.append("x-forwarded-for", b"1.1.1.1, 2.2.2.2");
        head.append("x-forwarded-for", b"::ffff:3.3.3.3");
        assert_eq!(nth_last(&head, 0), Some([3, 3, 3, 3].into()));
        assert_eq!(nth_last(&head, 2), Some([1, 1, 1, 1].into()));
        assert_eq!(nth_last(&head, 3), None);
    }
}
