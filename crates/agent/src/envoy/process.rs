//! Starts Envoy's process, waits for its exit, and drains and stops it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, header};
use http_body_util::Full;
use tokio::process::{Child, Command};

/// Command-line options of Envoy.
#[derive(Debug, Clone)]
pub struct EnvoyOptions {
    /// Path of the Envoy binary.
    pub program: PathBuf,
    /// Path of the bootstrap file.
    pub config: PathBuf,
    /// Number of worker threads; 0 starts one per CPU.
    pub concurrency: u32,
    /// Log level: `warning`, or the value of the annotation `sidecar.istio.io/logLevel`.
    pub log_level: String,
    /// How long listeners drain after a change. Istio's ProxyConfig `drainDuration`: 45 s.
    pub drain: Duration,
    /// Port of Envoy's admin interface, as in the bootstrap.
    pub admin_port: u16,
}

/// A running Envoy. Dropping it kills the process.
pub struct EnvoyProcess {
    child: Child,
    admin: SocketAddr,
}

impl EnvoyProcess {
    /// Starts Envoy. Its logs go to this process's standard output and error.
    pub fn start(options: &EnvoyOptions) -> io::Result<Self> {
        let mut command = Command::new(&options.program);
        command
            .arg("--config-path")
            .arg(&options.config)
            .args([
                "--disable-hot-restart",
                "--drain-strategy",
                "immediate",
                "--local-address-ip-version",
                "v4",
            ])
            .args(["--drain-time-s", &options.drain.as_secs().to_string()])
            .args(["--log-level", &options.log_level])
            .args([
                "--log-format",
                "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t",
            ])
            // The agent's environment may hold a token: do not pass it on.
            .env_clear()
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);

        if options.concurrency > 0 {
            command.args(["--concurrency", &options.concurrency.to_string()]);
        }
        let child = command.spawn().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{}: {error}", options.program.display()),
            )
        })?;

        Ok(Self {
            child,
            admin: SocketAddr::from(([127, 0, 0, 1], options.admin_port)),
        })
    }

    /// The process id; `None` after the exit.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for Envoy's exit. Cancellation safe.
    pub async fn exited(&mut self) -> io::Result<std::process::ExitStatus> {
        self.child.wait().await
    }

    /// Drains Envoy's listeners (no new connections; `Connection: close` and GOAWAY on open ones)
    /// for at most `grace`, then asks Envoy to quit, and kills it after 2 s more.
    pub async fn drain_and_stop(mut self, grace: Duration) {
        if let Err(error) = post(self.admin, "/drain_listeners?graceful&skip_exit").await {
            tracing::warn!(%error, "envoy: drain");
        }

        // Envoy may exit by itself before the grace is over.
        if tokio::time::timeout(grace, self.child.wait()).await.is_ok() {
            return;
        }
        let _ = post(self.admin, "/quitquitquit").await;

        if tokio::time::timeout(Duration::from_secs(2), self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
    }
}

/// Writes the bootstrap to a file that only this user can read, since annotations in the node
/// metadata may be confidential.
pub(crate) fn write_bootstrap(path: &Path, json: &serde_json::Value) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(json.to_string().as_bytes())
}

/// Bytes; the pages of Envoy that are called here answer with a word.
const MAX_ANSWER: usize = 1 << 20;

async fn post(address: SocketAddr, path: &str) -> io::Result<()> {
    let request = Request::post(path)
        .header(header::HOST, "admin")
        .body(Full::default())
        .map_err(io::Error::other)?;
    meltemi_web::call_at(address, request, MAX_ANSWER, Duration::from_secs(2)).await?;
    Ok(())
}
