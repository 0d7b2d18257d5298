//! Calling another service by name, with a deadline and the headers of the trace.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{HeaderMap, Request, StatusCode};
use tokio::net::TcpStream;

use crate::metrics;

/// What a service passes on, so that a mesh can tell which calls belong together, and who the user
/// is.
const PASSED_ON: &[&str] = &[
    "end-user",
    "user-agent",
    "authorization",
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];
const LARGEST_ANSWER: usize = 1 << 20;

/// Where a service is: its own name on port 9080, unless `<NAME>_HOSTNAME` and
/// `<NAME>_SERVICE_PORT` say otherwise.
pub(crate) fn address_of(name: &str) -> (String, u16) {
    let upper = name.to_ascii_uppercase();
    let host = std::env::var(format!("{upper}_HOSTNAME")).unwrap_or_else(|_| name.to_owned());
    let port = std::env::var(format!("{upper}_SERVICE_PORT"))
        .ok()
        .and_then(|port| port.parse().ok());
    (host, port.unwrap_or(9080))
}

/// GETs JSON from a service; anything but 200 is an error that says what came instead.
pub(crate) async fn get_json(
    service: &str,
    path: &str,
    from: &HeaderMap,
    deadline: Duration,
) -> anyhow::Result<serde_json::Value> {
    let answer = tokio::time::timeout(deadline, get(service, path, from)).await;
    let status = answer
        .as_ref()
        .ok()
        .and_then(|answer| answer.as_ref().ok())
        .map(|(status, _)| status.as_u16());

    metrics::count(service, status.unwrap_or_default());
    let (status, body) =
        answer.with_context(|| format!("{service} did not answer within {deadline:?}"))??;
    ensure!(
        status == StatusCode::OK,
        "{service} answered {status}: {}",
        String::from_utf8_lossy(&body)
    );

    Ok(serde_json::from_slice(&body)?)
}

async fn get(service: &str, path: &str, from: &HeaderMap) -> anyhow::Result<(StatusCode, Bytes)> {
    let (host, port) = address_of(service);
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .with_context(|| format!("cannot reach {host}:{port}"))?;
    stream.set_nodelay(true)?;
    let mut request = Request::get(path).header("host", format!("{host}:{port}"));
    for name in PASSED_ON {
        if let Some(value) = from.get(*name) {
            request = request.header(*name, value);
        }
    }

    let request = request.body(Full::default())?;
    let answer = meltemi_web::call(stream, request, LARGEST_ANSWER).await?;
    Ok((answer.status(), answer.into_body()))
}
