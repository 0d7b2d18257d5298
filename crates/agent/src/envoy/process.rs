//! Envoy's process: started, watched, drained, ended.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, header};
use http_body_util::Full;
use tokio::process::{Child, Command};

/// How Envoy is run.
#[derive(Debug, Clone)]
pub struct EnvoyOptions {
    /// The program.
    pub program: PathBuf,
    /// The bootstrap file.
    pub config: PathBuf,
    /// Worker threads; 0: one per CPU.
    pub concurrency: u32,
    /// `warning`, or as `sidecar.istio.io/logLevel` says.
    pub log_level: String,
    /// How long listeners drain after a change. Source: ProxyConfig `drainDuration`, 45 s.
    pub drain: Duration,
    /// The admin port of the bootstrap.
    pub admin_port: u16,
}

/// A running Envoy. Dropping it kills the process.
pub struct EnvoyProcess {
    child: Child,
    admin: SocketAddr,
}

impl EnvoyProcess {
    /// Starts it. It inherits standard output and error, where its logs go.
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
            // Nothing of the agent's own environment, where a token might be, is Envoy's business.
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

    /// The process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end; an end that nobody asked for is an error of the sidecar. Cancel safe.
    pub async fn exited(&mut self) -> io::Result<std::process::ExitStatus> {
        self.child.wait().await
    }

    /// Lets open requests finish: no new connections inbound, `Connection: close` and GOAWAY, for
    /// at most `grace`; then the process ends, by itself or not.
    pub async fn drain_and_stop(mut self, grace: Duration) {
        if let Err(error) = post(self.admin, "/drain_listeners?graceful&skip_exit").await {
            tracing::warn!(%error, "envoy: drain");
        }

        // Early if Envoy ends on its own.
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

/// Writes the bootstrap where only we can read it: its node metadata is nobody else's business.
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
