//! A plain HTTP/1.1 server for one handler.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use meltemi_web::{Limits, WhenFull};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

pub(crate) use meltemi_web::Answer;

/// As many as the system gives: nobody but the mesh in front limits these services.
const LIMITS: Limits = Limits {
    connections: Semaphore::MAX_PERMITS,
    when_full: WhenFull::Wait,
    header_timeout: Duration::from_secs(30),
    head_bytes: 64 * 1024,
    connection_time: None,
    grace: Duration::ZERO,
};

/// Serves `handler` on every address until SIGTERM or SIGINT.
pub(crate) async fn serve<H, F>(port: u16, handler: H) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind(("0.0.0.0", port))
        .await
        .with_context(|| format!("cannot listen on port {port}"))?;
    println!("listening on port {port}");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };

    let handler = move |request, _peer| handler(request);
    meltemi_web::serve(listener, LIMITS, handler, stop).await;

    Ok(())
}

/// A response with a JSON body.
pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    with_type(status, "application/json", value.to_string())
}

/// A response with an HTML body.
pub(crate) fn html(status: StatusCode, text: String) -> Answer {
    with_type(status, "text/html; charset=utf-8", text)
}

/// A response in Prometheus text format.
pub(crate) fn metrics(text: String) -> Answer {
    with_type(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        text,
    )
}

/// A 404 response.
pub(crate) fn not_found() -> Answer {
    json(
        StatusCode::NOT_FOUND,
        &serde_json::json!({"error": "no such page"}),
    )
}

fn with_type(status: StatusCode, content_type: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    answer
}

/// The number after `/prefix/` in a path such as `/details/0`.
pub(crate) fn id_of(path: &str, prefix: &str) -> Option<u32> {
    path.strip_prefix(prefix)?.strip_prefix('/')?.parse().ok()
}
