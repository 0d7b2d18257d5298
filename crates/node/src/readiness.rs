//! When a workload may get traffic.

use std::net::Ipv4Addr;
use std::sync::OnceLock;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::Full;

use crate::netns::is_listening;
use crate::sandbox::Sandbox;
use crate::spec::WorkloadSpec;

/// A declared port that nobody listens on makes the workload wait this long before it is called
/// ready all the same.
const LISTEN_PATIENCE: Duration = Duration::from_secs(10);

/// Waits until the proxy says that it is ready, on the port that capture leaves alone.
pub(crate) async fn proxy_answers(address: Ipv4Addr) {
    let mut pause = Duration::from_millis(10);
    loop {
        if ask_ready(address, Duration::from_secs(2)).await {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// A proxy that does not say that it is ready, asked this often in a row, is not.
const FAILURES: u32 = 3;
const PERIOD: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of the answer's body: empty when ready, else what is missing.
const MAX_ANSWER: usize = 64 * 1024;

/// Waits until a proxy that was ready has not been so for a while: stopped, stuck, or draining.
pub(crate) async fn proxy_falls_silent(address: Ipv4Addr) {
    let mut failures = 0;
    while failures < FAILURES {
        tokio::time::sleep(PERIOD).await;
        let answers = ask_ready(address, PROBE_TIMEOUT).await;
        failures = if answers { 0 } else { failures + 1 };
    }
}

async fn ask_ready(address: Ipv4Addr, within: Duration) -> bool {
    let request = Request::get("/healthz/ready")
        .header(header::HOST, "node")
        .body(Full::default())
        .expect("a constant request is valid");

    meltemi_web::call_at((address, 15021).into(), request, MAX_ANSWER, within)
        .await
        .is_ok_and(|answer| answer.status() == StatusCode::OK)
}

/// Waits until somebody listens on each declared TCP port; answers what is still silent after some
/// patience.
///
/// Looks at the kernel's table: a connection would reach the application as a request of nobody's.
pub(crate) async fn listens(sandbox: &OnceLock<Sandbox>, spec: &WorkloadSpec) -> Option<String> {
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
                    "nobody listens on port {port}, which the container declares"
                ));
            }
            Some(_) => tokio::time::sleep(pause).await,
        }

        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
