//! What a sidecar knows.

use std::sync::Arc;

use meltemi_model::{Hostname, OutboundMode};

use super::{clean, labels};

const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: one}
spec:
  ports: [{name: http, port: 80}, {name: tcp, port: 90}]
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: two}
spec:
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: c, namespace: three, annotations: {networking.istio.io/exportTo: '.'}}
spec:
  ports: [{name: http, port: 80}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a-to-b, namespace: one}
spec:
  hosts: [a]
  http: [{route: [{destination: {host: b.two.svc.cluster.local}}]}]
";

fn sidecar(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn hosts(services: &[Arc<meltemi_model::Service>]) -> Vec<&str> {
    services
        .iter()
        .map(|service| service.name.as_str())
        .collect()
}

#[test]
fn without_a_sidecar_all_that_is_exported_is_known() {
    let snapshot = clean(WORLD);
    let scope = snapshot.sidecar_scope("one", &labels(&[]));
    assert_eq!(hosts(&scope.services), ["a", "b"]);
    assert_eq!(scope.outbound_policy.mode, OutboundMode::AllowAny);
    assert!(
        scope
            .service(&Hostname::new("b.two.svc.cluster.local"))
            .is_some()
    );

    assert_eq!(
        hosts(&snapshot.sidecar_scope("three", &labels(&[])).services),
        ["a", "b", "c"]
    );

    assert!(Arc::ptr_eq(
        &scope,
        &snapshot.sidecar_scope("one", &labels(&[("app", "x")]))
    ));
}

#[test]
fn the_narrowest_sidecar_applies_and_routes_bring_what_they_lead_to() {
    let text = format!(
        "{WORLD}{}{}{}",
        sidecar("root", "istio-system", "{egress: [{hosts: ['~/*']}]}"),
        sidecar(
            "all",
            "one",
            "{egress: [{hosts: ['./*']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"
        ),
        sidecar(
            "some",
            "one",
            "{workloadSelector: {labels: {app: x}}, egress: [{port: {number: 90, protocol: TCP, name: tcp}, hosts: ['one/*']}, {hosts: ['two/*']}]}"
        ),
    );

    let snapshot = clean(&text);
    let name = |ns: &str, pairs: &[(&str, &str)]| {
        snapshot
            .sidecar_for(ns, &labels(pairs))
            .map(|sidecar| sidecar.origin.object.name.clone())
    };

    assert_eq!(name("two", &[]).as_deref(), Some("root"));
    assert_eq!(name("one", &[]).as_deref(), Some("all"));
    assert_eq!(name("one", &[("app", "x")]).as_deref(), Some("some"));

    assert!(
        snapshot
            .sidecar_scope("two", &labels(&[]))
            .services
            .is_empty()
    );

    let all = snapshot.sidecar_scope("one", &labels(&[]));
    assert_eq!(hosts(&all.egress[0].services), ["a"]);
    assert_eq!(
        hosts(&all.services),
        ["a", "b"],
        "the route of a leads to b"
    );

    assert_eq!(all.outbound_policy.mode, OutboundMode::RegistryOnly);

    let some = snapshot.sidecar_scope("one", &labels(&[("app", "x")]));
    assert_eq!(
        some.egress[0].services[0]
            .ports
            .iter()
            .map(|port| port.number)
            .collect::<Vec<_>>(),
        [90]
    );

    assert_eq!(hosts(&some.egress[1].services), ["b"]);
    let whole = some
        .service(&Hostname::new("a.one.svc.cluster.local"))
        .expect("imported");
    assert_eq!(whole.ports.len(), 2);
}
