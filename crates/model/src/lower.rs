//! Lowering: typed objects in, normalised model out; one module for each API.
//!
//! Each object is lowered alone, so that a build lowers only what changed ([`Lowered::update`]).
//! What needs other objects (delegates, address allocation, merging) is done afterwards, where the
//! table is put together.

pub(crate) mod credential;
pub(crate) mod ext_authz;
pub(crate) mod istio;
pub(crate) mod mesh;
pub(crate) mod service;
pub(crate) mod service_entry;
pub(crate) mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_api::Object;
use meltemi_types::{Diagnostic, Severity};

use crate::tables::Table;
use crate::{Age, MeshSettings, NamespacedName, Origin, Visibility};

/// What lowering may know besides the object itself. When any of it changes, everything is lowered
/// again.
pub(crate) struct Context<'a> {
    pub mesh: &'a MeshSettings,
    pub domain: &'a str,
}

/// The objects of one kind, each with its lowered value.
#[derive(Debug)]
pub(crate) struct Lowered<T> {
    pub entries: BTreeMap<NamespacedName, Entry<T>>,
}

#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub object: Arc<Object>,
    pub value: Arc<T>,
    diagnostics: Arc<[Diagnostic]>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self {
            object: self.object.clone(),
            value: self.value.clone(),
            diagnostics: self.diagnostics.clone(),
        }
    }
}

impl<T> Default for Lowered<T> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }
}

impl<T: PartialEq> Lowered<T> {
    /// Lowers the objects of a table that are not the allocations of `prev`, and takes the others
    /// over. A value that is the same as before keeps its allocation: the object may have changed
    /// in its text, position or status alone.
    pub fn update(
        prev: Option<&Arc<Self>>,
        table: &Table,
        lower: impl Fn(&Object, &mut Findings<'_>) -> T,
    ) -> Arc<Self> {
        let is_held = |(name, object): (&NamespacedName, &Arc<Object>), held: &Self| {
            held.entries
                .get(name)
                .is_some_and(|entry| Arc::ptr_eq(&entry.object, object))
        };

        if let Some(prev) = prev
            && prev.entries.len() == table.len()
            && table.iter().all(|pair| is_held(pair, prev))
        {
            return prev.clone();
        }

        let entries = table.iter().map(|(name, object)| {
            if let Some(entry) = prev
                .and_then(|prev| prev.entries.get(name))
                .filter(|entry| Arc::ptr_eq(&entry.object, object))
            {
                return (name.clone(), entry.clone());
            }

            let mut findings = Findings::new(object);
            let value = lower(object, &mut findings);
            let held = prev.and_then(|prev| prev.entries.get(name));
            (
                name.clone(),
                Entry {
                    object: object.clone(),
                    value: keep_equal(held.map(|entry| &entry.value), value),
                    diagnostics: findings.list.into(),
                },
            )
        });

        Arc::new(Self {
            entries: entries.collect(),
        })
    }
}

impl<T> Lowered<T> {
    /// Whether every value is the same allocation as in `other`, whatever became of the objects'
    /// texts.
    pub fn has_same_values(&self, other: &Self) -> bool {
        self.entries.len() == other.entries.len()
            && self.entries.iter().all(|(name, entry)| {
                let held = other.entries.get(name);
                held.is_some_and(|held| Arc::ptr_eq(&held.value, &entry.value))
            })
    }

    /// The lowered values.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.entries.values().map(|entry| &entry.value)
    }

    /// Everything that was found while lowering.
    pub fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.entries
            .values()
            .flat_map(|entry| entry.diagnostics.iter())
    }
}

/// The allocation held before if the new value equals it: later stages compare pointers.
pub(crate) fn keep_equal<T: PartialEq>(held: Option<&Arc<T>>, value: T) -> Arc<T> {
    match held {
        Some(held) if **held == value => held.clone(),
        _ => Arc::new(value),
    }
}

/// Collects the findings about one object.
pub(crate) struct Findings<'a> {
    object: &'a Object,
    pub list: Vec<Diagnostic>,
}

impl<'a> Findings<'a> {
    pub fn new(object: &'a Object) -> Self {
        Self {
            object,
            list: Vec::new(),
        }
    }

    /// Notes a finding about `field`, with its position in the text.
    pub fn push(
        &mut self,
        severity: Severity,
        code: &str,
        field: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.list
            .push(finding(self.object, severity, code, field, message, remedy));
    }

    pub fn warn(
        &mut self,
        code: &str,
        field: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(Severity::Warning, code, field, message, remedy);
    }

    pub fn error(
        &mut self,
        code: &str,
        field: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(Severity::Error, code, field, message, remedy);
    }
}

/// A finding about a field of an object, with its position in the text.
pub(crate) fn finding(
    object: &Object,
    severity: Severity,
    code: &str,
    field: &str,
    message: impl Into<String>,
    remedy: impl Into<String>,
) -> Diagnostic {
    Diagnostic {
        code: code.to_owned(),
        severity,
        object: object.object_ref(),
        field: field.to_owned(),
        position: object.source.position(field),
        message: message.into(),
        remedy: remedy.into(),
    }
}

/// Name and age of an object.
pub(crate) fn origin(object: &Object) -> Origin {
    let meta = &object.meta;
    Origin {
        object: object.object_ref(),
        age: Age {
            created: meta.creation.clone().unwrap_or_default(),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
        },
    }
}

/// `exportTo`, or the mesh's default where it is empty.
pub(crate) fn visibility(export_to: &[String], default: &[String], namespace: &str) -> Visibility {
    let scopes = if export_to.is_empty() {
        default
    } else {
        export_to
    };

    if scopes.is_empty() || scopes.iter().any(|scope| scope == "*") {
        return Visibility::Public;
    }
    let own = |scope: &String| match scope.as_str() {
        "~" => None,
        "." => Some(namespace.to_owned()),
        name => Some(name.to_owned()),
    };

    Visibility::Namespaces(scopes.iter().filter_map(own).collect::<BTreeSet<_>>())
}

/// A port written as an integer of another width; `None` for 0 and for numbers that are no port.
pub(crate) fn port(number: impl TryInto<u16>) -> Option<u16> {
    number.try_into().ok().filter(|port| *port != 0)
}

/// A count for which 0 and less mean "not written".
pub(crate) fn positive(number: i32) -> Option<u32> {
    u32::try_from(number).ok().filter(|number| *number > 0)
}
