//! AuthorizationPolicies on trial (`istio.io/dry-run`): they are counted, by our proxy and by Envoy
//! alike, and deny nothing.

use crate::mesh::{Mesh, Plan};
use crate::peers::{App, Peers, curl, envoy, yaml};

const TRIALS: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, annotations: {istio.io/dry-run: \"True\"}}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/closed]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, annotations: {istio.io/dry-run: \"true\"}}
spec: {action: ALLOW, rules: [{to: [{operation: {paths: [/open]}}]}]}
";

/// The value of the one statistic whose name ends so.
fn stat(mesh: &Mesh, server: &str, ending: &str) -> u64 {
    let url = format!("http://127.0.0.1:15000/stats?filter={ending}");
    let said = curl(mesh, server, &[&url]).text;
    let values = said.lines().filter_map(|line| line.rsplit_once(": "));
    values
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

#[test]
fn policies_on_trial_are_counted_and_deny_nothing() {
    let test = "policies_on_trial_are_counted_and_deny_nothing";
    let (Some(peers), Some(envoy)) = (Peers::of(test), envoy(test)) else {
        return;
    };

    let apps = [
        peers.recorder("ours"),
        peers.recorder("envoy").with_envoy(),
        App::idle("outside").unmeshed(),
    ];
    let mesh = Plan::new()
        .argument("--no-gateways")
        .argument("--envoy")
        .argument(&envoy.display().to_string())
        .file("apps.yaml", &yaml(&apps))
        .file("trials.yaml", TRIALS)
        .start();

    for server in ["ours", "envoy"] {
        let status = |path: &str| {
            let url = format!("http://{server}:9080{path}");
            curl(&mesh, "outside", &[&url]).status
        };
        let denied = || stat(&mesh, server, "istio_dry_run_deny_.shadow_denied");
        mesh.wait(&format!("{server} counts"), || {
            assert!(
                matches!(status("/closed"), 0 | 200 | 503),
                "{server} denies"
            );
            denied() > 0
        });

        let allowed = || stat(&mesh, server, "istio_dry_run_allow_.shadow_allowed");
        let not_allowed = || stat(&mesh, server, "istio_dry_run_allow_.shadow_denied");
        let before = (denied(), allowed(), not_allowed());
        for path in ["/closed", "/open", "/other"] {
            assert_eq!(status(path), 200, "{server}{path}");
        }

        // Envoy adds up what its threads have counted now and then.
        let after = (before.0 + 1, before.1 + 1, before.2 + 2);
        mesh.wait(&format!("{server} has counted"), || {
            (denied(), allowed(), not_allowed()) == after
        });
    }

    let prometheus = curl(&mesh, "ours", &["http://127.0.0.1:15090/stats/prometheus"]).text;
    for action in ["deny", "allow"] {
        let label = format!("authz_dry_run_action=\"{action}\"");
        assert!(prometheus.contains(&label), "{prometheus}");
    }
}
