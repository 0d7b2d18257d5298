//! The HTTP server behind both ports.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use meltemi_telemetry::prometheus;
use meltemi_web::{Limits, WhenFull};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::metrics::{AppMetrics, append, fetch};
use crate::dns::Names;
use crate::identity::IdentityView;
use crate::{AgentMetrics, BoxFuture};

/// Whether the workload may get traffic; the error says what is missing, for whoever reads the
/// probe's answer.
pub type Ready = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What the answers are made of.
#[derive(Clone)]
pub struct StatusSources {
    /// Asked for each probe.
    pub ready: Ready,
    /// The proxy's metrics as Prometheus text.
    pub proxy_metrics: Arc<dyn Fn() -> BoxFuture<'static, io::Result<String>> + Send + Sync>,
    /// The application's metrics.
    pub app_metrics: Option<AppMetrics>,
    /// Our own.
    pub metrics: AgentMetrics,
    /// For `/debug/ndsz`.
    pub names: Names,
    /// For `/certs`.
    pub identity: Option<IdentityView>,
    /// Woken by `POST /quitquitquit`.
    pub quit: Arc<Notify>,
    /// Woken by `POST /drain`.
    pub drain: Arc<Notify>,
}

/// How the server behaves.
#[derive(Debug, Clone, Copy)]
pub struct StatusOptions {
    /// A part of a merged scrape that takes longer is left out.
    pub scrape_timeout: Duration,
    /// A probe whose answer takes longer is told "not ready".
    pub probe_timeout: Duration,
    /// Requests must be complete by then.
    pub header_timeout: Duration,
    /// A connection is asked to end after this time, and ended [`Self::scrape_timeout`] later:
    /// whoever never reads would otherwise keep its place for ever.
    pub connection_time: Duration,
    /// What is answered at all.
    pub pages: Pages,
}

/// What a status port answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Everything: 15020.
    All,
    /// Probes alone: 15021, which Istio forwards to nothing but `/healthz/ready`.
    Probes,
}

impl Default for StatusOptions {
    fn default() -> Self {
        Self {
            scrape_timeout: Duration::from_secs(10),
            probe_timeout: Duration::from_secs(1),
            header_timeout: Duration::from_secs(10),
            connection_time: Duration::from_secs(60),
            pages: Pages::All,
        }
    }
}

/// A bound server.
pub struct StatusServer {
    listener: TcpListener,
    sources: StatusSources,
    options: StatusOptions,
}

impl StatusServer {
    /// Binds; port 0 lets the system choose.
    pub async fn bind(
        address: SocketAddr,
        sources: StatusSources,
        options: StatusOptions,
    ) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            sources,
            options,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped; its connections end with it.
    pub async fn run(self) {
        let Self {
            listener,
            sources,
            options,
        } = self;

        // Probes and scrapers are few.
        let limits = Limits {
            connections: 256,
            when_full: WhenFull::Close,
            header_timeout: options.header_timeout,
            head_bytes: 32 * 1024,
            connection_time: Some(options.connection_time),
            grace: options.scrape_timeout,
        };

        let handler = move |request, peer| answer(sources.clone(), options, peer, request);
        meltemi_web::serve(listener, limits, handler, std::future::pending()).await;
    }
}

type Reply = Response<Full<Bytes>>;

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    reply
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

async fn answer(
    sources: StatusSources,
    options: StatusOptions,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Reply {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match (request.uri().path(), get) {
        ("/healthz/ready", true) => match ready(&sources, options).await {
            Ok(()) => text(StatusCode::OK, ""),
            Err(missing) => text(StatusCode::SERVICE_UNAVAILABLE, missing + "\n"),
        },
        _ if options.pages == Pages::Probes => {
            text(StatusCode::NOT_FOUND, "probes only: /healthz/ready\n")
        }
        ("/metrics" | "/stats/prometheus", true) => scrape(&sources, options).await,
        ("/certs", true) => certificates(&sources),
        ("/debug/ndsz", true) => names(&sources),
        ("/quitquitquit", false) => command(&request, peer, &sources.quit),
        ("/drain", false) => command(&request, peer, &sources.drain),
        ("/quitquitquit" | "/drain", true) => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
        _ => text(
            StatusCode::NOT_FOUND,
            "no such page; there are /healthz/ready, /metrics, /certs, /debug/ndsz\n",
        ),
    }
}

async fn ready(sources: &StatusSources, options: StatusOptions) -> Result<(), String> {
    tokio::time::timeout(options.probe_timeout, (sources.ready)())
        .await
        .unwrap_or_else(|_| Err("the proxy does not answer".to_owned()))
}

/// Only the workload itself, or who is in its pod, may end it.
fn command(request: &Request<Incoming>, peer: SocketAddr, notify: &Notify) -> Reply {
    match (
        request.method() == Method::POST,
        peer.ip().to_canonical().is_loopback(),
    ) {
        (false, _) => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
        (true, false) => text(StatusCode::FORBIDDEN, "only from the workload itself\n"),
        (true, true) => {
            notify.notify_one();
            text(StatusCode::OK, "OK")
        }
    }
}

async fn scrape(sources: &StatusSources, options: StatusOptions) -> Reply {
    sources.metrics.scrapes.add_shared(1);
    let proxy = tokio::time::timeout(options.scrape_timeout, (sources.proxy_metrics)());
    let app = async {
        match &sources.app_metrics {
            Some(app) => Some(
                fetch(
                    SocketAddr::from(([127, 0, 0, 1], app.port)),
                    &app.path,
                    options.scrape_timeout,
                )
                .await,
            ),
            None => None,
        }
    };

    let (proxy, app) = tokio::join!(proxy, app);
    let mut out = String::new();
    match proxy {
        Ok(Ok(part)) => append(&mut out, &part),
        Ok(Err(error)) => failed(sources, "envoy", &error),
        Err(_) => failed(sources, "envoy", &io::ErrorKind::TimedOut.into()),
    }

    match app {
        Some(Ok(part)) => append(&mut out, &String::from_utf8_lossy(&part)),
        Some(Err(error)) => failed(sources, "application", &error),
        None => {}
    }

    append(&mut out, &sources.metrics.encode());

    reply(StatusCode::OK, prometheus::CONTENT_TYPE, out)
}

/// One part that is missing must not hide the others.
fn failed(sources: &StatusSources, part: &'static str, error: &io::Error) {
    tracing::debug!(%part, %error, "scrape");
    sources.metrics.scrape_failed(part);
}

fn certificates(sources: &StatusSources) -> Reply {
    let Some(view) = &sources.identity else {
        return text(StatusCode::NOT_FOUND, "no identity here\n");
    };
    let state = view.get();
    let unix = |at: SystemTime| {
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };

    let certificate = state.certificate.map(|info| {
        serde_json::json!({
            "serial_number": info.serial,
            "uri_sans": info.uri_sans,
            "issuer": info.issuer,
            "sha256": info.sha256,
            "valid_from": unix(info.not_before),
            "expiration_time": unix(info.not_after),
            "days_until_expiration": info.days_until_expiration(SystemTime::now()),
        })
    });

    let body = serde_json::json!({
        "certificate": certificate,
        "issued": state.issued,
        "failures": state.failures,
        "last_error": state.last_error,
        "next_attempt": state.next_attempt.map(unix),
    });

    reply(StatusCode::OK, "application/json", body.to_string())
}

fn names(sources: &StatusSources) -> Reply {
    match sources.names.get() {
        None => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "no name table has come yet\n",
        ),
        Some(index) => {
            let table: serde_json::Map<_, _> = index
                .entries()
                .into_iter()
                .map(|(host, ips)| (host.to_owned(), serde_json::json!(ips)))
                .collect();

            reply(
                StatusCode::OK,
                "application/json",
                serde_json::Value::Object(table).to_string(),
            )
        }
    }
}
