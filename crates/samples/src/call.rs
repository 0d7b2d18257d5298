//! Calls another service by name, with a deadline and the caller's trace headers.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{HeaderMap, Request, StatusCode};
use tokio::net::TcpStream;

use crate::metrics;

/// Request headers that a service forwards: trace context, and the user.
const FORWARDED_HEADERS: &[&str] = &[
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
/// Maximum size of an answer in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Host and port of a service: its name and 9080, unless the variables `<NAME>_HOSTNAME` and
/// `<NAME>_SERVICE_PORT` are set.
pub(crate) fn address_of(name: &str) -> (String, u16) {
    let upper = name.to_ascii_uppercase();
    let host = std::env::var(format!("{upper}_HOSTNAME")).unwrap_or_else(|_| name.to_owned());
    let port = std::env::var(format!("{upper}_SERVICE_PORT"))
        .ok()
        .and_then(|port| port.parse().ok());
    (host, port.unwrap_or(9080))
}

/// Sends a GET request and parses the JSON answer. Any status but 200 is an error with the status
/// and body.
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
    for name in FORWARDED_HEADERS {
        if let Some(value) = from.get(*name) {
            request = request.header(*name, value);
        }
    }

    let request = request.body(Full::default())?;
    let answer = meltemi_web::call(stream, request, MAX_ANSWER).await?;
    Ok((answer.status(), answer.into_body()))
}
