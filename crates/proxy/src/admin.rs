//! The admin interface: Envoy's pages, as far as people and tools use them, over plain HTTP on a
//! local address.

mod dump;
mod pages;
mod query;
mod stats;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use meltemi_telemetry::{istio, prometheus};
use meltemi_web::{Limits, WhenFull};
use tokio::net::TcpListener;

use self::query::Query;
use crate::causes;
use crate::common::{Common, Levels, ServerState};
use crate::control::driver::Request as Control;
use crate::control::inspect::Inspector;
use crate::published::Drained;

/// Metrics are for everybody in the network: readers are few, and nobody takes the descriptors
/// that requests need.
const LIMITS: Limits = Limits {
    connections: 64,
    when_full: WhenFull::Evict,
    header_timeout: Duration::from_secs(30),
    head_bytes: 64 * 1024,
    connection_time: None,
    grace: Duration::ZERO,
};

/// Serves for as long as the task lives.
pub async fn serve(socket: std::net::TcpListener, inspector: Inspector, only_metrics: bool) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the admin socket cannot be used");
            return;
        }
    };

    let handler = move |request, _peer| {
        let inspector = inspector.clone();
        async move { answer(&inspector, request, only_metrics).await }
    };
    meltemi_web::serve(listener, LIMITS, handler, std::future::pending()).await;
}

type Page = Response<Full<Bytes>>;

/// The text of `/ready`: the state's name, and a line for each remark.
fn ready(state: ServerState, remarks: Vec<String>) -> String {
    let lines = std::iter::once(state.name().to_owned()).chain(remarks);
    lines.map(|line| line + "\n").collect()
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Page {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(kind),
    );

    headers.insert(
        "x-content-type-options",
        http::HeaderValue::from_static("nosniff"),
    );

    headers.insert(
        http::header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-cache, max-age=0"),
    );

    response
}

const TEXT: &str = "text/plain; charset=UTF-8";
const JSON: &str = "application/json";

fn text(body: impl Into<Bytes>) -> Page {
    page(StatusCode::OK, TEXT, body)
}

fn refused(why: String) -> Page {
    page(StatusCode::BAD_REQUEST, TEXT, why)
}

fn json(value: &serde_json::Value) -> Page {
    page(
        StatusCode::OK,
        JSON,
        serde_json::to_vec_pretty(value).unwrap_or_default(),
    )
}

/// Whether nobody but a program of this machine's user can have sent it: browsers always name a
/// host.
fn is_local_host(request: &Request<Incoming>) -> bool {
    let host = request
        .headers()
        .get(http::header::HOST)
        .map(|host| host.to_str().unwrap_or("?"));
    host.is_none_or(meltemi_types::is_local_host)
}

async fn answer(inspector: &Inspector, request: Request<Incoming>, only_metrics: bool) -> Page {
    let path = request.uri().path();
    let query = Query::of(request.uri().query().unwrap_or_default());
    if only_metrics && path != "/stats/prometheus" && path != "/metrics" {
        return page(
            StatusCode::NOT_FOUND,
            TEXT,
            "only /stats/prometheus is served here\n",
        );
    }

    // Metrics are for scrapers, which come by any name.
    if path != "/stats/prometheus" && path != "/metrics" && !is_local_host(&request) {
        return page(
            StatusCode::FORBIDDEN,
            TEXT,
            "the host must be an address or localhost\n",
        );
    }

    let changes = match path {
        "/drain_listeners" | "/quitquitquit" | "/healthcheck/fail" | "/healthcheck/ok" => true,
        "/logging" => query.pairs().next().is_some(),
        _ => false,
    };

    if changes && request.method() != Method::POST {
        return page(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "POST, please: this changes the proxy\n",
        );
    }

    let wants_json = query.get("format") == Some("json");
    let common = &inspector.common;

    match path {
        "/" | "/help" => text(pages::HELP),
        "/ready" => match common.state() {
            ServerState::Live => text(ready(ServerState::Live, inspector.caveats().await)),
            state => {
                let text = ready(state, inspector.not_ready().await);
                page(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
            }
        },
        "/stats/prometheus" | "/metrics" => {
            let counted = stats::authorization(inspector).await;
            page(
                StatusCode::OK,
                prometheus::CONTENT_TYPE,
                metrics(common) + &counted,
            )
        }
        "/stats" => match query.regex("filter") {
            Err(why) => refused(why),
            Ok(filter) => {
                let used = query.has("usedonly");
                let rows = stats::stats(inspector, filter.as_ref(), used).await;
                match query.get("format") {
                    Some("prometheus") => {
                        let others = stats::filtered(&metrics(common), filter.as_ref(), used);
                        page(
                            StatusCode::OK,
                            prometheus::CONTENT_TYPE,
                            others + &stats::prometheus(&rows),
                        )
                    }
                    Some("json") => json(&stats::as_json(&rows)),
                    None | Some("text") => text(stats::text(&rows)),
                    Some(other) => refused(format!(
                        "format={other}: there are text, json and prometheus\n"
                    )),
                }
            }
        },
        "/clusters" if wants_json => json(&pages::clusters_json(inspector).await),
        "/clusters" => text(pages::clusters_text(inspector).await),
        "/listeners" if wants_json => json(&pages::listeners_json(inspector).await),
        "/listeners" => text(pages::listeners_text(inspector).await),
        "/certs" => json(&pages::certs(common)),
        "/server_info" => json(&pages::server_info(common)),
        "/config_dump" => match dump::config(inspector, &query).await {
            Ok(dump) => json(&dump),
            Err(why) => refused(why),
        },
        "/logging" => logging(common.levels.as_deref(), &query),
        "/drain_listeners" => {
            let drained = if query.has("inboundonly") {
                Drained::Inbound
            } else {
                Drained::All
            };

            match (query.has("graceful"), query.has("skip_exit")) {
                (false, true) => return refused("skip_exit requires graceful\n".to_owned()),
                (true, true) => inspector.ask(Control::Drain(drained)).await,
                (true, false) => inspector.ask(Control::DrainAndStop(drained)).await,
                (false, false) => {
                    inspector.ask(Control::StopListening(drained)).await;
                    inspector.ask(Control::Drain(drained)).await;
                }
            }

            text("OK\n")
        }
        "/healthcheck/fail" | "/healthcheck/ok" => {
            common.failed.store(
                path == "/healthcheck/fail",
                std::sync::atomic::Ordering::Relaxed,
            );
            text("OK\n")
        }
        "/quitquitquit" => {
            common
                .quit
                .store(true, std::sync::atomic::Ordering::Relaxed);
            inspector.ask(Control::Stop).await;
            text("OK\n")
        }
        _ => page(StatusCode::NOT_FOUND, TEXT, pages::HELP),
    }
}

/// `/logging`: shows the levels, or changes them as Envoy's page does: `level=debug` for all,
/// `paths=a:debug,b:info` or `a=debug` for some. A level is put in force for its target beside
/// those that stand.
fn logging(levels: Option<&dyn Levels>, query: &Query<'_>) -> Page {
    let Some(levels) = levels else {
        return text("levels are set where the process was started (RUST_LOG)\n");
    };
    for (key, value) in query.pairs() {
        let filter = match key {
            "level" => value.to_owned(),
            "paths" => with_targets(
                &levels.show(),
                value
                    .split(',')
                    .map(|part| part.rsplit_once(':').unwrap_or((part, ""))),
            ),
            target => with_targets(&levels.show(), std::iter::once((target, value))),
        };

        if let Err(reason) = levels.set(&filter) {
            return refused(format!("{reason}\n"));
        }
    }

    text(format!("active loggers: {}\n", levels.show()))
}

/// A filter with other levels for some targets.
fn with_targets<'a>(filter: &str, changes: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut parts: Vec<String> = filter
        .split(',')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect();

    for (target, level) in changes {
        parts.retain(|part| part.split_once('=').is_none_or(|(name, _)| name != target));
        parts.push(format!("{target}={level}"));
    }

    parts.join(",")
}

/// Everything that is counted, as Prometheus reads it.
pub fn metrics(common: &Common) -> String {
    let mut out = prometheus::encode(&common.registry, &[istio::HELP, causes::HELP].concat());
    pages::own_metrics(common, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::with_targets;

    #[test]
    fn a_target_has_one_level() {
        let change = |filter, target, level| with_targets(filter, std::iter::once((target, level)));
        assert_eq!(
            change("info", "meltemi_proxy", "debug"),
            "info,meltemi_proxy=debug"
        );

        assert_eq!(
            change("info,h2=off,meltemi_proxy=debug", "meltemi_proxy", "warn"),
            "info,h2=off,meltemi_proxy=warn"
        );

        assert_eq!(change("", "h2", "off"), "h2=off");
    }
}
