//! The columns of `get` for each kind. They are those of kubectl, and for Istio's kinds the
//! `additionalPrinterColumns` of its CRDs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use meltemi_admin_api::{ObjectView, Origin, RegistryService};
use meltemi_node::api::WorkloadStatus;
use serde_json::Value;

use crate::status::{restarts, state};
use crate::table::{age, age_since};

/// The live state that some columns show beside the configured objects.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) workloads: Vec<WorkloadStatus>,
    pub(crate) services: Vec<RegistryService>,
}

/// Kinds whose columns need [`Live`].
pub(crate) fn needs_live(kind: &str) -> bool {
    matches!(kind, "Pod" | "Deployment" | "Service")
}

/// The heading and cell of each column after NAME, for one object. All objects of a kind have the
/// same headings.
pub(crate) fn columns(item: &ObjectView, live: &Live, wide: bool) -> Vec<(&'static str, String)> {
    let spec = &item.value["spec"];
    let kind = item.object.qualified_kind();
    let mut columns = match kind.as_str() {
        "VirtualService" => vec![
            ("GATEWAYS", json(&spec["gateways"])),
            ("HOSTS", json(&spec["hosts"])),
        ],
        "DestinationRule" => vec![("HOST", word(&spec["host"]))],
        "Gateway" => vec![
            ("SELECTOR", labels(&spec["selector"])),
            ("PORTS", gateway_ports(spec)),
            ("HOSTS", gateway_hosts(spec)),
        ],
        "ServiceEntry" => vec![
            ("HOSTS", json(&spec["hosts"])),
            ("LOCATION", word(&spec["location"])),
            ("RESOLUTION", word(&spec["resolution"])),
        ],
        "WorkloadEntry" => vec![("ADDRESS", word(&spec["address"]))],
        "PeerAuthentication" => vec![("MODE", word(&spec["mtls"]["mode"]))],
        "AuthorizationPolicy" => vec![("ACTION", or(word(&spec["action"]), "ALLOW"))],
        "ConfigMap" => vec![("DATA", entries(&item.value["data"]))],
        "Secret" => vec![
            ("TYPE", or(word(&item.value["type"]), "Opaque")),
            ("DATA", entries(&item.value["data"])),
        ],
        "Namespace" => vec![("STATUS", "Active".to_owned())],
        "Service" => service(item, live),
        "Pod" => pod(item, live),
        "Deployment" => deployment(item, live),
        _ => Vec::new(),
    };

    columns.push(("AGE", age_of(item)));
    if wide {
        columns.extend(match kind.as_str() {
            "Service" => vec![("SELECTOR", labels(&spec["selector"]))],
            "Pod" => vec![
                ("IP", word(&item.value["status"]["podIP"])),
                (
                    "SERVICE ACCOUNT",
                    or(word(&spec["serviceAccountName"]), "default"),
                ),
            ],
            "Deployment" => vec![
                (
                    "IMAGES",
                    each(&spec["template"]["spec"]["containers"], |container| {
                        word(&container["image"])
                    }),
                ),
                ("SELECTOR", labels(&spec["selector"]["matchLabels"])),
            ],
            _ => Vec::new(),
        });

        columns.extend([
            ("FROM", from(item)),
            ("FINDINGS", item.diagnostics.len().to_string()),
        ]);
    }

    columns
}

/// Where the object comes from: a file and line, `apply`, or the mesh.
fn from(item: &ObjectView) -> String {
    match item.origin {
        Origin::File => item.position.to_string(),
        Origin::Applied => "applied".to_owned(),
        Origin::Runtime => "the mesh itself".to_owned(),
    }
}

/// Age by `metadata.creationTimestamp`, else by the modification time of the object's file.
fn age_of(item: &ObjectView) -> String {
    let text = item.value["metadata"]["creationTimestamp"]
        .as_str()
        .unwrap_or_default();
    if let Some(age) = age_since(text) {
        return age;
    }

    let written = Path::new(&item.position.file)
        .metadata()
        .and_then(|file| file.modified());
    match written {
        Ok(written) => age(SystemTime::now()
            .duration_since(written)
            .unwrap_or_default()
            .as_secs()),
        Err(_) => "<unknown>".to_owned(),
    }
}

fn service(item: &ObjectView, live: &Live) -> Vec<(&'static str, String)> {
    let spec = &item.value["spec"];
    let full = format!("{}.{}.svc.", item.object.name, item.object.namespace);
    let allocated = || {
        let service = live
            .services
            .iter()
            .find(|service| service.hostname.starts_with(&full))?;
        service.addresses.first().cloned()
    };

    let address = match word(&spec["clusterIP"]) {
        written if written.is_empty() => allocated().unwrap_or_else(|| "<none>".to_owned()),
        written => written,
    };

    let port = |port: &Value| {
        let node = port["nodePort"]
            .as_u64()
            .map_or_else(String::new, |node| format!(":{node}"));
        format!(
            "{}{node}/{}",
            scalar(&port["port"]),
            or(word(&port["protocol"]), "TCP")
        )
    };

    vec![
        ("TYPE", or(word(&spec["type"]), "ClusterIP")),
        ("CLUSTER-IP", address),
        ("PORT(S)", or(each(&spec["ports"], port), "<none>")),
    ]
}

fn pod(item: &ObjectView, live: &Live) -> Vec<(&'static str, String)> {
    let here = |w: &&WorkloadStatus| {
        w.key.pod == item.object.name && w.key.namespace == item.object.namespace
    };
    match live.workloads.iter().find(here) {
        Some(workload) => {
            vec![
                ("READY", ready(workload)),
                ("STATUS", state(workload)),
                ("RESTARTS", restarts(workload)),
            ]
        }
        // A Pod from a user's file: the node does not run it, so show what the file says.
        None => {
            let conditions = item.value["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten();

            let is_ready = conditions
                .into_iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            let total = item.value["spec"]["containers"]
                .as_array()
                .map_or(0, Vec::len);
            let phase = or(word(&item.value["status"]["phase"]), "Unknown");
            let ready = format!("{}/{total}", if is_ready { total } else { 0 });
            vec![
                ("READY", ready),
                ("STATUS", phase),
                ("RESTARTS", "0".to_owned()),
            ]
        }
    }
}

/// Ready programs of the workload / all programs. The node knows the readiness of the workload only
/// as a whole: if all programs run but the workload is not ready, one counts as not ready.
fn ready(workload: &WorkloadStatus) -> String {
    let programs: Vec<_> = workload.app.iter().chain(&workload.proxy).collect();
    let running = programs.iter().filter(|program| program.running).count();
    let unready = usize::from(!workload.ready && running == programs.len());
    format!("{}/{}", running.saturating_sub(unready), programs.len())
}

fn deployment(item: &ObjectView, live: &Live) -> Vec<(&'static str, String)> {
    let own = |w: &&WorkloadStatus| {
        w.workload == item.object.name && w.key.namespace == item.object.namespace
    };
    let all: Vec<_> = live.workloads.iter().filter(own).collect();
    let ready = all.iter().filter(|workload| workload.ready).count();
    let wanted = item.value["spec"]["replicas"].as_u64().unwrap_or(1);

    vec![
        ("READY", format!("{ready}/{wanted}")),
        ("UP-TO-DATE", all.len().to_string()),
        ("AVAILABLE", ready.to_string()),
    ]
}

fn gateway_ports(spec: &Value) -> String {
    each(&spec["servers"], |server| {
        format!(
            "{}/{}",
            scalar(&server["port"]["number"]),
            word(&server["port"]["protocol"])
        )
    })
}

fn gateway_hosts(spec: &Value) -> String {
    let servers = spec["servers"].as_array().into_iter().flatten();
    let mut hosts: Vec<&Value> = servers
        .flat_map(|server| server["hosts"].as_array().into_iter().flatten())
        .collect();
    hosts.sort_by_key(|host| host.as_str());
    hosts.dedup();
    serde_json::to_string(&hosts).unwrap_or_default()
}

/// A value as JSON, which is how kubectl prints lists; empty for null.
fn json(value: &Value) -> String {
    if value.is_null() {
        String::new()
    } else {
        value.to_string()
    }
}

/// A string; empty for any other value.
fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A number or a string, as in `targetPort`.
fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| json(value), str::to_owned)
}

/// `text`, or `default` if it is empty.
fn or(text: String, default: &str) -> String {
    if text.is_empty() {
        default.to_owned()
    } else {
        text
    }
}

fn each(list: &Value, show: impl Fn(&Value) -> String) -> String {
    list.as_array()
        .into_iter()
        .flatten()
        .map(show)
        .collect::<Vec<_>>()
        .join(",")
}

fn entries(map: &Value) -> String {
    map.as_object().map_or(0, serde_json::Map::len).to_string()
}

/// Labels as `KEY=VALUE`, sorted; `<none>` if there are none.
pub(crate) fn labels(map: &Value) -> String {
    let sorted: BTreeMap<_, _> = map.as_object().into_iter().flatten().collect();
    let pairs: Vec<_> = sorted
        .into_iter()
        .map(|(key, value)| format!("{key}={}", scalar(value)))
        .collect();
    or(pairs.join(","), "<none>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use meltemi_types::ObjectRef;
    use serde_json::json;

    fn shown(kind: &str, value: Value, live: &Live) -> String {
        let item = ObjectView {
            object: ObjectRef::new(kind, "shop", "reviews"),
            value,
            ..ObjectView::default()
        };

        let cells = columns(&item, live, false);
        cells
            .into_iter()
            .map(|(heading, cell)| format!("{heading}={cell}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn plain(kind: &str, spec: Value) -> String {
        shown(kind, json!({ "spec": spec }), &Live::default())
    }

    #[test]
    fn kinds_have_the_columns_of_their_crds() {
        assert_eq!(
            plain(
                "VirtualService",
                json!({"hosts": ["a", "b"], "gateways": ["mesh"]})
            ),
            r#"GATEWAYS=["mesh"] HOSTS=["a","b"] AGE=<unknown>"#
        );

        assert_eq!(
            plain("DestinationRule", json!({"host": "reviews"})),
            "HOST=reviews AGE=<unknown>"
        );

        assert_eq!(
            plain(
                "ServiceEntry",
                json!({"hosts": ["x.org"], "location": "MESH_EXTERNAL", "resolution": "DNS"})
            ),
            r#"HOSTS=["x.org"] LOCATION=MESH_EXTERNAL RESOLUTION=DNS AGE=<unknown>"#
        );

        let server = json!({"port": {"number": 8080, "protocol": "HTTP"}, "hosts": ["*"]});
        assert_eq!(
            plain(
                "Gateway",
                json!({"selector": {"istio": "ingressgateway"}, "servers": [server]})
            ),
            r#"SELECTOR=istio=ingressgateway PORTS=8080/HTTP HOSTS=["*"] AGE=<unknown>"#
        );

        assert_eq!(
            plain("AuthorizationPolicy", json!({})),
            "ACTION=ALLOW AGE=<unknown>"
        );

        assert_eq!(plain("Sidecar", json!({})), "AGE=<unknown>");
    }

    #[test]
    fn a_service_shows_its_allocated_address() {
        let live = Live {
            services: vec![RegistryService {
                hostname: "reviews.shop.svc.cluster.local".into(),
                addresses: vec!["10.45.0.7".into()],
                ..RegistryService::default()
            }],
            ..Live::default()
        };

        let value = json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}});
        assert_eq!(
            shown("Service", value, &live),
            "TYPE=ClusterIP CLUSTER-IP=10.45.0.7 PORT(S)=80/TCP,53/UDP AGE=<unknown>"
        );

        let headless = json!({"spec": {"clusterIP": "None", "ports": []}});
        assert_eq!(
            shown("Service", headless, &live),
            "TYPE=ClusterIP CLUSTER-IP=None PORT(S)=<none> AGE=<unknown>"
        );
    }

    #[test]
    fn pods_and_deployments_show_live_state() {
        let workload = json!({
            "key": {"namespace": "shop", "pod": "reviews"}, "workload": "reviews", "origin": "deployment",
            "service_account": "default", "labels": {}, "ip": "10.44.0.2", "phase": "Starting", "ready": false,
            "proxy_kind": "meltemi", "app": {"running": true, "pid": 7, "restarts": 2, "last_exit": null},
            "proxy": {"running": true, "pid": 8, "restarts": 0, "last_exit": null}, "message": null,
        });

        let mut live = Live {
            workloads: vec![serde_json::from_value(workload).unwrap()],
            ..Live::default()
        };

        assert_eq!(
            shown("Pod", json!({}), &live),
            "READY=1/2 STATUS=Starting RESTARTS=2 AGE=<unknown>"
        );

        live.workloads[0].ready = true;
        let deployment = json!({"spec": {"replicas": 2}});
        assert_eq!(
            shown("Deployment", deployment, &live),
            "READY=1/2 UP-TO-DATE=1 AVAILABLE=1 AGE=<unknown>"
        );

        assert_eq!(
            shown("Pod", json!({}), &Live::default()),
            "READY=0/0 STATUS=Unknown RESTARTS=0 AGE=<unknown>"
        );
    }
}
