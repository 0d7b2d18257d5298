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
    let Some(peers) = Peers::of("objects_are_applied_shown_deleted_and_survive_a_restart") else {
        return;
    };
    let apps = [
        peers.recorder("ledger"),
        peers.recorder("diary"),
        App::idle("inside"),
    ];

    let plan = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &yaml(&apps))
        .file("diary.yaml", &teapot("diary", 418));

    let mut mesh = plan.start();
    let ledger = |mesh: &Mesh| curl(mesh, "inside", &["http://ledger:9080/"]).status;
    let diary = |mesh: &Mesh| curl(mesh, "inside", &["http://diary:9080/"]).status;

    mesh.wait("a file of the directory is in force", || {
        ledger(&mesh) == 200 && diary(&mesh) == 418
    });

    // Apply: new, the same, another.
    let dry = mesh.path("dry.yaml");
    fs::write(&dry, teapot("ledger", 418)).expect("a writable folder");
    let file = dry.display().to_string();
    assert_eq!(
        mesh.cli_ok(&["--mesh=nobody", "apply", "--dry-run=client", "-f", &file]),
        "virtualservice/ledger valid (dry run)\n",
        "a check by the client needs no mesh"
    );
    assert!(
        mesh.cli_ok(&["apply", "--dry-run", "-f", &dry.display().to_string()])
            .contains("virtualservice/ledger created (dry run)")
    );

    assert_eq!(
        mesh.cli(&["get", "virtualservice", "ledger"]).status.code(),
        Some(1),
        "a dry run changes nothing"
    );

    for (status, word) in [(418, "created"), (418, "unchanged"), (451, "configured")] {
        let output = apply(&mesh, &teapot("ledger", status));
        assert!(
            output.status.success()
                && both(&output).contains(&format!("virtualservice/ledger {word}")),
            "{output:?}"
        );
        mesh.wait("what was applied is in force", || ledger(&mesh) == status);
    }

    // Get, in every form.
    assert_eq!(
        mesh.cli_ok(&["get", "vs", "-o", "name"]),
        "virtualservice/diary\nvirtualservice/ledger\n"
    );

    for (arguments, expected) in [
        (
            &["-o", "jsonpath={range .items[*]}{.metadata.name},{end}"][..],
            "diary,ledger,",
        ),
        (
            &["--sort-by=.spec.http[0].fault.abort.httpStatus", "-o=name"],
            "virtualservice/diary\nvirtualservice/ledger\n",
        ),
        (
            &[
                "-o=custom-columns=N:.metadata.name",
                "--no-headers",
                "--field-selector=metadata.name!=diary",
            ],
            "ledger\n",
        ),
    ] {
        assert_eq!(
            mesh.cli_ok(&[&["get", "vs"][..], arguments].concat()),
            expected
        );
    }

    // A label selects what is deleted.
    let labelled =
        |name: &str| teapot(name, 418).replace("metadata:", "metadata:\n  labels: {phase: trial}");
    assert!(apply(&mesh, &labelled("trial")).status.success());
    assert_eq!(
        mesh.cli_ok(&["delete", "vs", "-l", "phase=trial"]),
        "virtualservice/trial deleted\n"
    );
    assert!(both(&mesh.cli(&["delete", "vs", "-l", "phase=trial"])).contains("No objects found"));

    let json =
        |arguments: &[&str]| serde_json::from_str::<Value>(&mesh.cli_ok(arguments)).expect("JSON");

    // The file still says 418.
    for arguments in [
        &["get", "vs/ledger", "-o", "json"][..],
        &["get", "-f", &dry.display().to_string(), "-o", "json"],
    ] {
        assert_eq!(
            json(arguments)["spec"]["http"][0]["fault"]["abort"]["httpStatus"],
            451,
            "{arguments:?}"
        );
    }

    assert!(
        mesh.cli_ok(&["get", "virtualservices", "-o", "yaml"])
            .contains("kind: List")
    );

    let wide = mesh.cli_ok(&["get", "virtualservices", "-o", "wide"]);
    assert!(
        wide.contains("diary.yaml") && wide.contains("applied"),
        "{wide}"
    );

    let one = json(&["get", "vs/ledger", "-o", "json"]);
    let created = one["metadata"]["creationTimestamp"]
        .as_str()
        .expect("when it was applied")
        .to_owned();

    assert!(
        mesh.cli_ok(&["get", "vs/ledger", "-o", "yaml"])
            .contains(&created)
    );

    assert!(
        both(&mesh.cli(&["get", "vs", "-n", "elsewhere"]))
            .contains("No objects found in namespace \"elsewhere\"")
    );

    let unknown = mesh.cli(&["get", "virtualservice", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(both(&unknown).contains("not found"), "{unknown:?}");

    // An object that the directory holds is the user's: the answer says where it stands.
    let before = fs::read_to_string(mesh.config().join("diary.yaml")).expect("it is there");
    for refused in [
        apply(&mesh, &teapot("diary", 451)),
        mesh.cli(&["delete", "vs/diary"]),
        mesh.cli(&["delete", "vs/diary", "--dry-run"]),
    ] {
        let said = both(&refused);
        assert!(
            refused.status.code() == Some(1)
                && said.contains("diary.yaml:4")
                && said.contains("--write")
                && !said.contains("virtualservice/diary"),
            "{refused:?}"
        );
    }
    let text = fs::read_to_string(mesh.config().join("diary.yaml")).expect("it is still there");
    assert_eq!(text, before);

    // With --write it is changed there.
    mesh.write(
        "diary.yaml",
        &before.replace("418", "418 # short and stout"),
    );
    let file = mesh.path("applied.yaml").display().to_string();
    fs::write(&file, teapot("diary", 451)).expect("a writable folder");
    let said = mesh.cli_ok(&["apply", "--write", "-f", &file]);
    assert!(
        said.contains("virtualservice/diary configured in"),
        "{said}"
    );

    mesh.wait("the directory's object is changed", || diary(&mesh) == 451);
    let text = fs::read_to_string(mesh.config().join("diary.yaml")).expect("it is still there");
    assert!(text.contains("451 # short and stout"), "{text}");

    // A refused object changes nothing and is told with its place.
    let output = apply(
        &mesh,
        &teapot("ledger", 418).replace("httpStatus", "httpStats"),
    );

    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        both(&output).contains("httpStats") && both(&output).contains("did you mean httpStatus?"),
        "{output:?}"
    );

    assert_eq!(ledger(&mesh), 451);

    mesh.stop();
    mesh.start_again();
    mesh.wait("what was applied survives", || {
        ledger(&mesh) == 451 && diary(&mesh) == 451
    });
    let one: Value =
        serde_json::from_str(&mesh.cli_ok(&["get", "vs/ledger", "-o", "json"])).expect("JSON");
    assert_eq!(
        one["metadata"]["creationTimestamp"], created,
        "it is as old as it was"
    );

    let file = mesh.path("applied.yaml").display().to_string();
    fs::write(&file, teapot("ledger", 451)).expect("a writable folder");
    assert!(
        mesh.cli_ok(&["delete", "-f", &file])
            .contains("virtualservice/ledger deleted")
    );

    mesh.wait("the deleted object is gone", || ledger(&mesh) == 200);
    let again = mesh.cli(&["delete", "virtualservice", "ledger"]);
    assert!(
        again.status.code() == Some(1)
            && both(&again).contains(
                "virtualservices.networking.istio.io \"ledger\" not found in namespace \"default\""
            ),
        "{again:?}"
    );

    assert_eq!(
        both(&again),
        both(&unknown).replace("nobody", "ledger"),
        "one wording"
    );

    assert!(
        mesh.cli(&["delete", "vs", "ledger", "--ignore-not-found"])
            .status
            .success()
    );

    mesh.cli_ok(&["delete", "vs/diary", "--write"]);
    mesh.wait("deleted from the directory", || diary(&mesh) == 200);
    let left = fs::read_to_string(mesh.config().join("diary.yaml")).expect("the file stays");
    assert_eq!(left, "");

    // All that was applied, and nothing else.
    for name in ["ledger", "diary"] {
        assert!(apply(&mesh, &teapot(name, 451)).status.success());
    }
    let said = mesh.cli_ok(&["delete", "--all"]);
    assert!(
        said.contains("virtualservice/diary deleted")
            && said.contains("virtualservice/ledger deleted"),
        "{said}"
    );
    mesh.wait("all is gone", || {
        ledger(&mesh) == 200 && diary(&mesh) == 200
    });
    let again = mesh.cli(&["delete", "--all"]);
    assert!(
        again.status.success() && both(&again).contains("No applied objects found"),
        "{again:?}"
    );
}

#[test]
fn mistakes_are_reported_with_position_and_the_last_good_version_stays() {
    let Some(peers) =
        Peers::of("mistakes_are_reported_with_position_and_the_last_good_version_stays")
    else {
        return;
    };

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
    mesh.write(
        "ledger.yaml",
        &teapot("ledger", 451).replace("hosts: [ledger]", "hosts: [ledger"),
    );

    says(&mesh, "broken YAML", &["ledger.yaml:", "error"]);
    let line = told(&mesh)
        .lines()
        .find(|line| line.contains("ledger.yaml:"))
        .map(str::to_owned)
        .expect("a line");

    let place: Vec<&str> = line
        .split("ledger.yaml:")
        .nth(1)
        .expect("a place")
        .splitn(3, ':')
        .collect();

    assert!(
        place.len() == 3 && place[..2].iter().all(|n| n.parse::<u32>().is_ok()),
        "file:line:column in {line:?}"
    );

    assert_eq!(ledger(&mesh), 418, "the last good object stays");

    // Across a restart, too.
    mesh.stop();
    mesh.start_again();
    mesh.wait("the last good object is in force after a restart", || {
        ledger(&mesh) == 418
    });
    says(&mesh, "after the restart", &["ledger.yaml:"]);

    // A field that does not exist.
    mesh.write(
        "ledger.yaml",
        &teapot("ledger", 451).replace("httpStatus", "httpStats"),
    );

    says(
        &mesh,
        "unknown field",
        &["ledger.yaml:10:9", "httpStats", "did you mean httpStatus?"],
    );

    assert_eq!(ledger(&mesh), 418);

    // A value that cannot be.
    mesh.write("ledger.yaml", &teapot("ledger", 451).replace("451", "many"));
    says(&mesh, "wrong type", &["ledger.yaml:10:", "httpStatus"]);
    assert_eq!(ledger(&mesh), 418);

    // Repaired: the finding goes, the object comes.
    mesh.write("ledger.yaml", &teapot("ledger", 451));
    mesh.wait("the repaired object is in force", || ledger(&mesh) == 451);
    mesh.wait("nothing is left to say", || {
        !told(&mesh).contains("ledger.yaml")
    });

    // The same object in two files: the first file counts.
    mesh.write("twice.yaml", &teapot("ledger", 418));
    says(&mesh, "duplicate", &["twice.yaml", "ledger.yaml"]);
    assert_eq!(ledger(&mesh), 451);
    mesh.take_out("twice.yaml");
    mesh.wait("the duplicate is gone", || {
        !told(&mesh).contains("twice.yaml")
    });

    // A kind and a host that nobody knows.
    mesh.write(
        "unknown.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: x}\nspec: {}\n",
    );

    says(
        &mesh,
        "unknown kind",
        &[
            "unknown.yaml:",
            "VirtualServise",
            "did you mean VirtualService?",
        ],
    );

    mesh.write("unknown.yaml", &teapot("diary", 418));
    says(&mesh, "reference to nothing", &["unknown.yaml:", "diary"]);
    mesh.take_out("unknown.yaml");

    // An image that is no program of this machine.
    let deployment = App::idle("other").yaml().replace(
        "        image: none\n",
        "        image: registry.example/other:1\n",
    );

    let without_command: String = deployment
        .lines()
        .filter(|line| !line.contains("command:"))
        .flat_map(|line| [line, "\n"])
        .collect();

    mesh.write("other.yaml", &without_command);
    mesh.wait("the image is named", || {
        mesh.said("registry.example/other:1 is no program of this machine")
    });
    assert!(
        mesh.lines()
            .iter()
            .any(|line| line.contains("other.yaml:") && line.contains("image map")),
        "{:?}",
        mesh.lines()
    );

    // A program that is not there, and one that ends.
    let crasher = |command: &[&str]| {
        App::new(
            "crasher",
            &[],
            command.iter().map(|word| (*word).to_owned()).collect(),
        )
        .yaml()
    };

    mesh.write("crasher.yaml", &crasher(&["no-such-program"]));
    let state = |mesh: &Mesh| workload(mesh, "crasher-0");
    mesh.wait("a missing program is told", || {
        state(&mesh).is_some_and(|w| {
            w["app"]["last_exit"]
                .as_str()
                .is_some_and(|text| text.contains("not found"))
        })
    });

    mesh.write("crasher.yaml", &crasher(&["sh", "-c", "echo oops; exit 3"]));
    mesh.wait("it is started again and again", || {
        state(&mesh).is_some_and(|w| {
            w["app"]["restarts"].as_u64() >= Some(3) && w["app"]["last_exit"] == "exit code 3"
        })
    });

    mesh.wait("its status shows it", || {
        mesh.cli_ok(&["status"])
            .lines()
            .any(|line| line.contains("crasher-0") && line.contains("CrashLoopBackOff"))
    });

    assert!(mesh.cli_ok(&["logs", "crasher"]).contains("oops"));
    let told = |text: &str| {
        mesh.lines()
            .iter()
            .filter(|line| line.contains(text))
            .count()
    };

    assert_eq!(
        told("workload default/crasher-0: its program fails again and again (exit code 3)"),
        1,
        "told once"
    );

    assert_eq!(
        told("`meltemi logs -n default crasher-0` shows what it said"),
        1,
        "{:?}",
        mesh.lines()
    );

    assert_eq!(ledger(&mesh), 451, "the rest keeps running");
}

#[test]
fn the_users_objects_override_the_demos() {
    if Peers::of("the_users_objects_override_the_demos").is_none() {
        return;
    }
    let way_in = |status: u16| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: bookinfo}}\nspec:\n  hosts: ['*']\n  \
             gateways: [bookinfo-gateway]\n  http: [{{directResponse: {{status: {status}}}}}]\n"
        )
    };

    let mesh = Plan::new().demo().file("way-in.yaml", &way_in(418)).start();
    mesh.wait("the directory's object counts", || {
        mesh.get("/productpage", &[]).status == 418
    });
    let told = both(&mesh.cli(&["status"]));
    assert!(
        !told.contains("MEL0402") && !told.contains("bookinfo"),
        "{told}"
    );

    mesh.take_out("way-in.yaml");
    mesh.wait("without it the demo's own does", || {
        mesh.get("/productpage", &[]).status == 200
    });

    // Applied objects come before the demo's, and go again.
    assert!(both(&apply(&mesh, &way_in(429))).contains("virtualservice/bookinfo configured"));
    mesh.wait("what was applied counts", || {
        mesh.get("/productpage", &[]).status == 429
    });
    let deleted = both(&mesh.cli(&["delete", "vs", "bookinfo"]));
    assert!(
        deleted.contains("virtualservice/bookinfo deleted")
            && deleted.contains("is in force again"),
        "{deleted}"
    );

    mesh.wait("the demo's own is back", || {
        mesh.get("/productpage", &[]).status == 200
    });

    // What the mesh is built on cannot be configured away: it is told, and the rest of the text
    // counts.
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                    trustDomain: example.org\n    proxyListenPort: 16001\n    proxyInboundListenPort: 16006\n    \
                    accessLogFile: /dev/stdout\n    accessLogFormat: \"counted %RESPONSE_CODE%\\n\"\n";
    let output = apply(&mesh, settings);
    let told = both(&output);
    assert!(
        output.status.success() && told.contains("configmap/istio configured"),
        "{told}"
    );

    for words in [
        "applied.yaml:6: error[MEL0313]: ConfigMap/istio.istio-system: data.mesh: trustDomain: example.org",
        "applied.yaml:7: error[MEL0313]: ConfigMap/istio.istio-system: data.mesh: proxyListenPort: 16001",
        "applied.yaml:8: error[MEL0313]: ConfigMap/istio.istio-system: data.mesh: proxyInboundListenPort: 16006",
        "remove the field, or write cluster.local",
    ] {
        assert!(told.contains(words), "{words:?} in {told}");
    }

    mesh.wait("the rest of it is in force", || {
        let call = [
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://reviews:9080/reviews/0",
        ];

        let answer = mesh.exec("productpage-v1", &call);
        assert_eq!(
            String::from_utf8_lossy(&answer.stdout),
            "200",
            "calls go on: {answer:?}"
        );

        mesh.cli_ok(&["logs", "productpage-v1", "-c", "proxy"])
            .contains("\ncounted 200")
    });

    assert!(both(&mesh.cli(&["status"])).contains("MEL0313"));
}

/// What the status says of one replica.
pub fn workload(mesh: &Mesh, pod: &str) -> Option<Value> {
    let status: Value =
        serde_json::from_str(&mesh.cli_ok(&["status", "-o", "json"])).expect("JSON");
    status["workloads"]
        .as_array()?
        .iter()
        .find(|w| w["key"]["pod"] == pod)
        .cloned()
}
