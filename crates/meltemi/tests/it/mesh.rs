//! A mesh of its own for a test: a directory to put files into, a gateway to call, commands to run.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::http::{self, Answer};
use crate::machine::Machine;

/// How long a mesh may take to come up, and a change to show; far beyond what either takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Images of Bookinfo as Istio's files name them.
pub const BOOKINFO_IMAGES: &str = "\
images:
- {image: '*examples-bookinfo-productpage-v1*', command: [meltemi, sample, productpage]}
- {image: '*examples-bookinfo-details-v1*', command: [meltemi, sample, details]}
- {image: '*examples-bookinfo-ratings-v1*', command: [meltemi, sample, ratings]}
- {image: '*examples-bookinfo-reviews-v1*', command: [meltemi, sample, reviews, --version, v1]}
- {image: '*examples-bookinfo-reviews-v2*', command: [meltemi, sample, reviews, --version, v2]}
- {image: '*examples-bookinfo-reviews-v3*', command: [meltemi, sample, reviews, --version, v3]}
";

/// A running mesh; it ends with the value.
pub struct Mesh {
    supervisor: Child,
    plan: Plan,
    said: Arc<Mutex<Vec<String>>>,
    /// What the gateway's port 8080 is published as.
    pub gateway: SocketAddr,
    /// Given back when the mesh has ended.
    _machine: Machine,
}

/// A mesh about to be started.
pub struct Plan {
    home: tempfile::TempDir,
    /// `up`, or `demo`.
    command: &'static str,
    arguments: Vec<String>,
    environment: Vec<(String, PathBuf)>,
    /// Size of the file system that the state is on, if it has one of its own.
    state_size: Option<String>,
    alone: bool,
    /// Gateway port 8080 is published as it is by default.
    by_default: bool,
    /// Whoever reads leaves after this.
    is_read_until: Option<&'static str>,
}

impl Plan {
    /// Nothing in it yet.
    pub fn new() -> Self {
        let home = tempfile::Builder::new()
            .prefix("mesh")
            .tempdir()
            .expect("a temporary folder");

        for folder in ["config", "run", "state"] {
            fs::create_dir(home.path().join(folder)).expect("a fresh folder");
        }
        fs::write(home.path().join("images.yaml"), BOOKINFO_IMAGES).expect("a writable folder");

        Self {
            home,
            command: "up",
            arguments: Vec::new(),
            environment: Vec::new(),
            state_size: None,
            alone: false,
            by_default: false,
            is_read_until: None,
        }
    }

    /// Bookinfo as the program brings it, instead of nothing.
    pub fn demo(mut self) -> Self {
        self.command = "demo";
        self
    }

    /// A further argument of `meltemi up`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// A variable of the environment of `meltemi up`.
    pub fn environment(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts the state onto a file system of its own, of this size, that the mesh alone sees.
    pub fn state_of(mut self, size: &str) -> Self {
        self.state_size = Some(size.to_owned());
        self
    }

    /// As `nohup meltemi up 2>&1 | grep -m1 TEXT`: SIGHUP is ignored, and whoever reads leaves with
    /// the line of this text.
    pub fn nohup_read_until(mut self, text: &'static str) -> Self {
        self.is_read_until = Some(text);
        self
    }

    /// With the gateway's port 8080 published as it is by default, instead of on any free port.
    pub fn without_publish(mut self) -> Self {
        self.by_default = true;
        self
    }

    /// With no other mesh on the machine meanwhile.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// A file of the test's own beside the mesh.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A file of configuration, as text.
    pub fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.home.path().join("config").join(name), text).expect("a writable folder");
        self
    }

    /// A file of Istio's samples, unchanged.
    pub fn sample(self, path: &Path) -> Self {
        let name = path.file_name().expect("a file");
        fs::copy(path, self.home.path().join("config").join(name))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self
    }

    /// Starts it and waits until everything is ready.
    pub fn start(self) -> Mesh {
        let mut mesh = self.launch();
        mesh.until_ready();
        mesh
    }

    /// Starts it and waits for nothing.
    pub fn launch(self) -> Mesh {
        let machine = if self.alone {
            Machine::alone()
        } else {
            Machine::shared()
        };

        let (supervisor, said) = self.spawn();
        Mesh {
            supervisor,
            plan: self,
            said,
            gateway: ([127, 0, 0, 1], 0).into(),
            _machine: machine,
        }
    }

    fn spawn(&self) -> (Child, Arc<Mutex<Vec<String>>>) {
        let mut command = match &self.state_size {
            None if self.is_read_until.is_some() => {
                let mut command = Command::new("sh");
                command
                    .args(["-c", "trap '' HUP; exec \"$0\" \"$@\" 2>&1"])
                    .arg(crate::binary());
                at_home(command, self.home.path())
            }
            None => command(self.home.path()),
            Some(size) => {
                let mut command = Command::new("unshare");
                command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
                command
                    .arg("mount -t tmpfs -o size=$0,mode=700 state \"$1\" && shift && exec \"$@\"");
                command
                    .arg(size)
                    .arg(self.path("state"))
                    .arg(crate::binary());
                at_home(command, self.home.path())
            }
        };

        command.args([self.command, "-f"]).arg(self.path("config"));
        if !self.by_default {
            command.args(["--publish", "8080=0"]);
        }
        command
            .arg("--images")
            .arg(self.path("images.yaml"))
            .args(&self.arguments);

        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());

        let mut supervisor = command.spawn().expect("the binary starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let until = self.is_read_until;

        collect(
            supervisor.stdout.take().expect("its output is piped"),
            Arc::clone(&said),
            until,
        );

        collect(
            supervisor.stderr.take().expect("its errors are piped"),
            Arc::clone(&said),
            until,
        );

        (supervisor, said)
    }
}

fn command(home: &Path) -> Command {
    at_home(Command::new(crate::binary()), home)
}

fn at_home(mut command: Command, home: &Path) -> Command {
    command
        .env("XDG_RUNTIME_DIR", home.join("run"))
        .env("XDG_STATE_HOME", home.join("state"))
        .env_remove("MELTEMI_MESH");
    command
}

/// Reads on, so that the mesh never waits for us; for ever, or until the line of a text.
fn collect(
    from: impl Read + Send + 'static,
    into: Arc<Mutex<Vec<String>>>,
    until: Option<&'static str>,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            println!("mesh: {line}");
            let is_last = until.is_some_and(|until| line.contains(until));
            into.lock()
                .expect("nothing panics while it holds the lines")
                .push(line);
            if is_last {
                return;
            }
        }
    });
}

impl Mesh {
    /// Waits until it says that everything is ready.
    pub fn until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.said("ready after") {
            let ended = self.supervisor.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline {
                panic!(
                    "the mesh did not come up ({ended:?}); it said:\n{}",
                    self.lines().join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }

        self.gateway = self.published(8080).unwrap_or(self.gateway);
    }

    /// Everything that `meltemi up` has printed, errors and warnings among it.
    pub fn lines(&self) -> Vec<String> {
        self.said
            .lock()
            .expect("nothing panics while it holds the lines")
            .clone()
    }

    /// Whether `meltemi up` has printed this.
    pub fn said(&self, text: &str) -> bool {
        self.lines().iter().any(|line| line.contains(text))
    }

    /// The machine's address of a gateway's port, as `meltemi up` printed it.
    pub fn published(&self, port: u16) -> Option<SocketAddr> {
        // "istio-ingressgateway port 8080 (Gateway port 80): http://127.0.0.1:40123", or "…:
        // 127.0.0.1:40124, TCP"
        let (wanted, lines) = (format!("istio-ingressgateway port {port}"), self.lines());
        lines.iter().rev().find_map(|line| {
            let rest = line.strip_prefix(&wanted)?;
            let address = rest
                .strip_prefix(':')
                .or_else(|| Some(rest.strip_prefix(" (")?.split_once("):")?.1))?;
            let address = address
                .trim_start()
                .trim_start_matches("http://")
                .trim_start_matches("https://");
            address.split(',').next()?.parse().ok()
        })
    }

    /// Ends it as Ctrl-C does; tells how the supervisor ended.
    pub fn stop(&mut self) -> ExitStatus {
        signal(self.supervisor.id(), "INT");
        self.supervisor.wait().expect("it is a child")
    }

    /// Starts it anew over the same folders, after [`Mesh::stop`].
    pub fn start_again(&mut self) {
        (self.supervisor, self.said) = self.plan.spawn();
        self.until_ready();
    }

    /// Starts it anew with a further argument.
    pub fn start_again_with(&mut self, argument: &str) {
        self.plan.arguments.push(argument.to_owned());
        self.start_again();
    }

    /// The folder of sockets and logs while the mesh runs.
    pub fn run_dir(&self) -> PathBuf {
        let name = match self.plan.command {
            "demo" => "demo",
            _ => "default",
        };
        self.path("run/meltemi").join(name)
    }

    /// The watched directory.
    pub fn config(&self) -> PathBuf {
        self.plan.home.path().join("config")
    }

    /// A file of the test's own beside the mesh.
    pub fn path(&self, name: &str) -> PathBuf {
        self.plan.home.path().join(name)
    }

    /// Puts a file of Istio's into the directory, whole at once.
    pub fn put(&self, path: &Path) {
        let text =
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.write(
            path.file_name()
                .and_then(|name| name.to_str())
                .expect("a file"),
            &text,
        );
    }

    /// Writes a file into the directory, whole at once.
    pub fn write(&self, name: &str, text: &str) {
        let beside = self.plan.home.path().join("next");
        fs::write(&beside, text).expect("a writable folder");
        fs::rename(&beside, self.config().join(name)).expect("one file system");
    }

    /// Takes a file out.
    pub fn take_out(&self, name: &str) {
        fs::remove_file(self.config().join(name)).expect("it was put in");
    }

    /// Runs a command of the CLI against this mesh.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        command(self.plan.home.path())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts")
    }

    /// A command of the CLI, to be started by the test.
    pub fn cli_command(&self) -> Command {
        command(self.plan.home.path())
    }

    /// Runs a line of a shell beside the mesh, where `meltemi` is the binary under test.
    pub fn shell(&self, line: &str) -> Output {
        let binary = crate::binary();
        let folder = binary.parent().expect("a file in a folder");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path)),
        );

        at_home(Command::new("sh"), self.plan.home.path())
            .args(["-c", line])
            .env("PATH", path.expect("no colon in a folder's name"))
            .current_dir(self.plan.home.path())
            .stdin(Stdio::null())
            .output()
            .expect("a shell")
    }

    /// What a successful command prints.
    pub fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// Runs a program inside a workload.
    pub fn exec(&self, workload: &str, program: &[&str]) -> Output {
        let arguments: Vec<&str> = ["exec", workload, "--"]
            .iter()
            .chain(program)
            .copied()
            .collect();
        self.cli(&arguments)
    }

    /// GETs a page through the ingress gateway.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let gateway = self.published(8080).unwrap_or(self.gateway);
        http::get(gateway, path, headers)
            .unwrap_or_else(|error| panic!("GET {path} through the gateway: {error}"))
    }

    /// Waits until `holds` does; a change takes a moment to reach every proxy.
    pub fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            if Instant::now() > deadline {
                let status = self.cli(&["status"]);
                panic!(
                    "{what}: did not come to hold\n{}",
                    String::from_utf8_lossy(&status.stdout)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The supervisor's process.
    pub fn supervisor(&mut self) -> &mut Child {
        &mut self.supervisor
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(&self.run_dir());
        }
        if matches!(self.supervisor.try_wait(), Ok(None)) {
            signal(self.supervisor.id(), "TERM");
            let deadline = Instant::now() + Duration::from_secs(15);
            while matches!(self.supervisor.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.supervisor.kill();
            let _ = self.supervisor.wait();
        }
    }
}

/// The ends of all logs, for whoever has to find out why a test failed.
fn show_logs(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            show_logs(&path);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let bytes = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(3_000)..]);
            eprintln!("--- {}\n{text}", path.display());
        }
    }
}

/// Sends a signal to a process of this machine.
pub fn signal(process: u32, name: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .status();
}
