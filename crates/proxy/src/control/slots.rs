//! Resources of one type as they were received: what serves, and what waits until it can.

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

/// A resource as it was received, for `/config_dump`.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its name.
    pub name: Arc<str>,
    /// Its version in the server's words.
    pub version: String,
    /// The packed message.
    pub any: Any,
    /// When it came.
    pub at: SystemTime,
    /// Where from.
    pub origin: Origin,
    /// What is left out of it.
    pub warnings: Vec<Warning>,
    /// Why a newer version was refused, if one was.
    pub refused: Option<String>,
}

/// One resource.
#[derive(Debug)]
pub(super) struct Slot<T> {
    /// Serves.
    pub active: Option<Arc<T>>,
    /// Will serve in its place once what it needs is there.
    pub warming: Option<Arc<T>>,
    /// The newest version.
    pub received: Received,
}

/// What is known of one type.
pub(super) type Slots<T> = BTreeMap<Arc<str>, Slot<T>>;

/// Puts a resource that compiled into its slot, to be warmed; one that did not is noted in it.
pub(super) fn set<T: std::fmt::Debug>(
    slots: &mut Slots<T>,
    name: &str,
    version: &str,
    any: &Any,
    origin: Origin,
    compiled: Result<(Arc<T>, Vec<Warning>), String>,
) -> Result<usize, String> {
    let (value, warnings) = match compiled {
        Ok(compiled) => compiled,
        Err(reason) => {
            if let Some(slot) = slots.get_mut(name) {
                slot.received.refused = Some(reason.clone());
            }
            return Err(reason);
        }
    };

    let count = warnings.len();
    let received = received(name, version, any, origin, warnings);
    let Some(slot) = slots.get_mut(name) else {
        let slot = Slot {
            active: None,
            warming: Some(value),
            received,
        };
        slots.insert(name.into(), slot);
        return Ok(count);
    };

    if slot.received.origin == Origin::Static && origin == Origin::Dynamic {
        // The bootstrap's own word stands.
        return Ok(0);
    }

    // Sent again without a change: what serves, with its pools and connections, stays. The same
    // bytes are the same allocation. Other bytes may still say the same, since maps have no order
    // on the wire; the debug form shows every field, in order.
    let same = |active: &Arc<T>| {
        Arc::ptr_eq(active, &value) || format!("{active:?}") == format!("{value:?}")
    };
    let same = slot.active.as_ref().is_some_and(same);
    slot.warming = (!same).then_some(value);
    slot.received = received;

    Ok(count)
}

/// A resource as it has just come.
pub(super) fn received(
    name: &str,
    version: &str,
    any: &Any,
    origin: Origin,
    warnings: Vec<Warning>,
) -> Received {
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

/// The newest version of each, whether it serves or waits.
pub(super) fn newest<T>(slots: &Slots<T>) -> impl Iterator<Item = &Arc<T>> {
    slots
        .values()
        .filter_map(|slot| slot.warming.as_ref().or(slot.active.as_ref()))
}

/// What serves and what waits to: both need what they refer to.
pub(super) fn used<T>(slots: &Slots<T>) -> impl Iterator<Item = &Arc<T>> {
    slots
        .values()
        .flat_map(|slot| slot.warming.iter().chain(&slot.active))
}

/// What serves.
pub(super) fn actives<T>(slots: &Slots<T>) -> impl Iterator<Item = (&Arc<str>, &Arc<T>)> {
    slots
        .iter()
        .filter_map(|(name, slot)| Some((name, slot.active.as_ref()?)))
}
