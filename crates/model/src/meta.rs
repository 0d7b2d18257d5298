//! What every normalised object carries: its name, its age, whom it is exported to.

use std::collections::BTreeSet;
use std::fmt;

use meltemi_types::ObjectRef;

/// Namespace and name of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
}

impl NamespacedName {
    /// Puts the two together.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who wins between two objects that claim the same: the older, then the lesser name, then the
/// lesser namespace. Objects without a creation time (files) count as created at the beginning.
/// Source: Istio `sortConfigByCreationTime`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Age {
    /// RFC 3339 in UTC, so that text order is time order; empty if unknown.
    pub created: String,
    /// The object's name.
    pub name: String,
    /// The object's namespace.
    pub namespace: String,
}

/// The object that something was lowered from, and its place in the order of age.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Kind, namespace and name, as diagnostics and causes write it.
    pub object: ObjectRef,
    /// Its place among its peers.
    pub age: Age,
}

impl Origin {
    /// Namespace and name.
    pub fn name(&self) -> NamespacedName {
        NamespacedName::new(&self.object.namespace, &self.object.name)
    }
}

/// Which namespaces may see an object (`exportTo`), with the mesh's default already applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// `*`: every namespace.
    #[default]
    Public,
    /// The named namespaces only, `.` replaced by the object's own; empty for `~`, which exports to
    /// no namespace.
    Namespaces(BTreeSet<String>),
}

impl Visibility {
    /// Whether clients in `namespace` may see it.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Public => true,
            Self::Namespaces(set) => set.contains(namespace),
        }
    }

    /// Whether only the object's own namespace sees it.
    pub fn is_private_to(&self, namespace: &str) -> bool {
        matches!(self, Self::Namespaces(set) if set.len() == 1 && set.contains(namespace))
    }
}

/// A share in millionths, as Envoy's `FractionalPercent` with denominator MILLION; 100 % is
/// 1,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl Percent {
    /// All.
    pub const ALL: Self = Self(1_000_000);

    /// From a number between 0 and 100; what lies outside, or is not a number, is clamped.
    pub fn from_percent(value: f64) -> Self {
        // `as` saturates and maps NaN to 0.
        Self(((value * 10_000.0).round() as u32).min(Self::ALL.0))
    }

    /// The share as a number between 0 and 100.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}
