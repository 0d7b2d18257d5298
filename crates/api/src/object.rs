//! An object as the mesh holds it: who it is, what it says, where it is written.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use meltemi_types::{Diagnostic, Labels, ObjectRef, Position};
use serde_json::Value;

use crate::core::{ConfigMap, DeploymentSpec, Pod, Secret, ServiceSpec};
use crate::extensions::{TrafficExtension, WasmPlugin};
use crate::kind::{Kind, ObjectKey};
use crate::networking::{
    DestinationRule, EnvoyFilter, Gateway, ProxyConfigResource, ServiceEntry, Sidecar,
    VirtualService, WorkloadEntry, WorkloadGroup,
};
use crate::positions::Positions;
use crate::schema::{Finding, message};
use crate::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::telemetry::Telemetry;

message! {
    /// Who an object is.
    pub struct Meta {
        name: String = "name",
        /// Namespace; `default` if none is written, empty for cluster-scoped kinds.
        namespace: String = "namespace",
        labels: Labels = "labels",
        /// Annotations.
        annotations: BTreeMap<String, String> = "annotations",
        /// RFC 3339; sorts by time. Objects from files rarely have one.
        creation: Option<String> = "creationTimestamp",
        /// Counts changes of the body, on Kubernetes.
        generation: i64 = "generation",
        /// Unique for ever, on Kubernetes.
        uid: String = "uid",
        /// Counts all changes, on Kubernetes.
        resource_version: String = "resourceVersion",
        owner_references: Vec<OwnerReference> = "ownerReferences",
    }

    /// An object that owns another one, for example the Deployment of a Pod.
    pub struct OwnerReference {
        /// `group/version`.
        api_version: String = "apiVersion",
        kind: String = "kind",
        name: String = "name",
        /// Whether it is the one that manages it.
        controller: bool = "controller",
    }
}

/// What an object says.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// A namespace: its labels count.
    Namespace,
    /// Texts.
    ConfigMap(Arc<ConfigMap>),
    /// Bytes.
    Secret(Arc<Secret>),
    /// An identity: its name counts.
    ServiceAccount,
    Service(Arc<ServiceSpec>),
    /// A pod and its status.
    Pod(Arc<Pod>),
    /// A set of pods.
    Deployment(Arc<DeploymentSpec>),
    /// Routes.
    VirtualService(Arc<VirtualService>),
    /// Policies of a host.
    DestinationRule(Arc<DestinationRule>),
    /// Listening ports.
    Gateway(Arc<Gateway>),
    /// A host.
    ServiceEntry(Arc<ServiceEntry>),
    WorkloadEntry(Arc<WorkloadEntry>),
    /// A template of workloads.
    WorkloadGroup(Arc<WorkloadGroup>),
    /// Limits of proxies.
    Sidecar(Arc<Sidecar>),
    /// Patches.
    EnvoyFilter(Arc<EnvoyFilter>),
    /// Settings of proxies.
    ProxyConfig(Arc<ProxyConfigResource>),
    /// Mutual TLS.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// Tokens.
    RequestAuthentication(Arc<RequestAuthentication>),
    /// Who may call.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// What is reported.
    Telemetry(Arc<Telemetry>),
    /// A module.
    WasmPlugin(Arc<WasmPlugin>),
    /// A module or script.
    TrafficExtension(Arc<TrafficExtension>),
    /// Without effect.
    Other {
        /// As written.
        api_version: String,
        /// As written.
        kind: String,
    },
}

/// Where an object is written.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The file as the user named it; empty for objects from an API server.
    pub file: Arc<str>,
    /// Which document of the file, from 0.
    pub document: usize,
    /// Which item, if the document is a `kind: List`.
    pub item: Option<usize>,
    /// Where its fields are.
    pub positions: Positions,
}

impl Source {
    /// Where a field is, or the nearest thing around it.
    pub fn position(&self, field: &str) -> Position {
        let (line, column) = self.positions.find(field);
        Position {
            file: self.file.to_string(),
            line,
            column,
        }
    }
}

/// An object. Two are equal if they say the same, wherever they are written.
#[derive(Clone)]
pub struct Object {
    /// Kind; `spec` has the same.
    pub kind: Kind,
    /// As written.
    pub api_version: String,
    /// Who it is.
    pub meta: Meta,
    /// What it says.
    pub spec: Spec,
    /// Where it is written.
    pub source: Source,
    /// All of it, also what the mesh does not read; namespace filled in.
    pub raw: Value,
}

impl Object {
    /// What tells it apart.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(
            self.kind.clone(),
            self.meta.namespace.clone(),
            self.meta.name.clone(),
        )
    }

    /// The object as diagnostics name it.
    pub fn object_ref(&self) -> ObjectRef {
        self.kind
            .object_ref(self.meta.namespace.as_str(), self.meta.name.as_str())
    }

    /// A diagnostic about a field of this object; for lowering, analysis and translation.
    pub fn diagnostic(&self, finding: Finding) -> Diagnostic {
        let position = self.source.position(&finding.field);
        attach(finding, self.object_ref(), position)
    }
}

impl Object {
    /// Whether it says the same, whenever either was created: `metadata.creationTimestamp` is not
    /// the user's to say.
    pub fn says_as(&self, other: &Self) -> bool {
        self == other || (self.kind == other.kind && ageless(&self.raw) == ageless(&other.raw))
    }
}

fn ageless(raw: &Value) -> Value {
    let mut raw = raw.clone();
    if let Some(metadata) = raw.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("creationTimestamp");
    }
    raw
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.raw == other.raw
    }
}

/// Without the raw text, which may hold keys.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("meta", &self.meta)
            .field("spec", &self.spec)
            .field("file", &self.source.file)
            .finish()
    }
}

/// Ties a finding to an object and a place.
pub(crate) fn attach(finding: Finding, object: ObjectRef, position: Position) -> Diagnostic {
    let Finding {
        code,
        severity,
        field,
        message,
        remedy,
    } = finding;

    Diagnostic {
        code: code.to_owned(),
        severity,
        object,
        field,
        position,
        message,
        remedy,
    }
}
