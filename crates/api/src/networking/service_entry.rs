//! ServiceEntry: a host that no platform registers.

use crate::networking::WorkloadEntry;
use crate::schema::{message, words};
use crate::shared::LabelSelector;

message! {
    /// A host with ports and endpoints.
    pub struct ServiceEntry {
        /// Names; `*.` prefixes allowed.
        hosts: Vec<String> = "hosts" [required],
        /// Virtual addresses or CIDRs.
        addresses: Vec<String> = "addresses",
        ports: Vec<ServicePort> = "ports",
        /// Inside or outside of the mesh.
        location: Location = "location",
        /// How endpoints are found.
        resolution: Resolution = "resolution",
        /// Endpoints written here.
        endpoints: Vec<WorkloadEntry> = "endpoints",
        /// Endpoints by label: pods and WorkloadEntries of the namespace.
        workload_selector: Option<LabelSelector> = "workloadSelector",
        /// Namespaces that see this: `.`, `*`, or names. Empty is MeshConfig's default.
        export_to: Vec<String> = "exportTo",
        /// Accepted names in the endpoints' certificates.
        subject_alt_names: Vec<String> = "subjectAltNames",
    }

    /// A port of a service.
    pub struct ServicePort {
        /// 1 to 65535.
        number: u32 = "number" [required],
        /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS; empty is derived from the name.
        protocol: String = "protocol",
        /// Unique within the object.
        name: String = "name" [required],
        /// Port of the endpoints; 0 is `number`.
        target_port: u32 = "targetPort",
    }
}

words! {
    /// Inside or outside of the mesh.
    pub enum Location {
        /// Consumed through its API, not under our control.
        MeshExternal = "MESH_EXTERNAL",
        /// Part of the mesh.
        MeshInternal = "MESH_INTERNAL",
    }

    /// How endpoints are found.
    pub enum Resolution {
        /// The address that the caller asked for.
        None = "NONE",
        /// The written endpoints.
        Static = "STATIC",
        /// By DNS, all addresses.
        Dns = "DNS",
        /// By DNS, first address as long as it works.
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        /// By DNS at the time of the request, for wildcard hosts.
        DynamicDns = "DYNAMIC_DNS",
    }
}
