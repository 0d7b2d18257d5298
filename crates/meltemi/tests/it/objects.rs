//! Objects in a directory and objects that are applied; mistakes, and what is said about them.

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::mesh::{Mesh, Plan};
use crate::peers::{App, Peers, curl, yaml};

/// A VirtualService that answers in a service's place.
pub fn teapot(name: &str, status: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: {name}
spec:
  hosts: [{name}]
  http:
  - fault:
      abort:
        httpStatus: {status}
        percentage: {{value: 100}}
    route:
    - destination: {{host: {name}, port: {{number: 9080}}}}
"
    )
}

/// All that a command printed.
pub fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn apply(mesh: &Mesh, text: &str) -> Output {
    let file = mesh.path("applied.yaml");
    fs::write(&file, text).expect("a writable folder");
    mesh.cli(&["apply", "-f", &file.display().to_string()])
}

#[test]
fn objects_are_applied_shown_deleted_and_survive_a_restart() {
    let Some(peers) = Peers::of("objects_are_applied_shown_deleted_and_survive_a_restart") else { return };
    let apps = [peers.recorder("ledger"), peers.recorder("diary"), App::idle("inside")];
    let plan =
        Plan::new().argument("--no-gateways").file("apps.yaml", &yaml(&apps)).file("diary.yaml", &teapot("diary", 418));
    let mut mesh = plan.start();
    let ledger = |mesh: &Mesh| curl(mesh, "inside", &["http://ledger:9080/"]).status;
    let diary = |mesh: &Mesh| curl(mesh, "inside", &["http://diary:9080/"]).status;
    mesh.wait("a file of the directory is in force", || ledger(&mesh) == 200 && diary(&mesh) == 418);

    // Apply: new, the same, another.
    let dry = mesh.path("dry.yaml");
    fs::write(&dry, teapot("ledger", 418)).expect("a writable folder");
    assert!(
        mesh.cli_ok(&["apply", "--dry-run", "-f", &dry.display().to_string()])
            .contains("virtualservice/ledger created (dry run)")
    );
    assert_eq!(mesh.cli(&["get", "virtualservice", "ledger"]).status.code(), Some(1), "a dry run changes nothing");
    for (status, word) in [(418, "created"), (418, "unchanged"), (451, "configured")] {
        let output = apply(&mesh, &teapot("ledger", status));
        assert!(
            output.status.success() && both(&output).contains(&format!("virtualservice/ledger {word}")),
            "{output:?}"
        );
        mesh.wait("what was applied is in force", || ledger(&mesh) == status);
    }

    // Get, in every form.
    assert_eq!(mesh.cli_ok(&["get", "vs", "-o", "name"]), "virtualservice/diary\nvirtualservice/ledger\n");
    let one: Value = serde_json::from_str(&mesh.cli_ok(&["get", "vs/ledger", "-o", "json"])).expect("JSON");
    assert_eq!(one["spec"]["http"][0]["fault"]["abort"]["httpStatus"], 451);
    assert!(mesh.cli_ok(&["get", "virtualservices", "-o", "yaml"]).contains("kind: List"));
    let wide = mesh.cli_ok(&["get", "virtualservices", "-o", "wide"]);
    assert!(wide.contains("diary.yaml") && wide.contains("applied"), "{wide}");
    assert!(both(&mesh.cli(&["get", "vs", "-n", "elsewhere"])).contains("No objects found in namespace \"elsewhere\""));
    let unknown = mesh.cli(&["get", "virtualservice", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(both(&unknown).contains("not found"), "{unknown:?}");

    // An object that the directory holds is changed there, and the answer says where.
    let output = apply(&mesh, &teapot("diary", 451));
    assert!(output.status.success() && both(&output).contains("diary.yaml"), "{output:?}");
    mesh.wait("the directory's object is changed", || diary(&mesh) == 451);
    let text = fs::read_to_string(mesh.config().join("diary.yaml")).expect("it is still there");
    assert!(text.contains("451"), "{text}");

    // A refused object changes nothing and is told with its place.
    let output = apply(&mesh, &teapot("ledger", 418).replace("httpStatus", "httpStats"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(both(&output).contains("httpStats") && both(&output).contains("did you mean httpStatus?"), "{output:?}");
    assert_eq!(ledger(&mesh), 451);

    mesh.stop();
    mesh.start_again();
    mesh.wait("what was applied survives", || ledger(&mesh) == 451 && diary(&mesh) == 451);

    let file = mesh.path("applied.yaml").display().to_string();
    fs::write(&file, teapot("ledger", 451)).expect("a writable folder");
    assert!(mesh.cli_ok(&["delete", "-f", &file]).contains("virtualservice/ledger deleted"));
    mesh.wait("the deleted object is gone", || ledger(&mesh) == 200);
    let again = mesh.cli(&["delete", "virtualservice", "ledger"]);
    assert!(
        again.status.code() == Some(1) && both(&again).contains("VirtualService/ledger.default is not there"),
        "{again:?}"
    );
    mesh.cli_ok(&["delete", "vs/diary"]);
    mesh.wait("deleted from the directory", || diary(&mesh) == 200);
    let left = fs::read_to_string(mesh.config().join("diary.yaml")).unwrap_or_default();
    assert!(!left.contains("VirtualService"), "{left}");
}

#[test]
fn mistakes_are_told_with_their_place_and_the_last_good_object_stays() {
    let Some(peers) = Peers::of("mistakes_are_told_with_their_place_and_the_last_good_object_stays") else { return };
    let apps = [peers.recorder("ledger"), App::idle("inside")];
    let plan = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &yaml(&apps))
        .file("ledger.yaml", &teapot("ledger", 418));
    let mut mesh = plan.start();
    let ledger = |mesh: &Mesh| curl(mesh, "inside", &["http://ledger:9080/"]).status;
    let told = |mesh: &Mesh| both(&mesh.cli(&["status"]));
    let says = |mesh: &Mesh, what: &str, words: &[&str]| {
        mesh.wait(&format!("{what}: status says {words:?}"), || {
            let told = told(mesh);
            words.iter().all(|word| told.contains(word))
        });
    };
    mesh.wait("the good object is in force", || ledger(&mesh) == 418);

    // Not YAML at all, in line 6.
    mesh.write("ledger.yaml", &teapot("ledger", 451).replace("hosts: [ledger]", "hosts: [ledger"));
    says(&mesh, "broken YAML", &["ledger.yaml:", "error"]);
    let line = told(&mesh).lines().find(|line| line.contains("ledger.yaml:")).map(str::to_owned).expect("a line");
    let place: Vec<&str> = line.split("ledger.yaml:").nth(1).expect("a place").splitn(3, ':').collect();
    assert!(place.len() == 3 && place[..2].iter().all(|n| n.parse::<u32>().is_ok()), "file:line:column in {line:?}");
    assert_eq!(ledger(&mesh), 418, "the last good object stays");

    // Across a restart, too.
    mesh.stop();
    mesh.start_again();
    mesh.wait("the last good object is in force after a restart", || ledger(&mesh) == 418);
    says(&mesh, "after the restart", &["ledger.yaml:"]);

    // A field that does not exist.
    mesh.write("ledger.yaml", &teapot("ledger", 451).replace("httpStatus", "httpStats"));
    says(&mesh, "unknown field", &["ledger.yaml:10:9", "httpStats", "did you mean httpStatus?"]);
    assert_eq!(ledger(&mesh), 418);

    // A value that cannot be.
    mesh.write("ledger.yaml", &teapot("ledger", 451).replace("451", "many"));
    says(&mesh, "wrong type", &["ledger.yaml:10:", "httpStatus"]);
    assert_eq!(ledger(&mesh), 418);

    // Repaired: the finding goes, the object comes.
    mesh.write("ledger.yaml", &teapot("ledger", 451));
    mesh.wait("the repaired object is in force", || ledger(&mesh) == 451);
    mesh.wait("nothing is left to say", || !told(&mesh).contains("ledger.yaml"));

    // The same object in two files: the first file counts.
    mesh.write("twice.yaml", &teapot("ledger", 418));
    says(&mesh, "duplicate", &["twice.yaml", "ledger.yaml"]);
    assert_eq!(ledger(&mesh), 451);
    mesh.take_out("twice.yaml");
    mesh.wait("the duplicate is gone", || !told(&mesh).contains("twice.yaml"));

    // A kind and a host that nobody knows.
    mesh.write(
        "unknown.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: x}\nspec: {}\n",
    );
    says(&mesh, "unknown kind", &["unknown.yaml:", "VirtualServise", "did you mean VirtualService?"]);
    mesh.write("unknown.yaml", &teapot("diary", 418));
    says(&mesh, "reference to nothing", &["unknown.yaml:", "diary"]);
    mesh.take_out("unknown.yaml");

    // An image that is no program of this machine.
    let deployment =
        App::idle("other").yaml().replace("        image: none\n", "        image: registry.example/other:1\n");
    let without_command: String =
        deployment.lines().filter(|line| !line.contains("command:")).flat_map(|line| [line, "\n"]).collect();
    mesh.write("other.yaml", &without_command);
    mesh.wait("the image is named", || mesh.said("registry.example/other:1 is no program of this machine"));
    assert!(
        mesh.lines().iter().any(|line| line.contains("other.yaml:") && line.contains("image map")),
        "{:?}",
        mesh.lines()
    );

    // A program that is not there, and one that ends.
    let crasher =
        |command: &[&str]| App::new("crasher", &[], command.iter().map(|word| (*word).to_owned()).collect()).yaml();
    mesh.write("crasher.yaml", &crasher(&["no-such-program"]));
    let state = |mesh: &Mesh| workload(mesh, "crasher-0");
    mesh.wait("a missing program is told", || {
        state(&mesh).is_some_and(|w| w["app"]["last_exit"].as_str().is_some_and(|text| text.contains("not found")))
    });
    mesh.write("crasher.yaml", &crasher(&["sh", "-c", "echo oops; exit 3"]));
    mesh.wait("it is started again and again", || {
        state(&mesh).is_some_and(|w| w["app"]["restarts"].as_u64() >= Some(3) && w["app"]["last_exit"] == "exit code 3")
    });
    mesh.wait("its status shows it", || {
        mesh.cli_ok(&["status"]).lines().any(|line| line.contains("crasher-0") && line.contains("CrashLoopBackOff"))
    });
    assert!(mesh.cli_ok(&["logs", "crasher"]).contains("oops"));
    assert_eq!(ledger(&mesh), 451, "the rest keeps running");
}

/// What the status says of one replica.
pub fn workload(mesh: &Mesh, pod: &str) -> Option<Value> {
    let status: Value = serde_json::from_str(&mesh.cli_ok(&["status", "-o", "json"])).expect("JSON");
    status["workloads"].as_array()?.iter().find(|w| w["key"]["pod"] == pod).cloned()
}
