//! Stock Envoy in place of our proxy.

use serde_json::Value;

use crate::mesh::Plan;
use crate::peers::{App, Dialogue, Peers, curl, envoy, yaml};
use crate::tour;

#[test]
fn bookinfo_with_envoy_beside_reviews_and_productpage() {
    const TEST: &str = "bookinfo_with_envoy_beside_reviews_and_productpage";

    let Some(shared) = crate::shared() else {
        return crate::skip(TEST, "Istio's samples are not beside the workspace");
    };
    let (Some(_), Some(envoy)) = (Peers::of(TEST), envoy(TEST)) else {
        return;
    };
    let mut plan = Plan::new()
        .argument("--envoy")
        .argument(&envoy.display().to_string());
    for workload in ["reviews-v1", "reviews-v2", "reviews-v3", "productpage-v1"] {
        plan = plan
            .argument("--proxy")
            .argument(&format!("{workload}=envoy"));
    }

    tour::tour(&shared.join("istio/samples"), plan);
}

#[test]
fn envoy_and_our_proxy_speak_mutual_tls_in_both_directions() {
    const TEST: &str = "envoy_and_our_proxy_speak_mutual_tls_in_both_directions";

    let (Some(peers), Some(envoy)) = (Peers::of(TEST), envoy(TEST)) else {
        return;
    };

    // Declared HTTP, declared TCP, and a name that declares nothing; plaintext is refused
    // everywhere.
    let ports = [("http", 9080), ("tcp", 9081), ("data", 9082)];
    let recorder = |name: &str| {
        App::new(
            name,
            &ports,
            peers.program("recorder.py", &[name, "9080", "9081", "9082"]),
        )
    };

    let apps = [
        recorder("ours"),
        recorder("theirs").with_envoy(),
        App::idle("outside").unmeshed(),
    ];

    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n";
    let only = |who: &str, whom: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {whom}}}\nspec:\n  selector: {{matchLabels: {{app: {whom}}}}}\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/default/sa/{who}]}}}}]\n"
        )
    };

    let plan = Plan::new()
        .argument("--no-gateways")
        .argument("--envoy")
        .argument(&envoy.display().to_string());

    let plan = plan.file("strict.yaml", strict).file(
        "policies.yaml",
        &(only("ours", "theirs") + &only("theirs", "ours")),
    );

    let mesh = plan.file("apps.yaml", &yaml(&apps)).start();
    for (from, to) in [("ours", "theirs"), ("theirs", "ours")] {
        for port in [9080, 9082] {
            let url = format!("http://{to}:{port}/from-{from}");
            mesh.wait(&format!("{from} calls {url}"), || {
                curl(&mesh, from, &[&url]).status == 200
            });
        }

        // STRICT holds and the policies want the caller's identity: what passes is mutual TLS.
        for port in [9081, 9082] {
            let mut held = Dialogue::talk(&mesh, &peers, from, to, port);
            // A whole line: Envoy's http_inspector waits for its end before it says that this is no
            // HTTP.
            assert_eq!(
                held.ask("line hello"),
                "received hello",
                "{from} to {to}:{port}"
            );
        }

        assert_ne!(
            curl(&mesh, "outside", &[&format!("http://{to}:9080/")]).code,
            0,
            "plaintext to {to}"
        );
    }

    let status: Value =
        serde_json::from_str(&mesh.cli_ok(&["status", "-o", "json"])).expect("JSON");
    let proxies = status["control"]["proxies"].as_array().expect("proxies");
    assert_eq!(proxies.len(), 2, "{proxies:#?}");
    for proxy in proxies {
        assert_eq!(proxy["rejections"], serde_json::json!([]), "{proxy:#}");
        assert!(
            proxy["types"]
                .as_array()
                .is_some_and(|types| types.iter().all(|t| t["nacks"] == 0)),
            "{proxy:#}"
        );
    }

    let envoys = proxies.iter().filter(|proxy| {
        proxy["user_agent"]
            .as_str()
            .is_some_and(|agent| agent.contains("envoy"))
    });

    assert_eq!(envoys.count(), 1, "{proxies:#?}");
    let table = mesh.cli_ok(&["status"]);
    let line = table
        .lines()
        .find(|line| line.contains("theirs-0"))
        .expect("a line of its own");

    assert!(
        line.contains("envoy") && line.contains("SYNCED") && !table.contains("REJECTED"),
        "{table}"
    );
}
