//! What is killed and takes others along, or does not: a node, with everything that runs in it; an
//! Envoy's agent, with its Envoy; a gateway, with whom waits for it; a terminal, with what was
//! started in it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::http;
use crate::lifecycle::{GATEWAY, Traces, below, command_line, processes};
use crate::mesh::{Mesh, Plan, signal};
use crate::objects::workload;
use crate::peers::{App, Peers, curl, envoy, yaml};

fn is_ready(mesh: &Mesh, name: &str) -> bool {
    workload(mesh, name).is_some_and(|found| found["ready"] == true)
}

fn said(mesh: &Mesh, text: &str) -> usize {
    mesh.lines()
        .iter()
        .filter(|line| line.contains(text))
        .count()
}

#[test]
fn a_killed_node_is_replaced_with_the_same_ports_and_workloads() {
    let Some(peers) = Peers::of("a_killed_node_is_replaced_with_the_same_ports_and_workloads")
    else {
        return;
    };
    let apps = [peers.recorder("ledger"), App::idle("inside")];
    let mut mesh = Plan::new()
        .file("apps.yaml", &yaml(&apps))
        .file("gateway.yaml", GATEWAY)
        .start();

    mesh.wait("the way in", || {
        mesh.published(8080).is_some() && mesh.get("/", &[]).status == 200
    });
    let gateway = mesh.published(8080).expect("published");
    let command = peers.program("recorder.py", &["added", "9080"]);
    for app in ["added", "short"] {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        mesh.cli_ok(
            &[
                &["run", "--app", app, "--port", "9080", "--detach", "--"][..],
                &words,
            ]
            .concat(),
        );

        mesh.wait("the added one runs", || {
            is_ready(&mesh, &format!("{app}-v1-0"))
        });
    }

    mesh.cli_ok(&["stop", "short-v1"]);
    let address = |mesh: &Mesh| workload(mesh, "ledger-0").expect("it runs")["ip"].clone();
    let before = address(&mesh);

    // The keeper, process 1 of the node's namespace, the node itself: each from the outside in.
    for round in 0..3 {
        let node = processes(&mut mesh, "meltemi: node");
        assert_eq!(node.len(), 3, "{node:?}");
        signal(node[round], "KILL");
        mesh.wait("it is told", || {
            said(&mesh, "is started again") == round + 1
        });
        mesh.wait("everything is ready again", || {
            said(&mesh, "ready again") == round + 1
        });

        // The socket is the same: nobody had to wait for a free port, and no line names another.
        mesh.wait("an answer from outside", || {
            http::get(gateway, "/", &[]).is_ok_and(|answer| answer.status == 200)
        });
        assert_eq!(
            (mesh.published(8080), address(&mesh)),
            (Some(gateway), before.clone())
        );

        mesh.wait("a call to what was added", || {
            curl(&mesh, "inside", &["http://added:9080/"]).status == 200
        });
        assert!(
            workload(&mesh, "short-v1-0").is_none(),
            "what was stopped stays away"
        );
    }

    assert!(
        mesh.said("warning: the node ended by itself (killed by signal 9)"),
        "{:?}",
        mesh.lines()
    );

    // One that dies again and again is given up, and then nothing is left.
    let traces = Traces::of(&mut mesh);
    let supervisor = mesh.supervisor().id();
    mesh.wait("the supervisor gives up", || {
        let family = below(supervisor);
        let node = family
            .iter()
            .map(|(pid, _)| *pid)
            .find(|pid| command_line(*pid).contains("meltemi: node"));
        node.inspect(|pid| signal(*pid, "KILL"));
        family.is_empty()
    });

    assert_eq!(mesh.supervisor().wait().expect("a child").code(), Some(1));
    mesh.wait("it says why", || {
        mesh.said("error: the node ended by itself") && mesh.said("6th time in a row")
    });
    mesh.wait(&format!("nothing is left: {:?}", traces.left()), || {
        traces.left().is_empty()
    });
}

#[test]
fn an_envoy_ends_with_its_agent() {
    const TEST: &str = "an_envoy_ends_with_its_agent";

    let (Some(peers), Some(envoy)) = (Peers::of(TEST), envoy(TEST)) else {
        return;
    };
    let plan = Plan::new()
        .argument("--no-gateways")
        .argument("--envoy")
        .argument(&envoy.display().to_string());

    let plan = ["added-v1=envoy", "other-v1=envoy"]
        .iter()
        .fold(plan, |plan, word| plan.argument("--proxy").argument(word));
    let mut mesh = plan.file("apps.yaml", &App::idle("inside").yaml()).start();
    let command = peers.program("recorder.py", &["added", "9080"]);
    let words: Vec<&str> = command.iter().map(String::as_str).collect();

    for (app, own) in [("added", &[][..]), ("other", &["--proxy", "meltemi"])] {
        mesh.cli_ok(
            &[
                &["run", "--app", app, "--port", "9080", "--detach"][..],
                own,
                &["--"],
                &words,
            ]
            .concat(),
        );

        mesh.wait("a call to it", || {
            curl(&mesh, "inside", &[&format!("http://{app}:9080/")]).status == 200
        });
    }

    let kind = |name: &str| workload(&mesh, name).map(|found| found["proxy_kind"].clone());
    assert_eq!(
        (kind("added-v1-0"), kind("other-v1-0")),
        (Some(json!("envoy")), Some(json!("meltemi"))),
        "as `up` says for a workload of this name, unless the run says otherwise"
    );

    let envoys = |mesh: &mut Mesh| processes(mesh, "--disable-hot-restart");
    let restarts = |mesh: &Mesh| {
        workload(mesh, "added-v1-0").map_or(Value::Null, |w| w["proxy"]["restarts"].clone())
    };

    // The process in front of the agent, then the agent itself.
    for round in 0..2 {
        let old = envoys(&mut mesh);
        assert_eq!(old.len(), 1, "one Envoy");
        let agent = processes(&mut mesh, "meltemi: sidecar added-v1-0");
        signal(agent[round], "KILL");
        mesh.wait("another agent is started", || {
            restarts(&mesh) == json!(round + 1)
        });
        mesh.wait("calls succeed again", || {
            curl(&mesh, "inside", &["http://added:9080/"]).status == 200
        });
        let new = envoys(&mut mesh);
        assert!(
            new.len() == 1 && new != old,
            "the old Envoy is gone: {old:?}, {new:?}"
        );
    }

    assert_eq!(restarts(&mesh), json!(2), "each next one came up at once");

    // Envoy alone: its agent does not stay behind with nothing to serve.
    let old = envoys(&mut mesh);
    old.iter().for_each(|envoy| signal(*envoy, "KILL"));
    mesh.wait("it is told", || restarts(&mesh) == json!(3));
    mesh.wait("calls succeed again", || {
        curl(&mesh, "inside", &["http://added:9080/"]).status == 200
    });
    let new = envoys(&mut mesh);
    assert!(
        new.len() == 1 && new != old,
        "another one: {old:?}, {new:?}"
    );
}

/// Whether every thread of a process has been stopped: the signal alone does not say so.
fn stands_still(process: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

#[test]
fn a_killed_gateway_loses_no_waiting_connection() {
    const WAITING: usize = 16;

    let Some(peers) = Peers::of("a_killed_gateway_loses_no_waiting_connection") else {
        return;
    };
    let mut mesh = Plan::new()
        .file("apps.yaml", &peers.recorder("ledger").yaml())
        .file("gateway.yaml", GATEWAY)
        .start();

    mesh.wait("the way in", || {
        mesh.published(8080).is_some() && mesh.get("/", &[]).status == 200
    });
    let gateway = mesh.published(8080).expect("published");

    for round in 0..3 {
        let victims = processes(&mut mesh, "meltemi: gateway istio-ingressgateway-0");
        assert!(!victims.is_empty(), "the gateway's processes");

        // It does not get to accept what comes from now on, and dies.
        victims.iter().for_each(|pid| signal(*pid, "STOP"));
        mesh.wait("it stands still", || {
            victims.iter().all(|pid| stands_still(*pid))
        });
        let connect = |number| {
            http::Client::connect(gateway).unwrap_or_else(|error| panic!("{number}: {error}"))
        };
        let waiting: Vec<http::Client> = (0..WAITING).map(connect).collect();
        victims.iter().for_each(|pid| signal(*pid, "KILL"));
        for (number, mut client) in waiting.into_iter().enumerate() {
            let answer = client.get(&format!("/waited-{round}-{number}"), &[]);
            let answer = answer
                .unwrap_or_else(|error| panic!("round {round}, connection {number}: {error}"));
            assert_eq!(
                answer.status, 200,
                "round {round}, connection {number}: {}",
                answer.body
            );
        }

        mesh.wait("it is told", || {
            workload(&mesh, "istio-ingressgateway-0")
                .is_some_and(|w| w["proxy"]["restarts"] == json!(round + 1))
        });

        assert_eq!(mesh.published(8080), Some(gateway));
    }
}

const SECOND: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second}
spec:
  hosts: [second.example.test]
  http: [{route: [{destination: {host: ledger}}]}]
";

/// In surroundings that are not made for it: started by `nohup` with a reader that leaves, in a
/// shell with variables that are no text, from a directory that is a link.
#[test]
fn a_mesh_keeps_running_without_its_terminal_and_its_reader() {
    if Peers::of("a_mesh_keeps_running_without_its_terminal_and_its_reader").is_none() {
        return;
    }
    let no_text = OsStr::from_bytes(b"\xff\xfe");
    let plan = Plan::new()
        .nohup_read_until("ready after")
        .environment("NO_TEXT", no_text.as_ref());

    // The directory is a release; another one takes its place later.
    fs::rename(plan.path("config"), plan.path("first")).expect("a folder of our own");
    symlink("first", plan.path("config")).expect("a folder of our own");
    let mut mesh = plan.file("apps.yaml", &App::idle("inside").yaml()).start();

    // Something to say on either stream, with nobody who reads.
    mesh.write("broken.yaml", "kind: [");
    mesh.write("gateway.yaml", GATEWAY);
    let told = |mesh: &Mesh| crate::objects::both(&mesh.cli(&["status"]));
    mesh.wait("a finding and a published port", || {
        let told = told(&mesh);
        told.contains("broken.yaml") && told.contains("istio-ingressgateway port 8080")
    });

    // The terminal closes.
    signal(mesh.supervisor().id(), "HUP");
    let mut run = mesh.cli_command();
    run.args(["run", "--app", "added", "--detach", "--", "sleep", "86400"])
        .env("NO_TEXT", no_text);
    let output = run.output().expect("the binary starts");
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("NO_TEXT is not UTF-8"),
        "{output:?}"
    );

    mesh.wait("it goes on", || is_ready(&mesh, "added-v1-0"));
    let wrong = mesh
        .cli_command()
        .args([OsStr::new("status"), no_text])
        .output()
        .expect("the binary starts");

    assert_eq!(
        wrong.status.code(),
        Some(2),
        "an argument that is no text is a mistake like others: {wrong:?}"
    );

    let (first, second, next) = (
        mesh.path("first"),
        mesh.path("second"),
        mesh.path("next-link"),
    );

    fs::create_dir(&second).expect("a folder of our own");
    fs::copy(first.join("apps.yaml"), second.join("apps.yaml")).expect("a folder of our own");
    fs::write(second.join("second.yaml"), SECOND).expect("a folder of our own");
    symlink("second", &next).expect("a folder of our own");
    fs::rename(&next, mesh.config()).expect("a folder of our own");
    mesh.wait("the other release is in force", || {
        mesh.cli(&["get", "vs", "-o", "name"]).stdout == b"virtualservice/second\n"
    });
    assert!(matches!(mesh.supervisor().try_wait(), Ok(None)), "it runs");
    signal(mesh.supervisor().id(), "TERM");
    let ended = mesh.supervisor().wait().expect("a child");
    assert!(ended.success(), "{ended}");
}
