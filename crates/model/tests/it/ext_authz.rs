//! CUSTOM policies and the authorizers behind them.

use std::time::Duration;

use meltemi_model::{Check, CustomAuthorization, Snapshot};

use super::{build, labels};

const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: authorizer, namespace: auth}
spec: {ports: [{name: http, port: 8000}, {name: grpc, port: 9000}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: auth}
spec: {hosts: [authz.example.com], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 443, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one, namespace: one}
spec: {hosts: [twice.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: two, namespace: two}
spec: {hosts: [twice.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: tcp, port: 90}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
status: {podIP: 10.0.0.1, phase: Running}
";

fn mesh(provider: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    extensionProviders:\n    - {provider}\n"
    )
}

fn policy(name: &str, provider: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]}}\n"
    )
}

fn custom(snapshot: &Snapshot) -> Vec<CustomAuthorization> {
    snapshot
        .authorization_policies("shop", &labels(&[("app", "web")]))
        .custom
}

/// Code, object, field and message of each finding about providers.
fn told(text: &str) -> Vec<String> {
    build(text)
        .diagnostics
        .iter()
        .map(|d| format!("{} {} {} {}", d.code, d.object, d.field, d.message))
        .collect()
}

#[test]
fn the_service_of_a_provider_is_found_as_istio_finds_it() {
    for (service, is_found) in [
        ("authorizer.auth.svc.cluster.local", true),
        ("auth/authorizer.auth.svc.cluster.local", true),
        ("other/authorizer.auth.svc.cluster.local", false),
        ("authorizer.auth", false),
        ("auth/authorizer", false),
        ("authz.example.com", true),
        ("twice.example.com", false),
        ("two/twice.example.com", true),
    ] {
        let provider =
            format!("{{name: mine, envoyExtAuthzHttp: {{service: {service}, port: 80}}}}");
        let text = format!("{WORLD}{}{}", mesh(&provider), policy("ask", "mine"));
        let custom = custom(&build(&text).snapshot);
        assert_eq!(custom.len(), 1, "{service}");
        assert_eq!(custom[0].authorizer.is_some(), is_found, "{service}");
    }
}

#[test]
fn what_is_not_written_is_istios_default() {
    let provider =
        "{name: mine, envoyExtAuthzGrpc: {service: authorizer.auth.svc.cluster.local, port: 9000}}";
    let text = format!("{WORLD}{}{}", mesh(provider), policy("ask", "mine"));
    let custom = custom(&super::clean(&text));
    let authorizer = custom[0].authorizer.as_ref().expect("found");

    assert_eq!(authorizer.check, Check::Grpc);
    assert_eq!(authorizer.timeout, Duration::from_secs(600));
    assert!(!authorizer.fail_open && !authorizer.clear_route_cache);
    assert_eq!((authorizer.status_on_error, authorizer.body), (None, None));
}

#[test]
fn a_provider_that_cannot_be_asked_is_reported_with_its_line() {
    let provider =
        "name: mine\n      envoyExtAuthzHttp:\n        service: authorizer\n        port: 8000";
    let text = format!("{WORLD}{}{}", mesh(provider), policy("ask", "mine"));
    let build = build(&text);
    let found: Vec<_> = build
        .diagnostics
        .iter()
        .map(|d| (d.code.as_str(), d.field.as_str(), d.remedy.as_str()))
        .collect();

    let remedy = "write the whole host: authorizer.auth.svc.cluster.local";
    assert_eq!(
        found,
        [
            ("MEL0331", "spec.provider.name", remedy),
            (
                "IST0101",
                "data.mesh: extensionProviders[0].envoyExtAuthzHttp.service",
                remedy
            ),
        ]
    );

    for (finding, line) in [
        ("provider: {name: mine}", 0),
        ("        service: authorizer\n", 1),
    ] {
        let before = &text[..text.find(finding).expect("written")];
        let wanted = u32::try_from(before.lines().count()).expect("short");
        // A block starts its own line; a flow mapping ends within one.
        let wanted = if before.ends_with('\n') {
            wanted + 1
        } else {
            wanted
        };
        assert_eq!(build.diagnostics[line].position.line, wanted, "{finding}");
    }
}

#[test]
fn a_policy_says_why_it_denies_or_does_nothing() {
    let grpc =
        "{name: mine, envoyExtAuthzGrpc: {service: authorizer.auth.svc.cluster.local, port: 9000}}";
    let http =
        "{name: mine, envoyExtAuthzHttp: {service: authorizer.auth.svc.cluster.local, port: 8000}}";
    let second = "\n    - {name: yours, envoyExtAuthzGrpc: {service: authorizer.auth.svc.cluster.local, port: 9000}}";
    let ask = policy("ask", "mine");
    let tried = ask.replace(
        "namespace: shop}",
        "namespace: shop, annotations: {istio.io/dry-run: 'true'}}",
    );
    let of = |provider: &str, policies: &str| told(&format!("{WORLD}{}{policies}", mesh(provider)));

    let about = |name: &str, code: &str, message: &str| {
        format!("{code} AuthorizationPolicy/{name}.shop spec.provider.name {message}")
    };

    assert_eq!(of(grpc, &ask), [""; 0]);
    assert_eq!(
        of(&grpc.replace("mine", "other"), &ask),
        [about(
            "ask",
            "IST0101",
            "Referenced provider not found: \"mine\": what the rules select is denied"
        )]
    );
    assert_eq!(
        of("{name: mine, prometheus: {}}", &ask),
        [about(
            "ask",
            "MEL0331",
            "provider \"mine\" is no authorizer: what the rules select is denied"
        )]
    );
    assert_eq!(
        of(grpc, &tried),
        [about(
            "ask",
            "MEL0332",
            "a CUSTOM policy with istio.io/dry-run has no effect: nobody is asked"
        )]
    );
    assert_eq!(
        of(http, &ask),
        [about(
            "ask",
            "MEL0332",
            "provider \"mine\" decides on HTTP requests only: TCP port 90 of workload shop/web-1 is not checked"
        )]
    );

    let several = "CUSTOM policies of several providers select the same workload: what their rules select is denied";
    assert_eq!(
        of(
            &format!("{grpc}{second}"),
            &format!("{ask}{}", policy("too", "yours"))
        ),
        [
            about("ask", "MEL0331", several),
            about("too", "MEL0331", several)
        ]
    );
}

#[test]
fn a_port_that_cannot_answer_is_reported() {
    for (port, message) in [
        (
            9001,
            "service authorizer.auth.svc.cluster.local has no port 9001",
        ),
        (
            8000,
            "port 8000 of service authorizer.auth.svc.cluster.local is HTTP: gRPC needs HTTP/2",
        ),
    ] {
        let provider = format!(
            "{{name: mine, envoyExtAuthzGrpc: {{service: authorizer.auth.svc.cluster.local, port: {port}}}}}"
        );
        assert_eq!(
            told(&format!("{WORLD}{}", mesh(&provider))),
            [format!(
                "IST0101 ConfigMap/istio.istio-system data.mesh: extensionProviders[0].envoyExtAuthzGrpc.port {message}"
            )]
        );
    }
}

#[test]
fn policies_of_several_providers_have_no_authorizer() {
    let mine =
        "{name: mine, envoyExtAuthzGrpc: {service: authorizer.auth.svc.cluster.local, port: 9000}}";
    let both = format!(
        "{mine}\n    - {}",
        mine.replace("name: mine", "name: a-second")
    );
    let text = format!(
        "{WORLD}{}{}{}",
        mesh(&both),
        policy("ask", "mine"),
        policy("too", "a-second")
    );
    let custom = custom(&build(&text).snapshot);
    let found: Vec<_> = custom
        .iter()
        .map(|custom| (custom.provider.as_str(), custom.authorizer.is_some()))
        .collect();
    assert_eq!(found, [("a-second", false), ("mine", false)]);
}

#[test]
fn another_provider_is_another_mesh() {
    let provider = |port: u16| {
        format!(
            "{{name: mine, envoyExtAuthzGrpc: {{service: authorizer.auth.svc.cluster.local, port: {port}}}}}"
        )
    };
    let text = |port| format!("{WORLD}{}{}", mesh(&provider(port)), policy("ask", "mine"));
    let first = super::clean(&text(9000));
    let next = Snapshot::build(Some(&first), &super::tables(&text(8000)), &first.options);
    assert!(next.changes.mesh);
    assert_eq!(
        custom(&next.snapshot)[0]
            .authorizer
            .as_ref()
            .map(|a| a.port),
        Some(8000)
    );
}

#[test]
fn an_authorizer_is_not_asked_about_itself() {
    let world = WORLD.replace(
        "metadata: {name: authorizer, namespace: auth}\nspec: {ports",
        "metadata: {name: authorizer, namespace: shop}\nspec: {selector: {app: authorizer}, ports",
    );
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: authorizer-1, namespace: shop, labels: {app: authorizer}}\n\
               status: {podIP: 10.0.0.2, phase: Running}\n";
    let provider =
        "{name: mine, envoyExtAuthzGrpc: {service: authorizer.shop.svc.cluster.local, port: 9000}}";
    let text = format!("{world}{pod}{}{}", mesh(provider), policy("ask", "mine"));

    let snapshot = build(&text).snapshot;
    let of = |app: &str| {
        snapshot
            .authorization_policies("shop", &labels(&[("app", app)]))
            .custom
            .len()
    };
    assert_eq!((of("web"), of("authorizer")), (1, 0));
    assert_eq!(
        told(&text),
        [
            "MEL0332 AuthorizationPolicy/ask.shop spec.provider.name the policy selects workload \
          shop/authorizer-1 of its own authorizer, which is not checked: it would have to ask itself"
        ]
    );
}
