//! Probes and merged metrics over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meltemi_agent::AgentMetrics;
use meltemi_agent::dns::Names;
use meltemi_agent::status::{AppMetrics, Pages, StatusOptions, StatusServer, StatusSources};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub(crate) async fn http(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    let code = text
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status");

    (
        code,
        text.split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default(),
    )
}

async fn application() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 18\r\nconnection: close\r\n\r\napp_hits 3\n# EOF\n\n")
                .await;
        }
    });

    port
}

async fn start(app: Option<AppMetrics>, ready: Arc<AtomicBool>, quit: Arc<Notify>) -> SocketAddr {
    start_as(StatusOptions::default(), app, ready, quit).await
}

async fn start_as(
    options: StatusOptions,
    app: Option<AppMetrics>,
    ready: Arc<AtomicBool>,
    quit: Arc<Notify>,
) -> SocketAddr {
    let sources = StatusSources {
        ready: Arc::new(move || {
            let ready = ready.load(Ordering::Relaxed);
            Box::pin(async move {
                if ready {
                    Ok(())
                } else {
                    Err("no certificate yet".to_owned())
                }
            })
        }),
        proxy_metrics: Arc::new(|| Box::pin(async { Ok("istio_requests_total 5\n".to_owned()) })),
        app_metrics: app,
        metrics: AgentMetrics::default(),
        names: Names::default(),
        identity: None,
        quit,
        drain: Arc::default(),
    };

    let server = StatusServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), sources, options)
        .await
        .expect("bound");
    let address = server.address().expect("bound");
    tokio::spawn(server.run());

    address
}

#[tokio::test]
async fn a_failing_probe_names_the_missing_part() {
    let ready = Arc::new(AtomicBool::new(false));
    let address = start(None, ready.clone(), Arc::default()).await;
    let (code, body) = http(address, "GET", "/healthz/ready").await;
    assert_eq!((code, body.as_str()), (503, "no certificate yet\n"));
    ready.store(true, Ordering::Relaxed);
    assert_eq!(http(address, "GET", "/healthz/ready").await.0, 200);
    assert_eq!(http(address, "GET", "/nothing").await.0, 404);
}

#[tokio::test]
async fn the_probe_port_serves_only_the_readiness_probe() {
    let options = StatusOptions {
        pages: Pages::Probes,
        ..StatusOptions::default()
    };

    let address = start_as(
        options,
        None,
        Arc::new(AtomicBool::new(true)),
        Arc::default(),
    )
    .await;

    assert_eq!(http(address, "GET", "/healthz/ready").await.0, 200);

    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/certs"),
        ("GET", "/debug/ndsz"),
        ("POST", "/quitquitquit"),
    ] {
        assert_eq!(http(address, method, path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_disconnected() {
    let short = Duration::from_millis(1);
    let options = StatusOptions {
        connection_time: short,
        scrape_timeout: short,
        ..StatusOptions::default()
    };

    let address = start_as(options, None, Arc::default(), Arc::default()).await;
    let mut stream = TcpStream::connect(address).await.expect("connected");

    // Until the answers fill every buffer, and nothing more is read there; then it is ended.
    while stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .is_ok()
    {}
}

#[tokio::test]
async fn metrics_of_all_three_come_in_one_scrape() {
    let app = AppMetrics {
        port: application().await,
        path: "/metrics".into(),
    };

    let address = start(Some(app), Arc::default(), Arc::default()).await;
    for path in ["/metrics", "/stats/prometheus"] {
        let (code, body) = http(address, "GET", path).await;
        assert_eq!(code, 200);
        for line in [
            "istio_requests_total 5",
            "app_hits 3",
            "istio_agent_scrapes_total",
        ] {
            assert!(body.contains(line), "{line} is missing in {body}");
        }

        assert!(!body.contains("# EOF"));
    }
}

#[tokio::test]
async fn a_failed_application_scrape_leaves_the_other_metrics() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let address = start(
        Some(AppMetrics {
            port,
            path: "/metrics".into(),
        }),
        Arc::default(),
        Arc::default(),
    )
    .await;

    let (code, body) = http(address, "GET", "/metrics").await;
    assert!(
        code == 200 && body.contains("istio_requests_total 5"),
        "{body}"
    );

    assert!(
        body.contains("istio_agent_scrape_failures_total{type=\"application\"} 1"),
        "{body}"
    );
}

#[tokio::test]
async fn commands_are_accepted_only_by_post() {
    let quit = Arc::new(Notify::new());
    let address = start(None, Arc::default(), quit.clone()).await;
    assert_eq!(http(address, "GET", "/quitquitquit").await.0, 405);
    assert_eq!(http(address, "POST", "/quitquitquit").await.0, 200);
    quit.notified().await;
}
