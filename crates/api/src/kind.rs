//! Kinds of objects, and the key that tells objects apart.

use std::fmt;
use std::sync::Arc;

use meltemi_types::ObjectRef;
use serde::{Serialize, Serializer};

/// Kinds that the mesh reads. `Other` is kept, and told about, but has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// core/v1
    Namespace,
    /// core/v1
    ConfigMap,
    /// core/v1
    Secret,
    /// core/v1
    ServiceAccount,
    /// core/v1
    Service,
    /// core/v1
    Pod,
    /// apps/v1
    Deployment,
    /// networking.istio.io
    VirtualService,
    /// networking.istio.io
    DestinationRule,
    /// networking.istio.io
    Gateway,
    /// networking.istio.io
    ServiceEntry,
    /// networking.istio.io
    WorkloadEntry,
    /// networking.istio.io
    WorkloadGroup,
    /// networking.istio.io
    Sidecar,
    /// networking.istio.io
    EnvoyFilter,
    /// networking.istio.io
    ProxyConfig,
    /// security.istio.io
    PeerAuthentication,
    /// security.istio.io
    RequestAuthentication,
    /// security.istio.io
    AuthorizationPolicy,
    /// telemetry.istio.io
    Telemetry,
    /// extensions.istio.io
    WasmPlugin,
    /// extensions.istio.io
    TrafficExtension,
    /// `group/Kind`, or `Kind` of the core group.
    Other(Arc<str>),
}

const ISTIO_NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];

/// Kind, its word, group, served versions, plural and short names (as kubectl takes them).
type Row = (
    Kind,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const TABLE: &[Row] = &[
    (
        Kind::Namespace,
        "Namespace",
        "",
        &["v1"],
        &["namespaces", "ns"],
    ),
    (
        Kind::ConfigMap,
        "ConfigMap",
        "",
        &["v1"],
        &["configmaps", "cm"],
    ),
    (Kind::Secret, "Secret", "", &["v1"], &["secrets"]),
    (
        Kind::ServiceAccount,
        "ServiceAccount",
        "",
        &["v1"],
        &["serviceaccounts", "sa"],
    ),
    (Kind::Service, "Service", "", &["v1"], &["services", "svc"]),
    (Kind::Pod, "Pod", "", &["v1"], &["pods", "po"]),
    (
        Kind::Deployment,
        "Deployment",
        "apps",
        &["v1"],
        &["deployments", "deploy"],
    ),
    (
        Kind::VirtualService,
        "VirtualService",
        "networking.istio.io",
        ISTIO_NETWORKING,
        &["virtualservices", "vs"],
    ),
    (
        Kind::DestinationRule,
        "DestinationRule",
        "networking.istio.io",
        ISTIO_NETWORKING,
        &["destinationrules", "dr"],
    ),
    (
        Kind::Gateway,
        "Gateway",
        "networking.istio.io",
        ISTIO_NETWORKING,
        &["gateways", "gw"],
    ),
    (
        Kind::ServiceEntry,
        "ServiceEntry",
        "networking.istio.io",
        ISTIO_NETWORKING,
        &["serviceentries", "se"],
    ),
    (
        Kind::WorkloadEntry,
        "WorkloadEntry",
        "networking.istio.io",
        ISTIO_NETWORKING,
        &["workloadentries", "we"],
    ),
    (
        Kind::WorkloadGroup,
        "WorkloadGroup",
        "networking.istio.io",
        ISTIO_NETWORKING,
        &["workloadgroups", "wg"],
    ),
    (
        Kind::Sidecar,
        "Sidecar",
        "networking.istio.io",
        ISTIO_NETWORKING,
        &["sidecars"],
    ),
    (
        Kind::EnvoyFilter,
        "EnvoyFilter",
        "networking.istio.io",
        &["v1alpha3"],
        &["envoyfilters"],
    ),
    (
        Kind::ProxyConfig,
        "ProxyConfig",
        "networking.istio.io",
        &["v1beta1"],
        &["proxyconfigs"],
    ),
    (
        Kind::PeerAuthentication,
        "PeerAuthentication",
        "security.istio.io",
        &["v1", "v1beta1"],
        &["peerauthentications", "pa"],
    ),
    (
        Kind::RequestAuthentication,
        "RequestAuthentication",
        "security.istio.io",
        &["v1", "v1beta1"],
        &["requestauthentications", "ra"],
    ),
    (
        Kind::AuthorizationPolicy,
        "AuthorizationPolicy",
        "security.istio.io",
        &["v1", "v1beta1"],
        &["authorizationpolicies", "ap"],
    ),
    (
        Kind::Telemetry,
        "Telemetry",
        "telemetry.istio.io",
        &["v1", "v1alpha1"],
        &["telemetries", "telemetry"],
    ),
    (
        Kind::WasmPlugin,
        "WasmPlugin",
        "extensions.istio.io",
        &["v1alpha1"],
        &["wasmplugins"],
    ),
    (
        Kind::TrafficExtension,
        "TrafficExtension",
        "extensions.istio.io",
        &["v1alpha1"],
        &["trafficextensions"],
    ),
];

/// Kinds without namespace, of those that users bring beside the mesh's.
const CLUSTER_SCOPED: &[&str] = &[
    "APIService",
    "ClusterRole",
    "ClusterRoleBinding",
    "ClusterTrustBundle",
    "CustomResourceDefinition",
    "GatewayClass",
    "IngressClass",
    "MutatingWebhookConfiguration",
    "Node",
    "PersistentVolume",
    "PriorityClass",
    "StorageClass",
    "ValidatingWebhookConfiguration",
];

/// What `apiVersion` and `kind` say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recognised {
    /// A kind in a version that is served, or any other kind.
    Kind(Kind),
    /// A kind of the mesh, in a version that never was; these are.
    WrongVersion(&'static [&'static str]),
    /// A kind of the mesh, in another group than its own; this one is.
    WrongGroup(&'static str),
}

impl Kind {
    /// Every kind that the mesh reads, in the order of its table.
    pub fn all() -> impl Iterator<Item = Kind> {
        TABLE.iter().map(|row| row.0.clone())
    }

    /// Recognises `apiVersion` and `kind`.
    pub fn recognise(api_version: &str, kind: &str) -> Recognised {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        if let Some(row) = TABLE.iter().find(|row| row.1 == kind && row.2 == group) {
            return if row.3.contains(&version) {
                Recognised::Kind(row.0.clone())
            } else {
                Recognised::WrongVersion(row.3)
            };
        }

        // A VirtualService of `istio.io` is a slip, a Gateway of `gateway.networking.k8s.io` is
        // not.
        if let Some(row) = TABLE.iter().find(|row| row.1 == kind)
            && (group.ends_with("istio.io") || group.is_empty())
        {
            return Recognised::WrongGroup(row.2);
        }

        Recognised::Kind(Self::other(group, kind))
    }

    fn other(group: &str, kind: &str) -> Self {
        Self::Other(if group.is_empty() {
            Arc::from(kind)
        } else {
            Arc::from(format!("{group}/{kind}"))
        })
    }

    /// The kind that a user's word means: `VirtualService`, `virtualservices`, `vs`, in any case,
    /// with or without `.group`.
    pub fn from_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let (bare, group) = word.split_once('.').unwrap_or((&word, ""));
        let fits = |row: &&Row| {
            (row.1.eq_ignore_ascii_case(bare) || row.4.contains(&bare))
                && (group.is_empty() || group == row.2 || group.ends_with(&format!(".{}", row.2)))
        };
        TABLE.iter().find(fits).map(|row| row.0.clone())
    }

    /// The plural of the kind that a user's word is a misspelling of.
    pub fn meant_by(word: &str) -> Option<&'static str> {
        let (bare, _) = word.split_once('.').unwrap_or((word, ""));
        let known: Vec<&'static str> = TABLE.iter().flat_map(|row| [row.1, row.4[0]]).collect();
        let meant = crate::schema::closest(bare, &known)?;
        TABLE
            .iter()
            .find(|row| row.1 == meant || row.4[0] == meant)
            .map(|row| row.4[0])
    }

    /// Whether a user's word means this kind; for kinds that [`Kind::from_word`] does not know.
    pub fn is_called(&self, word: &str) -> bool {
        let word = word.to_ascii_lowercase();
        let (bare, group) = word.split_once('.').unwrap_or((&word, ""));
        (bare.eq_ignore_ascii_case(self.word()) || bare == self.plural())
            && (group.is_empty() || group == self.group())
    }

    fn row(&self) -> Option<&'static Row> {
        TABLE.iter().find(|row| row.0 == *self)
    }

    /// `VirtualService`.
    pub fn word(&self) -> &str {
        match self {
            Self::Other(name) => name.rsplit('/').next().unwrap_or(name),
            known => known.row().map_or("", |row| row.1),
        }
    }

    /// `networking.istio.io`; empty for core.
    pub fn group(&self) -> &str {
        match self {
            Self::Other(name) => name.rsplit_once('/').map_or("", |(group, _)| group),
            known => known.row().map_or("", |row| row.2),
        }
    }

    /// `virtualservices`, as kubectl prints it.
    pub fn plural(&self) -> String {
        match self.row() {
            Some(row) => row.4[0].to_owned(),
            None => plural(&self.word().to_ascii_lowercase()),
        }
    }

    /// `virtualservices.networking.istio.io`; [`Kind::from_word`] takes it.
    pub fn resource(&self) -> String {
        match self.group() {
            "" => self.plural(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    /// The words that [`Kind::from_word`] takes for this kind.
    pub fn words(&self) -> &'static [&'static str] {
        self.row().map_or(&[], |row| row.4)
    }

    /// An object of this kind, as diagnostics name it. A kind that the mesh does not read is named
    /// with its group: the Gateway API's `Gateway` is another kind than Istio's.
    pub fn object_ref(&self, namespace: impl Into<String>, name: impl Into<String>) -> ObjectRef {
        let object = ObjectRef::new(self.word(), namespace, name);
        match self {
            Self::Other(_) => object.in_group(self.group()),
            _ => object,
        }
    }

    /// Whether it belongs to Istio's API, so that unknown fields are errors.
    pub fn is_mesh(&self) -> bool {
        !matches!(self, Self::Other(_)) && self.group().ends_with("istio.io")
    }

    /// Whether objects of it are in a namespace.
    pub fn is_namespaced(&self) -> bool {
        *self != Self::Namespace
            && !(matches!(self, Self::Other(_)) && CLUSTER_SCOPED.contains(&self.word()))
    }
}

/// As Kubernetes guesses it for kinds of which it knows nothing else.
fn plural(word: &str) -> String {
    match word.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ies"),
        _ if word.ends_with(['s', 'x']) || word.ends_with("ch") => format!("{word}es"),
        _ => format!("{word}s"),
    }
}

/// What is said of an object that is not there: `virtualservices.networking.istio.io "x" not found
/// in namespace "shop"`.
pub fn not_found(resource: &str, namespace: &str, name: &str) -> String {
    let place = if namespace.is_empty() {
        String::new()
    } else {
        format!(" in namespace {namespace:?}")
    };
    format!("{resource} {name:?} not found{place}")
}

/// `Gateway` for the mesh's kind, `Gateway.gateway.networking.k8s.io` for a kind that the mesh does
/// not read.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object_ref("", "").qualified_kind())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What tells objects apart: kind, namespace (empty for cluster-scoped kinds) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectKey {
    /// Kind, with its group but without version.
    pub kind: Kind,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    /// Puts a key together.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The object as diagnostics name it.
    pub fn object_ref(&self) -> ObjectRef {
        self.kind
            .object_ref(self.namespace.as_str(), self.name.as_str())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.object_ref().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_kind_is_recognised() {
        for slip in [
            "virtualservics",
            "VirtualServise",
            "virtualservces.networking.istio.io",
        ] {
            assert_eq!(Kind::meant_by(slip), Some("virtualservices"), "{slip}");
        }
        assert_eq!(Kind::meant_by("ingresses"), None);
    }

    #[test]
    fn groups_and_versions_matter() {
        assert_eq!(
            Kind::recognise("networking.istio.io/v1", "Gateway"),
            Recognised::Kind(Kind::Gateway)
        );

        let foreign = Recognised::Kind(Kind::Other("gateway.networking.k8s.io/Gateway".into()));
        assert_eq!(
            Kind::recognise("gateway.networking.k8s.io/v1", "Gateway"),
            foreign
        );

        assert_eq!(
            Kind::recognise("networking.istio.io/v2", "Gateway"),
            Recognised::WrongVersion(ISTIO_NETWORKING)
        );

        assert_eq!(
            Kind::recognise("v1", "VirtualService"),
            Recognised::WrongGroup("networking.istio.io")
        );

        assert_eq!(Kind::recognise("v1", "Pod"), Recognised::Kind(Kind::Pod));
    }

    #[test]
    fn users_words_are_kubectls() {
        for word in [
            "vs",
            "VirtualService",
            "virtualservices",
            "virtualservices.networking.istio.io",
        ] {
            assert_eq!(Kind::from_word(word), Some(Kind::VirtualService), "{word}");
        }

        assert_eq!(Kind::from_word("services"), Some(Kind::Service));
        assert_eq!(Kind::from_word("gizmo"), None);
        let foreign = Kind::Other("gateway.networking.k8s.io/GatewayClass".into());
        for word in [
            "gatewayclass",
            "GatewayClasses",
            "gatewayclasses.gateway.networking.k8s.io",
        ] {
            assert!(
                foreign.is_called(word) && Kind::from_word(word).is_none(),
                "{word}"
            );
        }

        assert!(!foreign.is_called("gatewayclasses.example.com"));
        let gateway = Kind::Other("gateway.networking.k8s.io/Gateway".into());
        assert_eq!(
            (
                gateway.resource().as_str(),
                Kind::from_word(&gateway.resource())
            ),
            ("gateways.gateway.networking.k8s.io", None)
        );

        for kind in Kind::all() {
            assert_eq!(Kind::from_word(&kind.resource()), Some(kind));
        }
    }
}
