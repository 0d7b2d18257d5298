//! A plain HTTP/1.1 server: one handler, no middleware.

use std::convert::Infallible;
use std::future::Future;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// What handlers answer with.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Serves `handler` on every address until SIGTERM or SIGINT.
pub(crate) async fn serve<H, F>(port: u16, handler: H) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Answer> + 'static,
{
    let listener = TcpListener::bind(("0.0.0.0", port))
        .await
        .with_context(|| format!("cannot listen on port {port}"))?;
    println!("listening on port {port}");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let accepts = async {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors: others will close theirs.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };

            let _ = stream.set_nodelay(true);
            let handler = handler.clone();
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });

            tokio::task::spawn_local(async move {
                let mut builder = hyper::server::conn::http1::Builder::new();
                let _ = builder
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    };

    tokio::task::LocalSet::new()
        .run_until(async {
            tokio::select! {
                () = accepts => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;

    Ok(())
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    with_type(status, "application/json", value.to_string())
}

/// An HTML answer.
pub(crate) fn html(status: StatusCode, text: String) -> Answer {
    with_type(status, "text/html; charset=utf-8", text)
}

/// Metrics for Prometheus.
pub(crate) fn metrics(text: String) -> Answer {
    with_type(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        text,
    )
}

/// Nothing here.
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
