//! Answers of the status and debug endpoints: proxies, certificates, services.

use std::collections::BTreeMap;

use meltemi_types::Diagnostic;
use serde::{Deserialize, Serialize};

/// Answer to `GET /status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Name and version of the control plane.
    pub version: VersionInfo,
    /// Start of the control plane, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// Whether the configuration was read at least once.
    pub ready: bool,
    /// Number of objects by kind.
    pub objects: BTreeMap<String, usize>,
    /// Connected proxies, sorted by id.
    pub proxies: Vec<ProxyStatus>,
    /// The newest certificate of each workload that this control plane issued or that a proxy
    /// presented.
    pub certificates: Vec<CertificateStatus>,
    /// Diagnostics of the configuration as a whole.
    pub diagnostics: Vec<Diagnostic>,
}

/// Answer to `GET /version`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VersionInfo {
    /// Always `meltemi`.
    pub name: String,
    /// Version of the binary.
    pub version: String,
}

/// Whether a proxy has the newest configuration.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SyncState {
    /// The proxy acknowledged the newest version.
    Synced,
    /// The proxy did not subscribe to the type, or there is no resource for it.
    #[default]
    NotSent,
    /// A newer version waits to be sent or acknowledged.
    Stale,
    /// The proxy rejected a resource and keeps the previous version.
    Rejected,
}

/// One connected proxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyStatus {
    /// The node id, `type~ip~pod.ns~ns.svc.domain`.
    pub id: String,
    /// `sidecar` or `router`.
    pub kind: String,
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the Deployment or other owner.
    pub workload: String,
    /// Service account of the pod.
    pub service_account: String,
    /// Addresses of the pod.
    pub ips: Vec<String>,
    /// The authenticated SPIFFE ID; empty on a plaintext connection.
    pub identity: String,
    /// How the proxy authenticated: `mtls`, `token` or `none`.
    pub authenticated_by: String,
    /// Address of the connection's peer.
    pub peer: String,
    /// `delta` or `state of the world`.
    pub variant: String,
    /// Name and version of the proxy program, as the proxy reports them.
    pub user_agent: String,
    /// Start of the connection, in milliseconds since 1970.
    pub connected_at_ms: u64,
    /// Time of the last push, in milliseconds since 1970; 0 if there was none.
    pub last_push_ms: u64,
    /// The worst state among the types.
    pub state: SyncState,
    /// State of each type, in push order.
    pub types: Vec<TypeSync>,
    /// Resources that the proxy rejects now.
    pub rejections: Vec<Rejection>,
    /// Paths of the access logs that the configuration wants of this proxy.
    pub access_logs: Vec<String>,
    /// Diagnostics about resources that translation left out for this proxy.
    pub diagnostics: Vec<Diagnostic>,
}

/// State of one resource type for one proxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TypeSync {
    /// The complete type URL.
    pub type_url: String,
    /// The short name: `CDS`, `EDS`, ...
    pub short: String,
    /// Whether the proxy has the newest version.
    pub state: SyncState,
    /// Whether the proxy subscribed to all resources.
    pub wildcard: bool,
    /// Number of names that the proxy subscribed to.
    pub names: usize,
    /// Number of resources that the proxy should have.
    pub resources: usize,
    /// Hash over the resources that the proxy should have.
    pub wanted: String,
    /// Hash over the resources that were sent.
    pub sent: String,
    /// Hash over the resources that the proxy acknowledged.
    pub acked: String,
    /// Number of responses on this connection.
    pub pushes: u64,
    /// Number of acknowledged responses.
    pub acks: u64,
    /// Number of rejected responses.
    pub nacks: u64,
    /// Wanted, sent and acknowledged version by resource; only with details.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, [Option<String>; 3]>,
}

/// A resource that a proxy rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rejection {
    /// Type URL of the resource.
    pub type_url: String,
    /// Short name of the type: `CDS`, ...
    pub short: String,
    /// Name of the resource.
    pub name: String,
    /// The rejected version.
    pub version: String,
    /// The proxy's error message.
    pub reason: String,
}

/// A workload's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateStatus {
    /// SPIFFE ID of the certificate.
    pub identity: String,
    /// Address of the workload.
    pub peer: String,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate in lower-case hexadecimal.
    pub sha256: String,
    /// Time of issue, in milliseconds since 1970. For a certificate that a proxy presented: the
    /// start of its validity.
    pub issued_at_ms: u64,
    /// Expiry, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

/// One entry of `GET /debug/syncz`, with Istio's names. A `sent` or `acked` is a hash over all
/// resources of the type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncStatus {
    pub cluster_id: String,
    pub proxy: String,
    pub proxy_type: String,
    pub istio_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster_sent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster_acked: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub listener_sent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub listener_acked: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub route_sent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub route_acked: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint_sent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint_acked: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub extensionconfig_sent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub extensionconfig_acked: String,
}

/// Answer to `GET /debug/config_dump?proxyID=`: the resources that one proxy should have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigDump {
    /// Node id of the proxy.
    pub proxy: String,
    /// The types, in push order.
    pub types: Vec<DumpedType>,
}

/// One type of a dump.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DumpedType {
    /// The complete type URL.
    pub type_url: String,
    /// The resources, sorted by name.
    pub resources: Vec<DumpedResource>,
}

/// One resource of a dump.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DumpedResource {
    /// Name of the resource.
    pub name: String,
    /// Version of the resource.
    pub version: String,
    /// The encoded message in base64; empty for secrets, which are never shown.
    pub value: String,
}

/// One service of `GET /debug/registryz`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryService {
    /// Fully qualified host name.
    pub hostname: String,
    /// Namespace of the Service or ServiceEntry.
    pub namespace: String,
    /// Virtual addresses (cluster IPs).
    pub addresses: Vec<String>,
    /// Ports as `name:number/protocol`.
    pub ports: Vec<String>,
    /// How the endpoints are found.
    pub resolution: String,
}

/// One endpoint of `GET /debug/endpointz`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointView {
    /// Host name of the service.
    pub hostname: String,
    /// Port of the service.
    pub port: u32,
    /// The endpoint as `address:port`.
    pub address: String,
    /// Whether the endpoint receives traffic.
    pub healthy: bool,
    /// SPIFFE ID that the endpoint presents.
    pub identity: String,
    /// Labels of the endpoint.
    pub labels: BTreeMap<String, String>,
}
