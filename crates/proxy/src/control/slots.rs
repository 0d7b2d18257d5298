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
    /// Why a newer version was refused, if one was.
    pub refused: Option<String>,
}

/// One resource.
#[derive(Debug)]
pub(super) struct Slot<T> {
    /// The version that serves.
    pub active: Option<Arc<T>>,
    /// The version that will serve in its place once everything that it needs has arrived.
    pub warming: Option<Arc<T>>,
    /// The newest version.
    pub received: Received,
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
    let (value, warnings) = match compiled {
        Ok(compiled) => compiled,
        Err(reason) => {
            if let Some(slot) = slots.get_mut(sent.name) {
                slot.received.refused = Some(reason.clone());
            }
            return Err(reason);
        }
    };

    let count = warnings.len();
    let received = received(sent, warnings);
    let Some(slot) = slots.get_mut(sent.name) else {
        let slot = Slot {
            active: None,
            warming: Some(value),
            received,
        };
        slots.insert(sent.name.into(), slot);
        return Ok(count);
    };

    // Dynamic resources never replace static ones.
    if slot.received.origin == Origin::Static && sent.origin == Origin::Dynamic {
        return Ok(0);
    }

    let is_active = slot
        .active
        .as_ref()
        .is_some_and(|active| Arc::ptr_eq(active, &value) || equal(active, &value));
    slot.warming = (!is_active).then_some(value);
    slot.received = received;

    Ok(count)
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
        refused: None,
    }
}

/// The newest version of each resource, whether it serves or waits.
pub(super) fn newest<T>(slots: &Slots<T>) -> impl Iterator<Item = &Arc<T>> {
    slots
        .values()
        .filter_map(|slot| slot.warming.as_ref().or(slot.active.as_ref()))
}

/// The versions that serve and those that wait: both need the resources that they name.
pub(super) fn used<T>(slots: &Slots<T>) -> impl Iterator<Item = &Arc<T>> {
    slots
        .values()
        .flat_map(|slot| slot.warming.iter().chain(&slot.active))
}

/// The versions that serve.
pub(super) fn actives<T>(slots: &Slots<T>) -> impl Iterator<Item = &Arc<T>> {
    slots.values().filter_map(|slot| slot.active.as_ref())
}
