//! What users change while a mesh runs, and what it says of it.

use std::fs;
use std::process::Stdio;

use crate::lifecycle::processes;
use crate::mesh::{Plan, signal};
use crate::objects::both;
use crate::peers::{App, Peers, curl, yaml};

/// Several replicas of a Deployment.
fn replicated(app: &App, replicas: usize) -> String {
    app.yaml().replace(
        "spec:\n  selector:",
        &format!("spec:\n  replicas: {replicas}\n  selector:"),
    )
}

#[test]
fn no_call_fails_while_workloads_start_and_stop() {
    let Some(peers) = Peers::of("no_call_fails_while_workloads_start_and_stop") else {
        return;
    };
    let web = peers.recorder("web");
    let caller = App::idle("inside");
    let plan = Plan::new()
        .argument("--no-gateways")
        .file("inside.yaml", &yaml(&[caller]))
        .file("web.yaml", &replicated(&web, 3));

    let mesh = plan.start();
    let count = |wanted: usize| {
        let pods = mesh.cli_ok(&["get", "pods"]);
        let web: Vec<&str> = pods
            .lines()
            .filter(|line| line.starts_with("web-"))
            .collect();
        web.len() == wanted && web.iter().all(|line| line.contains("Running"))
    };

    mesh.wait("three replicas run", || count(3));

    // One connection after the other; curl's own limit stands for "hangs".
    let stop = mesh.path("stop");
    let script = format!(
        "while [ ! -e {} ]; do curl -s -m 8 -o /dev/null -w '%{{http_code}}\\n' http://web:9080/; done",
        stop.display()
    );

    let mut load = mesh.cli_command();
    load.args(["exec", "inside", "--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let load = load.spawn().expect("the binary starts");
    for replicas in [1, 3, 2, 4, 1] {
        mesh.write("web.yaml", &replicated(&web, replicas));
        mesh.wait("the replicas that are wanted run", || count(replicas));
    }

    fs::write(&stop, "").expect("a writable folder");
    let said = load.wait_with_output().expect("it is a child");
    let said = String::from_utf8_lossy(&said.stdout);
    let (all, bad) = (
        said.lines().count(),
        said.lines()
            .filter(|line| *line != "200")
            .collect::<Vec<_>>(),
    );

    assert!(
        all > 0 && bad.is_empty(),
        "{} of {all} failed: {bad:?}",
        bad.len()
    );
}

#[test]
fn image_map_mistakes_are_reported_and_can_be_fixed_while_the_mesh_runs() {
    let Some(peers) =
        Peers::of("image_map_mistakes_are_reported_and_can_be_fixed_while_the_mesh_runs")
    else {
        return;
    };

    let apps = [peers.recorder("web"), App::idle("inside")];
    let late = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: late}\nspec:\n  template:\n    metadata: {labels: {app: late}}\n    \
                spec: {containers: [{name: late, image: 'late:1'}]}\n";
    let plan = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &yaml(&apps))
        .file("late.yaml", late);

    let mut mesh = plan.start();
    let status = || both(&mesh.cli(&["status"]));
    assert!(
        mesh.said("image late:1 is no program of this machine"),
        "{:?}",
        mesh.lines()
    );

    assert!(
        status().contains("image late:1 is no program of this machine"),
        "{}",
        status()
    );

    // A map that is broken changes nothing; one that is whole is obeyed.
    let map = mesh.path("images.yaml");
    let good = fs::read_to_string(&map).expect("there");
    fs::write(&map, format!("{good}- {{image: late, com")).expect("a writable folder");
    mesh.wait("a broken image map is told", || {
        mesh.said("the last good version of this map stays")
    });
    fs::write(
        &map,
        format!("{good}- {{image: late, command: [sleep, infinity]}}\n"),
    )
    .expect("a writable folder");

    mesh.wait("the image has a program", || {
        mesh.cli(&["exec", "late", "--", "true"]).status.success()
    });
    mesh.wait("nothing is wrong any more", || !status().contains("late:1"));

    // Half a Deployment ends nothing, and the terminal of `meltemi up` says what is wrong.
    mesh.write(
        "late.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: late}\nspec:\n  replicas: 1\n",
    );

    mesh.wait("the mistake is told", || {
        mesh.said("Deployment/late.default: spec.template.spec.containers")
    });
    assert!(mesh.cli(&["exec", "late", "--", "true"]).status.success());
    mesh.write("late.yaml", late);

    // A proxy that runs and does nothing.
    let pid = *processes(&mut mesh, "sidecar web-0")
        .first()
        .expect("web has a sidecar");
    signal(pid, "STOP");
    let of_web = || mesh.cli_ok(&["status", "web"]);
    mesh.wait("a stuck proxy is seen", || of_web().contains("NotReady"));
    signal(pid, "CONT");
    mesh.wait("it is well again", || of_web().contains("Running"));
}

#[test]
fn a_service_hidden_by_a_sidecar_resource_is_treated_as_unknown() {
    let Some(peers) = Peers::of("a_service_hidden_by_a_sidecar_resource_is_treated_as_unknown")
    else {
        return;
    };

    let apps = [
        peers.recorder("web"),
        peers.recorder("diary"),
        App::idle("inside"),
    ];

    let hiding = |mode: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: inside}}\nspec:\n  workloadSelector: {{labels: {{app: inside}}}}\n  \
             outboundTrafficPolicy: {{mode: {mode}}}\n  egress: [{{hosts: ['./web.default.svc.cluster.local']}}]\n"
        )
    };

    let mesh = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &yaml(&apps))
        .start();

    let call = |name: &str| curl(&mesh, "inside", &[&format!("http://{name}:9080/")]).status;
    mesh.wait("both are called", || {
        call("web") == 200 && call("diary") == 200
    });

    // On Kubernetes its name resolves and kube-proxy finds an endpoint: plaintext, through
    // PassthroughCluster.
    let clusters = || mesh.exec("inside", &["curl", "-s", "localhost:15000/clusters"]);
    let knows_diary = || String::from_utf8_lossy(&clusters().stdout).contains("diary.default.svc");
    mesh.write("sidecar.yaml", &hiding("ALLOW_ANY"));
    mesh.wait("the service is hidden", || !knows_diary());
    assert_eq!((call("web"), call("diary")), (200, 200));
    mesh.write("sidecar.yaml", &hiding("REGISTRY_ONLY"));
    mesh.wait("what is not known is refused", || call("diary") == 502);
    assert_eq!(call("web"), 200);

    // As the balancer PASSTHROUGH has it: to the address that was called.
    let originals = || {
        let dump = mesh.exec("inside", &["curl", "-s", "localhost:15000/config_dump"]);
        String::from_utf8_lossy(&dump.stdout)
            .matches("ORIGINAL_DST")
            .count()
    };

    let before = originals();
    mesh.write(
        "rule.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}\n",
    );

    mesh.wait("the rule is in force", || originals() > before);
    assert_eq!(call("web"), 200);
}
