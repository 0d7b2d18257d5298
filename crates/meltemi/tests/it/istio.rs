//! Our proxy in Envoy's place under real Istio: `tests/foreign/istio.py` starts istiod and three
//! pilot-agents in a network namespace of their own, each agent with our binary as its proxy.

use std::process::Command;

use serde_json::{Value, json};

use crate::peers::{self, Peers, has_namespaces};

const TEST: &str = "istio";

/// Status and body of an answer.
fn answer(seen: &Value) -> (u64, &str) {
    let status = seen[0].as_u64().expect("a status");
    (status, seen[1].as_str().expect("a body"))
}

/// The header of a request, as the application saw it.
fn header(seen: &Value, name: &str) -> String {
    let request: Value = serde_json::from_str(answer(seen).1).expect("the application's answer");
    request["headers"][name]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Runs the whole mesh, and returns what was seen by the name of each step.
fn run(peers: &Peers, istio: &std::path::Path) -> Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new("unshare")
        // An agent that is root gives its proxy another user, which the namespace lacks.
        .args([
            "--user",
            "--map-user=1000",
            "--map-group=1000",
            "--keep-caps",
        ])
        .arg("--net")
        // The agents' proxies are reparented when an agent is killed: they end with the script.
        .args(["--pid", "--fork", "--kill-child"])
        .args(peers.program("istio.py", &[]))
        .arg(istio)
        .arg(crate::binary())
        .arg(folder.path())
        .output()
        .expect("unshare starts");

    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&said).expect("one object")
}

#[test]
fn istios_agent_runs_our_proxy_as_sidecar_and_gateway() {
    if !has_namespaces(TEST) {
        return;
    }
    let (Some(peers), Some(istio)) = (Peers::python(TEST), peers::istio(TEST)) else {
        return;
    };
    let seen = run(&peers, &istio);

    // Every resource of istiod's is accepted and serves.
    for state in ["rejected", "not served"] {
        assert_eq!(
            seen[state],
            json!({ "web": [], "client": [], "gateway": [] }),
            "{state}"
        );
    }

    // Mutual TLS with the certificates that the agents send over SDS.
    for (caller, account) in [("client", "client"), ("gateway", "gateway")] {
        assert_eq!(answer(&seen[caller]).0, 200, "{caller}");
        let certificate = header(&seen[caller], "x-forwarded-client-cert");
        let uri = format!("URI=spiffe://cluster.local/ns/default/sa/{account}");
        assert!(certificate.ends_with(&uri), "{caller}: {certificate}");
    }
    assert_eq!(answer(&seen["plaintext to web"]).0, 0, "STRICT");
    assert_eq!(answer(&seen["unknown host at the gateway"]).0, 404);
    assert_eq!(
        answer(&seen["unknown host"]),
        (503, "no healthy upstream"),
        "nothing captured the connection"
    );

    // Istio's metrics, through the agent that merges them.
    let metrics = seen["requests in the agent's metrics"].to_string();
    assert!(
        metrics.contains(r#"destination_workload=\"web\""#)
            && metrics
                .contains(r#"destination_principal=\"spiffe://cluster.local/ns/default/sa/web\""#),
        "{metrics}"
    );

    let istioctl = |what: &str| seen["istioctl"][what].as_str().unwrap_or_default();
    assert!(
        istioctl("all").contains("inbound|9100||"),
        "{}",
        istioctl("all")
    );
    assert!(istioctl("bootstrap").contains("sidecar~127.0.0.11~web-0.default"));
    let secrets: Vec<&str> = istioctl("secret").lines().skip(1).collect();
    let is_valid = |line: &&str| line.contains("ACTIVE") && line.contains("true");
    assert!(
        secrets.len() == 2 && secrets.iter().all(is_valid),
        "{}",
        istioctl("secret")
    );

    // A policy that arrives later holds for its path and its caller alone.
    assert_eq!(answer(&seen["denied"]), (403, "RBAC: access denied"));
    assert_eq!(answer(&seen["not denied"]).0, 200);
    assert_eq!(answer(&seen["another identity"]).0, 200);

    assert_eq!(
        seen["renewed"],
        json!({ "old is gone": true, "client": 200 })
    );
    assert_eq!(seen["without istiod"], json!([200, 200]));
    assert_eq!(seen["the agent ends"], 0);
}
