//! A minute of load during which everything changes: routes, subsets, policies, certificates, the
//! control plane. No request may fail, and no open connection may be cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mesh::{Mesh, Plan, signal};
use crate::peers::{ACCESS_LOG, Peers};

const CHANGES: u32 = 100;
const KILLS: u32 = 3;
/// Requests a second on new connections, on kept ones, and as streams of HTTP/2.
const RATES: [u32; 3] = [250, 450, 400];
const ROUTE: &str = "route.yaml";
const WEBSOCKET: &str = "websocket:8765";
const GRPC: &str = "stream:50051";

/// The load's target in two versions, the client, and names for the two streams' servers.
fn workloads(load: &Path) -> String {
    let deployment =
        |name: &str, app: &str, version: &str, account: &str, command: &str, ports: &str| {
            format!(
                "---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {account}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {app}, version: {version}}}}}
  template:
    metadata: {{labels: {{app: {app}, version: {version}}}}}
    spec:
      serviceAccountName: {account}
      containers:
      - {{name: app, image: soak, command: {command}{ports}}}
"
            )
        };

    let serve = |version: &str| {
        let command = serde_json::json!([load, "serve", "8080", version]);
        let name = format!("target-{version}");
        deployment(
            &name,
            "target",
            version,
            &name,
            &command.to_string(),
            ", ports: [{containerPort: 8080}]",
        )
    };

    let service = |name: &str, port: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{port}]}}\n"
        )
    };

    [
        serve("v1"),
        serve("v2"),
        deployment("client", "client", "v1", "client", "[sleep, infinity]", ""),
        service("target", "{name: http, port: 8080}"),
        // Undeclared: the first bytes decide.
        service("websocket", "{name: web, port: 8765}"),
        service("stream", "{name: grpc, port: 50051}"),
    ]
    .concat()
}

/// One step of the hundred: a file, and its text; no text takes it out.
type Change = (&'static str, Option<String>);

/// Subsets v1 and v2 always exist; `canary` comes one change before its route and goes one after.
fn subsets(with_canary: bool, balancer: &str) -> Change {
    let canary = if with_canary {
        "\n  - {name: canary, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}"
    } else {
        ""
    };

    let text = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: target}}
spec:
  host: target
  trafficPolicy:
    loadBalancer: {{{balancer}}}
    connectionPool: {{http: {{http1MaxPendingRequests: 10000}}, tcp: {{maxConnections: 10000}}}}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}{canary}
"
    );

    ("subsets.yaml", Some(text))
}

/// Weights between subsets; the step's number comes back in every answer.
fn route(step: u32, weights: &[(&str, u32)], more: &str) -> Change {
    let destinations: Vec<String> = weights
        .iter()
        .map(|(subset, weight)| {
            format!("{{destination: {{host: target, subset: {subset}}}, weight: {weight}}}")
        })
        .collect();

    let text = format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: target}}
spec:
  hosts: [target]
  http:
  - name: step-{step}
    headers: {{response: {{set: {{x-step: \"{step}\"}}}}}}{more}
    route: [{}]
",
        destinations.join(", ")
    );

    (ROUTE, Some(text))
}

/// A policy that goes on permitting the client, in ever other words.
fn allow(step: u32) -> Change {
    let text = format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: allow}}
spec:
  action: ALLOW
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/client, cluster.local/ns/default/sa/step-{step}]}}}}]
"
    );

    ("allow.yaml", Some(text))
}

fn deny(step: u32) -> Change {
    let text = format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: deny}}
spec:
  action: DENY
  rules:
  - to: [{{operation: {{paths: [/admin, /step-{step}*]}}}}]
  - from: [{{source: {{notPrincipals: [\"*\"]}}}}]
"
    );

    ("deny.yaml", Some(text))
}

fn mutual_tls(mode: &str) -> Change {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    );
    ("mutual-tls.yaml", Some(text))
}

/// Routes of the two streams: what is open keeps its own.
fn stream_routes(step: u32) -> Change {
    let one = |host: &str| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}}}
spec:
  hosts: [{host}]
  http:
  - headers: {{request: {{set: {{x-step: \"{step}\"}}}}}}
    route: [{{destination: {{host: {host}}}}}]
"
        )
    };

    ("streams.yaml", Some(one("websocket") + &one("stream")))
}

fn change(step: u32) -> Change {
    let simple = |name: &str| format!("simple: {name}");
    match step % 16 {
        0 => route(step, &[("v1", 80), ("v2", 20)], ""),
        1 => subsets(true, &simple("LEAST_REQUEST")),
        2 => route(step, &[("v1", 50), ("canary", 50)], "\n    timeout: 15s"),
        3 => allow(step),
        4 => mutual_tls("STRICT"),
        5 => route(
            step,
            &[("v2", 100)],
            "\n    retries: {attempts: 2, retryOn: 5xx}",
        ),
        6 => subsets(false, &simple("ROUND_ROBIN")),
        7 => stream_routes(step),
        8 => deny(step),
        9 => route(step, &[("v1", 100)], "\n    match: [{uri: {prefix: /}}]"),
        10 => ("allow.yaml", None),
        11 => mutual_tls("PERMISSIVE"),
        12 => subsets(false, "consistentHash: {httpHeaderName: x-user}"),
        13 => ("deny.yaml", None),
        14 => ("mutual-tls.yaml", None),
        _ => ("streams.yaml", None),
    }
}

/// The example that makes the load: cargo builds examples before it runs tests.
fn load() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a file");
    let built = test
        .ancestors()
        .nth(2)
        .expect("tests lie in a folder of the profile")
        .join("examples/load");

    assert!(
        built.exists(),
        "{} is missing: build it with cargo build --package meltemi --example load",
        built.display()
    );

    built
}

fn seconds() -> u32 {
    std::env::var("MELTEMI_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60)
}

/// Process id of this mesh's control plane; other meshes on the machine have theirs.
fn control_plane(supervisor: u32) -> Option<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))?
            .trim()
            .parse()
            .ok()
    };

    let descends = |pid: u32| {
        let mut ancestors =
            std::iter::successors(Some(pid), |pid| parent(*pid).filter(|parent| *parent > 1));
        ancestors.any(|ancestor| ancestor == supervisor)
    };

    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());

    pids.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"meltemi: control plane\0") && descends(*pid)
    })
}

/// Starts a program inside the client; its output is read at the end.
fn inside(mesh: &Mesh, program: &[&str]) -> Child {
    let mut command = mesh.cli_command();
    command.args(["exec", "client", "--"]).args(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

fn output(child: Child, what: &str) -> String {
    let output = child.wait_with_output().expect("it was started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{what}: {}\n{text}", output.status);
    text
}

/// Serial numbers of the client's certificates, as its proxy shows them.
fn certificates(mesh: &Mesh) -> String {
    let text = String::from_utf8(
        mesh.exec("client", &["curl", "-sS", "http://127.0.0.1:15000/certs"])
            .stdout,
    )
    .expect("JSON");

    let certs: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let chains = certs["certificates"].as_array().expect("a list").iter();
    let serials =
        chains.flat_map(|entry| entry["cert_chain"].as_array().cloned().unwrap_or_default());

    serials
        .map(|cert| {
            cert["serial_number"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// The route's step in force, as an answer shows it.
fn step_in_force(mesh: &Mesh) -> String {
    let answer = mesh.exec(
        "client",
        &["curl", "-sS", "-D-", "-o/dev/null", "http://target:8080/"],
    );

    let text = String::from_utf8_lossy(&answer.stdout).to_lowercase();
    text.lines()
        .find_map(|line| line.strip_prefix("x-step: "))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[test]
fn nothing_fails_while_everything_changes() {
    let Some(Peers { python }) = Peers::of("nothing_fails_while_everything_changes") else {
        return;
    };
    let (load, seconds) = (load(), seconds());
    let (_, Some(first_subsets)) = subsets(false, "simple: ROUND_ROBIN") else {
        unreachable!("it has a text")
    };
    let (_, Some(first_route)) = route(0, &[("v1", 50), ("v2", 50)], "") else {
        unreachable!("it has a text")
    };
    let mut mesh = Plan::new()
        .alone()
        .argument("--no-gateways")
        .argument("--certificate-lifetime=30s")
        .file("mesh.yaml", ACCESS_LOG)
        .file("workloads.yaml", &workloads(&load))
        .file("subsets.yaml", &first_subsets)
        .file(ROUTE, &first_route)
        .start();

    let streams = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/streams.py");
    let (python, streams) = (python.as_str(), streams.to_str().expect("a readable path"));
    for (app, port, role) in [
        ("websocket", "8765", "serve-websocket"),
        ("stream", "50051", "serve-grpc"),
    ] {
        mesh.cli_ok(&[
            "run", "--detach", "--app", app, "--port", port, "--", python, streams, role, port,
        ]);
    }

    mesh.wait("the load's target answers", || step_in_force(&mesh) == "0");
    for (role, target) in [("websocket", WEBSOCKET), ("grpc", GRPC)] {
        mesh.wait(role, || {
            mesh.exec("client", &[python, streams, role, target, "0.1"])
                .status
                .success()
        });
    }

    let before = certificates(&mesh);
    let (load, time) = (load.to_str().expect("a readable path"), seconds.to_string());
    let rates = RATES.map(|rate| rate.to_string());
    let running = inside(
        &mesh,
        &[
            load,
            "run",
            "target:8080",
            &time,
            &rates[0],
            &rates[1],
            &rates[2],
        ],
    );

    let websocket = inside(&mesh, &[python, streams, "websocket", WEBSOCKET, &time]);
    let grpc = inside(&mesh, &[python, streams, "grpc", GRPC, &time]);

    let started = Instant::now();
    let pace = Duration::from_secs(seconds.into()) / (CHANGES + 1);
    let mut killed = Vec::new();

    for step in 1..=CHANGES {
        std::thread::sleep((started + pace * step).saturating_duration_since(Instant::now()));
        match change(step) {
            (name, Some(text)) => mesh.write(name, &text),
            (name, None) => mesh.take_out(name),
        }

        // In the middle of changes, so that some are made while nobody listens.
        if step % (CHANGES / (KILLS + 1)) == 0 && killed.len() < KILLS as usize {
            let supervisor = mesh.supervisor().id();
            let mut victim = None;
            mesh.wait("there is a control plane", || {
                victim = control_plane(supervisor);
                victim.is_some()
            });
            let victim = victim.expect("it was waited for");
            signal(victim, "KILL");
            killed.push(victim);
        }
    }

    let (_, Some(last_route)) = route(CHANGES + 1, &[("v1", 50), ("v2", 50)], "") else {
        unreachable!("it has a text")
    };
    mesh.write(ROUTE, &last_route);

    let report: Value =
        serde_json::from_str(&output(running, "the load")).expect("its last line is JSON");
    let (websocket, grpc) = (
        output(websocket, "the WebSocket"),
        output(grpc, "the gRPC stream"),
    );

    println!(
        "soak: {report}\nsoak: WebSocket messages {websocket}soak: gRPC messages {grpc}soak: killed {killed:?}"
    );

    let mut all = 0;
    for (kind, rate) in ["new", "keep-alive", "http2"].into_iter().zip(RATES) {
        let of = &report["kinds"][kind];
        let wanted = u64::from(rate) * u64::from(seconds);
        assert_eq!(
            (of["failed"].as_u64(), of["closed"].as_u64()),
            (Some(0), Some(0)),
            "{kind}: {}",
            report["failures"]
        );

        assert_eq!(of["ok"].as_u64(), Some(wanted), "{kind}: {of}");
        all += wanted;
    }

    assert!(all >= 1_000 * u64::from(seconds));
    for (what, count) in [("WebSocket", websocket), ("gRPC", grpc)] {
        let count: u32 = count.trim().parse().expect("a number");
        assert!(count > 0, "{what}: no message came back");
    }

    // Changes made while nobody listens become one; the others were in force one by one.
    let seen = report["steps"].as_array().expect("a list").len();
    let routes = (1..=CHANGES)
        .filter(|step| change(*step).0 == ROUTE)
        .count();
    assert!(
        seen > routes / 2,
        "of {routes} routes {seen} were seen in answers: {}",
        report["steps"]
    );

    killed.dedup();
    assert_eq!(
        killed.len(),
        KILLS as usize,
        "each time it had been started again: {killed:?}"
    );

    mesh.wait("the last change is in force", || {
        step_in_force(&mesh) == (CHANGES + 1).to_string()
    });

    if seconds >= 30 {
        assert_ne!(
            certificates(&mesh),
            before,
            "certificates that live 30 s were renewed"
        );
    }
}
