//! Who may call whom, and who can read along: mutual TLS, policies, certificates.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::mesh::{Mesh, Plan};
use crate::peers::{ACCESS_LOG, App, Dialogue, Peers, curl, yaml};

/// What one PeerAuthentication does to callers without a certificate.
struct Case {
    name: &'static str,
    policy: &'static str,
    /// Ports of `ledger` that refuse plaintext: HTTP, TCP.
    refuses: (bool, bool),
    /// Whether `diary` refuses it.
    refuses_diary: bool,
}

const CASES: &[Case] = &[
    Case {
        name: "namespace",
        policy: "metadata: {name: default}\nspec: {mtls: {mode: STRICT}}",
        refuses: (true, true),
        refuses_diary: true,
    },
    Case {
        name: "workload",
        policy: "metadata: {name: ledger}\nspec: {selector: {matchLabels: {app: ledger}}, mtls: {mode: STRICT}}",
        refuses: (true, true),
        refuses_diary: false,
    },
    Case {
        name: "one-port-strict",
        policy: "metadata: {name: ledger}\nspec: {selector: {matchLabels: {app: ledger}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {9081: {mode: STRICT}}}",
        refuses: (false, true),
        refuses_diary: false,
    },
    Case {
        name: "one-port-permissive",
        policy: "metadata: {name: ledger}\nspec: {selector: {matchLabels: {app: ledger}}, mtls: {mode: STRICT}, portLevelMtls: {9081: {mode: PERMISSIVE}}}",
        refuses: (true, false),
        refuses_diary: false,
    },
];

#[test]
fn strict_refuses_plaintext_before_it_reaches_the_application() {
    let Some(peers) = Peers::of("strict_refuses_plaintext_before_it_reaches_the_application")
    else {
        return;
    };

    let apps = [
        peers.recorder("ledger"),
        peers.recorder("diary"),
        App::idle("inside"),
    ];

    let mesh = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &yaml(&apps))
        .start();

    mesh.cli_ok(&[
        "run",
        "--app",
        "outside",
        "--no-sidecar",
        "--detach",
        "--",
        "sleep",
        "86400",
    ]);

    let reaches = |url: &str| curl(&mesh, "outside-v1", &[url]).status == 200;
    for url in [
        "http://ledger:9080/",
        "http://ledger:9081/",
        "http://diary:9080/",
    ] {
        mesh.wait("a plaintext caller reaches a PERMISSIVE service", || {
            reaches(url)
        });
    }

    for case in CASES {
        strict(&mesh, &peers, case);
    }
}

fn strict(mesh: &Mesh, peers: &Peers, case: &Case) {
    let Case {
        name,
        policy,
        refuses: (http, tcp),
        refuses_diary,
    } = case;

    println!("case: {name}");
    let talk = |from, host, port| Dialogue::talk(mesh, peers, from, host, port);
    let outside = |url: &str| curl(mesh, "outside-v1", &[url]);

    // Open before the policy comes: plaintext, and mutual TLS.
    let mut plain_http = talk("outside-v1", "ledger", 9080);
    let mut plain_tcp = talk("outside-v1", "ledger", 9081);
    let mut plain_diary = talk("outside-v1", "diary", 9080);
    let mut meshed_http = talk("inside", "ledger", 9080);
    let mut meshed_tcp = talk("inside", "ledger", 9081);

    for held in [&mut plain_http, &mut plain_diary, &mut meshed_http] {
        assert!(held.ask("get /before").starts_with("200 "), "{name}");
    }
    for held in [&mut plain_tcp, &mut meshed_tcp] {
        assert_eq!(held.ask("send before"), "received before", "{name}");
    }
    let before = app_log(mesh, "ledger").len();

    mesh.write(
        "policy.yaml",
        &format!("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n{policy}\n"),
    );

    let shut: Vec<&str> = [
        ("http://ledger:9080/probe", http),
        ("http://ledger:9081/probe", tcp),
        ("http://diary:9080/probe", refuses_diary),
    ]
    .into_iter()
    .filter_map(|(url, refused)| refused.then_some(url))
    .collect();

    for url in &shut {
        mesh.wait(&format!("{name}: {url} refuses plaintext"), || {
            outside(url).code != 0
        });
    }

    // Connections that the policy would not accept any more have ended; all others go on.
    let lives_on = |held: &mut Dialogue, refused: bool, say: &str, answer: &str| {
        let heard = if refused {
            held.ask("until-closed")
        } else {
            held.ask(say)
        };

        let wanted = if refused { "closed" } else { answer };
        assert!(
            heard.starts_with(wanted),
            "{name}: {say}: {heard:?} instead of {wanted:?}"
        );
    };

    lives_on(&mut plain_http, *http, "get /plain-lives-on", "200 ");
    lives_on(
        &mut plain_tcp,
        *tcp,
        "send plain-lives-on",
        "received plain-lives-on",
    );

    lives_on(
        &mut plain_diary,
        *refuses_diary,
        "get /plain-lives-on",
        "200 ",
    );

    lives_on(&mut meshed_http, false, "get /meshed-lives-on", "200 ");
    lives_on(
        &mut meshed_tcp,
        false,
        "send meshed-lives-on",
        "received meshed-lives-on",
    );

    // From here on nothing may reach the application on a port that refuses, not even an empty
    // connection.
    assert_eq!(
        curl(mesh, "inside", &["http://ledger:9080/fence-1"]).status,
        200,
        "{name}"
    );

    mesh.wait("the fence is in the log", || {
        app_log(mesh, "ledger")
            .iter()
            .any(|line| line.contains("/fence-1"))
    });

    let seen = app_log(mesh, "ledger");
    for (url, refused) in [("http://ledger:9080", http), ("http://ledger:9081", tcp)] {
        for attempt in 0..3 {
            let answer = outside(&format!("{url}/smuggled-{attempt}"));
            assert_eq!(answer.status == 200, !refused, "{name}: {url}: {answer:?}");
        }
    }

    assert_eq!(
        curl(mesh, "inside", &["http://ledger:9080/fence-2"]).status,
        200,
        "{name}"
    );

    mesh.wait("the second fence is in the log", || {
        app_log(mesh, "ledger")
            .iter()
            .any(|line| line.contains("/fence-2"))
    });

    let log = app_log(mesh, "ledger");
    let new = &log[seen.len()..];
    let smuggled: Vec<&String> = new
        .iter()
        .filter(|line| line.contains("smuggled"))
        .collect();

    match (*http, *tcp) {
        (true, true) => {
            assert!(
                smuggled.is_empty(),
                "{name}: plaintext reached the application: {smuggled:?}"
            );

            let ids = |what: &str| -> BTreeSet<&str> {
                new.iter()
                    .filter(|line| line.contains(what))
                    .filter_map(|line| line.split(' ').next())
                    .collect()
            };

            let strangers: Vec<_> = ids(" accepted ")
                .difference(&ids("/fence-"))
                .copied()
                .collect();

            assert!(
                strangers.is_empty(),
                "{name}: connections without a request reached the application: {strangers:?} of {new:#?}"
            );
        }
        _ => assert_eq!(
            smuggled.len(),
            3,
            "{name}: only the open port's: {smuggled:?}"
        ),
    }

    assert!(log.len() > before);

    mesh.take_out("policy.yaml");
    for url in &shut {
        mesh.wait(&format!("{name}: {url} takes plaintext again"), || {
            outside(url).status == 200
        });
    }

    assert!(
        meshed_http.ask("get /still-here").starts_with("200 "),
        "{name}"
    );
}

fn app_log(mesh: &Mesh, workload: &str) -> Vec<String> {
    mesh.cli_ok(&["logs", workload])
        .lines()
        .map(str::to_owned)
        .collect()
}

const ONLY_FRIEND: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-friend}
spec:
  selector: {matchLabels: {app: ledger}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/friend]}}]
    to: [{operation: {methods: [GET], paths: ["/public*"]}}]
"#;

const NO_DELETING: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-deleting}
spec:
  selector: {matchLabels: {app: ledger}}
  action: DENY
  rules:
  - to: [{operation: {methods: [DELETE], ports: ["9080"]}}]
"#;

const NO_FOES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-foes}
spec:
  selector: {matchLabels: {app: ledger}}
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/foe]}}]
    to: [{operation: {ports: ["9081"]}}]
"#;

#[test]
fn policies_deny_the_wrong_identity_also_on_open_connections() {
    let Some(peers) = Peers::of("policies_deny_the_wrong_identity_also_on_open_connections") else {
        return;
    };
    let apps = [
        peers.recorder("ledger"),
        App::idle("friend"),
        App::idle("foe"),
    ];

    let plan = Plan::new()
        .argument("--no-gateways")
        .file("mesh.yaml", ACCESS_LOG)
        .file("apps.yaml", &yaml(&apps));

    let mesh = plan.start();
    let denied = "403 RBAC: access denied";
    let call = |from: &str, method: &str, path: &str| {
        curl(
            &mesh,
            from,
            &["-X", method, &format!("http://ledger:9080{path}")],
        )
    };

    mesh.wait("everybody may call", || {
        ["friend", "foe"]
            .iter()
            .all(|from| call(from, "GET", "/public").status == 200)
    });

    let mut foe = Dialogue::talk(&mesh, &peers, "foe", "ledger", 9080);
    let mut friend = Dialogue::talk(&mesh, &peers, "friend", "ledger", 9080);
    for held in [&mut foe, &mut friend] {
        assert!(held.ask("get /public/before").starts_with("200 "));
    }

    // ALLOW: by identity, method and path.
    mesh.write("policy.yaml", ONLY_FRIEND);
    mesh.wait("the foe is denied on its open connection", || {
        let answer = foe.ask("get /public/during");
        assert_ne!(
            answer, "closed",
            "an answer of 403, not the end of the connection"
        );
        answer == denied
    });

    assert!(friend.ask("get /public/during").starts_with("200 "));
    assert_eq!(friend.ask("get /private"), denied);
    assert_eq!(friend.ask("get /public POST"), denied);
    assert!(
        friend.ask("get /public/again").starts_with("200 "),
        "a denial leaves the connection as it is"
    );

    let answer = call("foe", "GET", "/public/new");
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (403, "RBAC: access denied")
    );

    log_names(&mesh, "rbac_access_denied_matched_policy[none]");
    let reached = app_log(&mesh, "ledger");
    assert!(
        !reached
            .iter()
            .any(|line| line.contains("/private") || line.contains("/public/new")),
        "{reached:#?}"
    );

    // DENY: whoever it is; the log names policy and rule.
    mesh.write("policy.yaml", NO_DELETING);
    mesh.wait("the foe may read again", || {
        foe.ask("get /public/after").starts_with("200 ")
    });
    mesh.wait("nobody deletes", || {
        friend.ask("get /public DELETE") == denied
    });
    assert_eq!(call("foe", "DELETE", "/x").status, 403);
    assert_eq!(call("foe", "POST", "/x").status, 200);
    log_names(
        &mesh,
        "rbac_access_denied_matched_policy[ns[default]-policy[no-deleting]-rule[0]]",
    );

    // TCP has no 403: what is open ends, what is new is not served.
    let mut foe_tcp = Dialogue::talk(&mesh, &peers, "foe", "ledger", 9081);
    let mut friend_tcp = Dialogue::talk(&mesh, &peers, "friend", "ledger", 9081);
    for held in [&mut foe_tcp, &mut friend_tcp] {
        assert_eq!(held.ask("send before"), "received before");
    }
    mesh.write("policy.yaml", NO_FOES);
    assert_eq!(foe_tcp.ask("until-closed"), "closed");
    assert_eq!(friend_tcp.ask("send after"), "received after");
    let mut late = Dialogue::talk(&mesh, &peers, "foe", "ledger", 9081);
    assert_eq!(late.ask("send late"), "closed");
    assert!(
        !app_log(&mesh, "ledger")
            .iter()
            .any(|line| line.contains("late"))
    );

    assert!(
        foe.ask("get /other-port").starts_with("200 "),
        "the policy is about another port"
    );

    log_names(&mesh, "policy[no-foes]");

    // Out again.
    mesh.take_out("policy.yaml");
    mesh.wait("the foe is served again", || {
        Dialogue::talk(&mesh, &peers, "foe", "ledger", 9081).ask("send again") == "received again"
    });
    assert_eq!(call("foe", "DELETE", "/x").status, 200);

    identity_is_ones_own(&mesh, &peers);
}

fn log_names(mesh: &Mesh, words: &str) {
    mesh.wait(&format!("the access log says {words}"), || {
        mesh.cli_ok(&["logs", "ledger", "-c", "proxy"])
            .contains(words)
    });
}

/// The signing service and the discovery service, asked with a real workload's token for more than
/// it is.
fn identity_is_ones_own(mesh: &Mesh, peers: &Peers) {
    let workloads: Value = status(mesh)["workloads"].clone();
    let node_id = |pod: &str| {
        let found = workloads
            .as_array()
            .and_then(|all| all.iter().find(|w| w["key"]["pod"] == pod));
        let ip = found
            .and_then(|w| w["ip"].as_str())
            .unwrap_or_else(|| panic!("{pod} is in {workloads}"));
        format!("sidecar~{ip}~{pod}.default~default.svc.cluster.local")
    };

    let (run_dir, own, other) = (
        mesh.run_dir().display().to_string(),
        node_id("friend-0"),
        node_id("ledger-0"),
    );

    let ledger = "spiffe://cluster.local/ns/default/sa/ledger";
    let asked = peers.program(
        "csr.py",
        &[
            &run_dir,
            "10.44.0.1:15012",
            "friend-0",
            ledger,
            &other,
            &own,
        ],
    );

    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    let output = mesh.exec("@router", &asked);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let told: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();

    let attempt = |name: &str| {
        told.iter()
            .find(|t| t["attempt"] == name)
            .unwrap_or_else(|| panic!("{name}: {told:#?}"))
    };

    let friend = "spiffe://cluster.local/ns/default/sa/friend";
    assert_eq!(attempt("own identity")["identity"], friend, "{told:#?}");
    for name in ["identity of another", "impersonation"] {
        let came = attempt(name);
        assert!(
            came["identity"] == friend || came["code"] == "PERMISSION_DENIED",
            "{name}: {came}"
        );
    }

    for name in ["no token", "forged token", "configuration without token"] {
        assert_eq!(attempt(name)["code"], "UNAUTHENTICATED", "{told:#?}");
    }
    assert_eq!(attempt("garbage")["code"], "INVALID_ARGUMENT", "{told:#?}");
    assert_eq!(attempt("own configuration")["code"], "OK", "{told:#?}");
    let other = attempt("configuration of another");
    assert!(
        ["PERMISSION_DENIED", "UNAUTHENTICATED"]
            .iter()
            .any(|code| other["code"] == *code),
        "{other}"
    );
}

fn status(mesh: &Mesh) -> Value {
    serde_json::from_str(&mesh.cli_ok(&["status", "-o", "json"])).expect("JSON")
}

#[test]
fn the_bridge_carries_no_plaintext_between_meshed_workloads() {
    let Some(peers) = Peers::of("the_bridge_carries_no_plaintext_between_meshed_workloads") else {
        return;
    };
    let apps = [
        peers.recorder("ledger"),
        App::idle("inside"),
        App::idle("outside").unmeshed(),
    ];

    let mesh = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &yaml(&apps))
        .start();

    let address = |pod: &str| {
        let status = status(&mesh);
        let found = status["workloads"]
            .as_array()
            .and_then(|all| all.iter().find(|w| w["key"]["pod"] == pod).cloned());
        found
            .and_then(|w| w["ip"].as_str().map(str::to_owned))
            .expect("an address")
    };

    let (ledger, inside, outside) = (
        address("ledger-0"),
        address("inside-0"),
        address("outside-0"),
    );

    let mut capture = Dialogue::inside(&mesh, "@router", &peers.program("sniff.py", &[]));
    assert_eq!(capture.hear(), "capturing");

    let seen =
        |capture: &mut Dialogue, line: &str| capture.ask(line).parse::<u32>().expect("a number");

    // By name and by address, over HTTP and TCP.
    let found = mesh.exec("inside", &["getent", "ahostsv4", "ledger"]);
    let service = String::from_utf8_lossy(&found.stdout)
        .split_whitespace()
        .next()
        .map(str::to_owned)
        .expect("an address");

    let direct = format!("http://{service}:9080/open-sesame");
    for url in [
        "http://ledger:9080/open-sesame",
        "http://ledger:9081/open-sesame",
        &direct,
    ] {
        let answer = curl(
            &mesh,
            "inside",
            &["-H", "x-word: open-sesame", "-d", "open-sesame", url],
        );

        assert_eq!(answer.status, 200, "{url}: {answer:?}");
        assert_eq!(
            seen(&mut capture, "count open-sesame"),
            0,
            "plaintext of {url} between meshed workloads"
        );
    }

    let mut tcp = Dialogue::talk(&mesh, &peers, "inside", "ledger", 9081);
    assert_eq!(tcp.ask("send open-sesame"), "received open-sesame");
    assert_eq!(
        seen(&mut capture, "count open-sesame"),
        0,
        "plaintext between meshed workloads"
    );

    assert!(
        seen(&mut capture, &format!("between {inside} {ledger}")) >= 8,
        "the conversation went over this bridge"
    );

    // The same from outside the mesh is plaintext: the capture can see what there is.
    let answer = curl(
        &mesh,
        "outside",
        &[
            "-H",
            "x-word: open-sesame",
            "http://ledger:9080/open-sesame",
        ],
    );

    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(seen(&mut capture, "count open-sesame") >= 1);
    assert!(seen(&mut capture, &format!("between {outside} {ledger}")) >= 1);
}

#[test]
fn certificates_rotate_without_a_failing_request() {
    let Some(peers) = Peers::of("certificates_rotate_without_a_failing_request") else {
        return;
    };
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n";
    let apps = [peers.recorder("ledger"), App::idle("inside")];
    let plan = Plan::new()
        .argument("--no-gateways")
        .argument("--certificate-lifetime")
        .argument("30s");

    let mesh = plan
        .file("strict.yaml", strict)
        .file("apps.yaml", &yaml(&apps))
        .start();

    mesh.wait("a first answer", || {
        curl(&mesh, "inside", &["http://ledger:9080/"]).status == 200
    });
    let first = certificates(&mesh);
    let lifetime = |c: &Value| {
        c["expires_at_ms"]
            .as_u64()
            .zip(c["issued_at_ms"].as_u64())
            .map(|(end, start)| end - start)
    };

    assert!(
        first
            .iter()
            .all(|c| lifetime(c).is_some_and(|ms| ms <= 90_000)),
        "{first:#?}"
    );

    let mut held = Dialogue::talk(&mesh, &peers, "inside", "ledger", 9081);
    assert_eq!(held.ask("send before"), "received before");
    let mut load = Dialogue::inside(
        &mesh,
        "inside",
        &peers.program("load.py", &["ledger", "9080", "/"]),
    );

    assert_eq!(load.hear(), "started");

    // Until the first certificates have run out and both sides have others.
    let last = first
        .iter()
        .filter_map(|c| c["expires_at_ms"].as_u64())
        .max()
        .expect("certificates");

    mesh.wait(
        "both sides have new certificates, the old ones have run out",
        || {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .expect("after 1970")
                .as_millis();
            now > u128::from(last)
                && certificates(&mesh)
                    .iter()
                    .all(|new| !first.iter().any(|old| old["serial"] == new["serial"]))
        },
    );

    assert_eq!(
        held.ask("send after"),
        "received after",
        "an open connection outlives the certificate that it began with"
    );

    let counts: Value = serde_json::from_str(&load.end()).expect("JSON");
    println!("load over a rotation: {counts}");
    assert_eq!(counts["failures"], serde_json::json!([]), "{counts}");
    assert!(
        counts["kept"].as_u64() > Some(100) && counts["new"].as_u64() > Some(100),
        "{counts}"
    );
}

/// The newest certificates of the two workloads.
fn certificates(mesh: &Mesh) -> Vec<Value> {
    let status = status(mesh);
    let all = status["control"]["certificates"]
        .as_array()
        .cloned()
        .unwrap_or_default();

    ["ledger", "inside"]
        .iter()
        .map(|account| {
            let of = |c: &&Value| {
                c["identity"] == format!("spiffe://cluster.local/ns/default/sa/{account}")
            };
            all.iter()
                .filter(of)
                .max_by_key(|c| c["issued_at_ms"].as_u64())
                .cloned()
                .unwrap_or_else(|| panic!("{account}: {all:#?}"))
        })
        .collect()
}
