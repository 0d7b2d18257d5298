//! RequestAuthentication while tokens are not checked: a request with a token is denied, no listener
//! is frozen, and the mesh says so.

use crate::mesh::{Mesh, Plan};
use crate::peers::{App, Peers, curl, envoy, yaml};

const SERVERS: &[&str] = &["ours", "envoy"];

/// For the whole mesh: it stands in the root namespace.
const TOKENS: &str = "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: istio-system}
spec:
  jwtRules:
  - {issuer: one.example.com, jwksUri: 'https://one.example.com/keys'}
  - {issuer: two.example.com, jwks: '{\"keys\": []}', fromHeaders: [{name: x-token}], outputPayloadToHeader: x-payload}
";

/// Its provider is not in MeshConfig.
const CUSTOM: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: istio-system}
spec: {action: CUSTOM, provider: {name: nobody}, rules: [{to: [{operation: {paths: [/custom]}}]}]}
";

const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/closed]}}]}]}
";

const USERS_ONLY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users}
spec: {action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}], to: [{operation: {paths: [/users]}}]}]}
";

/// The caller has no sidecar, so that every request has a connection of its own.
fn status(mesh: &Mesh, server: &str, path: &str, field: &str) -> u16 {
    let url = format!("http://{server}:9080{path}");
    curl(mesh, "outside", &["-H", field, &url]).status
}

#[test]
fn requests_with_tokens_are_denied_and_no_listener_is_frozen() {
    let test = "requests_with_tokens_are_denied_and_no_listener_is_frozen";
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
        .start();
    for server in SERVERS {
        mesh.wait(&format!("{server} serves"), || {
            status(&mesh, server, "/", "x: y") == 200
        });
    }

    mesh.write("tokens.yaml", TOKENS);
    mesh.write("custom.yaml", CUSTOM);
    mesh.write("users.yaml", USERS_ONLY);
    for server in SERVERS {
        let said = |path: &str, field: &str| status(&mesh, server, path, field);
        mesh.wait(&format!("{server} denies tokens"), || {
            said("/", "authorization: Bearer x.y.z") == 401
        });
        mesh.wait(
            &format!("{server} denies what nobody can be asked about"),
            || said("/custom", "x: y") == 403,
        );
        mesh.wait(&format!("{server} knows no user"), || {
            said("/users", "x: y") == 403
        });

        assert_eq!(said("/", "x-token: x"), 401, "{server}");
        assert_eq!(said("/?access_token=x", "x: y"), 401, "{server}");
        assert_eq!(
            said("/users", "authorization: Bearer x.y.z"),
            401,
            "{server}"
        );
        assert_eq!(said("/", "authorization: Basic x"), 200, "{server}");
        assert_eq!(said("/", "x: y"), 200, "{server}");
    }

    // Later changes reach the listeners.
    mesh.write("closed.yaml", DENY);
    for server in SERVERS {
        mesh.wait(&format!("{server} takes a later policy"), || {
            status(&mesh, server, "/closed", "x: y") == 403
        });
    }

    let ready = curl(&mesh, "ours", &["http://127.0.0.1:15000/ready"]);
    assert_eq!(ready.status, 200, "{ready:?}");
    assert!(
        ready
            .text
            .contains("listener \"virtualInbound\" denies requests with a token"),
        "{ready:?}"
    );
    let file = mesh.config().join("tokens.yaml").display().to_string();
    for command in [&["status"][..], &["apply", "--dry-run", "-f", &file]] {
        let said = mesh.cli(command);
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("MEL0307"), "{command:?}: {said}");
        assert!(said.contains("tokens are not checked yet"), "{said}");
    }

    mesh.take_out("tokens.yaml");
    for server in SERVERS {
        mesh.wait(&format!("{server} looks for no tokens"), || {
            status(&mesh, server, "/", "authorization: Bearer x.y.z") == 200
        });
    }
}
