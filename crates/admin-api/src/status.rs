//! What the control plane knows of its proxies, certificates and services.

use std::collections::BTreeMap;

use meltemi_types::Diagnostic;
use serde::{Deserialize, Serialize};

/// `GET /status`: everything at a glance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The control plane itself.
    pub version: VersionInfo,
    /// When it started; milliseconds since 1970.
    pub started_at_ms: u64,
    /// Whether the configuration was read at least once.
    pub ready: bool,
    /// Objects by kind.
    pub objects: BTreeMap<String, usize>,
    /// Connected proxies, by id.
    pub proxies: Vec<ProxyStatus>,
    /// The newest certificate of each workload: issued by this control plane, or shown by a proxy
    /// that connected.
    pub certificates: Vec<CertificateStatus>,
    /// Findings about the configuration as a whole.
    pub diagnostics: Vec<Diagnostic>,
}

/// `GET /version`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VersionInfo {
    /// `meltemi`.
    pub name: String,
    /// Of the binary.
    pub version: String,
}

/// Whether a proxy has what it is to have.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SyncState {
    /// It took the newest of everything.
    Synced,
    /// It did not ask for this type, or nothing exists for it.
    #[default]
    NotSent,
    /// Something newer is waiting for it or on its way.
    Stale,
    /// It refused something and keeps what it had before.
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
    /// The pod.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The Deployment or the like.
    pub workload: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses.
    pub ips: Vec<String>,
    /// The authenticated SPIFFE identity; empty on an unauthenticated plaintext connection.
    pub identity: String,
    /// How it proved who it is: `mtls`, `token` or `none`.
    pub authenticated_by: String,
    /// Where it connects from.
    pub peer: String,
    /// `delta` or `state of the world`.
    pub variant: String,
    /// Whose proxy it is and which version, in its own words.
    pub user_agent: String,
    /// Milliseconds since 1970.
    pub connected_at_ms: u64,
    /// Last time something was pushed to it; 0 if never.
    pub last_push_ms: u64,
    /// The worst state of its types.
    pub state: SyncState,
    /// Per type, in push order.
    pub types: Vec<TypeSync>,
    /// What it refuses at the moment.
    pub rejections: Vec<Rejection>,
    /// What translation left out for it.
    pub diagnostics: Vec<Diagnostic>,
}

/// One type of one proxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TypeSync {
    /// Whole.
    pub type_url: String,
    /// `CDS`, `EDS`, ...
    pub short: String,
    /// How it stands.
    pub state: SyncState,
    /// Whether it asked for everything.
    pub wildcard: bool,
    /// How many names it asked for.
    pub names: usize,
    /// How many resources it is to have.
    pub resources: usize,
    /// Hash over what it is to have.
    pub wanted: String,
    /// Hash over what it was sent.
    pub sent: String,
    /// Hash over what it took.
    pub acked: String,
    /// Responses on this connection.
    pub pushes: u64,
    /// How many of them it took.
    pub acks: u64,
    /// How many of them it refused.
    pub nacks: u64,
    /// Version wanted, sent and taken per resource; only where details are asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, [Option<String>; 3]>,
}

/// A resource that a proxy refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rejection {
    /// Of the resource.
    pub type_url: String,
    /// `CDS`, ...
    pub short: String,
    /// Of the resource.
    pub name: String,
    /// Which was refused.
    pub version: String,
    /// In the proxy's words.
    pub reason: String,
}

/// A workload's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateStatus {
    /// SPIFFE identity.
    pub identity: String,
    /// The workload's address.
    pub peer: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate.
    pub sha256: String,
    /// Milliseconds since 1970: when it was issued, or, of one that was shown, the start of its
    /// validity.
    pub issued_at_ms: u64,
    /// Milliseconds since 1970.
    pub expires_at_ms: u64,
}

/// One entry of `GET /debug/syncz`, in Istio's shape.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "Istio's names; sent and acked are hashes over the type's resources"
)]
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

/// `GET /debug/config_dump?proxyID=`: what one proxy is to have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigDump {
    /// The node id.
    pub proxy: String,
    /// In push order.
    pub types: Vec<DumpedType>,
}

/// One type of a dump.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DumpedType {
    /// Whole.
    pub type_url: String,
    /// By name.
    pub resources: Vec<DumpedResource>,
}

/// One resource of a dump.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DumpedResource {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The encoded message, base64; empty for secrets, which are never shown.
    pub value: String,
}

/// One service of `GET /debug/registryz`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryService {
    /// Fully qualified.
    pub hostname: String,
    /// Of the object it comes from.
    pub namespace: String,
    /// Virtual addresses.
    pub addresses: Vec<String>,
    /// `name:number/protocol`.
    pub ports: Vec<String>,
    /// How its endpoints are found.
    pub resolution: String,
}

/// One endpoint of `GET /debug/endpointz`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointView {
    /// The service.
    pub hostname: String,
    /// The service's port.
    pub port: u32,
    /// `address:port`.
    pub address: String,
    /// Whether it takes traffic.
    pub healthy: bool,
    /// The identity that it presents.
    pub identity: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
