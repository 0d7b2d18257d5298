//! `/config_dump`: the received resources by type, in the shape of Envoy's.

use meltemi_proto::json::Reflection;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use serde_json::{Map, Value, json};

use super::pages::time;
use super::query::Query;
use crate::control::inspect::Inspector;
use crate::control::state::{Origin, Received};

/// The dump. Endpoints only with `include_eds`; `resource=` picks one list, `name_regex=` resources
/// by their names.
pub async fn config(inspector: &Inspector, query: &Query<'_>) -> Result<Value, String> {
    let with_endpoints = query.has("include_eds");
    let wanted = query.get("resource");
    let names = query.regex("name_regex")?;
    let all: Vec<(&'static str, Vec<Received>)> = inspector
        .look(|state, _, _| {
            state
                .received()
                .into_iter()
                .map(|(url, list)| (url, list.into_iter().cloned().collect()))
                .collect()
        })
        .await
        .unwrap_or_default();

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
        for (type_url, mut list) in all {
            if type_url == ENDPOINT && !with_endpoints {
                continue;
            }
            if let Some(names) = &names {
                list.retain(|received| names.is_match(&received.name));
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

fn one_type(reflection: &Reflection, type_url: &str, list: &[Received]) -> Value {
    let (dump, key, fixed, dynamic) = match type_url {
        CLUSTER => (
            "ClustersConfigDump",
            "cluster",
            "static_clusters",
            "dynamic_active_clusters",
        ),
        LISTENER => (
            "ListenersConfigDump",
            "listener",
            "static_listeners",
            "dynamic_listeners",
        ),
        ROUTE => (
            "RoutesConfigDump",
            "route_config",
            "static_route_configs",
            "dynamic_route_configs",
        ),
        _ => (
            "EndpointsConfigDump",
            "endpoint_config",
            "static_endpoint_configs",
            "dynamic_endpoint_configs",
        ),
    };

    let show = |received: &Received| {
        let mut entry = Map::new();
        if !received.version.is_empty() {
            entry.insert("version_info".to_owned(), json!(received.version));
        }
        entry.insert(key.to_owned(), reflection.to_json(&received.any));
        entry.insert("last_updated".to_owned(), json!(time(received.at)));
        let mut entry = Value::Object(entry);
        if type_url == LISTENER && received.origin == Origin::Dynamic {
            entry = json!({ "name": &*received.name, "active_state": entry });
        }
        if let Value::Object(entry) = &mut entry {
            if let Some(reason) = &received.refused {
                entry.insert("error_state".to_owned(), json!({ "details": reason }));
            }
            if !received.warnings.is_empty() {
                let warnings: Vec<String> =
                    received.warnings.iter().map(ToString::to_string).collect();
                entry.insert("not_honoured".to_owned(), json!(warnings));
            }
        }

        entry
    };

    let of = |origin: Origin| {
        list.iter()
            .filter(|received| received.origin == origin)
            .map(show)
            .collect::<Vec<_>>()
    };

    json!({
        "@type": format!("type.googleapis.com/envoy.admin.v3.{dump}"),
        fixed: of(Origin::Static),
        dynamic: of(Origin::Dynamic),
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
