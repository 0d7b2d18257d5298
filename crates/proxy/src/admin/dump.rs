//! `/config_dump`: the received resources by type, in the shape of Envoy's.

use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use meltemi_proto::Any;
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
    let bootstrap = inspector.common.bootstrap.clone();
    let since = SystemTime::now() - inspector.common.since.elapsed();

    let dumped = tokio::task::spawn_blocking(move || {
        // Large and rarely wanted: made for one dump and dropped after it.
        let reflection = match Reflection::new() {
            Ok(reflection) => reflection,
            Err(error) => {
                tracing::error!(%error, "configuration cannot be shown");
                return Vec::new();
            }
        };

        let mut configs = vec![bootstrap_dump(&reflection, &bootstrap, since)];
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

    let mut configs = dumped.await.unwrap_or_default();
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
        let entry_of = |received: &Received| show(reflection, shape.key, received);
        let error = versions
            .refused
            .as_ref()
            .map(|refused| error_state(reflection, refused));
        let accepted = versions.active.as_ref().or(versions.warming.as_ref());
        let origin = accepted.map_or(Origin::Dynamic, |received| received.origin);

        match (origin, &versions.active, &versions.warming) {
            (Origin::Static, active, warming) => {
                for received in active.iter().chain(warming) {
                    add(shape.fixed, entry_of(received));
                }
            }
            // All versions of a listener stand in one entry.
            (Origin::Dynamic, active, warming) if type_url == LISTENER => {
                let mut entry = Map::from_iter([("name".to_owned(), json!(&*versions.name))]);
                for (state, received) in [("active_state", active), ("warming_state", warming)] {
                    if let Some(received) = received {
                        entry.insert(state.to_owned(), Value::Object(entry_of(received)));
                    }
                }
                entry.extend(error.map(|error| ("error_state".to_owned(), error)));
                add(shape.active, entry);
            }
            (Origin::Dynamic, active, warming) => {
                let states = [(shape.active, active), (shape.warming, warming)];
                let mut entries: Vec<_> = states
                    .into_iter()
                    .filter_map(|(field, received)| Some((field, entry_of(received.as_ref()?))))
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
    entry.insert(key.to_owned(), shown(reflection, &received.any));
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
        "failed_configuration": shown(reflection, &refused.any),
        "last_update_attempt": time(refused.at),
        "details": refused.reason,
        "version_info": refused.version,
    })
}

fn bootstrap_dump(reflection: &Reflection, bootstrap: &Any, since: SystemTime) -> Value {
    let mut bootstrap = shown(reflection, bootstrap);
    // The field has this type, which an Any has to name.
    if let Value::Object(fields) = &mut bootstrap {
        fields.remove("@type");
    }

    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
        "bootstrap": bootstrap,
        "last_updated": time(since),
    })
}

/// A message without its secrets.
fn shown(reflection: &Reflection, any: &Any) -> Value {
    let mut json = reflection.to_json(any);
    redact(&mut json);
    json
}

/// Fields of Envoy's that hold secrets. Source: its annotation `udpa.annotations.sensitive`.
const SECRET_FIELDS: [&str; 4] = ["private_key", "password", "keys", "secret"];

/// Hides the inline data of secret fields, as Envoy does. What a file's name or a reference to
/// another secret says stays.
fn redact(json: &mut Value) {
    match json {
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Object(source) if SECRET_FIELDS.contains(&name.as_str()) => {
                        hide_inline(source);
                    }
                    Value::Array(sources) if SECRET_FIELDS.contains(&name.as_str()) => {
                        let sources = sources.iter_mut().filter_map(Value::as_object_mut);
                        sources.for_each(hide_inline);
                    }
                    _ => {}
                }
                redact(value);
            }
        }
        _ => {}
    }
}

fn hide_inline(source: &mut Map<String, Value>) {
    // Bytes are written in base64, so that readers of the dump can parse them.
    let hidden = [
        ("inline_string", "[redacted]"),
        ("inline_bytes", "W3JlZGFjdGVkXQ=="),
    ];
    for (field, text) in hidden {
        if let Some(value) = source.get_mut(field) {
            *value = json!(text);
        }
    }
}

/// Names and certificates, as bytes, which `istioctl` reads; keys are never shown.
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
                    "certificate_chain": { "inline_bytes": BASE64.encode(identity.chain_pem()) },
                    "private_key": { "inline_string": "[redacted]" },
                }),
            );
        }

        if let Some(trust) = &secret.trust {
            message.insert(
                "validation_context".to_owned(),
                json!({ "trusted_ca": { "inline_bytes": BASE64.encode(trust.to_pem()) } }),
            );
        }

        Some(json!({ "name": name, "secret": message }))
    });

    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump",
        "dynamic_active_secrets": each.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_configuration_are_hidden_and_file_names_are_not() {
        let mut json = json!({
            "tls_certificates": [{
                "certificate_chain": { "inline_string": "public" },
                "private_key": { "inline_string": "key" },
                "password": { "inline_bytes": "a2V5" },
            }],
            "session_ticket_keys": { "keys": [{ "inline_bytes": "a2V5" }, { "filename": "f" }] },
            "secret": "a name",
        });
        redact(&mut json);

        assert_eq!(
            json,
            json!({
                "tls_certificates": [{
                    "certificate_chain": { "inline_string": "public" },
                    "private_key": { "inline_string": "[redacted]" },
                    "password": { "inline_bytes": "W3JlZGFjdGVkXQ==" },
                }],
                "session_ticket_keys": {
                    "keys": [{ "inline_bytes": "W3JlZGFjdGVkXQ==" }, { "filename": "f" }],
                },
                "secret": "a name",
            })
        );
    }
}
