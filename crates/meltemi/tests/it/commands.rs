//! The commands and their flags as users type them, against one mesh.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::lifecycle::GATEWAY;
use crate::mesh::{Mesh, Plan};
use crate::objects::{both, teapot, workload};
use crate::peers::{App, Dialogue, Peers, curl, yaml};

const PUBLISHED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[test]
fn commands_and_flags_work_as_documented() {
    let Some(peers) = Peers::of("commands_and_flags_work_as_documented") else {
        return;
    };
    let apps = [
        peers.recorder("ledger"),
        App::idle("inside"),
        App::idle("outside").unmeshed(),
    ];

    let beyond = "apiVersion: v1\nkind: Service\nmetadata: {name: beyond}\nspec: {type: ExternalName, externalName: beyond.example.test}\n";
    let plan = Plan::new();
    let dial_map = plan.path("dial-map.yaml");

    fs::write(&dial_map, "beyond.example.test: 127.0.0.1:9\n").expect("a writable folder");
    let plan = plan
        .argument("--dial-map")
        .argument(&dial_map.display().to_string());
    let plan = plan
        .argument("--publish-address")
        .argument(&PUBLISHED.to_string());
    let plan = plan
        .file("apps.yaml", &yaml(&apps))
        .file("gateway.yaml", GATEWAY)
        .file("beyond.yaml", beyond);

    let mut mesh = plan.start();
    mesh.wait("the way in", || {
        mesh.published(8080)
            .is_some_and(|at| at.ip() == IpAddr::from(PUBLISHED))
    });

    mesh.wait("an answer from outside", || {
        mesh.get("/", &[]).status == 200
    });

    logs_and_restarts(&mesh);
    objects(&mesh);
    status(&mesh);
    runs(&mesh);
    completion(&mesh);

    // A name that stands for one outside: of the world, where the dial map says where that is.
    for from in ["inside", "outside"] {
        let found = mesh.exec(from, &["getent", "ahostsv4", "beyond"]);
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        assert!(text.starts_with("198.18."), "{from}: {found:?}");
    }

    assert!(mesh.stop().success());
}

fn logs_and_restarts(mesh: &Mesh) {
    let call = |path: &str| {
        let url = format!("http://ledger:9080{path}");
        mesh.wait(&format!("a call to {url}"), || {
            curl(mesh, "inside", &[&url]).status == 200
        });
    };

    let follower = Dialogue::start(mesh.cli_command().args(["logs", "-f", "ledger"]));
    let hears = |word: &str| while !follower.hear_or_fail(word).contains(word) {};
    for path in ["/first", "/second"] {
        call(path);
        hears(path);
    }

    let all = mesh.cli_ok(&["logs", "ledger"]);
    assert!(
        all.find("/first") < all.find("/second") && all.contains("/first"),
        "{all}"
    );

    assert_eq!(mesh.cli_ok(&["logs", "ledger", "--tail", "0"]), "");
    mesh.wait("the log has ended", || {
        let all = mesh.cli_ok(&["logs", "ledger"]);
        let lines: Vec<&str> = all.lines().collect();
        let tail = mesh.cli_ok(&["logs", "ledger", "--tail", "2"]);
        tail.lines().collect::<Vec<_>>() == lines[lines.len() - 2..]
    });

    let none = mesh.cli(&["logs", "ledger", "--previous"]);
    assert!(
        none.status.code() == Some(1) && both(&none).contains("has not ended so far"),
        "{none:?}"
    );

    let pids = |mesh: &Mesh| {
        let now = workload(mesh, "ledger-0").expect("it runs");
        (now["ready"] == true).then(|| ["app", "proxy"].map(|part| now[part]["pid"].as_u64()))
    };

    let before = pids(mesh).expect("it is ready");
    let done = mesh.cli_ok(&["restart", "ledger"]);
    assert!(done.contains("ledger"), "{done}");
    mesh.wait("both parts are others", || {
        pids(mesh).is_some_and(|now| {
            now.iter()
                .zip(&before)
                .all(|(now, before)| now.is_some() && now != before)
        })
    });

    // Whoever follows goes on with the one that follows.
    call("/third");
    hears("/third");
    let previous = mesh.cli_ok(&["logs", "ledger", "--previous"]);
    assert!(
        previous.contains("/second")
            && !previous.contains("/third")
            && !previous.contains("meltemi:"),
        "{previous}"
    );

    let proxy = mesh.cli_ok(&["logs", "ledger", "-c", "proxy", "--previous"]);
    assert!(proxy.contains("certificate obtained"), "{proxy}");

    // One that ends by itself, and what it said last but one.
    let short = mesh.cli(&[
        "run",
        "--app",
        "short",
        "--no-sidecar",
        "-d",
        "--",
        "sh",
        "-c",
        "echo said by $PPID; exit 3",
    ]);
    assert_eq!(short.status.code(), Some(1), "{short:?}");
    let told = both(&short);
    assert!(
        told.contains("short-v1-0 is not ready: its program ended: exit code 3"),
        "{told}"
    );

    mesh.wait("what it said before", || {
        let said = mesh.cli(&["logs", "short-v1", "--previous", "--tail", "1"]);
        said.status.success() && both(&said).starts_with("said by ")
    });

    mesh.cli_ok(&["stop", "short-v1"]);
}

fn objects(mesh: &Mesh) {
    let labelled = |name: &str, tier: &str| {
        teapot(name, 418).replace(
            "metadata:\n",
            &format!("metadata:\n  labels: {{tier: {tier}}}\n"),
        )
    };

    // From standard input, and all of a directory.
    let mut apply = mesh.cli_command();
    let mut apply = apply
        .args(["apply", "-n", "elsewhere", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");

    apply
        .stdin
        .take()
        .expect("piped")
        .write_all(labelled("typed", "front").as_bytes())
        .expect("it reads");

    let output = apply.wait_with_output().expect("it ends");
    assert!(
        output.status.success() && both(&output).contains("virtualservice/typed created"),
        "{output:?}"
    );

    let folder = mesh.path("objects");
    fs::create_dir(&folder).expect("a writable folder");
    for (name, tier) in [("one", "front"), ("two", "back")] {
        fs::write(folder.join(format!("{name}.yaml")), labelled(name, tier))
            .expect("a writable folder");
    }

    fs::write(folder.join("notes.txt"), "no YAML: [").expect("a writable folder");
    let told = mesh.cli_ok(&["apply", "-f", &folder.display().to_string()]);
    for name in ["one", "two"] {
        assert!(
            told.contains(&format!("virtualservice/{name} created")),
            "{told}"
        );
    }

    let names = |arguments: &[&str]| {
        let text = mesh.cli_ok(&[&["get", "vs", "-o", "name"], arguments].concat());
        text.lines()
            .map(|line| line.trim_start_matches("virtualservice/").to_owned())
            .collect::<Vec<_>>()
    };

    assert_eq!(names(&[]), ["one", "two", "way-in"]);
    assert_eq!(names(&["-A"]), ["one", "two", "way-in", "typed"]);
    assert_eq!(names(&["-l", "tier=front"]), ["one"]);
    assert_eq!(names(&["-A", "-l", "tier=front"]), ["one", "typed"]);
    assert_eq!(names(&["-l", "tier!=front"]), ["two", "way-in"]);
    let table = mesh.cli_ok(&["get", "vs", "-A"]);
    let line = table
        .lines()
        .find(|line| line.contains("typed"))
        .expect("a line of its own");

    assert!(
        table.starts_with("NAMESPACE") && line.starts_with("elsewhere"),
        "{table}"
    );

    mesh.cli_ok(&["delete", "-f", &folder.display().to_string()]);
    assert_eq!(names(&["-A"]), ["way-in", "typed"]);
}

fn status(mesh: &Mesh) {
    mesh.wait("what a proxy has is what is wanted", || {
        let wide = mesh.cli_ok(&["status", "-o", "wide"]);
        let (header, rows) = wide.split_once('\n').expect("a header");
        let row = rows
            .lines()
            .find(|line| line.contains("ledger-0"))
            .expect("a line of its own");

        let cell = |column: &str| {
            let at = header
                .find(column)
                .unwrap_or_else(|| panic!("{column}: {header}"));
            row[at..]
                .split("   ")
                .next()
                .expect("a cell")
                .trim()
                .to_owned()
        };

        let types = ["CDS", "EDS", "LDS", "RDS"].map(cell);
        cell("VERSION").len() == 8
            && cell("VERSION") == cell("WANTED")
            && types
                .iter()
                .all(|cell| cell.starts_with("SYNCED ") && cell.split(' ').count() == 3)
            && cell("IDENTITY") == "spiffe://cluster.local/ns/default/sa/ledger"
    });

    let yaml = mesh.cli_ok(&["status", "ledger", "-o", "yaml"]);
    for line in [
        "workloads:",
        "control:",
        "pod: ledger-0",
        "short: CDS",
        "state: SYNCED",
        "nacks: 0",
    ] {
        assert!(
            yaml.lines()
                .any(|found| found.trim_start_matches([' ', '-']) == line),
            "{line:?} in {yaml}"
        );
    }

    assert!(
        !yaml.contains("inside-0"),
        "one workload was asked for: {yaml}"
    );
}

fn runs(mesh: &Mesh) {
    let program = ["--", "sh", "-c", "echo \"$WORD\"; exec sleep 86400"];
    let flags = [
        "run",
        "--app",
        "twin",
        "--name",
        "pair",
        "--replicas",
        "2",
        "--labels",
        "tier=back,role=spare",
    ];

    let more = ["--env", "WORD=hello", "--service-account", "robot", "-d"];
    mesh.cli_ok(&[&flags[..], &more, &program].concat());
    for pod in ["pair-0", "pair-1"] {
        assert!(
            workload(mesh, pod).is_some_and(|found| found["ready"] == true),
            "`run` has waited for {pod}"
        );
        let found = workload(mesh, pod).expect("it runs");
        for (label, value) in [
            ("app", "twin"),
            ("version", "v1"),
            ("tier", "back"),
            ("role", "spare"),
        ] {
            assert_eq!(found["labels"][label], json!(value), "{found}");
        }

        assert_eq!(
            (&found["workload"], &found["service_account"]),
            (&json!("pair"), &json!("robot"))
        );

        mesh.wait("its environment", || {
            mesh.cli_ok(&["logs", pod]) == "hello\n"
        });
    }

    mesh.wait("both are who they were said to be", || {
        let status: Value =
            serde_json::from_str(&mesh.cli_ok(&["status", "pair", "-o", "json"])).expect("JSON");
        let proxies = status["control"]["proxies"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let is_robot =
            |proxy: &Value| proxy["identity"] == "spiffe://cluster.local/ns/default/sa/robot";
        proxies.len() == 2 && proxies.iter().all(is_robot)
    });

    mesh.cli_ok(&["stop", "pair"]);
    assert!(
        workload(mesh, "pair-0").is_none() && workload(mesh, "pair-1").is_none(),
        "`stop` has waited for both"
    );
}

/// What bash completes, asked as its line editor asks.
fn completion(mesh: &Mesh) {
    let script = mesh.path("completion.bash");
    fs::write(&script, mesh.cli_ok(&["completion", "bash"])).expect("a writable folder");
    let bash = |arguments: &[&str]| {
        // The environment is that of the mesh's commands.
        let mut command = Command::new("bash");
        command.envs(
            mesh.cli_command()
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );

        command
            .env_remove("MELTEMI_MESH")
            .args(arguments)
            .arg(&script)
            .output()
    };

    let checked = match bash(&["-n"]) {
        Ok(checked) => checked,
        Err(_) => {
            return crate::skip(
                "commands_and_flags_work_as_documented: completion",
                "bash is not installed",
            );
        }
    };

    assert!(checked.status.success(), "{checked:?}");

    for (words, wanted) in [
        (&["sta"][..], &["status"][..]),
        (&["restart", "led"], &["ledger"]),
        (&["get", "virtualser"], &["virtualservice"]),
        (&["logs", "ledger", "--prev"], &["--previous"]),
    ] {
        let line = format!(
            "source \"$0\"; COMP_WORDS=(meltemi {words}); COMP_CWORD={count}; \
             handler=$(complete -p meltemi | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
             $handler meltemi {last} x; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words = words.join(" "),
            count = words.len(),
            last = words.last().expect("one at least"),
        );

        let output = bash(&["-c", &line]).expect("bash starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found: Vec<&str> = text.split_whitespace().collect();
        assert!(
            wanted
                .iter()
                .all(|word| found.iter().any(|found| found.starts_with(word))),
            "{words:?}: {output:?}"
        );
    }
}
