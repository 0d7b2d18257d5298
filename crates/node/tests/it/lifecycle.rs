//! What a user of one machine's mesh relies on.

use std::io::{Read as _, Write as _};

use crate::harness::{Mesh, OPEN_FILES, as_each_user, signal};

#[test]
fn calls_are_captured_and_no_process_is_left_afterwards() {
    as_each_user(|mesh| {
        mesh.deployment("hello", 2, "", "hello");
        mesh.deployment("outside", 1, ", sidecar.istio.io/inject: 'false'", "hello");
        mesh.until("three workloads are ready", |m| {
            ready(m, &["hello-0", "hello-1", "outside-0"])
        });
        let token = mesh.token();
        let address = |pod: &str| {
            mesh.workload(pod).unwrap()["ip"]
                .as_str()
                .unwrap()
                .to_owned()
        };

        // From one sidecar to another, by address.
        let to = format!("{}:9080", address("hello-1"));
        let answer = mesh.get("hello-0", &to);
        assert!(
            String::from_utf8_lossy(&answer.stdout).contains(&token),
            "{answer:?}"
        );

        assert!(
            mesh.ok(&["logs", "hello-0", "proxy"])
                .contains(&format!("outbound to Some({to})"))
        );

        mesh.until("the inbound side saw it", |m| {
            m.ok(&["logs", "hello-1", "proxy"])
                .contains(&format!("inbound to Some({to})"))
        });

        // A workload outside the mesh reaches a service by name, without a sidecar of its own.
        mesh.until("the service is translated", |m| {
            let answer = m.get("outside-0", "hello:80");
            String::from_utf8_lossy(&answer.stdout).contains(&token)
        });

        assert!(mesh.workload("outside-0").unwrap()["proxy"].is_null());

        // The published port.
        let told = mesh.told();
        let published = told
            .iter()
            .find(|line| line.contains("Published"))
            .expect("the gateway's port is published");

        let at = published
            .split("address: ")
            .nth(1)
            .and_then(|rest| rest.split([',', ' ']).next())
            .unwrap();

        let mut stream = std::net::TcpStream::connect(at).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("gateway"), "{text}");

        // What an application may not do.
        let program = &mesh.program;
        let forbidden = mesh.client(&["exec", "hello-0", program.to_str().unwrap(), "mark"]);
        assert_eq!(
            forbidden.status.code(),
            Some(13),
            "an application marked its socket as the proxy's: {forbidden:?}"
        );

        let run = mesh.path("run");
        let seen = mesh.ok(&[
            "exec",
            "hello-0",
            "ls",
            "-A",
            run.to_str().unwrap(),
            mesh.path("state").to_str().unwrap(),
        ]);

        assert!(!seen.contains("sock") && !seen.contains("pem"), "{seen}");
        let processes = mesh.ok(&[
            "exec",
            "hello-0",
            "sh",
            "-c",
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
        ]);

        assert!(!processes.contains("sidecar"), "{processes}");

        // Proxies may have many files open; applications find the limit that the user has.
        assert_eq!(
            mesh.ok(&["exec", "hello-0", "sh", "-c", "ulimit -Sn"])
                .trim(),
            OPEN_FILES.to_string()
        );

        let sidecars = mesh.processes("meltemi: sidecar hello-0");
        assert!(!sidecars.is_empty());
        for pid in sidecars {
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let line = limits
                .lines()
                .find_map(|line| line.strip_prefix("Max open files"))
                .unwrap();
            let [soft, hard, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            assert_eq!(soft, hard);
        }

        // Exit codes, and a service address that nobody serves.
        assert_eq!(
            mesh.client(&["exec", "hello", "sh", "-c", "exit 7"])
                .status
                .code(),
            Some(7)
        );

        // 126 where a folder of the PATH may not be looked into.
        let absent = mesh
            .client(&["exec", "hello", "no-such-program"])
            .status
            .code();

        assert!(matches!(absent, Some(126 | 127)), "{absent:?}");
        assert!(!mesh.get("outside-0", "10.45.255.1:80").status.success());
    });
}

#[test]
fn the_outside_is_reached_through_the_supervisor() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = server.accept() {
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfar away");
        }
    });

    let mut mesh = Mesh::ordinary();
    std::fs::write(
        mesh.path("dial.yaml"),
        format!("outside.test:80: {at}\n203.0.113.7: {at}\n"),
    )
    .unwrap();

    mesh.deployment("hello", 1, "", "hello");
    mesh.deployment("bare", 1, ", sidecar.istio.io/inject: 'false'", "hello");
    if !mesh.start() {
        return;
    }
    for from in ["hello", "bare"] {
        for to in ["outside.test:80", "203.0.113.7:8081"] {
            let answer = mesh.get(from, to);
            assert!(
                String::from_utf8_lossy(&answer.stdout).contains("far away"),
                "{from} to {to}: {answer:?}"
            );
        }
    }

    mesh.interrupt();
    mesh.assert_nothing_is_left();
}

#[test]
fn ended_programs_are_restarted() {
    as_each_user(|mesh| {
        mesh.deployment("hello", 1, "", "hello");
        mesh.deployment("broken", 1, "", "broken");
        mesh.until("hello is ready", |m| ready(m, &["hello-0"]));
        let ip = mesh.workload("hello-0").unwrap()["ip"].clone();
        mesh.until("the broken one backs off", |m| {
            m.workload("broken-0").is_some_and(|w| {
                w["app"]["restarts"].as_u64() >= Some(2) && w["app"]["last_exit"] == "exit code 3"
            })
        });

        assert!(mesh.ok(&["logs", "broken"]).contains("oops"));
        for (what, word) in [
            ("app", "meltemi: hello"),
            ("proxy", "meltemi: sidecar hello-0"),
        ] {
            for pid in mesh.processes(word) {
                signal(pid, "KILL");
            }
            mesh.until("it runs again", |m| {
                ready(m, &["hello-0"])
                    && m.workload("hello-0").unwrap()[what]["restarts"].as_u64() >= Some(1)
            });
        }

        for pid in mesh.processes("meltemi: control plane") {
            signal(pid, "KILL");
        }
        mesh.until("the control plane runs again", |m| {
            !m.processes("meltemi: control plane").is_empty()
        });
        assert_eq!(mesh.workload("hello-0").unwrap()["ip"], ip);

        // A restart that was asked for; a Deployment that shrinks, and one that goes.
        mesh.ok(&["restart", "hello", "app"]);
        mesh.deployment("hello", 3, "", "hello");
        mesh.until("it grew", |m| ready(m, &["hello-0", "hello-1", "hello-2"]));
        mesh.deployment("hello", 1, "", "hello");
        mesh.until("it shrank", |m| m.workload("hello-1").is_none());
        std::fs::remove_file(mesh.path("conf/broken.yaml")).unwrap();
        mesh.until("it is gone", |m| m.workload("broken-0").is_none());
    });
}

#[test]
fn the_supervisors_death_ends_everything() {
    as_each_user(|mesh| {
        mesh.deployment("hello", 1, "", "hello");
        mesh.until("hello is ready", |m| ready(m, &["hello-0"]));
        assert!(!mesh.processes("sidecar").is_empty());
        mesh.kill_supervisor();
        mesh.assert_nothing_is_left();
        // And the next one starts, with the same addresses.
        assert!(mesh.start());
        mesh.until("hello is ready", |m| ready(m, &["hello-0"]));
    });
}

#[test]
fn a_program_is_added_and_leaves_with_its_client() {
    as_each_user(|mesh| {
        mesh.deployment("hello", 1, "", "hello");
        mesh.deployment("bare", 1, ", sidecar.istio.io/inject: 'false'", "hello");
        mesh.until("hello is ready", |m| ready(m, &["hello-0", "bare-0"]));
        let program = &mesh.program;
        let mut client = mesh.spawn(&[
            "run",
            "extra",
            "7000",
            program.to_str().unwrap(),
            "answer",
            "7000",
            "added",
        ]);

        mesh.until("it is ready", |m| ready(m, &["extra-0"]));

        // No Service selected it, so it got one, and is called by name.
        mesh.until("it is called by name", |m| {
            String::from_utf8_lossy(&m.get("bare", "extra:7000").stdout).contains("added")
        });
        signal(client.id(), "TERM");
        client.wait().unwrap();
        mesh.until("it left", |m| m.workload("extra-0").is_none());
        let refused = mesh.client(&["stop", "hello"]);
        assert!(
            String::from_utf8_lossy(&refused.stderr).contains("comes from the configuration"),
            "{refused:?}"
        );

        let unknown = mesh.client(&["restart", "nobody"]);
        assert!(
            String::from_utf8_lossy(&unknown.stderr).contains("no workload \"nobody\""),
            "{unknown:?}"
        );
    });
}

fn ready(mesh: &Mesh, pods: &[&str]) -> bool {
    let list = mesh.list();
    pods.iter().all(|pod| {
        list.iter()
            .any(|w| w["key"]["pod"] == *pod && w["ready"] == true)
    })
}

#[test]
fn forbidden_namespaces_are_reported_with_a_remedy() {
    let mut mesh = Mesh::ordinary();
    // In a user namespace of its own a process may forbid itself further ones.
    let Some(why) = mesh.start_where_namespaces_are_forbidden() else {
        return;
    };
    assert!(why.contains("creating a user namespace"), "{why}");
    assert!(why.contains("sysctl -w user.max_user_namespaces"), "{why}");
    mesh.assert_nothing_is_left();
}

#[test]
fn a_mesh_of_the_same_name_is_refused() {
    let mut mesh = Mesh::ordinary();
    mesh.deployment("hello", 1, "", "hello");
    if !mesh.start() {
        return;
    }
    let conf = mesh.path("conf");
    let second = mesh.client(&["up", conf.to_str().unwrap()]);
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("is already running"),
        "{second:?}"
    );

    assert!(!mesh.list().is_empty(), "the first one goes on");
    mesh.interrupt();
    mesh.assert_nothing_is_left();
}
