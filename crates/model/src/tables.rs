//! The raw objects of all sources, by kind: what the store fills and a snapshot is built from.
//!
//! A clone costs one pointer for each kind, and a kind that did not change keeps its allocation, so
//! a build sees by pointer comparison what it need not look at.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_api::{Kind, Object, ObjectKey};

use crate::NamespacedName;

/// The objects of one kind, by namespace and name.
pub type Table = BTreeMap<NamespacedName, Arc<Object>>;

/// The objects of every kind.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    by_kind: BTreeMap<Kind, Arc<Table>>,
    empty: Arc<Table>,
}

impl Tables {
    /// Adds or replaces an object; answers whether anything changed.
    pub fn apply(&mut self, object: Arc<Object>) -> bool {
        let ObjectKey {
            kind,
            namespace,
            name,
        } = object.key();

        let name = NamespacedName { namespace, name };
        let table = self.by_kind.entry(kind).or_default();
        if table
            .get(&name)
            .is_some_and(|held| Arc::ptr_eq(held, &object))
        {
            return false;
        }

        Arc::make_mut(table).insert(name, object);

        true
    }

    /// Removes an object; answers whether it was there.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        let name = NamespacedName::new(&key.namespace, &key.name);
        match self.by_kind.get_mut(&key.kind) {
            Some(table) if table.contains_key(&name) => {
                Arc::make_mut(table).remove(&name).is_some()
            }
            _ => false,
        }
    }

    /// An object by its key.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.table(&key.kind)
            .get(&NamespacedName::new(&key.namespace, &key.name))
    }

    /// The objects of one kind, by namespace and name.
    pub fn table(&self, kind: &Kind) -> &Arc<Table> {
        self.by_kind.get(kind).unwrap_or(&self.empty)
    }

    /// Every object, by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.by_kind.values().flat_map(|table| table.values())
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.by_kind.values().map(|table| table.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<Arc<Object>> for Tables {
    fn from_iter<I: IntoIterator<Item = Arc<Object>>>(objects: I) -> Self {
        let mut tables = Self::default();
        for object in objects {
            tables.apply(object);
        }
        tables
    }
}
