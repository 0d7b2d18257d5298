//! Resources of one type as they were received: which of them serve, and which wait until they can.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use meltemi_filters::Warning;
use meltemi_proto::Any;

/// Where a resource comes from; a static one is never removed by a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The bootstrap.
    Static,
    /// A server.
    Dynamic,
}

/// A resource as it arrives.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    pub name: &'a str,
    /// Its version, as the server calls it; empty without a server.
    pub version: &'a str,
    /// The packed message.
    pub any: &'a Any,
    /// Where it comes from.
    pub origin: Origin,
}

/// A received resource, for `/config_dump`.
#[derive(Debug, Clone)]
pub struct Received {
    pub name: Arc<str>,
    /// Its version, as the server calls it.
    pub version: String,
    /// The packed message.
    pub any: Any,
    /// When it arrived.
    pub at: SystemTime,
    /// Where it comes from.
    pub origin: Origin,
    /// The parts of it that have no effect.
    pub warnings: Vec<Warning>,
}

/// A version of a resource that was refused, for `/config_dump`.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Its version, as the server calls it.
    pub version: String,
    /// The packed message.
    pub any: Any,
    /// When it arrived.
    pub at: SystemTime,
    /// Why it was refused.
    pub reason: String,
}

/// The versions of a resource that are known, for `/config_dump`.
#[derive(Debug, Clone)]
pub struct Versions {
    pub name: Arc<str>,
    /// The version that serves.
    pub active: Option<Received>,
    /// The version that will serve once everything that it needs has arrived.
    pub warming: Option<Received>,
    /// The newest version, if it was refused.
    pub refused: Option<Refused>,
}

/// A version that was accepted.
#[derive(Debug)]
pub(super) struct Version<T> {
    pub value: Arc<T>,
    pub received: Received,
}

/// One resource.
#[derive(Debug)]
pub(super) struct Slot<T> {
    /// The version that serves.
    pub active: Option<Version<T>>,
    /// The version that will serve in its place once everything that it needs has arrived.
    pub warming: Option<Version<T>>,
    /// The newest version, if it was refused.
    pub refused: Option<Refused>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            active: None,
            warming: None,
            refused: None,
        }
    }
}

impl<T> Slot<T> {
    /// Where the resource comes from.
    pub fn origin(&self) -> Origin {
        let accepted = self.warming.as_ref().or(self.active.as_ref());
        accepted.map_or(Origin::Dynamic, |version| version.received.origin)
    }

    /// Lets the version that waits serve.
    pub fn activate(&mut self) {
        self.active = self.warming.take();
    }

    /// The versions, for dumps.
    pub fn versions(&self, name: &Arc<str>) -> Versions {
        let received = |version: &Option<Version<T>>| {
            let version = version.as_ref()?;
            Some(version.received.clone())
        };
        Versions {
            name: name.clone(),
            active: received(&self.active),
            warming: received(&self.warming),
            refused: self.refused.clone(),
        }
    }
}

/// The resources of one type, by name.
pub(super) type Slots<T> = BTreeMap<Arc<str>, Slot<T>>;

/// Puts a resource that compiled into its slot, to be warmed, and notes in the slot why one did
/// not. Returns how many of its parts have no effect.
///
/// A resource that is sent again without a change must leave the active version alone, and with it
/// pools and connections. The compiler gives the same `Arc` for the same bytes; `equal` compares
/// values where other bytes say the same, since maps have no order on the wire.
pub(super) fn set<T>(
    slots: &mut Slots<T>,
    sent: Sent<'_>,
    compiled: Result<(Arc<T>, Vec<Warning>), String>,
    equal: impl Fn(&T, &T) -> bool,
) -> Result<usize, String> {
    let slot = slots.entry(sent.name.into()).or_default();
    let (value, warnings) = match compiled {
        Ok(compiled) => compiled,
        Err(reason) => {
            slot.refused = Some(refused(sent, &reason));
            return Err(reason);
        }
    };

    // Dynamic resources never replace static ones.
    if slot.origin() == Origin::Static && sent.origin == Origin::Dynamic {
        return Ok(0);
    }

    let count = warnings.len();
    let received = received(sent, warnings);
    slot.refused = None;
    match &mut slot.active {
        Some(active) if Arc::ptr_eq(&active.value, &value) || equal(&active.value, &value) => {
            active.received = received;
            slot.warming = None;
        }
        _ => slot.warming = Some(Version { value, received }),
    }

    Ok(count)
}

/// A version that did not compile, as it has just arrived.
pub(super) fn refused(sent: Sent<'_>, reason: &str) -> Refused {
    Refused {
        version: sent.version.to_owned(),
        any: sent.any.clone(),
        at: SystemTime::now(),
        reason: reason.to_owned(),
    }
}

/// A resource as it has just arrived.
pub(super) fn received(sent: Sent<'_>, warnings: Vec<Warning>) -> Received {
    let Sent {
        name,
        version,
        any,
        origin,
    } = sent;
    for warning in &warnings {
        tracing::debug!(resource = name, %warning, "left out");
    }

    Received {
        name: name.into(),
        version: version.to_owned(),
        any: any.clone(),
        at: SystemTime::now(),
        origin,
        warnings,
    }
}

/// The newest version of each resource, whether it serves or waits.
pub(super) fn newest<T>(slots: &Slots<T>) -> impl Iterator<Item = &Arc<T>> {
    let newest = slots
        .values()
        .filter_map(|slot| slot.warming.as_ref().or(slot.active.as_ref()));
    newest.map(|version| &version.value)
}

/// The versions that serve and those that wait: both need the resources that they name.
pub(super) fn used<T>(slots: &Slots<T>) -> impl Iterator<Item = &Arc<T>> {
    let used = slots
        .values()
        .flat_map(|slot| slot.warming.iter().chain(&slot.active));
    used.map(|version| &version.value)
}

/// The versions that serve.
pub(super) fn actives<T>(slots: &Slots<T>) -> impl Iterator<Item = &Arc<T>> {
    let actives = slots.values().filter_map(|slot| slot.active.as_ref());
    actives.map(|version| &version.value)
}

/// The versions that wait, by the name of their resource.
pub(super) fn waiting<T>(slots: &Slots<T>) -> impl Iterator<Item = (&Arc<str>, &Arc<T>)> {
    slots
        .iter()
        .filter_map(|(name, slot)| Some((name, &slot.warming.as_ref()?.value)))
}
