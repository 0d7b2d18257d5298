//! The state of one resource type on one stream: subscriptions, sent and acknowledged versions,
//! pending changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::status::{Nack, ResourceStatus, TypeStatus};
use super::{MAX_NAMES, ProtocolError, Sending, digest};
use crate::{Packed, TypeSet};

#[derive(Default)]
pub(crate) struct TypeState {
    pub(crate) wildcard: bool,
    pub(crate) names: BTreeSet<String>,
    /// Resources that were sent, or that the client reported to hold when the stream began.
    known: BTreeMap<String, SentResource>,
    /// Names that need an answer even if nothing changed.
    requested: BTreeSet<String>,
    /// Send a response even if it is empty: a client's first request waits for one.
    pub(crate) must_answer: bool,
    pub(crate) in_flight: Option<InFlight>,
    acked: BTreeMap<String, Arc<str>>,
    nacks: BTreeMap<String, Nack>,
    /// Whether `sets` and `removals` must be recomputed.
    pub(crate) stale: bool,
    sets: BTreeSet<String>,
    removals: BTreeSet<String>,
    pushes: u64,
    ack_count: u64,
    nack_count: u64,
}

struct SentResource {
    version: Arc<str>,
    /// The sent content. State of the world needs it for clusters whose removal is delayed: they
    /// stay in the list.
    content: Option<Arc<dyn Packed>>,
}

pub(crate) struct InFlight {
    pub(crate) nonce: String,
    pub(crate) set: Vec<(String, Arc<str>)>,
    pub(crate) removed: Vec<String>,
    /// Whether the response contains names that the client waits for.
    pub(crate) fresh: bool,
}

impl TypeState {
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Records the resources that the client reports to hold from an earlier stream.
    pub(crate) fn holds_already(&mut self, versions: impl Iterator<Item = (String, String)>) {
        for (name, version) in versions.take(MAX_NAMES) {
            let version: Arc<str> = version.into();
            self.acked.insert(name.clone(), version.clone());
            self.known.insert(
                name,
                SentResource {
                    version,
                    content: None,
                },
            );
        }
    }

    pub(crate) fn knows(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    pub(crate) fn add(&mut self, name: String, answer: bool) -> Result<(), ProtocolError> {
        if self.names.len() >= MAX_NAMES {
            return Err(ProtocolError::Limit(format!(
                "at most {MAX_NAMES} names per type"
            )));
        }

        if answer {
            self.requested.insert(name.clone());
        }
        self.names.insert(name);
        self.stale = true;

        Ok(())
    }

    pub(crate) fn drop_name(&mut self, name: &str) {
        self.names.remove(name);
        self.requested.remove(name);
        self.stale = true;
        if self.wildcard {
            // The client dropped the resource, but its wildcard may still cover it: send the
            // resource or its removal.
            self.requested.insert(name.to_owned());
        } else {
            self.forget(name);
        }
    }

    pub(crate) fn drop_wildcard(&mut self) {
        self.wildcard = false;
        self.stale = true;
        let unwanted: Vec<String> = self
            .known
            .keys()
            .filter(|name| !self.names.contains(*name))
            .cloned()
            .collect();

        for name in unwanted {
            self.forget(&name);
            self.requested.remove(&name);
        }
    }

    /// Marks subscribed names to be sent again.
    pub(crate) fn request_again(&mut self, names: &BTreeSet<String>) {
        for name in names {
            if self.names.contains(name) && self.known.contains_key(name) {
                self.requested.insert(name.clone());
                self.stale = true;
            }
        }
    }

    fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.acked.remove(name);
        self.nacks.remove(name);
    }

    pub(crate) fn refresh(&mut self, set: &TypeSet) {
        self.stale = false;
        let changed = |name: &String, version: &Arc<str>| {
            self.requested.contains(name)
                || self
                    .known
                    .get(name)
                    .is_none_or(|known| known.version != *version)
        };

        self.sets = if self.wildcard {
            set.iter()
                .filter(|(name, r)| changed(name, &r.version))
                .map(|(name, _)| name.clone())
                .collect()
        } else {
            let named = self
                .names
                .iter()
                .filter_map(|name| set.get(name).map(|r| (name, r)));
            named
                .filter(|(name, r)| changed(name, &r.version))
                .map(|(name, _)| name.clone())
                .collect()
        };

        let gone = self
            .known
            .keys()
            .chain(&self.requested)
            .filter(|name| !set.contains_key(*name));

        self.removals = gone.cloned().collect();
    }

    pub(crate) fn has_sets(&self) -> bool {
        self.must_answer || !self.sets.is_empty()
    }

    pub(crate) fn has_removals(&self) -> bool {
        !self.removals.is_empty()
    }

    /// Whether the client waits for a resource that it named.
    pub(crate) fn is_awaited(&self) -> bool {
        self.must_answer
            || !self.requested.is_empty()
            || self.in_flight.as_ref().is_some_and(|flight| flight.fresh)
    }

    /// Whether the client may still use an older version than it should have.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.in_flight.is_some() || self.has_sets() || !self.nacks.is_empty()
    }

    pub(crate) fn sets_to_send(&self, hold: bool) -> BTreeSet<String> {
        if hold {
            self.sets.intersection(&self.requested).cloned().collect()
        } else {
            self.sets.clone()
        }
    }

    pub(crate) fn removals_to_send(&self, hold: bool) -> Vec<String> {
        let requested = |name: &&String| !hold || self.requested.contains(*name);
        self.removals.iter().filter(requested).cloned().collect()
    }

    /// Drops removals that this variant cannot express.
    pub(crate) fn forget_removals(&mut self) {
        for name in std::mem::take(&mut self.removals) {
            self.forget(&name);
            self.requested.remove(&name);
        }
    }

    pub(crate) fn is_fresh(&self, names: &BTreeSet<String>, removed: &[String]) -> bool {
        names
            .iter()
            .chain(removed)
            .any(|name| self.requested.contains(name))
    }

    /// Resources whose removal is delayed. A whole list must still contain them.
    pub(crate) fn lingering(&self, removed: &[String]) -> Vec<Sending> {
        let kept = self.removals.iter().filter(|name| !removed.contains(name));
        kept.filter_map(|name| {
            let known = self.known.get(name)?;
            Some((name.clone(), known.version.clone(), known.content.clone()?))
        })
        .collect()
    }

    /// A version over all existing resources that the client wants, for a response that carries
    /// only some of them.
    pub(crate) fn version(&self, set: &TypeSet) -> String {
        digest(
            set.iter()
                .filter(|(name, _)| self.wants(name))
                .map(|(name, r)| (name.as_str(), &*r.version)),
        )
    }

    /// Records a sent response. `changed` are the resources that caused it.
    pub(crate) fn sent(
        &mut self,
        flight: InFlight,
        content: &[Sending],
        changed: &BTreeSet<String>,
    ) {
        for (name, version, packed) in content {
            self.known.insert(
                name.clone(),
                SentResource {
                    version: version.clone(),
                    content: Some(packed.clone()),
                },
            );
        }

        for name in &flight.removed {
            self.known.remove(name);
            self.removals.remove(name);
            self.requested.remove(name);
        }

        for name in changed {
            self.requested.remove(name);
            self.sets.remove(name);
        }

        self.must_answer = false;
        self.pushes += 1;
        self.in_flight = Some(flight);
    }

    pub(crate) fn acked(&mut self, flight: InFlight) {
        self.ack_count += 1;
        for (name, version) in flight.set {
            self.nacks.remove(&name);
            if self.wants(&name) {
                self.acked.insert(name, version);
            }
        }

        for name in flight.removed {
            self.acked.remove(&name);
            self.nacks.remove(&name);
        }
    }

    /// Records a NACK for the resources that `reason` names, or for all if it names none. A
    /// rejected version is not sent again. If the reason names some resources and the client may
    /// have dropped the others too (`resend`), the others are sent again.
    pub(crate) fn nacked(&mut self, flight: InFlight, reason: &str, resend: bool) -> Vec<String> {
        self.nack_count += 1;
        let (mut rejected, others): (Vec<_>, Vec<_>) = flight
            .set
            .into_iter()
            .partition(|(name, _)| names_it(reason, name));

        if rejected.is_empty() {
            rejected = others;
        } else if resend {
            for (name, _) in others {
                self.known.remove(&name);
            }
            for name in flight.removed {
                self.known.insert(
                    name,
                    SentResource {
                        version: "".into(),
                        content: None,
                    },
                );
            }
        }

        self.stale = true;
        let names: Vec<String> = rejected.iter().map(|(name, _)| name.clone()).collect();
        for (name, version) in rejected {
            // A state-of-the-world list repeats resources that the client has acknowledged before;
            // those are not the cause.
            if self.acked.get(&name) != Some(&version) {
                self.nacks.insert(
                    name,
                    Nack {
                        version,
                        reason: reason.to_owned(),
                    },
                );
            }
        }

        names
    }

    pub(crate) fn status(&self, url: &str, set: Option<&TypeSet>) -> TypeStatus {
        let mut resources: BTreeMap<String, ResourceStatus> = BTreeMap::new();
        for (name, resource) in set
            .into_iter()
            .flatten()
            .filter(|(name, _)| self.wants(name))
        {
            resources.entry(name.clone()).or_default().wanted = Some(resource.version.clone());
        }

        for (name, known) in &self.known {
            resources.entry(name.clone()).or_default().sent = Some(known.version.clone());
        }
        for (name, version) in &self.acked {
            resources.entry(name.clone()).or_default().acked = Some(version.clone());
        }
        for (name, nack) in &self.nacks {
            resources.entry(name.clone()).or_default().nack = Some(nack.clone());
        }

        TypeStatus {
            type_url: url.to_owned(),
            wildcard: self.wildcard,
            names: self.names.len(),
            in_flight: self.in_flight.is_some(),
            pushes: self.pushes,
            acks: self.ack_count,
            nacks: self.nack_count,
            resources,
        }
    }
}

/// Whether a text contains a resource's name as a separate word: `cluster a.b is bad` does not
/// contain `a`.
fn names_it(text: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '|' | '/');
    !name.is_empty()
        && text.match_indices(name).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            let mut after = text[at + name.len()..].chars();
            // A full stop after the name may end the sentence, or continue a longer name.
            let after = match after.next() {
                Some('.') => after.next(),
                other => other,
            };
            !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
        })
}
