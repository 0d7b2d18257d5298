//! The mesh that is measured: started by the same command as a user's, in folders of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::process::Tree;
use super::{LOAD_CORE, PROXY_CORE, Peer, shown};
use crate::peers::Peers;

const PATIENCE: Duration = Duration::from_secs(60);
/// The server outside the mesh.
pub const PLAIN: &str = "server-plain";
/// Every server's port.
pub const PORT: u16 = 8080;

/// Access log on; and what is not mutual TLS is refused, so that a pair's figures are those of
/// mutual TLS.
const SETTINGS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

/// A running mesh; it ends with the value.
pub struct Mesh {
    supervisor: Child,
    home: PathBuf,
    meltemi: PathBuf,
    /// The binary with the helper programs.
    pub programs: PathBuf,
    peers: Peers,
    /// The proxies that have a client and a server in this mesh.
    compared: &'static [Peer],
}

/// The proxies that are compared, the client's and the server's, as process trees: for Envoy its
/// agent is the root.
pub struct Sidecars(BTreeMap<Peer, [Tree; 2]>);

impl Sidecars {
    /// The client's and the server's.
    pub fn of(&self, peer: Peer) -> &[Tree; 2] {
        &self.0[&peer]
    }
}

impl Mesh {
    /// Starts a mesh with a client and a server for each of the compared proxies, and waits until
    /// everything is ready. `name` tells meshes apart that run at the same time.
    pub fn start(
        name: &str,
        meltemi: &Path,
        programs: &Path,
        peers: &Peers,
        compared: &'static [Peer],
    ) -> Result<Self> {
        let home =
            std::env::temp_dir().join(format!("meltemi-bench-{name}-{}", std::process::id()));
        for folder in ["config", "run", "state"] {
            fs::create_dir_all(home.join(folder))?;
        }
        fs::write(home.join("config/mesh.yaml"), SETTINGS)?;
        fs::write(
            home.join("config/workloads.yaml"),
            workloads(programs, compared),
        )?;
        let errors = home.join("errors");
        let mut command = command(meltemi, &home, peers);
        command.arg("up").arg("-f").arg(home.join("config")).args([
            "--no-gateways",
            "--concurrency",
            "1",
        ]);

        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?);

        println!("$ {}", shown(&command));
        let supervisor = command.spawn().with_context(|| shown(&command))?;
        let (meltemi, programs) = (meltemi.to_owned(), programs.to_owned());
        let mut mesh = Self {
            supervisor,
            home,
            meltemi,
            programs,
            peers: peers.clone(),
            compared,
        };

        if let Err(error) = mesh.wait_until_ready() {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            bail!("{error:#}\n{said}");
        }

        Ok(mesh)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let stdout = self
            .supervisor
            .stdout
            .take()
            .context("its output is piped")?;

        let (ready, wait) = channel();
        std::thread::spawn(move || {
            // To its end, so that the mesh never waits for us.
            for line in BufReader::new(stdout)
                .lines()
                .map_while(std::result::Result::ok)
            {
                println!("mesh: {line}");
                if line.starts_with("ready") {
                    let _ = ready.send(());
                }
            }
        });

        wait.recv_timeout(PATIENCE)
            .context("the mesh did not come up")
    }

    /// The processes of the proxies that are compared.
    pub fn sidecars(&self) -> Result<Sidecars> {
        let all = self.processes()?;
        let mut sidecars = BTreeMap::new();
        for &peer in self.compared {
            let one = |workload: String| all.named(&format!("meltemi: sidecar {workload}-0"));
            let both = [one(peer.client())?, one(peer.server())?];

            // Envoy has its agent beside it, and before both stands what ends them together.
            let processes = if peer == Peer::Meltemi { 1 } else { 3 };
            ensure!(
                both.iter().all(|tree| tree.pids.len() == processes),
                "sidecars of {}: {both:?}",
                peer.name()
            );

            sidecars.insert(peer, both);
        }

        Ok(Sidecars(sidecars))
    }

    fn processes(&self) -> Result<Tree> {
        Tree::of(i32::try_from(self.supervisor.id())?)
    }

    /// The proxies onto one core, all else onto the other.
    pub fn pin(&self, sidecars: &Sidecars) -> Result<()> {
        self.processes()?.pin(LOAD_CORE)?;
        sidecars
            .0
            .values()
            .flatten()
            .try_for_each(|tree| tree.pin(PROXY_CORE))
    }

    /// A command that runs inside a workload, on the load's core.
    pub fn exec(&self, workload: &str, program: &[&str]) -> Command {
        let mut command = command(&self.meltemi, &self.home, &self.peers);
        command
            .args([
                "exec",
                workload,
                "--",
                "taskset",
                "-c",
                &LOAD_CORE.to_string(),
            ])
            .args(program);

        command
    }

    /// What a program inside a workload prints.
    pub fn output(&self, workload: &str, program: &[&str]) -> Result<String> {
        output(&mut self.exec(workload, program))
    }

    /// Metrics of a workload's proxy, as Prometheus reads them: the sum over all labels of one.
    pub fn metric(&self, workload: &str, name: &str) -> Result<f64> {
        let text = self.output(
            workload,
            &["curl", "-sSf", "http://127.0.0.1:15090/stats/prometheus"],
        )?;

        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        Ok(lines
            .filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'))
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum())
    }

    /// The last line that a workload's proxy wrote.
    pub fn last_log_line(&self, workload: &str) -> Result<String> {
        let mut command = command(&self.meltemi, &self.home, &self.peers);
        output(command.args(["logs", workload, "-c", "proxy", "--tail", "1"]))
    }

    /// Puts a file into the watched directory, whole at once.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let beside = self.home.join("next");
        fs::write(&beside, text)?;
        Ok(fs::rename(&beside, self.home.join("config").join(name))?)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if matches!(self.supervisor.try_wait(), Ok(None)) {
            if let Some(pid) = i32::try_from(self.supervisor.id())
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }

            let deadline = Instant::now() + Duration::from_secs(15);
            while matches!(self.supervisor.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.supervisor.kill();
            let _ = self.supervisor.wait();
        }

        let _ = fs::remove_dir_all(&self.home);
    }
}

fn command(meltemi: &Path, home: &Path, peers: &Peers) -> Command {
    let mut command = Command::new(meltemi);
    peers
        .apply(&mut command)
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home.join("run"))
        .env("XDG_STATE_HOME", home.join("state"));
    command.env_remove("MELTEMI_MESH");
    command
}

/// What a command prints; its errors are in ours.
fn output(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(Stdio::null()).output()?;

    let text = String::from_utf8_lossy(&stdout).into_owned();
    ensure!(
        status.success(),
        "{}: {status}\n{text}{}",
        shown(command),
        String::from_utf8_lossy(&stderr)
    );

    Ok(text)
}

/// Clients that only wait to be used, and the same server once for each of them and once outside
/// the mesh.
fn workloads(programs: &Path, compared: &[Peer]) -> String {
    let server = format!("[{}, bench-backend, \"{PORT}\"]", quoted(programs));
    let mut all = String::new();
    for &peer in compared {
        let proxy = format!("meltemi.io/proxy: {}", peer.proxy());
        all += &deployment(&peer.client(), "[sleep, infinity]", &proxy);
        all += &deployment(&peer.server(), &server, &proxy);
        all += &service(&peer.server());
    }

    if compared.contains(&Peer::Envoy) {
        for workload in [Peer::Envoy.client(), Peer::Envoy.server()] {
            all += &without_log(&workload);
        }
    }
    all += &deployment(PLAIN, &server, "sidecar.istio.io/inject: \"false\"");
    all += &service(PLAIN);

    all
}

fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

fn deployment(name: &str, command: &str, annotation: &str) -> String {
    let ports = if name.starts_with("server") {
        format!("\n        ports: [{{containerPort: {PORT}}}]")
    } else {
        String::new()
    };

    format!(
        "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata:
      labels: {{app: {name}, version: v1}}
      annotations: {{{annotation}}}
    spec:
      containers:
      - name: app
        image: bench
        command: {command}{ports}
"
    )
}

fn without_log(app: &str) -> String {
    format!(
        "---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: {app}}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  accessLogging: [{{disabled: true}}]
"
    )
}

fn service(name: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: {PORT}}}]
"
    )
}
