//! The HTTP server of both status ports. It serves GET pages and, from the pod's loopback only, two
//! POST commands.

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

/// A readiness check. Its error says what is missing and becomes the body of the probe's answer.
pub type Ready = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Sources of the pages.
#[derive(Clone)]
pub struct StatusSources {
    /// Called for each probe.
    pub ready: Ready,
    /// The proxy's metrics as Prometheus text.
    pub proxy_metrics: Arc<dyn Fn() -> BoxFuture<'static, io::Result<String>> + Send + Sync>,
    /// Where the application's metrics are fetched; `None` leaves them out.
    pub app_metrics: Option<AppMetrics>,
    /// The agent's own metrics.
    pub metrics: AgentMetrics,
    /// The name table, for `/debug/ndsz`.
    pub names: Names,
    /// State of the certificate, for `/certs`.
    pub identity: Option<IdentityView>,
    /// Notified by `POST /quitquitquit`.
    pub quit: Arc<Notify>,
    /// Notified by `POST /drain`.
    pub drain: Arc<Notify>,
}

/// Limits of a status server, and its pages.
#[derive(Debug, Clone, Copy)]
pub struct StatusOptions {
    /// A part of a merged scrape that takes longer is left out. Default 10 s.
    pub scrape_timeout: Duration,
    /// A readiness check that takes longer counts as not ready. Default 1 s.
    pub probe_timeout: Duration,
    /// Limit for reading a request's head. Default 10 s.
    pub header_timeout: Duration,
    /// A connection is shut down gracefully after this time and closed [`Self::scrape_timeout`]
    /// later, so that a client that never reads cannot hold it for ever. Default 60 s.
    pub connection_time: Duration,
    /// The pages that the server answers. Default [`Pages::All`].
    pub pages: Pages,
}

/// The pages of a status port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// All pages, as on port 15020.
    All,
    /// `/healthz/ready` only, as on port 15021 of Istio's proxies.
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

/// A status server that is bound and not yet serving.
pub struct StatusServer {
    listener: TcpListener,
    sources: StatusSources,
    options: StatusOptions,
}

impl StatusServer {
    /// Binds the address; port 0 lets the system choose.
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

    /// The bound address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the future is dropped, which ends all connections.
    pub async fn run(self) {
        let Self {
            listener,
            sources,
            options,
        } = self;

        // Probes and scrapers are few.
        let limits = Limits {
            connections: 256,
            when_full: WhenFull::Evict,
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

/// Executes a command. Only processes of the pod itself, which connect over loopback, may send one.
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

/// Merges the metrics of proxy, application and agent. A part that fails is left out and counted.
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
        Ok(Err(error)) => count_failure(sources, "envoy", &error),
        Err(_) => count_failure(sources, "envoy", &io::ErrorKind::TimedOut.into()),
    }

    match app {
        Some(Ok(part)) => append(&mut out, &String::from_utf8_lossy(&part)),
        Some(Err(error)) => count_failure(sources, "application", &error),
        None => {}
    }

    append(&mut out, &sources.metrics.encode());

    reply(StatusCode::OK, prometheus::CONTENT_TYPE, out)
}

fn count_failure(sources: &StatusSources, part: &'static str, error: &io::Error) {
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
