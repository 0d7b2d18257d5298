//! The server's half of the protocol, without IO: requests and resource sets in, responses out.
//!
//! What both variants share is here: who wants what, what is on its way, what was taken, and in
//! which order things go out. At most one response per type is unanswered; what changes meanwhile
//! is merged into the next one.
//!
//! The order is make before break. Changes go out clusters, endpoints, listeners, routes; listeners
//! and routes wait until new clusters and the endpoints that the client asked for are taken, and
//! clusters are removed only after the listeners and routes that no longer name them are taken.
//! What a client asks for by name is answered at once.

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

/// Names a client may subscribe to per type, and types per stream.
const MAX_NAMES: usize = 200_000;
const MAX_TYPES: usize = 64;
const MAX_NAME_BYTES: usize = 4096;
const MAX_REASON_BYTES: usize = 4096;

/// What a client must not do; ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A request without a type.
    #[error("the request names no type URL")]
    NoType,
    /// More types, names or longer names than a sane client has.
    #[error("too much: {0}")]
    Limit(String),
}

/// A session of one variant, as the driver sees it.
pub trait ServerSession: Send + 'static {
    /// What the client sends.
    type Request: Send + 'static;
    /// What the client gets.
    type Response: prost::Message + Send + 'static;
    /// Which variant this is.
    const VARIANT: Variant;

    /// A session that knows nothing yet.
    fn new() -> Self;
    /// Takes a request; the verdict is what it said of an earlier response, if that was the one in
    /// flight.
    fn on_request(&mut self, request: Self::Request) -> Result<Option<Verdict>, ProtocolError>;
    /// Replaces everything that this client may see. The first call unblocks responses.
    fn set_resources(&mut self, set: Arc<ResourceSet>);
    /// The next response, if something is to be said and the protocol allows it now.
    fn next_response(&mut self) -> Option<Self::Response>;
    /// Per type, in push order.
    fn status(&self) -> Vec<TypeStatus>;
    /// What this client is to have.
    fn resources(&self) -> Option<Arc<ResourceSet>>;
    /// The node of a request; only a stream's first one must have it.
    fn node(request: &Self::Request) -> Option<&Node>;
    /// The names that a request asks for.
    fn names(request: &Self::Request) -> &[String];
    /// The type and size of a response: type URL, resources, removals.
    fn describe(response: &Self::Response) -> (&str, usize, usize);
}

/// A resource on its way: name, version, content.
type Sending = (String, Arc<str>, Arc<dyn Packed>);

/// What goes out, in neither variant's clothes.
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

    /// The state of a type, and whether this request is the stream's first of it.
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

    /// Settles the response in flight, if the nonce is its; a stale nonce changes nothing.
    pub(crate) fn answered(
        &mut self,
        type_url: &str,
        nonce: &str,
        error: Option<String>,
    ) -> Option<Verdict> {
        // A list of clusters or listeners that is refused leaves what the client had, and the next
        // one repeats it whole. Everything else goes out in parts, of which Envoy stops taking at
        // the first that it refuses.
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
                let reason = cut(reason);
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
            // A cluster that is replaced warms anew and waits for its endpoints, even if those did
            // not change.
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

    /// Whether changes of this type must wait for what they may refer to.
    fn holds_sets(&self, url: &str) -> bool {
        let clusters = || {
            self.types
                .get(CLUSTER)
                .is_some_and(|state| state.in_flight.is_some() || state.has_sets())
        };
        // Endpoints change all the time; only those that the client is waiting for hold others up.
        let endpoints = || self.types.get(ENDPOINT).is_some_and(TypeState::is_awaited);
        matches!(url, LISTENER | ROUTE | VIRTUAL_HOST) && (clusters() || endpoints())
    }

    /// Whether removals of this type must wait until nothing that the client uses refers to them
    /// any more. A refused listener or route leaves its predecessor in use, so it holds the
    /// removals up as well.
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

/// A version for a list of resources.
fn digest<'a>(resources: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut hasher = DefaultHasher::new();
    for pair in resources {
        pair.hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn cut(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        let mut end = MAX_REASON_BYTES;
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
    }
    reason
}

/// Checks the names of one request.
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
