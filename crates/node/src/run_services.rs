//! Generates a Service for each program added with `meltemi run` that no other Service selects, so
//! that other workloads can call it by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use meltemi_api::Spec;
use meltemi_model::Kind;
use meltemi_store::World;
use meltemi_types::Labels;
use serde_json::{Value, json};

use crate::spec::{WorkloadKey, WorkloadSpec};

/// Label that marks a generated Service.
const LABEL: &str = "meltemi.io/run";

/// The Services to generate, by file name.
pub(crate) fn missing(
    runs: &BTreeMap<WorkloadKey, WorkloadSpec>,
    world: &World,
) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for spec in runs.values().filter(|spec| !spec.ports.is_empty()) {
        let Some(app) = spec.labels.value("app") else {
            continue;
        };
        let namespace = &spec.key.namespace;
        if is_served(world, namespace, app, &spec.labels) {
            continue;
        }

        // The port names declare no protocol, so the proxies detect it from the first bytes.
        let ports: Vec<Value> = spec
            .ports
            .iter()
            .map(|p| json!({ "name": format!("p-{}", p.number), "port": p.number }))
            .collect();

        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": app, "namespace": namespace, "labels": { "app": app, LABEL: spec.workload } },
            "spec": { "selector": { "app": app }, "ports": ports },
        });

        out.insert(format!("run_{namespace}_{app}.yaml"), service);
    }

    out
}

/// Whether a Service that was not generated has the same name or selects the workload.
fn is_served(world: &World, namespace: &str, app: &str, labels: &Labels) -> bool {
    let services = world.tables.table(&Kind::Service).values();
    services
        .filter(|o| o.meta.namespace == namespace && o.meta.labels.value(LABEL).is_none())
        .any(|object| match &object.spec {
            Spec::Service(service) => {
                object.meta.name == app
                    || (!service.selector.is_empty() && service.selector.selects(labels))
            }
            _ => false,
        })
}

/// Writes the `wanted` files and removes every other generated Service from the folder.
pub(crate) fn write(dir: &Path, wanted: &BTreeMap<String, Value>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| {
            n.starts_with("run_") && n.ends_with(".yaml") && !wanted.contains_key(n)
        }) {
            fs::remove_file(entry.path())?;
        }
    }

    for (name, service) in wanted {
        let path = dir.join(name);
        let text = serde_json::to_vec_pretty(service)?;
        if fs::read(&path).ok().as_ref() != Some(&text) {
            let new = path.with_extension("new");
            fs::write(&new, text)?;
            fs::rename(new, path)?;
        }
    }

    Ok(())
}
