//! The xDS node: id, cluster, metadata and locality that a proxy sends in its first request.
//! Source: Istio `pkg/bootstrap`, `pkg/model`.

use std::collections::HashMap;
use std::net::IpAddr;

use meltemi_proto::envoy::config::core::v3::{Locality as NodeLocality, Node};
use meltemi_proto::google::protobuf::{Struct, Value, value::Kind};
use meltemi_proto::value_of;
use meltemi_types::{Labels, Locality, SpiffeId};

/// The kind of proxy, the first part of the node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A proxy beside an application.
    Sidecar,
    /// A gateway.
    Router,
}

impl NodeKind {
    /// The spelling in node ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// The workload that the agent serves.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Sidecar or gateway.
    pub kind: NodeKind,
    /// SPIFFE ID: trust domain, namespace and service account.
    pub identity: SpiffeId,
    /// Name of the pod.
    pub pod: String,
    /// Addresses of the pod; the first is used in the node id.
    pub ips: Vec<IpAddr>,
    /// Labels of the pod.
    pub labels: Labels,
    /// Annotations of the pod.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Name of the Deployment or other owner.
    pub workload_name: String,
    /// Name of the cluster, such as `Kubernetes`.
    pub cluster_id: String,
    /// Region, zone and subzone of the machine.
    pub locality: Locality,
    /// Kubernetes name of the machine.
    pub node_name: String,
    /// DNS domain of the cluster, such as `cluster.local`.
    pub domain_suffix: String,
    /// Further metadata (`ISTIO_META_*` without the prefix).
    pub extra: std::collections::BTreeMap<String, String>,
}

impl Workload {
    /// The node id: `type~ip~pod.namespace~namespace.svc.domain`.
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

    /// DNS search domains of the pod. Source: Kubernetes `dnsPolicy: ClusterFirst`.
    pub fn search_domains(&self) -> Vec<String> {
        let suffix = &self.domain_suffix;
        vec![
            format!("{}.svc.{suffix}", self.identity.namespace()),
            format!("svc.{suffix}"),
            suffix.clone(),
        ]
    }

    /// The metadata, in a fixed order.
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

    /// The node's cluster: canonical service name and namespace. Istio uses `istio-proxy` where
    /// there is no name.
    pub fn service_cluster(&self) -> String {
        let name = match self.labels.canonical_service(&self.workload_name) {
            "" => "istio-proxy",
            name => name,
        };
        format!("{name}.{}", self.identity.namespace())
    }
}

/// Builds the xDS node of a workload.
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
    fn node_id_cluster_and_metadata_have_istios_form() {
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
