//! A mesh of its own for a test: a directory to put files into, a gateway to call, commands to run.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::http::{self, Answer};

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
    home: tempfile::TempDir,
    /// What the gateway's port 8080 is published as.
    pub gateway: SocketAddr,
}

/// A mesh about to be started.
pub struct Plan {
    home: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Plan {
    /// Nothing in it yet.
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("mesh").tempdir().expect("a temporary folder");
        for folder in ["config", "run", "state"] {
            fs::create_dir(home.path().join(folder)).expect("a fresh folder");
        }
        fs::write(home.path().join("images.yaml"), BOOKINFO_IMAGES).expect("a writable folder");
        Self { home, arguments: Vec::new() }
    }

    /// A further argument of `meltemi up`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// A file of configuration, as text.
    pub fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.home.path().join("config").join(name), text).expect("a writable folder");
        self
    }

    /// A file of Istio's samples, unchanged.
    pub fn sample(self, path: &Path) -> Self {
        let name = path.file_name().expect("a file");
        fs::copy(path, self.home.path().join("config").join(name)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self
    }

    /// Starts it and waits until everything is ready.
    pub fn start(self) -> Mesh {
        let mut command = command(self.home.path());
        command.args(["up", "--publish", "8080=0", "-f"]).arg(self.home.path().join("config"));
        command.arg("--images").arg(self.home.path().join("images.yaml")).args(&self.arguments);
        let mut supervisor = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("the binary starts");
        let lines = lines(&mut supervisor);
        let deadline = Instant::now() + PATIENCE;
        let mut gateway = None;
        let mut seen = Vec::new();
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    // "ingress port 8080: http://127.0.0.1:40123"
                    if let Some((_, address)) = line.split_once("port 8080").and_then(|(_, rest)| rest.split_once("http://")) {
                        gateway = address.trim_end_matches('/').parse().ok();
                    }
                    let ready = line.starts_with("ready");
                    seen.push(line);
                    if ready {
                        break;
                    }
                }
                Err(_) => {
                    let _ = supervisor.kill();
                    panic!("the mesh did not come up; it said:\n{}", seen.join("\n"));
                }
            }
        }
        let gateway = gateway.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        Mesh { supervisor, home: self.home, gateway }
    }
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(crate::binary());
    command.env("XDG_RUNTIME_DIR", home.join("run")).env("XDG_STATE_HOME", home.join("state")).env_remove("MELTEMI_MESH");
    command
}

fn lines(child: &mut Child) -> Receiver<String> {
    let (send, receive) = channel();
    let stdout = child.stdout.take().expect("its output is piped");
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            println!("mesh: {line}");
            if send.send(line).is_err() {
                // The test is past the start; go on reading so that the mesh never waits for us.
            }
        }
    });
    receive
}

impl Mesh {
    /// The watched directory.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("config")
    }

    /// A file of the test's own beside the mesh.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Puts a file of Istio's into the directory, whole at once.
    pub fn put(&self, path: &Path) {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.write(path.file_name().and_then(|name| name.to_str()).expect("a file"), &text);
    }

    /// Writes a file into the directory, whole at once.
    pub fn write(&self, name: &str, text: &str) {
        let beside = self.home.path().join("next");
        fs::write(&beside, text).expect("a writable folder");
        fs::rename(&beside, self.config().join(name)).expect("one file system");
    }

    /// Takes a file out.
    pub fn take_out(&self, name: &str) {
        fs::remove_file(self.config().join(name)).expect("it was put in");
    }

    /// Runs a command of the CLI against this mesh.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        command(self.home.path()).args(arguments).stdin(Stdio::null()).output().expect("the binary starts")
    }

    /// A command of the CLI, to be started by the test.
    pub fn cli_command(&self) -> Command {
        command(self.home.path())
    }

    /// What a successful command prints.
    pub fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Runs a program inside a workload.
    pub fn exec(&self, workload: &str, program: &[&str]) -> Output {
        let arguments: Vec<&str> = ["exec", workload, "--"].iter().chain(program).copied().collect();
        self.cli(&arguments)
    }

    /// GETs a page through the ingress gateway.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        http::get(self.gateway, path, headers).unwrap_or_else(|error| panic!("GET {path} through the gateway: {error}"))
    }

    /// Waits until `holds` does; a change takes a moment to reach every proxy.
    pub fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            if Instant::now() > deadline {
                let status = self.cli(&["status"]);
                panic!("{what}: did not come to hold\n{}", String::from_utf8_lossy(&status.stdout));
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
        if matches!(self.supervisor.try_wait(), Ok(None)) {
            let id = self.supervisor.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &id]).status();
            let deadline = Instant::now() + Duration::from_secs(15);
            while matches!(self.supervisor.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.supervisor.kill();
            let _ = self.supervisor.wait();
        }
        if std::thread::panicking() {
            let logs = self.home.path().join("run");
            eprintln!("what was left in {}: {:?}", logs.display(), fs::read_dir(&logs).map(|d| d.count()));
        }
    }
}
