//! `/config_dump`: the received resources by type, in the shape of Envoy's.

use meltemi_proto::json::Reflection;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use serde_json::{Map, Value, json};

use super::pages::time;
use super::query::Query;
use crate::control::inspect::Inspector;
use crate::control::state::{Origin, Received, Refused, Versions};

/// The dump. Endpoints only with `include_eds`; `resource=` picks one list, `name_regex=` resources
/// by their names.
pub async fn config(inspector: &Inspector, query: &Query<'_>) -> Result<Value, String> {
    let with_endpoints = query.has("include_eds");
    let wanted = query.get("resource");
    let names = query.regex("name_regex")?;
    let all = inspector.look(|state, _, _| state.versions()).await;

    let shown = tokio::task::spawn_blocking(move || {
        // Large and rarely wanted: made for one dump and dropped after it.
        let reflection = match Reflection::new() {
            Ok(reflection) => reflection,
            Err(error) => {
                tracing::error!(%error, "configuration cannot be shown");
                return Vec::new();
            }
        };

        let mut configs = Vec::new();
        for (type_url, mut list) in all.unwrap_or_default() {
            if type_url == ENDPOINT && !with_endpoints {
                continue;
            }
            if let Some(names) = &names {
                list.retain(|versions| names.is_match(&versions.name));
            }
            configs.push(one_type(&reflection, type_url, &list));
        }

        configs
    });

    let mut configs = shown.await.unwrap_or_default();
    configs.push(secrets(inspector));

    Ok(match wanted {
        None => json!({ "configs": configs }),
        Some(wanted) => {
            let lists = configs
                .into_iter()
                .filter_map(|mut config| config.get_mut(wanted).map(Value::take));
            let flat = lists.flat_map(|list| match list {
                Value::Array(items) => items,
                other => vec![other],
            });
            json!({ "configs": flat.collect::<Vec<_>>() })
        }
    })
}

/// How Envoy shows the resources of one type. Source: Envoy `admin.v3` `*ConfigDump`.
struct Shape {
    dump: &'static str,
    /// The field of the resource itself.
    key: &'static str,
    /// The lists of static resources, of those that serve and of those that wait.
    fixed: &'static str,
    active: &'static str,
    warming: &'static str,
}

const CLUSTERS: Shape = Shape {
    dump: "ClustersConfigDump",
    key: "cluster",
    fixed: "static_clusters",
    active: "dynamic_active_clusters",
    warming: "dynamic_warming_clusters",
};
const LISTENERS: Shape = Shape {
    dump: "ListenersConfigDump",
    key: "listener",
    fixed: "static_listeners",
    active: "dynamic_listeners",
    warming: "dynamic_listeners",
};
const ROUTES: Shape = Shape {
    dump: "RoutesConfigDump",
    key: "route_config",
    fixed: "static_route_configs",
    active: "dynamic_route_configs",
    warming: "dynamic_route_configs",
};
const ENDPOINTS: Shape = Shape {
    dump: "EndpointsConfigDump",
    key: "endpoint_config",
    fixed: "static_endpoint_configs",
    active: "dynamic_endpoint_configs",
    warming: "dynamic_endpoint_configs",
};

fn one_type(reflection: &Reflection, type_url: &str, list: &[Versions]) -> Value {
    let shape = match type_url {
        CLUSTER => CLUSTERS,
        LISTENER => LISTENERS,
        ROUTE => ROUTES,
        _ => ENDPOINTS,
    };

    let mut dump = Map::new();
    dump.insert(
        "@type".to_owned(),
        json!(format!("type.googleapis.com/envoy.admin.v3.{}", shape.dump)),
    );
    for field in [shape.fixed, shape.active, shape.warming] {
        dump.insert(field.to_owned(), json!([]));
    }
    let mut add = |field: &str, entry: Map<String, Value>| {
        if let Some(Value::Array(entries)) = dump.get_mut(field) {
            entries.push(Value::Object(entry));
        }
    };

    for versions in list {
        let shown = |received: &Received| show(reflection, shape.key, received);
        let error = versions
            .refused
            .as_ref()
            .map(|refused| error_state(reflection, refused));
        let accepted = versions.active.as_ref().or(versions.warming.as_ref());
        let origin = accepted.map_or(Origin::Dynamic, |received| received.origin);

        match (origin, &versions.active, &versions.warming) {
            (Origin::Static, active, warming) => {
                for received in active.iter().chain(warming) {
                    add(shape.fixed, shown(received));
                }
            }
            // All versions of a listener stand in one entry.
            (Origin::Dynamic, active, warming) if type_url == LISTENER => {
                let mut entry = Map::from_iter([("name".to_owned(), json!(&*versions.name))]);
                for (state, received) in [("active_state", active), ("warming_state", warming)] {
                    if let Some(received) = received {
                        entry.insert(state.to_owned(), Value::Object(shown(received)));
                    }
                }
                entry.extend(error.map(|error| ("error_state".to_owned(), error)));
                add(shape.active, entry);
            }
            (Origin::Dynamic, active, warming) => {
                let states = [(shape.active, active), (shape.warming, warming)];
                let mut entries: Vec<_> = states
                    .into_iter()
                    .filter_map(|(field, received)| Some((field, shown(received.as_ref()?))))
                    .collect();
                if entries.is_empty() {
                    let name = Map::from_iter([("name".to_owned(), json!(&*versions.name))]);
                    entries.push((
                        shape.warming,
                        Map::from_iter([(shape.key.to_owned(), Value::Object(name))]),
                    ));
                }
                if let (Some((_, entry)), Some(error)) = (entries.first_mut(), error) {
                    entry.insert("error_state".to_owned(), error);
                }
                for (field, entry) in entries {
                    add(field, entry);
                }
            }
        }
    }

    Value::Object(dump)
}

/// A version that was accepted.
fn show(reflection: &Reflection, key: &str, received: &Received) -> Map<String, Value> {
    let mut entry = Map::new();
    if !received.version.is_empty() {
        entry.insert("version_info".to_owned(), json!(received.version));
    }
    entry.insert(key.to_owned(), reflection.to_json(&received.any));
    entry.insert("last_updated".to_owned(), json!(time(received.at)));
    if !received.warnings.is_empty() {
        let warnings: Vec<String> = received.warnings.iter().map(ToString::to_string).collect();
        entry.insert("not_honoured".to_owned(), json!(warnings));
    }

    entry
}

/// A version that was refused. Source: Envoy `admin.v3.UpdateFailureState`.
fn error_state(reflection: &Reflection, refused: &Refused) -> Value {
    json!({
        "failed_configuration": reflection.to_json(&refused.any),
        "last_update_attempt": time(refused.at),
        "details": refused.reason,
        "version_info": refused.version,
    })
}

/// Names and certificates; keys are never shown.
fn secrets(inspector: &Inspector) -> Value {
    let store = &inspector.common.secrets;
    let each = store.names().into_iter().filter_map(|name| {
        let secret = store.get(&name)?;
        let mut message = Map::new();
        message.insert("name".to_owned(), json!(name));
        message.insert(
            "@type".to_owned(),
            json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"),
        );

        if let Some(identity) = &secret.identity {
            message.insert(
                "tls_certificate".to_owned(),
                json!({
                    "certificate_chain": { "inline_string": identity.chain_pem() },
                    "private_key": { "inline_string": "[redacted]" },
                }),
            );
        }

        if let Some(trust) = &secret.trust {
            message.insert(
                "validation_context".to_owned(),
                json!({ "trusted_ca": { "inline_string": trust.to_pem() } }),
            );
        }

        Some(json!({ "name": name, "secret": message }))
    });

    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump",
        "dynamic_active_secrets": each.collect::<Vec<_>>(),
    })
}
