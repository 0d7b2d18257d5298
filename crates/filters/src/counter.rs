//! What filters count: numbers under the statistics prefix of their connection manager, by Envoy's
//! names.
//!
//! A [`Counter`] is made once, by a compiler, and has a place of its own in every [`Tally`]; adding
//! to it costs an index.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

/// A number that filters add to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    place: usize,
    name: Cow<'static, str>,
}

impl Counter {
    /// Requests that authorization let pass.
    pub const RBAC_ALLOWED: Self = Self::fixed(0, "rbac.allowed");
    /// Requests that authorization refused.
    pub const RBAC_DENIED: Self = Self::fixed(1, "rbac.denied");
    /// Connections that network authorization let pass, under Istio's statistics prefix.
    pub const TCP_RBAC_ALLOWED: Self = Self::fixed(2, "tcp.rbac.allowed");
    /// Connections that network authorization refused.
    pub const TCP_RBAC_DENIED: Self = Self::fixed(3, "tcp.rbac.denied");

    /// Counters of every connection manager, counted or not.
    pub const OF_HTTP: [Self; 2] = [Self::RBAC_ALLOWED, Self::RBAC_DENIED];
    /// Counters of connections, counted or not.
    pub const OF_CONNECTIONS: [Self; 2] = [Self::TCP_RBAC_ALLOWED, Self::TCP_RBAC_DENIED];

    const fn fixed(place: usize, name: &'static str) -> Self {
        Self {
            place,
            name: Cow::Borrowed(name),
        }
    }

    /// Envoy's name, without the connection manager's prefix.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Counters with a place of their own.
const FIXED: [Counter; 4] = [
    Counter::RBAC_ALLOWED,
    Counter::RBAC_DENIED,
    Counter::TCP_RBAC_ALLOWED,
    Counter::TCP_RBAC_DENIED,
];

/// How many names there may be; each is a place in every tally, for the life of the process.
const MAX_COUNTERS: usize = 1024;

/// The names of all counters of a process, so that an equal name is the same counter.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Mutex<Vec<Box<str>>>>);

impl Counters {
    /// The counter of a name; `None` if there are too many names already.
    pub fn get(&self, name: &str) -> Option<Counter> {
        if let Some(fixed) = FIXED.into_iter().find(|fixed| fixed.name == name) {
            return Some(fixed);
        }

        // Only compilers lock this. A poisoned lock holds a list that is still whole.
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.iter().position(|own| **own == *name);
        let at = match known {
            Some(at) => at,
            None if names.len() < MAX_COUNTERS => {
                names.push(name.into());
                names.len() - 1
            }
            None => return None,
        };

        Some(Counter {
            place: FIXED.len() + at,
            name: Cow::Owned(name.to_owned()),
        })
    }
}

/// One worker's counts under one statistics prefix.
#[derive(Debug, Clone, Default)]
pub struct Tally(RefCell<Vec<Option<(Counter, u64)>>>);

impl Tally {
    /// Adds one to a counter.
    pub fn count(&self, counter: &Counter) {
        self.raise(counter, 1);
    }

    fn raise(&self, counter: &Counter, n: u64) {
        let mut places = self.0.borrow_mut();
        if places.len() <= counter.place {
            places.resize(counter.place + 1, None);
        }

        match &mut places[counter.place] {
            Some((_, value)) => *value = value.wrapping_add(n),
            empty => *empty = Some((counter.clone(), n)),
        }
    }

    /// Adds all counts of another worker.
    pub fn add(&self, other: &Self) {
        for (counter, value) in other.0.borrow().iter().flatten() {
            self.raise(counter, *value);
        }
    }

    /// Names and values of what was counted, and of `always`.
    pub fn values(&self, always: &[Counter]) -> Vec<(String, u64)> {
        let places = self.0.borrow();
        let is_counted = |counter: &Counter| places.get(counter.place).is_some_and(Option::is_some);
        let zeros = always.iter().filter(|counter| !is_counted(counter));

        zeros
            .map(|counter| (counter.name.to_string(), 0))
            .chain(
                places
                    .iter()
                    .flatten()
                    .map(|(counter, value)| (counter.name.to_string(), *value)),
            )
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_a_place_and_tallies_add_up() {
        let counters = Counters::default();
        let ok = counters.get("ext_authz.ok").expect("there is room");
        assert_eq!(counters.get("ext_authz.ok"), Some(ok.clone()));
        assert_eq!(counters.get("rbac.denied"), Some(Counter::RBAC_DENIED));

        let (one, other) = (Tally::default(), Tally::default());
        one.count(&Counter::RBAC_DENIED);
        other.count(&ok);
        other.count(&ok);
        one.add(&other);
        let wanted = [("rbac.allowed", 0), ("rbac.denied", 1), ("ext_authz.ok", 2)];
        assert_eq!(
            one.values(&Counter::OF_HTTP),
            wanted.map(|(name, value)| (name.to_owned(), value))
        );
    }

    #[test]
    fn names_are_limited() {
        let counters = Counters::default();
        let made = (0..2 * MAX_COUNTERS).filter_map(|n| counters.get(&format!("x{n}")));
        assert_eq!(made.count(), MAX_COUNTERS);
    }
}
