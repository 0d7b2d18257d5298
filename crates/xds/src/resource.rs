//! The resources that a server serves: by type and name, each with a version that changes when the
//! content does.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_proto::Any;

/// A packed message: an `Any`, or a shared value that contains one.
pub trait Packed: Send + Sync + 'static {
    /// The message.
    fn any(&self) -> &Any;
}

impl Packed for Any {
    fn any(&self) -> &Any {
        self
    }
}

/// One resource. Cheap to clone.
#[derive(Clone)]
pub struct Resource {
    /// Hash of the content: it changes exactly when the content does, and stays the same across
    /// restarts.
    pub version: Arc<str>,
    /// The packed message.
    pub content: Arc<dyn Packed>,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.content.any().type_url, self.version)
    }
}

/// The resources of one type, by name.
pub type TypeSet = BTreeMap<String, Resource>;

/// All resources that one client may see, by type URL. A missing type counts as empty.
#[derive(Debug, Clone, Default)]
pub struct ResourceSet {
    types: BTreeMap<String, TypeSet>,
}

impl ResourceSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a resource.
    pub fn insert(
        &mut self,
        type_url: &str,
        name: impl Into<String>,
        version: impl Into<Arc<str>>,
        content: impl Packed,
    ) {
        let resource = Resource {
            version: version.into(),
            content: Arc::new(content),
        };

        match self.types.get_mut(type_url) {
            Some(set) => _ = set.insert(name.into(), resource),
            None => {
                _ = self.types.insert(
                    type_url.to_owned(),
                    BTreeMap::from([(name.into(), resource)]),
                )
            }
        }
    }

    /// The resources of one type, if there are any.
    pub fn of(&self, type_url: &str) -> Option<&TypeSet> {
        self.types.get(type_url)
    }

    /// One resource.
    pub fn get(&self, type_url: &str, name: &str) -> Option<&Resource> {
        self.types.get(type_url)?.get(name)
    }

    /// Whether both sets hold the same resources in the same versions.
    pub fn is_same(&self, other: &Self) -> bool {
        let of_type = |(url, set): (&String, &TypeSet)| {
            let theirs = other.types.get(url);
            theirs.is_some_and(|theirs| {
                theirs.len() == set.len()
                    && set
                        .iter()
                        .zip(theirs)
                        .all(|((a, x), (b, y))| a == b && x.version == y.version)
            })
        };

        self.types.len() == other.types.len() && self.types.iter().all(of_type)
    }

    /// All types with at least one resource, by URL.
    pub fn types(&self) -> impl Iterator<Item = (&str, &TypeSet)> {
        self.types.iter().map(|(url, set)| (url.as_str(), set))
    }
}
