//! The client of a translation: its identity, labels and abilities.

use std::collections::BTreeSet;
use std::net::IpAddr;

use meltemi_model::ProxyFacts;
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::google::protobuf::{Struct, Value, value::Kind};
use meltemi_types::{Labels, Locality};

/// The role of a proxy. Source: Istio's node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyKind {
    /// Beside a workload, its traffic captured.
    Sidecar,
    /// A gateway: what its Gateway objects say and nothing else.
    Router,
}

/// One xDS client, as it describes itself in its first request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The node id, whole.
    pub id: String,
    /// Sidecar or gateway.
    pub kind: ProxyKind,
    /// The workload's addresses; the first is the one of the node id.
    pub ips: Vec<IpAddr>,
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's service account.
    pub service_account: String,
    /// The pod's name.
    pub name: String,
    /// The name of the Deployment or whatever else owns the pod.
    pub workload_name: String,
    /// The pod's labels.
    pub labels: Labels,
    /// The cluster in which it runs.
    pub cluster_id: String,
    /// The network in which it runs.
    pub network: String,
    /// Where it runs.
    pub locality: Locality,
    /// Names of the extensions compiled into the client, from `Node.extensions`. Empty: unknown.
    pub extensions: BTreeSet<String>,
    /// Whether it is our own proxy.
    pub is_meltemi: bool,
}

/// The longest node id: kind, address, pod, namespace and domain, as long as Kubernetes lets them be.
const MAX_NODE_ID: usize = 1024;

/// Why a node cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeError(pub String);

impl std::fmt::Display for NodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NodeError {}

impl Proxy {
    /// Reads a node as Istio's agents write it: id `type~ip~pod.ns~ns.svc.domain`, the rest in the
    /// metadata.
    pub fn from_node(node: &Node) -> Result<Self, NodeError> {
        let parts: Vec<&str> = node.id.split('~').collect();
        let [kind, ip, pod, domain] = parts.as_slice() else {
            return Err(NodeError(format!(
                "node id {:?} is not of the form type~ip~pod.namespace~domain",
                node.id
            )));
        };

        let kind = match *kind {
            "sidecar" => ProxyKind::Sidecar,
            "router" => ProxyKind::Router,
            other => {
                return Err(NodeError(format!(
                    "node type {other:?} is not served; sidecar and router are"
                )));
            }
        };

        let metadata = node.metadata.as_ref();
        let text = |key: &str| {
            metadata
                .and_then(|m| text_of(m, key))
                .unwrap_or_default()
                .to_owned()
        };

        if node.id.len() > MAX_NODE_ID {
            return Err(NodeError(format!(
                "a node id of more than {MAX_NODE_ID} bytes"
            )));
        }

        let (pod_name, pod_namespace) = pod.rsplit_once('.').unwrap_or((pod, ""));
        let Ok(first) = ip.parse::<IpAddr>() else {
            return Err(NodeError(format!(
                "{ip:?} of the node id is not an IP address"
            )));
        };
        let mut ips = vec![first];
        for address in text("INSTANCE_IPS")
            .split(',')
            .filter_map(|address| address.trim().parse().ok())
        {
            if !ips.contains(&address) {
                ips.push(address);
            }
        }

        let or = |first: String, second: &str| {
            if first.is_empty() {
                second.to_owned()
            } else {
                first
            }
        };

        let namespace = or(text("NAMESPACE"), pod_namespace);
        let namespace = or(namespace, domain.split('.').next().unwrap_or_default());
        if namespace.is_empty() {
            return Err(NodeError(format!(
                "node id {:?} names no namespace",
                node.id
            )));
        }

        let name = or(text("NAME"), pod_name);
        let locality = node
            .locality
            .as_ref()
            .map_or_else(Locality::default, |l| Locality {
                region: l.region.clone(),
                zone: l.zone.clone(),
                subzone: l.sub_zone.clone(),
            });

        Ok(Self {
            id: node.id.clone(),
            kind,
            ips,
            namespace,
            service_account: or(text("SERVICE_ACCOUNT"), "default"),
            workload_name: or(text("WORKLOAD_NAME"), &name),
            name,
            labels: metadata.map(labels_of).unwrap_or_default(),
            cluster_id: or(text("CLUSTER_ID"), "Kubernetes"),
            network: text("NETWORK"),
            locality,
            extensions: node
                .extensions
                .iter()
                .filter(|e| !e.disabled)
                .map(|e| e.name.clone())
                .collect(),
            is_meltemi: node.user_agent_name == "meltemi",
        })
    }

    /// What its configuration depends on, for [`meltemi_model::touches`].
    pub fn facts(&self) -> ProxyFacts {
        ProxyFacts {
            is_gateway: self.kind == ProxyKind::Router,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            ips: self.ips.clone(),
        }
    }

    /// Whether the client has an extension. Of Envoy's own, everything is assumed while the list is
    /// unknown; Istio's (`istio.*`) are compiled into Istio's and our proxy alone and must be
    /// named, or the proxy be ours.
    pub(crate) fn has(&self, extension: &str) -> bool {
        if self.extensions.is_empty() {
            return self.is_meltemi || !is_istios(extension);
        }
        self.extensions.contains(extension)
    }
}

fn is_istios(extension: &str) -> bool {
    extension.starts_with("istio.")
        || [
            "envoy.filters.http.peer_metadata",
            "envoy.filters.network.metadata_exchange",
        ]
        .contains(&extension)
}

fn text_of<'a>(metadata: &'a Struct, key: &str) -> Option<&'a str> {
    match metadata.fields.get(key) {
        Some(Value {
            kind: Some(Kind::StringValue(text)),
        }) => Some(text),
        _ => None,
    }
}

fn labels_of(metadata: &Struct) -> Labels {
    let Some(Value {
        kind: Some(Kind::StructValue(labels)),
    }) = metadata.fields.get("LABELS")
    else {
        return Labels::default();
    };

    labels
        .fields
        .keys()
        .filter_map(|key| text_of(labels, key).map(|value| (key.clone(), value.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use meltemi_proto::envoy::config::core::v3::Extension;
    use meltemi_proto::value_of;

    fn node(id: &str) -> Node {
        Node {
            id: id.into(),
            ..Node::default()
        }
    }

    #[test]
    fn a_node_id_is_enough() {
        let proxy = Proxy::from_node(&node(
            "sidecar~10.44.0.7~reviews-v1-x.shop~shop.svc.cluster.local",
        ))
        .unwrap();

        assert_eq!(proxy.kind, ProxyKind::Sidecar);
        assert_eq!(proxy.ips, ["10.44.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            (proxy.name.as_str(), proxy.namespace.as_str()),
            ("reviews-v1-x", "shop")
        );

        assert_eq!(proxy.service_account, "default");
    }

    #[test]
    fn metadata_wins_over_the_id() {
        let mut described = node("router~10.44.0.7~gw.shop~shop.svc.cluster.local");
        let labels = Struct {
            fields: [("istio".to_owned(), value_of("ingressgateway"))]
                .into_iter()
                .collect(),
        };

        let fields = [
            ("NAMESPACE".to_owned(), value_of("istio-system")),
            ("SERVICE_ACCOUNT".to_owned(), value_of("gw")),
            ("INSTANCE_IPS".to_owned(), value_of("10.44.0.7,fd00::7")),
            (
                "LABELS".to_owned(),
                Value {
                    kind: Some(Kind::StructValue(labels)),
                },
            ),
        ];

        described.metadata = Some(Struct {
            fields: fields.into_iter().collect(),
        });
        let proxy = Proxy::from_node(&described).unwrap();
        assert_eq!(
            (proxy.namespace.as_str(), proxy.service_account.as_str()),
            ("istio-system", "gw")
        );

        assert_eq!(proxy.ips.len(), 2);
        assert_eq!(proxy.labels.value("istio"), Some("ingressgateway"));
    }

    #[test]
    fn a_strange_id_is_refused_with_a_reason() {
        for id in [
            "",
            "sidecar",
            "waypoint~1.2.3.4~a.b~c",
            "sidecar~~~",
            "a~b~c~d~e",
        ] {
            assert!(Proxy::from_node(&node(id)).is_err(), "{id}");
        }
    }

    #[test]
    fn stock_envoy_has_no_istio_filter() {
        let mut described = node("sidecar~10.44.0.7~a.b~b.svc.cluster.local");
        let unknown = Proxy::from_node(&described).unwrap();
        assert!(unknown.has("envoy.filters.http.fault") && !unknown.has("istio.alpn"));
        described.extensions = vec![Extension {
            name: "envoy.filters.http.router".into(),
            ..Extension::default()
        }];

        let stock = Proxy::from_node(&described).unwrap();
        assert!(stock.has("envoy.filters.http.router") && !stock.has("envoy.filters.http.fault"));
        described.extensions.clear();
        described.user_agent_name = "meltemi".into();
        assert!(Proxy::from_node(&described).unwrap().has("istio.alpn"));
    }
}
