//! Endpoints of a cluster, grouped by locality and priority.

use std::collections::BTreeMap;

use meltemi_proto::{Any, pack, value_of};
use meltemi_types::Locality;

use crate::envoy::value::{address, metadata, pipe, text_struct, u32v};
use crate::envoy::{core, endpoint, wkt};

/// The endpoints of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct EndpointsInput {
    /// The cluster's name, which is the assignment's.
    pub cluster: String,
    pub groups: Vec<LocalityGroup>,
}

/// Endpoints that share locality and priority.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LocalityGroup {
    pub locality: Locality,
    pub priority: u32,
    pub weight: u32,
    pub endpoints: Vec<EndpointInput>,
}

/// Where an endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum EndpointAddress {
    /// An address, or a name in a DNS cluster.
    Socket(String, u16),
    /// A Unix socket's path.
    Pipe(String),
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct EndpointInput {
    pub address: EndpointAddress,
    pub weight: u32,
    pub health: Health,
    /// Whether a proxy stands before it that speaks mutual TLS.
    pub mesh_tls: bool,
    /// `name;namespace;canonical name;canonical revision;cluster`, Istio's short form; empty if
    /// unknown.
    pub workload: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Health {
    Healthy,
    Unhealthy,
}

/// Builds an assignment from its input alone.
pub(crate) fn build_endpoints(input: &EndpointsInput) -> Any {
    pack(&load_assignment(&input.cluster, &input.groups))
}

pub(crate) fn load_assignment(
    cluster: &str,
    groups: &[LocalityGroup],
) -> endpoint::ClusterLoadAssignment {
    endpoint::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: groups.iter().map(locality_message).collect(),
        ..Default::default()
    }
}

fn locality_message(group: &LocalityGroup) -> endpoint::LocalityLbEndpoints {
    let LocalityGroup {
        locality,
        priority,
        weight,
        endpoints,
    } = group;

    endpoint::LocalityLbEndpoints {
        locality: (*locality != Locality::default()).then(|| core::Locality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.subzone.clone(),
        }),
        priority: *priority,
        load_balancing_weight: u32v((*weight).max(1)),
        lb_endpoints: endpoints.iter().map(endpoint_message).collect(),
        ..Default::default()
    }
}

fn endpoint_message(input: &EndpointInput) -> endpoint::LbEndpoint {
    use endpoint::lb_endpoint::HostIdentifier;

    let EndpointInput {
        address: at,
        weight,
        health,
        mesh_tls,
        workload,
    } = input;

    let status = match health {
        Health::Healthy => core::HealthStatus::Healthy,
        Health::Unhealthy => core::HealthStatus::Unhealthy,
    };

    let mut parts: BTreeMap<&str, wkt::Struct> = BTreeMap::new();
    if *mesh_tls {
        parts.insert(
            "envoy.transport_socket_match",
            text_struct([("tlsMode", "istio")]),
        );
    }

    if !workload.is_empty() {
        let fields = [("workload".to_owned(), value_of(workload.as_str()))];
        parts.insert(
            "istio",
            wkt::Struct {
                fields: fields.into_iter().collect(),
            },
        );
    }

    endpoint::LbEndpoint {
        health_status: status as i32,
        load_balancing_weight: u32v((*weight).max(1)),
        metadata: metadata(parts),
        host_identifier: Some(HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(match at {
                EndpointAddress::Socket(host, port) => address(host, u32::from(*port)),
                EndpointAddress::Pipe(path) => pipe(path),
            }),
            ..Default::default()
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meltemi_proto::istio::StructExt;
    use meltemi_proto::unpack;

    #[test]
    fn metadata_says_what_the_transport_match_needs() {
        let endpoint = |mesh_tls| EndpointInput {
            address: EndpointAddress::Socket("10.44.0.3".into(), 9080),
            weight: 0,
            health: Health::Healthy,
            mesh_tls,
            workload: "reviews-v1;default;reviews;v1;Kubernetes".into(),
        };

        let input = EndpointsInput {
            cluster: "outbound|9080||reviews".into(),
            groups: vec![LocalityGroup {
                locality: Locality::parse("r/z"),
                priority: 0,
                weight: 2,
                endpoints: vec![endpoint(true), endpoint(false)],
            }],
        };

        let built: endpoint::ClusterLoadAssignment = unpack(&build_endpoints(&input)).unwrap();
        let of = |index: usize, namespace: &str| {
            let metadata = built.endpoints[0].lb_endpoints[index]
                .metadata
                .as_ref()
                .unwrap();
            metadata.filter_metadata.get(namespace).cloned()
        };

        assert_eq!(
            of(0, "envoy.transport_socket_match")
                .unwrap()
                .text("tlsMode"),
            Some("istio")
        );

        assert_eq!(of(1, "envoy.transport_socket_match"), None);
        assert_eq!(
            of(1, "istio").unwrap().text("workload"),
            Some("reviews-v1;default;reviews;v1;Kubernetes")
        );

        assert_eq!(
            built.endpoints[0].lb_endpoints[0].load_balancing_weight,
            u32v(1),
            "0 is refused by Envoy"
        );
    }
}
