//! Probes that decide whether a workload receives traffic: the proxy's `/healthz/ready` on port
//! 15021, and listeners on the application's declared ports.

use std::net::Ipv4Addr;
use std::sync::OnceLock;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::Full;

use crate::netns::is_listening;
use crate::sandbox::Sandbox;
use crate::spec::WorkloadSpec;

/// How long to wait for a listener on every declared port. After that the workload counts as ready,
/// with a message about the silent port.
const LISTEN_PATIENCE: Duration = Duration::from_secs(10);

/// Waits until the proxy answers its readiness probe with 200. Capture rules leave port 15021
/// alone.
pub(crate) async fn wait_until_proxy_ready(address: Ipv4Addr) {
    let mut pause = Duration::from_millis(10);
    loop {
        if is_proxy_ready(address, Duration::from_secs(2)).await {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Failed probes in a row after which a proxy counts as not ready.
const FAILURE_THRESHOLD: u32 = 3;
const PROBE_PERIOD: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum size of the answer in bytes. The body is empty when the proxy is ready, else it names
/// what is missing.
const MAX_ANSWER: usize = 64 * 1024;

/// Waits until a proxy that was ready fails [`FAILURE_THRESHOLD`] probes in a row: it is stopped,
/// stuck or draining.
pub(crate) async fn wait_until_proxy_unready(address: Ipv4Addr) {
    let mut failures = 0;
    while failures < FAILURE_THRESHOLD {
        tokio::time::sleep(PROBE_PERIOD).await;
        let is_ready = is_proxy_ready(address, PROBE_TIMEOUT).await;
        failures = if is_ready { 0 } else { failures + 1 };
    }
}

async fn is_proxy_ready(address: Ipv4Addr, within: Duration) -> bool {
    let request = Request::get("/healthz/ready")
        .header(header::HOST, "node")
        .body(Full::default())
        .expect("a constant request is valid");

    meltemi_web::call_at((address, 15021).into(), request, MAX_ANSWER, within)
        .await
        .is_ok_and(|answer| answer.status() == StatusCode::OK)
}

/// Waits until the application wait_until_listening on each declared TCP port. Returns a message
/// about the first silent port after [`LISTEN_PATIENCE`].
///
/// Reads the kernel's socket table instead of connecting: the application would see a probe
/// connection as a client that sends nothing.
pub(crate) async fn wait_until_listening(
    sandbox: &OnceLock<Sandbox>,
    spec: &WorkloadSpec,
) -> Option<String> {
    let netns = &sandbox.get()?.netns;
    let ports: Vec<u16> = spec
        .ports
        .iter()
        .filter(|p| p.protocol == "TCP")
        .map(|p| p.number)
        .collect();

    let until = tokio::time::Instant::now() + LISTEN_PATIENCE;
    let mut pause = Duration::from_millis(10);

    loop {
        let silent = netns
            .run(|| Ok(ports.iter().copied().find(|port| !is_listening(*port))))
            .ok()
            .flatten();

        match silent {
            None => return None,
            Some(port) if tokio::time::Instant::now() >= until => {
                return Some(format!(
                    "nobody wait_until_listening on port {port}, which the container declares"
                ));
            }
            Some(_) => tokio::time::sleep(pause).await,
        }

        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
