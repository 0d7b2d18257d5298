//! Programs that are not ours, as workloads of a mesh and beside it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::mesh::Mesh;

/// How long one answer of a program may take; far beyond what it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Access logs, as Istio's users switch them on.
pub const ACCESS_LOG: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
";

/// What the tests need beside the binary.
pub struct Peers {
    /// Python with grpcio, Envoy's messages and websockets.
    pub python: String,
}

impl Peers {
    /// `None`, after a visible skip, where this machine lacks something.
    pub fn of(test: &str) -> Option<Self> {
        let missing = |why: &str| {
            crate::skip(test, why);
            None
        };

        if !has_namespaces(test) {
            return None;
        }
        if let Some(program) = ["curl", "openssl"]
            .iter()
            .find(|program| !succeeds(Command::new(program).arg("--help")))
        {
            return missing(&format!("{program} is not installed"));
        }

        Self::python(test)
    }

    /// Python alone, for tests without a mesh.
    pub fn python(test: &str) -> Option<Self> {
        let python = place("MELTEMI_PYTHON", "python");
        if !succeeds(Command::new(&python).args([
            "-c",
            "import envoy.service.discovery.v3.ads_pb2_grpc, grpc, websockets",
        ])) {
            crate::skip(
                test,
                "there is no Python with grpcio, xds-protos and websockets (cargo xtask peers)",
            );
            return None;
        }

        Some(Self {
            python: python.display().to_string(),
        })
    }

    /// The command line of one of the programs beside the tests.
    pub fn program(&self, name: &str, arguments: &[&str]) -> Vec<String> {
        let mut words = vec![self.python.clone(), "-u".to_owned(), script(name)];
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        words
    }

    /// An application that records what reaches it: HTTP or echo on 9080 and 9081.
    pub fn recorder(&self, name: &str) -> App {
        App::new(
            name,
            &[("http", 9080), ("tcp", 9081)],
            self.program("recorder.py", &[name, "9080", "9081"]),
        )
    }
}

/// Whether a mesh can run here; false after a visible skip.
pub fn has_namespaces(test: &str) -> bool {
    let namespaces = [
        "--user",
        "--map-root-user",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "true",
    ];

    let has = succeeds(Command::new("unshare").args(namespaces));
    if !has {
        crate::skip(test, "this machine forbids user namespaces");
    }

    has
}

/// Stock Envoy; `None` after a visible skip.
pub fn envoy(test: &str) -> Option<PathBuf> {
    let envoy = place("MELTEMI_ENVOY", "envoy");
    if !succeeds(Command::new(&envoy).arg("--version")) {
        crate::skip(test, "there is no Envoy (cargo xtask peers)");
        return None;
    }
    Some(envoy)
}

/// The folder of Istio's programs; `None` after a visible skip.
pub fn istio(test: &str) -> Option<PathBuf> {
    let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers/istio");
    let folder = std::env::var_os("MELTEMI_ISTIO").map_or(below, PathBuf::from);
    if !folder.join("pilot-agent").is_file() {
        crate::skip(test, "there is no Istio (cargo xtask peers)");
        return None;
    }
    Some(folder)
}

/// Where the variable says, else where `cargo xtask peers` puts it.
fn place(variable: &str, program: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("/"));
    std::env::var_os(variable).map_or_else(
        || root.join("target/peers/python/bin").join(program),
        PathBuf::from,
    )
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/foreign")
        .join(name)
        .display()
        .to_string()
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A Deployment, its service account, and a Service if it has ports.
pub struct App {
    name: String,
    ports: Vec<(String, u16)>,
    command: Vec<String>,
    labels: String,
    annotations: String,
}

impl App {
    /// Ports by the Service's name for them.
    pub fn new(name: &str, ports: &[(&str, u16)], command: Vec<String>) -> Self {
        let ports = ports
            .iter()
            .map(|(name, port)| ((*name).to_owned(), *port))
            .collect();

        Self {
            name: name.to_owned(),
            ports,
            command,
            labels: String::new(),
            annotations: String::new(),
        }
    }

    /// A place to run commands in.
    pub fn idle(name: &str) -> Self {
        Self::new(name, &[], vec!["sleep".to_owned(), "86400".to_owned()])
    }

    /// Outside the mesh.
    pub fn unmeshed(mut self) -> Self {
        self.labels.push_str(", sidecar.istio.io/inject: \"false\"");
        self
    }

    /// With stock Envoy as its sidecar.
    pub fn with_envoy(mut self) -> Self {
        self.annotations.push_str("meltemi.io/proxy: envoy");
        self
    }

    /// As YAML.
    pub fn yaml(&self) -> String {
        let Self {
            name,
            ports,
            command,
            labels,
            annotations,
        } = self;

        let list = |item: &dyn Fn(&str, u16) -> String| {
            ports
                .iter()
                .map(|(name, port)| item(name, *port))
                .collect::<Vec<_>>()
                .join(", ")
        };

        let mut text =
            format!("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n");
        if !ports.is_empty() {
            let ports = list(&|name, port| format!("{{name: {name}, port: {port}}}"));
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{ports}]}}\n"
            );
        }

        let ports = list(&|_, port| format!("{{containerPort: {port}}}"));
        let command = serde_json::to_string(command).expect("words are JSON");
        let _ = write!(
            text,
            "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata:
      labels: {{app: {name}, version: v1{labels}}}
      annotations: {{{annotations}}}
    spec:
      serviceAccountName: {name}
      containers:
      - name: {name}
        image: none
        command: {command}
        ports: [{ports}]
"
        );

        text
    }
}

/// One file of several applications.
pub fn yaml(apps: &[App]) -> String {
    apps.iter().map(App::yaml).collect()
}

/// A program that is steered line by line.
pub struct Dialogue {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Dialogue {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");

        let (send, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| send.send(line))
        });

        Self {
            input: child.stdin.take(),
            child,
            lines,
        }
    }

    /// Starts it inside a workload.
    pub fn inside(mesh: &Mesh, workload: &str, program: &[String]) -> Self {
        Self::start(
            mesh.cli_command()
                .args(["exec", workload, "--"])
                .args(program),
        )
    }

    /// A connection from inside a workload, held open.
    pub fn talk(mesh: &Mesh, peers: &Peers, workload: &str, host: &str, port: u16) -> Self {
        let dialogue = Self::inside(
            mesh,
            workload,
            &peers.program("talk.py", &[host, &port.to_string()]),
        );
        assert_eq!(dialogue.hear(), "connected", "{workload} to {host}:{port}");
        dialogue
    }

    /// The next line.
    pub fn hear(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| format!("no answer: {error}"))
    }

    /// The next line, where silence is a failure.
    pub fn hear_or_fail(&self, why: &str) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("{why}: no line came: {error}"))
    }

    /// Says a line.
    pub fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().expect("still open"), "{line}")
            .unwrap_or_else(|error| panic!("{line}: {error}"));
    }

    /// Says a line and hears the answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }

    /// Closes its input and hears the last line.
    pub fn end(&mut self) -> String {
        self.input = None;
        self.hear()
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        self.input = None;
        self.kill();
    }
}

/// What curl says inside a workload: the status code, or curl's own error, and the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Curl {
    /// 0 when there was no answer.
    pub status: u16,
    /// curl's exit code.
    pub code: i32,
    /// Body, or curl's complaint.
    pub text: String,
}

/// Calls a URL from inside a workload.
pub fn curl(mesh: &Mesh, workload: &str, arguments: &[&str]) -> Curl {
    let fixed = ["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}"];
    told(&mesh.exec(workload, &[&fixed[..], arguments].concat()))
}

/// Calls a URL from the machine itself.
pub fn curl_here(arguments: &[&str]) -> Curl {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-w", "\n%{http_code}"])
        .args(arguments)
        .output();
    told(&output.expect("curl starts"))
}

fn told(output: &Output) -> Curl {
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, status) = text.rsplit_once('\n').unwrap_or((&text, "0"));
    let errors = String::from_utf8_lossy(&output.stderr);
    Curl {
        status: status.trim().parse().unwrap_or(0),
        code: output.status.code().unwrap_or(-1),
        text: format!("{}{}", body.trim(), errors.trim()),
    }
}

/// A certificate authority of the test's own, and a server certificate below it: `ca.pem`,
/// `NAME.pem`, `NAME.key`.
pub fn certificates(folder: &Path, name: &str, hosts: &[&str]) {
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .current_dir(folder)
            .args(arguments)
            .output()
            .expect("openssl starts");

        assert!(
            output.status.success(),
            "openssl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };

    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];

    if !folder.join("ca.pem").exists() {
        let authority = [
            "-x509",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ];

        run(&[&["req"][..], &key, &authority].concat());
    }

    let names: Vec<String> = hosts.iter().map(|host| format!("DNS:{host}")).collect();
    let (subject, names) = (
        format!("/CN={name}"),
        format!("subjectAltName={}", names.join(",")),
    );

    let (key_file, certificate) = (format!("{name}.key"), format!("{name}.pem"));
    let issued = [
        "-x509", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", &subject, "-addext",
        &names,
    ];

    let files = [
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        &key_file,
        "-out",
        &certificate,
    ];

    run(&[&["req"][..], &key, &issued, &files].concat());
}
