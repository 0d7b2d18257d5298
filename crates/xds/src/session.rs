//! The server's half of the protocol, without I/O: requests and resource sets in, responses out.
//!
//! This module holds what both variants share: subscriptions, responses in flight, acknowledged
//! versions, and the order of responses. Per type, at most one response waits for its
//! acknowledgement; changes meanwhile are merged into the next response.
//!
//! Responses follow "make before break". The order is clusters, endpoints, listeners, routes.
//! Listeners and routes wait until the client has acknowledged new clusters and the endpoints that
//! it requested. Clusters are removed only after the client has acknowledged the listeners and
//! routes that no longer refer to them. Resources requested by name are answered at once.

pub(crate) mod delta;
pub(crate) mod sotw;
pub(crate) mod status;
mod types;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::type_url::{
    CLUSTER, ENDPOINT, LISTENER, PUSH_ORDER, ROUTE, SECRET, VIRTUAL_HOST,
};

use crate::client::session::is_full_type;
use crate::{Packed, ResourceSet, TypeSet, Variant};
use status::{TypeStatus, Verdict};
use types::{InFlight, TypeState};

/// Names per type that a client may subscribe to.
const MAX_NAMES: usize = 200_000;
/// Types per stream.
const MAX_TYPES: usize = 64;
const MAX_NAME_BYTES: usize = 4096;
const MAX_REASON_BYTES: usize = 4096;

/// A violation of the protocol by the client, which ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A request without a type URL.
    #[error("the request names no type URL")]
    NoType,
    /// Too many types, too many names, or names that are too long.
    #[error("too much: {0}")]
    Limit(String),
}

/// A session of one variant.
pub trait ServerSession: Send + 'static {
    /// The client's message.
    type Request: Send + 'static;
    /// The server's message.
    type Response: prost::Message + Send + 'static;
    /// The variant.
    const VARIANT: Variant;

    /// Creates a session without subscriptions.
    fn new() -> Self;
    /// Handles a request. Returns the verdict if the request acknowledges or rejects the response
    /// in flight.
    fn on_request(&mut self, request: Self::Request) -> Result<Option<Verdict>, ProtocolError>;
    /// Replaces the resources that this client may see. No response is sent before the first call.
    fn set_resources(&mut self, set: Arc<ResourceSet>);
    /// The next response, if one is due and the protocol allows it now.
    fn next_response(&mut self) -> Option<Self::Response>;
    /// The state of each type, in push order.
    fn status(&self) -> Vec<TypeStatus>;
    /// The resources that this client should have.
    fn resources(&self) -> Option<Arc<ResourceSet>>;
    /// The node of a request; only the first request of a stream must have one.
    fn node(request: &Self::Request) -> Option<&Node>;
    /// The names that a request subscribes to.
    fn names(request: &Self::Request) -> &[String];
    /// Type URL, number of resources and number of removals of a response.
    fn describe(response: &Self::Response) -> (&str, usize, usize);
}

/// A resource to send: name, version, content.
type Sending = (String, Arc<str>, Arc<dyn Packed>);

/// A response, independent of the variant.
pub(crate) struct Push {
    pub(crate) type_url: String,
    pub(crate) nonce: String,
    pub(crate) version: String,
    pub(crate) set: Vec<Sending>,
    pub(crate) removed: Vec<String>,
}

pub(crate) struct Core {
    variant: Variant,
    set: Option<Arc<ResourceSet>>,
    types: BTreeMap<String, TypeState>,
    nonces: u64,
}

impl Core {
    pub(crate) fn new(variant: Variant) -> Self {
        Self {
            variant,
            set: None,
            types: BTreeMap::new(),
            nonces: 0,
        }
    }

    pub(crate) fn set_resources(&mut self, set: Arc<ResourceSet>) {
        self.set = Some(set);
        for state in self.types.values_mut() {
            state.stale = true;
        }
    }

    pub(crate) fn resources(&self) -> Option<Arc<ResourceSet>> {
        self.set.clone()
    }

    /// The state of a type, and whether this is the stream's first request for the type.
    pub(crate) fn subscribed(
        &mut self,
        type_url: &str,
    ) -> Result<(&mut TypeState, bool), ProtocolError> {
        if type_url.is_empty() {
            return Err(ProtocolError::NoType);
        }
        let first = !self.types.contains_key(type_url);
        if first && (self.types.len() >= MAX_TYPES || type_url.len() > MAX_NAME_BYTES) {
            return Err(ProtocolError::Limit(format!(
                "a stream carries at most {MAX_TYPES} types"
            )));
        }

        let state = self.types.entry(type_url.to_owned()).or_default();
        state.stale = true;

        Ok((state, first))
    }

    pub(crate) fn known_type(&self, type_url: &str) -> Option<&TypeState> {
        self.types.get(type_url)
    }

    /// Records the client's answer to the response in flight. An answer with another nonce is stale
    /// and ignored.
    pub(crate) fn answered(
        &mut self,
        type_url: &str,
        nonce: &str,
        error: Option<String>,
    ) -> Option<Verdict> {
        // A rejected whole list (SotW clusters and listeners) leaves the client's state unchanged,
        // and the next list repeats everything. Other responses carry several resources, of which
        // Envoy stops accepting at the first that it rejects: the rest must be sent again.
        let resend = self.variant == Variant::Delta || !is_full_type(type_url);
        let state = self.types.get_mut(type_url)?;
        let flight = state.in_flight.take_if(|flight| flight.nonce == nonce)?;
        let (type_url, nonce) = (type_url.to_owned(), nonce.to_owned());

        match error {
            None => {
                state.acked(flight);
                Some(Verdict::Acked { type_url, nonce })
            }
            Some(reason) => {
                let reason = truncate(reason);
                let names = state.nacked(flight, &reason, resend);
                Some(Verdict::Nacked {
                    type_url,
                    nonce,
                    names,
                    reason,
                })
            }
        }
    }

    /// The next response in push order.
    pub(crate) fn next_push(&mut self) -> Option<Push> {
        let set = self.set.clone()?;
        let none = TypeSet::new();
        for (url, state) in &mut self.types {
            if state.stale {
                state.refresh(set.of(url).unwrap_or(&none));
            }
        }

        let others = self
            .types
            .keys()
            .filter(|url| !PUSH_ORDER.contains(&url.as_str()))
            .cloned();

        let order: Vec<String> = PUSH_ORDER
            .iter()
            .map(|&url| url.to_owned())
            .chain(others)
            .collect();

        order
            .into_iter()
            .find_map(|url| self.push_of(&url, set.of(&url).unwrap_or(&none)))
    }

    fn push_of(&mut self, url: &str, set: &TypeSet) -> Option<Push> {
        let (hold_sets, hold_removals) = (self.holds_sets(url), self.holds_removals(url));
        let whole = self.variant == Variant::Sotw && is_full_type(url);
        let silent_removals = self.variant == Variant::Sotw && !whole;
        let state = self.types.get_mut(url)?;

        if state.in_flight.is_some() {
            return None;
        }
        if silent_removals {
            state.forget_removals();
        }
        let mut names = state.sets_to_send(hold_sets);
        let removed = state.removals_to_send(hold_removals);
        let must_answer = state.must_answer && !hold_sets;

        if names.is_empty() && removed.is_empty() && !must_answer {
            return None;
        }
        let changed = names.clone();
        let fresh = state.is_fresh(&names, &removed);
        let mut lingering = Vec::new();

        if whole {
            names = set
                .keys()
                .filter(|name| state.wants(name))
                .cloned()
                .collect();
            lingering = state.lingering(&removed);
        }

        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let mut content: Vec<Sending> = names
            .into_iter()
            .filter_map(|name| {
                set.get(&name)
                    .map(|r| (name, r.version.clone(), r.content.clone()))
            })
            .collect();

        content.extend(lingering);
        let version = match self.variant {
            Variant::Delta => nonce.clone(),
            Variant::Sotw if whole => digest(
                content
                    .iter()
                    .map(|(name, version, _)| (name.as_str(), &**version)),
            ),
            Variant::Sotw => state.version(set),
        };

        let flight = InFlight {
            nonce: nonce.clone(),
            set: content
                .iter()
                .map(|(name, version, _)| (name.clone(), version.clone()))
                .collect(),
            removed: removed.clone(),
            fresh,
        };

        state.sent(flight, &content, &changed);
        if url == CLUSTER
            && let Some(endpoints) = self.types.get_mut(ENDPOINT)
        {
            // Envoy warms a replaced cluster and waits for its endpoints, even if they have not
            // changed: send them again.
            endpoints.request_again(&changed);
        }

        Some(Push {
            type_url: url.to_owned(),
            nonce,
            version,
            set: content,
            removed,
        })
    }

    /// Whether changes of this type must wait for resources that they may refer to.
    fn holds_sets(&self, url: &str) -> bool {
        let clusters = || {
            self.types
                .get(CLUSTER)
                .is_some_and(|state| state.in_flight.is_some() || state.has_sets())
        };
        // Endpoints change often. Only endpoints that the client waits for delay other types.
        let endpoints = || self.types.get(ENDPOINT).is_some_and(TypeState::is_awaited);
        matches!(url, LISTENER | ROUTE | VIRTUAL_HOST) && (clusters() || endpoints())
    }

    /// Whether removals of this type must wait until the client uses no resource that refers to
    /// them. A rejected listener or route leaves its previous version in use, so it delays removals
    /// as well.
    fn holds_removals(&self, url: &str) -> bool {
        let users: &[&str] = match url {
            CLUSTER => &[LISTENER, ROUTE, VIRTUAL_HOST],
            ROUTE | VIRTUAL_HOST => &[LISTENER],
            SECRET => &[LISTENER, CLUSTER],
            ENDPOINT => {
                return self
                    .types
                    .get(CLUSTER)
                    .is_some_and(|state| state.is_unsettled() || state.has_removals());
            }
            _ => &[],
        };

        users
            .iter()
            .any(|user| self.types.get(*user).is_some_and(TypeState::is_unsettled))
    }

    pub(crate) fn status(&self) -> Vec<TypeStatus> {
        let rank = |url: &str| {
            PUSH_ORDER
                .iter()
                .position(|known| *known == url)
                .unwrap_or(PUSH_ORDER.len())
        };

        let mut all: Vec<TypeStatus> = self
            .types
            .iter()
            .map(|(url, state)| state.status(url, self.set.as_ref().and_then(|set| set.of(url))))
            .collect();

        all.sort_by_key(|status| rank(&status.type_url));

        all
    }
}

/// A version for a list of resources: a hash over names and versions.
fn digest<'a>(resources: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut hasher = DefaultHasher::new();
    for pair in resources {
        pair.hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

/// Truncates a client's error message to [`MAX_REASON_BYTES`].
fn truncate(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        let mut end = MAX_REASON_BYTES;
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
    }
    reason
}

/// Checks number and length of the names of one request.
fn check_names(names: &[String]) -> Result<(), ProtocolError> {
    if names.len() > MAX_NAMES {
        return Err(ProtocolError::Limit(format!(
            "at most {MAX_NAMES} names per type"
        )));
    }

    if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
        return Err(ProtocolError::Limit(format!(
            "a name has at most {MAX_NAME_BYTES} bytes"
        )));
    }

    Ok(())
}

#[cfg(test)]
mod tests;
