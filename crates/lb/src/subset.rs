//! Subsets of a cluster's endpoints by metadata. Source: Envoy `subset_lb.cc`.

use std::collections::HashMap;
use std::sync::Arc;

use crate::host::Host;

/// Subset settings of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsetConfig {
    /// The combinations of keys that make subsets.
    pub selectors: Vec<SubsetSelector>,
    /// Where a request goes that no subset fits.
    pub fallback: Fallback,
    /// The subset of [`Fallback::Default`].
    pub default: SubsetMatch,
}

/// Keys that together make subsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsetSelector {
    /// The keys, sorted.
    pub keys: Vec<Arc<str>>,
    /// Where a request goes that no subset of these keys fits; `None` takes the cluster's fallback.
    pub fallback: Option<Fallback>,
}

/// Where a request goes that no subset fits. Envoy: `fallback_policy`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fallback {
    /// The request fails.
    #[default]
    None,
    /// Any endpoint.
    Any,
    /// The default subset.
    Default,
    /// The subset of these keys only, a part of the selector's keys. Envoy: `fallback_keys_subset`.
    Keys(Vec<Arc<str>>),
}

/// Metadata that an endpoint must have: sorted keys with canonical values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct SubsetMatch(Vec<(Arc<str>, Arc<str>)>);

impl SubsetMatch {
    /// Takes criteria in any order; the last of equal keys counts.
    pub fn new(pairs: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let sorted: std::collections::BTreeMap<Arc<str>, Arc<str>> = pairs.into_iter().collect();
        Self(sorted.into_iter().collect())
    }

    /// Merges two sets of criteria; a key of `self` wins over the same key of `other`.
    pub fn over(&self, other: &Self) -> Self {
        Self::new(other.0.iter().chain(&self.0).cloned())
    }

    /// Whether there is no criterion.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The criteria, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    fn has_keys(&self, keys: &[Arc<str>]) -> bool {
        self.0.len() == keys.len()
            && self
                .0
                .iter()
                .zip(keys)
                .all(|((key, _), wanted)| key == wanted)
    }

    fn only(&self, keys: &[Arc<str>]) -> Self {
        Self(
            self.0
                .iter()
                .filter(|(key, _)| keys.contains(key))
                .cloned()
                .collect(),
        )
    }

    pub(crate) fn admits(&self, host: &Host) -> bool {
        self.0
            .iter()
            .all(|wanted| host.subset_values.contains(wanted))
    }
}

/// The subsets of a cluster with the endpoints of each.
pub(crate) fn members(config: &SubsetConfig, hosts: &[Host]) -> HashMap<SubsetMatch, Vec<u32>> {
    let mut subsets: HashMap<SubsetMatch, Vec<u32>> = HashMap::new();
    for (number, host) in hosts.iter().enumerate() {
        let mut own: Vec<SubsetMatch> = Vec::new();
        for selector in &config.selectors {
            let values = selector.keys.iter().map(|key| {
                host.subset_values
                    .iter()
                    .find(|(own, _)| own == key)
                    .map(|(key, value)| (key.clone(), value.clone()))
            });
            if let Some(pairs) = values.collect::<Option<Vec<_>>>() {
                own.push(SubsetMatch(pairs));
            }
        }

        own.sort_by(|a, b| a.0.cmp(&b.0));
        own.dedup();
        for subset in own {
            subsets.entry(subset).or_default().push(number as u32);
        }
    }

    subsets
}

/// The endpoints that a request's criteria lead to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resolved<'a> {
    /// This subset.
    Subset(std::borrow::Cow<'a, SubsetMatch>),
    /// Any endpoint.
    Any,
    /// The default subset.
    Default,
    /// None.
    Nothing,
}

/// Finds the subset for a request's criteria, or the fallback that applies. `exists` says whether a
/// subset has endpoints.
pub(crate) fn resolve<'a>(
    config: &SubsetConfig,
    wanted: Option<&'a SubsetMatch>,
    exists: impl Fn(&SubsetMatch) -> bool,
) -> Resolved<'a> {
    let mut fallback = &config.fallback;
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        if exists(wanted) {
            return Resolved::Subset(std::borrow::Cow::Borrowed(wanted));
        }
        let selector = config
            .selectors
            .iter()
            .find(|selector| wanted.has_keys(&selector.keys));

        if let Some(own) = selector.and_then(|selector| selector.fallback.as_ref()) {
            fallback = own;
        }
        if let Fallback::Keys(keys) = fallback {
            let fewer = wanted.only(keys);
            return match exists(&fewer) {
                true => Resolved::Subset(std::borrow::Cow::Owned(fewer)),
                false => Resolved::Nothing,
            };
        }
    }

    match fallback {
        Fallback::None | Fallback::Keys(_) => Resolved::Nothing,
        Fallback::Any => Resolved::Any,
        Fallback::Default => Resolved::Default,
    }
}
