//! Service.

use meltemi_types::Selector;

use crate::schema::{IntOrString, message};

message! {
    /// The body of a Service.
    pub struct ServiceSpec {
        ports: Vec<ServicePortSpec> = "ports",
        /// Labels of its pods; empty is none.
        selector: Selector = "selector",
        /// `None` is headless; empty is to be allocated.
        cluster_ip: String = "clusterIP",
        /// Addresses of both families.
        cluster_ips: Vec<String> = "clusterIPs",
        /// ClusterIP (also empty), NodePort, LoadBalancer, ExternalName.
        r#type: String = "type",
        /// For ExternalName.
        external_name: String = "externalName",
        /// Further addresses.
        external_ips: Vec<String> = "externalIPs",
        /// Whether pods that are not ready are endpoints too.
        publish_not_ready_addresses: bool = "publishNotReadyAddresses",
        /// Cluster (also empty) or Local.
        internal_traffic_policy: String = "internalTrafficPolicy",
        /// PreferClose, PreferSameZone, PreferSameNode.
        traffic_distribution: String = "trafficDistribution",
        /// None (also empty) or ClientIP.
        session_affinity: String = "sessionAffinity",
        /// IPv4, IPv6.
        ip_families: Vec<String> = "ipFamilies",
    }

    /// A port of a Service.
    pub struct ServicePortSpec {
        /// Name; may be empty if it is the only port.
        name: String = "name",
        /// TCP (also empty), UDP, SCTP.
        protocol: String = "protocol",
        /// What it speaks.
        app_protocol: Option<String> = "appProtocol",
        /// Port of the Service.
        port: u16 = "port",
        /// Port of the pods; absent is `port`.
        target_port: Option<IntOrString> = "targetPort",
        /// Port of nodes.
        node_port: u16 = "nodePort",
    }
}
