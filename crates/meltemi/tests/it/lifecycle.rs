//! What happens to a mesh: deaths of its parts, and its end.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::mesh::{Mesh, Plan, signal};
use crate::objects::{both, teapot, workload};
use crate::peers::{App, Dialogue, Peers, curl, yaml};

/// Processes of a mesh whose command line holds `word`.
pub fn processes(mesh: &mut Mesh, word: &str) -> Vec<u32> {
    let supervisor = mesh.supervisor().id();
    below(supervisor)
        .into_iter()
        .map(|(pid, _)| pid)
        .filter(|pid| command_line(*pid).contains(word))
        .collect()
}

/// The words of a process's command line; nothing when it has ended.
pub fn command_line(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline"))
        .unwrap_or_default()
        .replace('\0', " ")
}

/// A process and everything below it, each with its time of start: numbers are used again.
pub fn below(process: u32) -> Vec<(u32, u64)> {
    let all: Vec<(u32, u32, u64)> = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| stat(pid).map(|(parent, start)| (pid, parent, start)))
        .collect();

    // Outermost first.
    let mut family: Vec<(u32, u64)> = all
        .iter()
        .filter(|(pid, ..)| *pid == process)
        .map(|(pid, _, start)| (*pid, *start))
        .collect();

    let mut next = 0;
    while next < family.len() {
        let parent = family[next].0;
        family.extend(
            all.iter()
                .filter(|(_, p, _)| *p == parent)
                .map(|(pid, _, start)| (*pid, *start)),
        );
        next += 1;
    }

    family
}

/// Parent and time of start.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    (fields[0] != "Z").then_some(())?;
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

#[test]
fn dead_programs_restart_without_disturbing_the_rest() {
    let Some(peers) = Peers::of("dead_programs_restart_without_disturbing_the_rest") else {
        return;
    };
    let apps = [
        peers.recorder("ledger"),
        peers.recorder("diary"),
        App::idle("inside"),
        App::idle("outside").unmeshed(),
    ];

    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: alias}\nspec: {type: ExternalName, externalName: ledger.default.svc.cluster.local}\n";
    let plan = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &yaml(&apps))
        .file("alias.yaml", alias);

    let mut mesh = plan.start();
    let calls = |mesh: &Mesh, from: &str, host: &str| {
        curl(mesh, from, &[&format!("http://{host}:9080/")]).status
    };
    mesh.wait("everybody answers", || {
        calls(&mesh, "inside", "ledger") == 200 && calls(&mesh, "inside", "diary") == 200
    });

    // By name, short and whole, and by the Service's address; from inside the mesh and from outside
    // it.
    for from in ["inside", "outside"] {
        for host in [
            "ledger",
            "ledger.default",
            "ledger.default.svc",
            "ledger.default.svc.cluster.local",
            "alias",
        ] {
            assert_eq!(calls(&mesh, from, host), 200, "{from} calls {host}");
        }

        let found = mesh.exec(from, &["getent", "ahostsv4", "ledger"]);
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        let address = text
            .split_whitespace()
            .next()
            .unwrap_or_else(|| panic!("{from} resolves ledger: {found:?}"))
            .to_owned();

        assert!(
            address.starts_with("10.45."),
            "a Service address: {address}"
        );

        assert_eq!(calls(&mesh, from, &address), 200, "{from} calls {address}");
        let pod = workload(&mesh, "ledger-0")
            .and_then(|w| w["ip"].as_str().map(str::to_owned))
            .expect("an address");
        assert_eq!(calls(&mesh, from, &pod), 200, "{from} calls {pod}");
    }

    let outside = workload(&mesh, "outside-0").expect("it runs");
    assert!(
        outside["proxy"].is_null() && outside["ready"] == true,
        "no sidecar beside it: {outside}"
    );

    let mut load = Dialogue::inside(
        &mesh,
        "inside",
        &peers.program("load.py", &["diary", "9080", "/"]),
    );

    assert_eq!(load.hear(), "started");
    let mut held = Dialogue::talk(&mesh, &peers, "inside", "diary", 9081);
    assert_eq!(held.ask("send before"), "received before");

    // A sidecar, an application: they come back, and only they are counted as restarted.
    for (part, title) in [
        ("proxy", "meltemi: sidecar ledger-0"),
        ("app", "recorder.py ledger"),
    ] {
        let before = workload(&mesh, "ledger-0").expect("it runs")[part]["restarts"].as_u64();
        let victims = processes(&mut mesh, title);
        assert!(!victims.is_empty(), "{title}");
        victims.iter().for_each(|pid| signal(*pid, "KILL"));
        mesh.wait(&format!("the {part} runs again"), || {
            workload(&mesh, "ledger-0")
                .is_some_and(|w| w["ready"] == true && w[part]["restarts"].as_u64() > before)
        });
        mesh.wait("and answers", || calls(&mesh, "inside", "ledger") == 200);
    }

    // The control plane, three times: proxies go on with what they have, and then take what is new.
    for round in 0..3 {
        let victims = processes(&mut mesh, "meltemi: control plane");
        assert!(!victims.is_empty());
        victims.iter().for_each(|pid| signal(*pid, "KILL"));
        assert_eq!(
            calls(&mesh, "inside", "ledger"),
            200,
            "without a control plane"
        );

        mesh.wait(
            "the certificates that go on are known to the new one",
            || {
                let status = both(&mesh.cli(&["status"]));
                let meshed: Vec<&str> = status
                    .lines()
                    .filter(|line| line.contains(" meltemi "))
                    .collect();
                meshed.len() == 3
                    && meshed
                        .iter()
                        .all(|line| line.contains("SYNCED") && line.contains("valid for "))
            },
        );

        let status = [418, 451, 429][round];
        mesh.write("ledger.yaml", &teapot("ledger", status));
        mesh.wait("a change after the restart is taken", || {
            calls(&mesh, "inside", "ledger") == status
        });
        mesh.take_out("ledger.yaml");
        mesh.wait("and taken back", || calls(&mesh, "inside", "ledger") == 200);
    }

    assert_eq!(held.ask("send after"), "received after");
    let counts: Value = serde_json::from_str(&load.end()).expect("JSON");
    assert_eq!(
        counts["failures"],
        serde_json::json!([]),
        "what did not die is not hurt: {counts}"
    );

    assert_eq!(
        workload(&mesh, "diary-0").expect("it runs")["proxy"]["restarts"],
        0
    );

    commands_behave_as_in_a_shell(&mesh);
}

#[test]
fn programs_of_root_may_switch_to_another_user() {
    const TEST: &str = "programs_of_root_may_switch_to_another_user";

    if Peers::of(TEST).is_none() {
        return;
    }
    let become_guest = [
        "setpriv", "--reuid", "12345", "--regid", "54321", "--groups", "999", "id",
    ];
    let here = Command::new(become_guest[0])
        .args(&become_guest[1..])
        .output();
    if !here.is_ok_and(|output| output.status.success()) {
        return crate::skip(TEST, "this user may not become another one");
    }
    let mesh = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &App::idle("inside").yaml())
        .start();

    for place in ["@router", "inside"] {
        let output = mesh.exec(place, &become_guest);
        let told = both(&output);
        assert!(output.status.success(), "{place}: {told}");
        for id in ["uid=12345", "gid=54321", "999"] {
            assert!(told.contains(id), "{place}: {told}");
        }
    }
}

fn commands_behave_as_in_a_shell(mesh: &Mesh) {
    for code in [0, 7, 255] {
        assert_eq!(
            mesh.exec("inside", &["sh", "-c", &format!("exit {code}")])
                .status
                .code(),
            Some(code)
        );
    }

    assert_eq!(
        mesh.exec("inside", &["sh", "-c", "kill -9 $$"])
            .status
            .code(),
        Some(137)
    );

    assert_eq!(
        mesh.exec("inside", &["no-such-program"]).status.code(),
        Some(127)
    );

    let mut cat = mesh.cli_command();
    let mut cat = cat
        .args(["exec", "inside-0", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");

    let text: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    let mut input = cat.stdin.take().expect("piped");
    let sent = text.clone();

    std::thread::spawn(move || std::io::Write::write_all(&mut input, &sent));
    let output = cat.wait_with_output().expect("it ends");
    assert!(
        output.status.success() && output.stdout == text,
        "stdin comes out of stdout, byte by byte"
    );

    let split = mesh.exec("inside", &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(
        (&split.stdout[..], &split.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );

    for (arguments, code, words) in [
        (
            &["exec", "nobody", "--", "true"][..],
            1,
            "no workload \"nobody\"",
        ),
        (
            &["exec", "inside", "-n", "elsewhere", "--", "true"],
            1,
            "there is one in namespace default",
        ),
        (&["logs", "nobody"], 1, "no workload \"nobody\""),
        (&["get", "nonsense"], 1, "nonsense"),
        (
            &["apply", "-f", "/no/such/file.yaml"],
            1,
            "/no/such/file.yaml",
        ),
        (
            &["--mesh", "another", "status"],
            1,
            "no mesh \"another\" is running",
        ),
        (&["frobnicate"], 2, "frobnicate"),
    ] {
        let output = mesh.cli(arguments);
        assert!(
            output.status.code() == Some(code) && both(&output).contains(words),
            "{arguments:?}: {output:?}"
        );
    }

    let completion = mesh.cli_ok(&["completion", "bash"]);
    assert!(completion.contains("meltemi"), "{completion}");
}

/// What a running mesh has on this machine.
pub struct Traces {
    /// When this was written down, in ticks since the machine started.
    at: u64,
    processes: Vec<(u32, u64)>,
    namespaces: BTreeSet<PathBuf>,
    home: PathBuf,
    run_dir: PathBuf,
}

const NAMESPACES: [&str; 4] = ["user", "net", "mnt", "pid"];

fn namespaces_of(process: &str) -> BTreeSet<PathBuf> {
    NAMESPACES
        .iter()
        .filter_map(|kind| fs::read_link(format!("/proc/{process}/ns/{kind}")).ok())
        .collect()
}

impl Traces {
    pub fn of(mesh: &mut Mesh) -> Self {
        let processes = below(mesh.supervisor().id());
        let own = namespaces_of("self");
        let all = processes
            .iter()
            .flat_map(|(pid, _)| namespaces_of(&pid.to_string()));
        let namespaces: BTreeSet<PathBuf> =
            all.filter(|namespace| !own.contains(namespace)).collect();
        assert!(
            processes.len() > 6 && namespaces.len() > 6,
            "{processes:?} {namespaces:?}"
        );

        // USER_HZ is 100 on every architecture that the mesh runs on.
        let uptime = fs::read_to_string("/proc/uptime")
            .expect("/proc")
            .split(' ')
            .next()
            .map(str::parse::<f64>);

        let at = (uptime.expect("a number").expect("a number") * 100.0) as u64;

        Self {
            at,
            processes,
            namespaces,
            home: mesh.path(""),
            run_dir: mesh.run_dir(),
        }
    }

    /// What of it is still there.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (pid, start) in &self.processes {
            if stat(*pid).is_some_and(|(_, now)| now == *start) {
                left.push(format!(
                    "process {pid}: {}",
                    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
                ));
            }
        }

        let numbers = fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());

        // The kernel gives a namespace's number to the next one: whoever began later is somebody
        // else's.
        let began_before = |pid: &String| {
            pid.parse()
                .ok()
                .and_then(stat)
                .is_some_and(|(_, began)| began <= self.at)
        };

        for pid in numbers.filter(began_before) {
            let shared: Vec<_> = namespaces_of(&pid)
                .intersection(&self.namespaces)
                .cloned()
                .collect();
            if !shared.is_empty() {
                left.push(format!("process {pid} in {shared:?}"));
            }
        }

        let home = self.home.display().to_string();
        for table in ["/proc/self/mountinfo", "/proc/net/unix"] {
            let text = fs::read_to_string(table).unwrap_or_default();
            left.extend(
                text.lines()
                    .filter(|line| line.contains(&home))
                    .map(|line| format!("{table}: {line}")),
            );
        }

        if self.run_dir.exists() {
            left.push(format!("{}", self.run_dir.display()));
        }

        left
    }
}

fn interfaces() -> BTreeSet<String> {
    fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

pub const GATEWAY: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: way-in}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ['*']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: way-in}
spec:
  hosts: ['*']
  gateways: [way-in]
  http:
  - route: [{destination: {host: ledger, port: {number: 9080}}}]
";

#[test]
fn no_process_or_folder_is_left_however_the_supervisor_ends() {
    let Some(peers) = Peers::of("no_process_or_folder_is_left_however_the_supervisor_ends") else {
        return;
    };
    let apps = [peers.recorder("ledger"), App::idle("outside").unmeshed()];
    let mut mesh = Plan::new()
        .file("apps.yaml", &yaml(&apps))
        .file("gateway.yaml", GATEWAY)
        .start();

    for (name, is_orderly) in [("INT", true), ("KILL", false), ("TERM", true)] {
        mesh.wait("the way in", || mesh.published(8080).is_some());
        mesh.wait("an answer from outside", || {
            mesh.get("/", &[]).status == 200
        });
        let gateway = mesh.published(8080).expect("published");
        let shown = format!("istio-ingressgateway port 8080: http://{gateway}");
        assert!(
            mesh.said(&shown) && mesh.cli_ok(&["status"]).contains(&shown),
            "{:?}",
            mesh.lines()
        );

        // Somebody is inside, and a program was added: they end as well.
        let mut guest = Dialogue::inside(&mesh, "ledger", &["cat".to_owned()]);
        assert_eq!(guest.ask("hello"), "hello");
        mesh.cli_ok(&["run", "--app", "added", "--detach", "--", "sleep", "86400"]);
        mesh.wait("the added one runs", || {
            workload(&mesh, "added-v1-0").is_some_and(|w| w["ready"] == true)
        });

        // A second mesh of the same name is refused and hurts nothing.
        let second = mesh.cli(&["up", "-f", &mesh.config().display().to_string()]);
        assert_eq!(second.status.code(), Some(1));
        assert!(both(&second).contains("already running"), "{second:?}");
        assert_eq!(mesh.get("/", &[]).status, 200);

        let before = interfaces();
        let traces = Traces::of(&mut mesh);
        signal(mesh.supervisor().id(), name);
        let ended = mesh.supervisor().wait().expect("a child");
        assert_eq!(ended.success(), is_orderly, "{name}: {ended}");
        mesh.wait(
            &format!("nothing is left after {name}: {:?}", traces.left()),
            || traces.left().is_empty(),
        );

        assert!(
            TcpStream::connect(gateway).is_err(),
            "{name}: the port is free"
        );

        assert_eq!(
            interfaces(),
            before,
            "the machine's own network is not touched"
        );

        if name != "TERM" {
            mesh.start_again();
        }
    }
}

#[test]
fn a_taken_port_is_reported_and_the_rest_runs() {
    let Some(peers) = Peers::of("a_taken_port_is_reported_and_the_rest_runs") else {
        return;
    };
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let apps = [peers.recorder("ledger"), App::idle("inside")];
    let plan = Plan::new()
        .argument("--publish")
        .argument(&format!("8080={port}"));
    let mesh = plan
        .file("apps.yaml", &yaml(&apps))
        .file("gateway.yaml", GATEWAY)
        .launch();

    mesh.wait("the port is named", || {
        mesh.said(&format!(
            "port {port} of 127.0.0.1 is taken by another program"
        ))
    });

    assert!(mesh.said("--publish 8080=OTHER"), "{:?}", mesh.lines());
    mesh.wait("the rest runs", || {
        curl(&mesh, "inside", &["http://ledger:9080/"]).status == 200
    });

    // Another program of the same user that shares its port must be noticed as well.
    assert!(mesh.published(8080).is_none(), "{:?}", mesh.lines());
    drop(taken);
}

#[test]
fn forbidden_namespaces_are_reported_with_a_remedy() {
    const TEST: &str = "forbidden_namespaces_are_reported_with_a_remedy";

    if Peers::of(TEST).is_none() {
        return;
    }
    let home = tempfile::tempdir().expect("a temporary folder");

    // In a user namespace whose own limit of user namespaces is 0, as an administrator would set
    // it.
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces && exec {} up -f {}",
        crate::binary().display(),
        home.path().display()
    );

    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", &script]);
    command
        .env("XDG_RUNTIME_DIR", home.path())
        .env("XDG_STATE_HOME", home.path())
        .stdin(Stdio::null());

    let output = command.output().expect("unshare starts");
    let told = both(&output);
    if told.contains("max_user_namespaces: ") && told.contains("denied") {
        return crate::skip(TEST, "the limit cannot be set here");
    }
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("user namespace") && told.contains("max_user_namespaces"),
        "what is missing, and what to do: {told}"
    );

    assert!(!home.path().join("meltemi/default/node.sock").exists());
}
