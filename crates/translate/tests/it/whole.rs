//! Whole resources of representative proxies, so that a lost field shows as a change of a snapshot.
//!
//! Each world is a file below `data/whole`; the snapshot holds every field of every resource that
//! one proxy of that world receives, and the diagnostics.

use meltemi_proto::json::Reflection;
use meltemi_translate::{Memo, Proxy, Translated, translate};
use serde_json::{Map, Value, json};

use super::{proxy, snapshot_of};

/// The fields that come first in a message; the others follow in alphabetical order, since the
/// order of map entries is not stable.
const FIRST: &[&str] = &["@type", "name", "cluster_name"];

fn sidecar(address: &str, name: &str, app: &str) -> Proxy {
    let (_, namespace) = name.split_once('.').expect("a name with a namespace");
    let id = format!("sidecar~{address}~{name}~{namespace}.svc.cluster.local");
    proxy(&id, app, &[("app", app)])
}

fn gateway(address: &str, name: &str, label: &str) -> Proxy {
    let id = format!("router~{address}~{name}~edge.svc.cluster.local");
    proxy(&id, name, &[("istio", label)])
}

/// The resources by type, in the order in which they are pushed.
fn rendered(translated: &Translated) -> Value {
    let reflection = Reflection::new().expect("the descriptors decode");
    let mut types = Map::new();
    for (url, resources) in &translated.resources {
        let kind = url.rsplit('.').next().unwrap_or_default();
        let messages = resources.iter().map(|resource| {
            let message = ordered(reflection.to_json(&resource.any));
            json!({"resource": resource.name, "message": message})
        });
        types.insert(kind.to_owned(), messages.collect());
    }

    let diagnostics = translated.diagnostics.iter().map(ToString::to_string);
    types.insert("diagnostics".to_owned(), diagnostics.collect());
    Value::Object(types)
}

fn ordered(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(ordered).collect(),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().collect();
            fields.sort_by_key(|(name, _)| {
                let place = FIRST.iter().position(|first| first == name);
                (place.unwrap_or(FIRST.len()), name.clone())
            });
            fields
                .into_iter()
                .map(|(name, value)| (name, ordered(value)))
                .collect()
        }
        other => other,
    }
}

fn check(name: &str, world: &str, proxy: &Proxy) {
    let translated = translate(&snapshot_of(world), proxy, &Memo::new());
    insta::assert_yaml_snapshot!(name, rendered(&translated));
}

#[test]
fn a_sidecar_calls_a_service_under_every_common_setting() {
    let caller = sidecar("10.44.0.2", "front-1.shop", "front");
    check("sidecar", include_str!("data/whole/sidecar.yaml"), &caller);
}

#[test]
fn a_sidecar_calls_services_that_speak_no_http() {
    let caller = sidecar("10.44.0.2", "front-1.shop", "front");
    check(
        "protocols",
        include_str!("data/whole/protocols.yaml"),
        &caller,
    );
}

#[test]
fn a_sidecar_accepts_by_the_mode_of_each_port() {
    let ledger = sidecar("10.44.0.40", "ledger-1.bank", "ledger");
    check("inbound", include_str!("data/whole/inbound.yaml"), &ledger);
}

#[test]
fn a_strict_sidecar_serves_the_listeners_of_its_own_resource() {
    let vault = sidecar("10.44.0.50", "vault-1.bank", "vault");
    check("strict", include_str!("data/whole/strict.yaml"), &vault);
}

#[test]
fn a_sidecar_enforces_policies_of_every_action() {
    let ledger = sidecar("10.44.0.60", "ledger-1.bank", "ledger");
    check("authz", include_str!("data/whole/authz.yaml"), &ledger);
}

#[test]
fn a_sidecar_logs_as_the_mesh_and_its_namespace_say() {
    let front = sidecar("10.44.0.70", "front-1.shop", "front");
    check(
        "telemetry",
        include_str!("data/whole/telemetry.yaml"),
        &front,
    );
}

#[test]
fn an_ingress_gateway_serves_servers_of_every_kind() {
    let entry = gateway("10.44.0.9", "entry-1.edge", "ingressgateway");
    check("ingress", include_str!("data/whole/ingress.yaml"), &entry);
}

#[test]
fn an_egress_gateway_adds_tls() {
    let exit = gateway("10.44.0.90", "exit-1.edge", "egressgateway");
    check("egress", include_str!("data/whole/egress.yaml"), &exit);
}
