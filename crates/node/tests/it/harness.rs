//! One mesh for a test, in folders of its own, and what is left of it afterwards.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// An ordinary user without an entry anywhere.
const ORDINARY: u32 = 54_321;
/// Soft limit of open files where a mesh is started.
pub const OPEN_FILES: u64 = 512;
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a scenario as the current user and, as root, as an ordinary one as well.
pub fn as_each_user(scenario: fn(&mut Mesh)) {
    for user in [None, Some(ORDINARY)]
        .into_iter()
        .take(1 + usize::from(is_root()))
    {
        let mut mesh = Mesh::new(user);
        if mesh.start() {
            scenario(&mut mesh);
            mesh.interrupt();
            mesh.assert_nothing_is_left();
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

pub struct Mesh {
    user: Option<u32>,
    folder: tempfile::TempDir,
    /// The supervisor, where its user can start it.
    pub program: PathBuf,
    supervisor: Option<Child>,
    events: Option<Receiver<String>>,
    seen: Vec<String>,
}

impl Mesh {
    /// A mesh of an ordinary user, if this is root; else of the current one.
    pub fn ordinary() -> Self {
        Self::new(is_root().then_some(ORDINARY))
    }

    fn new(user: Option<u32>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("meltemi-node-")
            .tempdir()
            .unwrap();

        for dir in ["", "conf", "empty"] {
            let path = folder.path().join(dir);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        }

        let own = std::env::current_exe().unwrap();
        let mut program = own
            .parent()
            .and_then(Path::parent)
            .unwrap()
            .join("examples/mesh");

        if user.is_some() {
            // Others may not look into root's folders. `cp`, because a file that this process wrote
            // could still be open in a child that another test is starting, and would be "busy".
            let copied = Command::new("cp")
                .arg(&program)
                .arg(folder.path())
                .status()
                .unwrap();
            assert!(copied.success());
            program = folder.path().join("mesh");
        }

        Self {
            user,
            folder,
            program,
            supervisor: None,
            events: None,
            seen: Vec::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A word that is in the command lines of this mesh's applications and of no others.
    pub fn token(&self) -> String {
        self.folder
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    pub fn deployment(&self, name: &str, replicas: u32, labels: &str, image: &str) {
        let text = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}{labels}}}}}\n    spec: {{containers: [{{name: {name}, image: {image}, ports: [{{containerPort: 9080}}]}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 9080}}]}}\n"
        );
        let new = self.path(&format!("empty/{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(&format!("conf/{name}.yaml"))).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        self.configured(&mut command, arguments);
        command
    }

    fn configured<'a>(&self, command: &'a mut Command, arguments: &[&str]) -> &'a mut Command {
        command
            .args(arguments)
            .env("RUN", self.path("run"))
            .env("STATE", self.path("state"));
        command.current_dir(self.folder.path());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Starts the mesh and waits until it is ready; false, visibly, where namespaces are forbidden.
    pub fn start(&mut self) -> bool {
        let token = self.token();
        fs::write(
            self.path("images.yaml"),
            format!("images:\n- {{image: hello, command: [meltemi, answer, '9080', {token}]}}\n- {{image: broken, command: [sh, -c, 'echo oops; exit 3']}}\n"),
        )
        .unwrap();

        if !self.path("dial.yaml").exists() {
            fs::write(self.path("dial.yaml"), "").unwrap();
        }
        let (conf, images, dial) = (
            self.path("conf"),
            self.path("images.yaml"),
            self.path("dial.yaml"),
        );

        let words = [
            "up",
            conf.to_str().unwrap(),
            images.to_str().unwrap(),
            dial.to_str().unwrap(),
        ];

        // A soft limit of open files below the hard one, as users have it.
        let mut limited = Command::new("sh");
        limited.args([
            "-c",
            &format!("ulimit -Sn {OPEN_FILES}; exec \"$0\" \"$@\""),
        ]);

        let mut child = self
            .configured(limited.arg(&self.program), &words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();

        let (sender, events) = channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });

        self.supervisor = Some(child);
        self.events = Some(events);
        self.seen.clear();
        let outcome = self.wait_for_event("AllReady", "Failed(");
        if let Err(why) = &outcome {
            if ["namespace", "AppArmor", "seccomp"]
                .iter()
                .any(|word| why.contains(word))
            {
                skip(&format!(
                    "this machine forbids what a mesh is made of: {}",
                    why.trim()
                ));
                return false;
            }

            panic!("the mesh did not start: {why}");
        }

        true
    }

    /// Why a mesh does not start; `None`, visibly, when even the test's own namespace is forbidden.
    pub fn start_where_namespaces_are_forbidden(&mut self) -> Option<String> {
        let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" up \"$1\"";
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "sh", "-c", script])
            .arg(&self.program)
            .arg(self.path("conf"));

        command
            .env("RUN", self.path("run"))
            .env("STATE", self.path("state"));
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }

        match command.output() {
            Ok(output) if !output.status.success() && !output.stderr.starts_with(b"unshare:") => {
                Some(String::from_utf8_lossy(&output.stderr).into_owned())
            }
            other => {
                skip(&format!(
                    "a namespace without namespaces cannot be made here: {other:?}"
                ));
                None
            }
        }
    }

    /// Waits for a line; `Err` with a line that holds `bad`, or when the mesh ends.
    fn wait_for_event(&mut self, good: &str, bad: &str) -> Result<(), String> {
        let events = self.events.as_ref().unwrap();
        loop {
            match events.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(good) => {
                    self.seen.push(line);
                    return Ok(());
                }
                Ok(line) if line.contains(bad) => return Err(line),
                Ok(line) => self.seen.push(line),
                Err(e) => return Err(format!("{e} after {:?}", self.seen)),
            }
        }
    }

    /// What was told since the start.
    pub fn told(&mut self) -> Vec<String> {
        self.seen.extend(self.events.as_ref().unwrap().try_iter());
        self.seen.clone()
    }

    /// Runs a client command.
    pub fn client(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a client command that must succeed; its output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.client(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// A GET from inside a workload.
    pub fn get(&self, from: &str, to: &str) -> Output {
        let program = &self.program;
        self.client(&["exec", from, program.to_str().unwrap(), "get", to])
    }

    pub fn list(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.ok(&["list"])).unwrap()
    }

    pub fn workload(&self, pod: &str) -> Option<serde_json::Value> {
        self.list().into_iter().find(|w| w["key"]["pod"] == pod)
    }

    /// Waits until `condition` holds.
    pub fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(
                Instant::now() < end,
                "{what} never came true; workloads: {:#?}",
                self.list()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn interrupt(&mut self) {
        let mut child = self.supervisor.take().unwrap();
        signal(child.id(), "INT");
        let status = child.wait().unwrap();
        assert!(status.success(), "the supervisor ended with {status}");
    }

    pub fn kill_supervisor(&mut self) {
        let mut child = self.supervisor.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Processes of this mesh, as the machine sees them, whose command line holds `word`.
    pub fn processes(&self, word: &str) -> Vec<u32> {
        let mine = |line: &str| line.contains(&self.token()) && line.contains(word);
        let all = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok());

        all.filter(|pid: &u32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .unwrap_or_default()
                .replace('\0', " ");
            mine(&line)
        })
        .collect()
    }

    pub fn assert_nothing_is_left(&self) {
        let end = Instant::now() + PATIENCE;
        while !self.processes("").is_empty() || self.path("run").exists() {
            let left = (self.processes(""), self.path("run").exists());
            assert!(
                Instant::now() < end,
                "left behind: processes {:?}, folder {}",
                left.0,
                left.1
            );
            std::thread::sleep(Duration::from_millis(10));
        }

        assert!(
            !fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(&self.token())
        );
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// The test that runs is skipped.
fn skip(why: &str) {
    crate::skip(std::thread::current().name().unwrap_or("a mesh"), why);
}
