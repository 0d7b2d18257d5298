//! What a newcomer meets first: the access log, what is in force from before, ways in, events.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::http;
use crate::mesh::{Mesh, Plan};
use crate::objects::{both, teapot};
use crate::peers::{App, Peers, curl, yaml};

const LOG_OFF: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
                       data:\n  mesh: |\n    accessLogFile: ''\n";

#[test]
fn requests_are_logged_and_where_they_are_not_the_log_says_so() {
    let Some(peers) = Peers::of("requests_are_logged_and_where_they_are_not_the_log_says_so")
    else {
        return;
    };
    let apps = [peers.recorder("ledger"), App::idle("inside")];
    let mesh = Plan::new().file("apps.yaml", &yaml(&apps)).start();

    let call = || curl(&mesh, "inside", &["http://ledger:9080/asked"]).status == 200;
    let proxy_log = |workload: &str| both(&mesh.cli(&["logs", workload, "-c", "proxy"]));
    mesh.wait("the service answers", call);
    mesh.wait("the request is logged on both sides", || {
        ["inside", "ledger"]
            .iter()
            .all(|workload| proxy_log(workload).contains("GET /asked"))
    });
    assert!(!proxy_log("inside").contains("note:"));
    let gateway = ["logs", "istio-ingressgateway", "-n", "istio-system"];
    assert!(!both(&mesh.cli(&gateway)).contains("note:"));

    // Somewhere to begin: the settings are an object.
    let settings = mesh.cli_ok(&["get", "cm", "istio", "-n", "istio-system", "-o", "yaml"]);
    assert!(
        settings.contains("accessLogFile: /dev/stdout"),
        "{settings}"
    );

    mesh.write("settings.yaml", LOG_OFF);
    let remedy = "accessLogFile: /dev/stdout";
    mesh.wait("a log that is off is said to be", || {
        proxy_log("inside").contains(remedy) && both(&mesh.cli(&gateway)).contains(remedy)
    });
    assert!(
        !both(&mesh.cli(&["logs", "inside"])).contains(remedy),
        "the program's log has nothing to do with it"
    );

    // Settings that say nothing about it leave it on.
    mesh.write(
        "settings.yaml",
        &LOG_OFF.replace("accessLogFile: ''", "enableAutoMtls: true"),
    );
    mesh.wait("it is on again", || !proxy_log("inside").contains("note:"));
}

#[test]
fn what_is_in_force_from_before_is_told_and_can_be_left_behind() {
    if Peers::of("what_is_in_force_from_before_is_told_and_can_be_left_behind").is_none() {
        return;
    }
    let mut mesh = Plan::new().argument("--no-gateways").start();
    assert!(!mesh.said("applied earlier"));
    let file = mesh.path("vs.yaml");
    std::fs::write(&file, teapot("ledger", 418)).expect("a writable folder");
    mesh.cli_ok(&["apply", "-f", &file.display().to_string()]);
    let certificate = mesh.path("state/meltemi/default/ca/root-cert.pem");
    let root = std::fs::read(&certificate).expect("the CA's certificate");
    mesh.stop();

    mesh.start_again();
    let told = "1 object applied earlier is in force: VirtualService/ledger.default (";
    assert!(
        mesh.said(told) && mesh.said("`meltemi delete --all` removes it"),
        "{:?}",
        mesh.lines()
    );

    mesh.stop();
    mesh.start_again_with("--fresh");
    assert!(!mesh.said("applied earlier"), "{:?}", mesh.lines());
    assert!(both(&mesh.cli(&["get", "vs", "-A"])).contains("No objects found"));
    assert_eq!(
        std::fs::read(&certificate).expect("still there"),
        root,
        "the CA stays"
    );
}

#[test]
fn the_demo_has_a_mesh_of_its_own_that_commands_find() {
    if Peers::of("the_demo_has_a_mesh_of_its_own_that_commands_find").is_none() {
        return;
    }
    let mesh = Plan::new().demo().start();
    assert!(mesh.path("state/meltemi/demo").is_dir());
    assert!(!mesh.path("state/meltemi/default").exists());
    assert!(mesh.cli_ok(&["status"]).contains("productpage-v1-0"));
    assert!(
        mesh.cli_ok(&["--mesh", "demo", "status"])
            .contains("productpage-v1-0")
    );
    assert!(!mesh.cli(&["--mesh", "default", "status"]).status.success());
    assert!(mesh.said("  meltemi status"), "{:?}", mesh.lines());
}

#[test]
fn services_are_reached_from_the_machine_without_a_gateway() {
    let Some(peers) = Peers::of("services_are_reached_from_the_machine_without_a_gateway") else {
        return;
    };
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";
    let mesh = Plan::new()
        .argument("--publish")
        .argument("ledger:9080=0")
        .argument("--publish")
        .argument("nobody:1=0")
        .file("apps.yaml", &yaml(&[peers.recorder("ledger")]))
        .start();

    // Published: through the sidecar, which logs the request.
    let lines = mesh.lines();
    let address = lines
        .iter()
        .find_map(|line| line.strip_prefix("ledger port 9080: http://"))
        .unwrap_or_else(|| panic!("{lines:?}"))
        .parse()
        .expect("an address");
    assert!(
        mesh.said("--publish nobody:1: there is no Service \"nobody\""),
        "{lines:?}"
    );
    let get = |address, path: &str| http::get(address, path, &[]).map(|answer| answer.status);
    mesh.wait("the published port answers", || {
        get(address, "/published").is_ok_and(|s| s == 200)
    });
    let log = || both(&mesh.cli(&["logs", "ledger", "-c", "proxy"]));
    mesh.wait("the sidecar logs it", || log().contains("GET /published"));

    // Forwarded: beside the sidecar.
    let mut command = mesh.cli_command();
    command.args(["port-forward", "svc/ledger", ":9080"]);
    let mut forward = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut said = BufReader::new(forward.stdout.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    let place = line
        .strip_prefix("Forwarding from ")
        .and_then(|rest| rest.split(' ').next())
        .and_then(|address| address.parse().ok())
        .unwrap_or_else(|| panic!("{line}"));
    assert!(line.ends_with("-> ledger-0 port 9080\n"), "{line}");
    assert_eq!(get(place, "/forwarded").expect("an answer"), 200);

    mesh.write("strict.yaml", strict);
    mesh.wait("STRICT refuses plaintext", || {
        get(address, "/strict").is_err()
    });
    assert_eq!(get(place, "/strict").expect("an answer"), 200);
    let log = log();
    assert!(!log.contains("GET /forwarded"), "{log}");
    forward.kill().expect("it runs");
    forward.wait().expect("a child");

    for (target, reason) in [
        ("svc/ledger", "use one of its ports: 9080"),
        ("svc/nobody", "no Service \"nobody\""),
        ("nobody", "no workload \"nobody\""),
    ] {
        let refused = mesh.cli(&["port-forward", target, ":81"]);
        assert!(
            refused.status.code() == Some(1) && both(&refused).contains(reason),
            "{refused:?}"
        );
    }
}

#[test]
fn a_demo_whose_port_is_taken_takes_a_free_one() {
    if Peers::of("a_demo_whose_port_is_taken_takes_a_free_one").is_none() {
        return;
    }
    // Another program has the port, whoever that may be.
    let _taken = std::net::TcpListener::bind("127.0.0.1:8080");
    let mesh = Plan::new().demo().without_publish().start();
    assert!(
        mesh.said("port 8080 of 127.0.0.1 is taken by another program"),
        "{:?}",
        mesh.lines()
    );
    let address = mesh.published(8080).expect("published elsewhere");
    assert_ne!(address.port(), 8080);
    assert!(
        mesh.said(&format!("Look:   http://{address}/productpage")),
        "{:?}",
        mesh.lines()
    );

    let answer = mesh.get("/", &[]);
    assert_eq!(answer.status, 302);
    assert_eq!(
        answer.header("location"),
        Some(&*format!("http://{address}/productpage"))
    );
}

#[test]
fn the_terminal_tells_what_happens() {
    let Some(peers) = Peers::of("the_terminal_tells_what_happens") else {
        return;
    };
    let plan = Plan::new().argument("--no-gateways").argument("-f");
    let single = plan.path("single.yaml");
    std::fs::write(&single, teapot("diary", 418)).expect("a writable folder");
    let mut mesh = plan
        .argument(&single.display().to_string())
        .file(
            "apps.yaml",
            &yaml(&[peers.recorder("ledger"), App::idle("inside")]),
        )
        .file("docker-compose.yml", "services: {web: {image: nginx}}\n")
        .start();
    assert!(
        mesh.said(": 2 workloads (`meltemi status` shows what runs)"),
        "{:?}",
        mesh.lines()
    );
    assert!(!mesh.said("docker-compose"), "{:?}", mesh.lines());
    assert!(both(&mesh.cli(&["status"])).contains("docker-compose.yml"));
    let tells = |mesh: &Mesh, text: &str| mesh.wait(text, || mesh.said(text));

    // Objects, of the file of its own too.
    mesh.write("vs.yaml", &teapot("ledger", 418));
    tells(&mesh, "created VirtualService/ledger.default (");
    std::fs::write(&single, teapot("diary", 451)).expect("a writable folder");
    tells(
        &mesh,
        &format!(
            "changed VirtualService/diary.default ({}:4)",
            single.display()
        ),
    );

    // Faults, and that they are mended.
    mesh.write(
        "vs.yaml",
        &teapot("ledger", 418).replace("httpStatus", "httpStats"),
    );
    tells(&mesh, "vs.yaml:10:9: error[MEL0103]");
    mesh.write("vs.yaml", &teapot("ledger", 451));
    tells(&mesh, "mended: ");
    mesh.take_out("vs.yaml");
    tells(&mesh, "deleted VirtualService/ledger.default (");

    // Workloads.
    mesh.write("more.yaml", &App::idle("more").yaml());
    tells(&mesh, "workload default/more-0 started");
    tells(&mesh, "workload default/more-0 is ready");
    mesh.take_out("more.yaml");
    tells(&mesh, "workload default/more-0 ended");

    mesh.stop();
    assert!(mesh.said("stopping 2 workloads ..."), "{:?}", mesh.lines());
}
