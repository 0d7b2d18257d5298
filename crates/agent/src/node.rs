//! What a proxy says of itself in its first xDS request. Source: Istio `pkg/bootstrap`,
//! `pkg/model`.

use std::collections::HashMap;
use std::net::IpAddr;

use meltemi_proto::envoy::config::core::v3::{Locality as NodeLocality, Node};
use meltemi_proto::google::protobuf::{Struct, Value, value::Kind};
use meltemi_proto::value_of;
use meltemi_types::{Labels, Locality, SpiffeId};

/// What kind of proxy it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Beside an application.
    Sidecar,
    /// A gateway.
    Router,
}

impl NodeKind {
    /// As it stands in node ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// The workload that the agent is beside of.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Sidecar or gateway.
    pub kind: NodeKind,
    /// Trust domain, namespace, service account.
    pub identity: SpiffeId,
    /// The pod's name.
    pub pod: String,
    /// The pod's addresses, the first one is the main one.
    pub ips: Vec<IpAddr>,
    /// The pod's labels.
    pub labels: Labels,
    /// The pod's annotations.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// The Deployment's (or other owner's) name.
    pub workload_name: String,
    /// For example `Kubernetes`.
    pub cluster_id: String,
    /// Region, zone, sub-zone.
    pub locality: Locality,
    /// The node's (machine's) name.
    pub node_name: String,
    /// `cluster.local`.
    pub domain_suffix: String,
    /// Further keys of the metadata (`ISTIO_META_*` without the prefix), as text.
    pub extra: std::collections::BTreeMap<String, String>,
}

impl Workload {
    /// `type~ip~pod.namespace~namespace.svc.domain`.
    pub fn node_id(&self) -> String {
        let ip = self
            .ips
            .first()
            .map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string);

        let namespace = self.identity.namespace();
        format!(
            "{}~{ip}~{}.{namespace}~{namespace}.svc.{}",
            self.kind.as_str(),
            self.pod,
            self.domain_suffix
        )
    }

    /// What short names are tried with. Source: Kubernetes `ClusterFirst`.
    pub fn search_domains(&self) -> Vec<String> {
        let suffix = &self.domain_suffix;
        vec![
            format!("{}.svc.{suffix}", self.identity.namespace()),
            format!("svc.{suffix}"),
            suffix.clone(),
        ]
    }

    /// The metadata as JSON-like pairs, in a fixed order.
    fn metadata(&self) -> Vec<(String, Value)> {
        let text = |key: &str, value: &str| (key.to_owned(), value_of(value));
        let object = |pairs: &std::collections::BTreeMap<String, String>| {
            let fields: HashMap<String, Value> = pairs
                .iter()
                .map(|(key, value)| (key.clone(), value_of(value.as_str())))
                .collect();
            Value {
                kind: Some(Kind::StructValue(Struct { fields })),
            }
        };

        let namespace = self.identity.namespace();
        let ips = self
            .ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");

        let mut pairs = vec![
            text("NAME", &self.pod),
            text("NAMESPACE", namespace),
            text("SERVICE_ACCOUNT", self.identity.service_account()),
            ("LABELS".to_owned(), object(&self.labels)),
            ("ANNOTATIONS".to_owned(), object(&self.annotations)),
            text("INSTANCE_IPS", &ips),
            text("CLUSTER_ID", &self.cluster_id),
            text("MESH_ID", self.identity.trust_domain().as_str()),
            text("WORKLOAD_NAME", &self.workload_name),
            text(
                "OWNER",
                &format!(
                    "kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{}",
                    self.workload_name
                ),
            ),
            text("NODE_NAME", &self.node_name),
            text("INTERCEPTION_MODE", "REDIRECT"),
            text("DNS_CAPTURE", "true"),
            text("DNS_AUTO_ALLOCATE", "true"),
            text("ISTIO_VERSION", env!("CARGO_PKG_VERSION")),
        ];

        pairs.extend(self.extra.iter().map(|(key, value)| text(key, value)));

        pairs
    }

    /// Istio's `service.istio.io` rule for the node's cluster: canonical service and namespace.
    pub fn service_cluster(&self) -> String {
        let name = match self.labels.canonical_service(&self.workload_name) {
            "" => "istio-proxy",
            name => name,
        };
        format!("{name}.{}", self.identity.namespace())
    }
}

/// The node of a workload.
pub fn node_of(workload: &Workload) -> Node {
    let Locality {
        region,
        zone,
        subzone,
    } = workload.locality.clone();

    Node {
        id: workload.node_id(),
        cluster: workload.service_cluster(),
        metadata: Some(Struct {
            fields: workload.metadata().into_iter().collect(),
        }),
        locality: Some(NodeLocality {
            region,
            zone,
            sub_zone: subzone,
        }),
        ..Node::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn workload() -> Workload {
        Workload {
            kind: NodeKind::Sidecar,
            identity: "spiffe://cluster.local/ns/default/sa/sleep"
                .parse()
                .expect("an identity"),
            pod: "sleep-1".into(),
            ips: vec!["10.44.0.7".parse().expect("an address")],
            labels: [("app", "sleep"), ("version", "v1")].into_iter().collect(),
            annotations: Default::default(),
            workload_name: "sleep".into(),
            cluster_id: "Kubernetes".into(),
            locality: Locality::default(),
            node_name: "laptop".into(),
            domain_suffix: "cluster.local".into(),
            extra: Default::default(),
        }
    }

    #[test]
    fn a_node_says_who_it_is_in_istios_words() {
        let node = node_of(&workload());
        assert_eq!(
            node.id,
            "sidecar~10.44.0.7~sleep-1.default~default.svc.cluster.local"
        );

        assert_eq!(node.cluster, "sleep.default");
        let metadata = node.metadata.expect("metadata");
        use meltemi_proto::istio::StructExt as _;

        assert_eq!(metadata.text("SERVICE_ACCOUNT"), Some("sleep"));
        assert_eq!(metadata.text("INSTANCE_IPS"), Some("10.44.0.7"));
        assert_eq!(
            workload().search_domains(),
            [
                "default.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local"
            ]
        );
    }
}
