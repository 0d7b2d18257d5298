//! The client's half of the protocol, without IO: subscriptions and answers in, requests out;
//! responses in, updates out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use meltemi_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::{Any, google, type_url};
use prost::Message;

use super::{NamedResource, Subscription, Update};
use crate::Variant;
use crate::naming::{WRAPPED, name_of};

/// `google.rpc.Code.INVALID_ARGUMENT`, the code of Envoy's NACKs.
const INVALID_ARGUMENT: i32 = 3;

/// A request of the session's variant.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientRequest {
    /// Incremental.
    Delta(DeltaDiscoveryRequest),
    /// State of the world.
    Sotw(DiscoveryRequest),
}

/// A response of the session's variant.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientResponse {
    /// Incremental.
    Delta(DeltaDiscoveryResponse),
    /// State of the world.
    Sotw(DiscoveryResponse),
}

/// The result of handling a response.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// An update for the owner to apply and answer.
    Update(Update),
    /// A malformed response, which the session has rejected already.
    Refused {
        /// Of which type.
        type_url: String,
        /// Why.
        reason: String,
    },
}

/// The state of one client across all connections.
#[derive(Debug)]
pub struct ClientSession {
    variant: Variant,
    node: Node,
    types: Vec<TypeState>,
    epoch: u64,
    connected: bool,
    node_sent: bool,
}

#[derive(Debug)]
struct TypeState {
    type_url: String,
    wanted: Subscription,
    /// Applied names and versions, sent as `initial_resource_versions` on the next connection.
    held: BTreeMap<String, String>,
    /// Names that the owner has received and may have applied. Those that are missing in the next
    /// full update are removed.
    given: BTreeSet<String>,
    /// Whether the type was announced on this connection.
    announced: bool,
    /// Changes of the subscription that were not sent on this connection yet.
    subscribe: BTreeSet<String>,
    unsubscribe: BTreeSet<String>,
    /// State of the world: names that were dropped and wanted again before a request said so. The
    /// next request leaves them out and the one after it has them, since a server sends nothing
    /// again to a client that asks for the same names.
    dropped_between: BTreeSet<String>,
    changed: bool,
    /// Updates that the owner has not answered, by the nonce given to the owner.
    unanswered: HashMap<String, Applied>,
    /// Answers that were not sent on this connection yet.
    answers: VecDeque<Answer>,
    /// State of the world: the last applied version and the last received nonce.
    version: String,
    nonce: String,
}

/// The changes that an update makes to the held resources when it is acknowledged.
#[derive(Debug)]
struct Applied {
    epoch: u64,
    nonce: String,
    set: Vec<(String, String)>,
    removed: Vec<String>,
    version: String,
}

#[derive(Debug)]
struct Answer {
    nonce: String,
    error: Option<String>,
}

impl ClientSession {
    /// A session that is not connected.
    pub fn new(variant: Variant, node: Node, initial: Vec<(String, Subscription)>) -> Self {
        let types = initial
            .into_iter()
            .map(|(type_url, wanted)| TypeState::new(type_url, wanted))
            .collect();

        Self {
            variant,
            node,
            types,
            epoch: 0,
            connected: false,
            node_sent: false,
        }
    }

    /// Starts a new connection: all subscriptions are announced again, with the held versions.
    /// Returns the number of the connection.
    pub fn connected(&mut self) -> u64 {
        self.epoch += 1;
        self.connected = true;
        self.node_sent = false;
        for state in &mut self.types {
            state.forget_connection();
        }
        self.epoch
    }

    /// Ends the connection. Held resources stay.
    pub fn disconnected(&mut self) {
        self.connected = false;
        // With another number, the request stream of the old connection ends even before the next
        // connection.
        self.epoch += 1;
    }

    /// The number of the current connection.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Subscribes to names. Names that are already subscribed are requested again.
    pub fn subscribe(&mut self, type_url: &str, names: impl Iterator<Item = String>) {
        let variant = self.variant;
        let state = self.state(type_url);
        for name in names {
            if state.unsubscribe.remove(&name) && variant == Variant::Sotw {
                state.dropped_between.insert(name.clone());
            }
            state.subscribe.insert(name.clone());
            state.wanted.names.insert(name);
            state.changed = true;
        }
    }

    /// Subscribes to all resources of a type.
    pub fn subscribe_all(&mut self, type_url: &str) {
        let state = self.state(type_url);
        if !state.wanted.wildcard {
            state.wanted.wildcard = true;
            state.subscribe.insert("*".to_owned());
            state.changed = true;
        }
    }

    /// Drops names.
    pub fn unsubscribe(&mut self, type_url: &str, names: impl Iterator<Item = String>) {
        let state = self.state(type_url);
        for name in names {
            if state.wanted.names.remove(&name) {
                state.subscribe.remove(&name);
                state.dropped_between.remove(&name);
                if !state.wanted.wildcard {
                    state.held.remove(&name);
                }
                state.unsubscribe.insert(name);
                state.changed = true;
            }
        }
    }

    /// The owner applied an update.
    pub fn ack(&mut self, type_url: &str, nonce: &str) {
        self.answer(type_url, nonce, None);
    }

    /// The owner refused an update.
    pub fn nack(&mut self, type_url: &str, nonce: &str, message: String) {
        self.answer(type_url, nonce, Some(message));
    }

    /// The next request to send, if there is one.
    pub fn next_request(&mut self) -> Option<ClientRequest> {
        if !self.connected {
            return None;
        }

        // Send subscriptions of all types before any acknowledgement. A server that delays routes
        // until new clusters have endpoints must know of the endpoint subscriptions before it sees
        // the clusters acknowledged.
        let (variant, epoch) = (self.variant, self.epoch);
        let announced = self
            .types
            .iter_mut()
            .find_map(|state| state.next_subscription(variant, epoch));

        let mut request = match announced {
            Some(request) => request,
            None => self
                .types
                .iter_mut()
                .find_map(|state| state.next_answer(variant))?,
        };

        if !self.node_sent {
            self.node_sent = true;
            let node = Some(self.node.clone());
            match &mut request {
                ClientRequest::Delta(request) => request.node = node,
                ClientRequest::Sotw(request) => request.node = node,
            }
        }

        Some(request)
    }

    /// Handles a response.
    pub fn response(&mut self, response: ClientResponse) -> Received {
        let (type_url, nonce, version) = match &response {
            ClientResponse::Delta(r) => (
                r.type_url.clone(),
                r.nonce.clone(),
                r.system_version_info.clone(),
            ),
            ClientResponse::Sotw(r) => {
                (r.type_url.clone(), r.nonce.clone(), r.version_info.clone())
            }
        };

        let epoch = self.epoch;
        let Some(state) = self
            .types
            .iter_mut()
            .find(|state| state.type_url == type_url)
        else {
            // The type was never subscribed. Send no NACK, since that would announce the type.
            return Received::Refused {
                type_url,
                reason: "nobody asked for this type".to_owned(),
            };
        };

        state.nonce.clone_from(&nonce);
        let parsed = match response {
            ClientResponse::Delta(response) => parse_delta(response),
            ClientResponse::Sotw(response) => parse_sotw(response).map(|set| (set, Vec::new())),
        };

        let (set, mut removed) =
            match parsed.and_then(|(set, removed)| unique(set).map(|set| (set, removed))) {
                Ok(parsed) => parsed,
                Err(reason) => {
                    state.answers.push_back(Answer {
                        nonce,
                        error: Some(reason.clone()),
                    });
                    return Received::Refused { type_url, reason };
                }
            };

        let full = self.variant == Variant::Sotw && is_full_type(&type_url);
        if full {
            let named: BTreeSet<&str> = set.iter().map(|resource| resource.name.as_str()).collect();
            // The owner may have applied a part of a rejected update, so its names may be in force.
            removed = state
                .given
                .iter()
                .filter(|name| !named.contains(name.as_str()))
                .cloned()
                .collect();
            state.given.extend(named.into_iter().map(str::to_owned));
        }

        let applied = Applied {
            epoch,
            nonce: nonce.clone(),
            set: set
                .iter()
                .map(|resource| (resource.name.clone(), resource.version.clone()))
                .collect(),
            removed: removed.clone(),
            version: version.clone(),
        };

        // Servers may count nonces from 1 on every stream. Make the owner's nonce unique, so that a
        // late answer cannot match an update of a later stream.
        let ticket = format!("{epoch}/{nonce}");
        state.unanswered.insert(ticket.clone(), applied);

        Received::Update(Update {
            type_url,
            set,
            removed,
            nonce: ticket,
            full,
            version,
        })
    }

    /// Names and versions that were applied.
    pub fn held(&self, type_url: &str) -> impl Iterator<Item = (&str, &str)> {
        let state = self.types.iter().find(|state| state.type_url == type_url);
        state.into_iter().flat_map(|state| {
            state
                .held
                .iter()
                .map(|(name, version)| (name.as_str(), version.as_str()))
        })
    }

    fn answer(&mut self, type_url: &str, nonce: &str, error: Option<String>) {
        let epoch = self.epoch;
        let Some(state) = self
            .types
            .iter_mut()
            .find(|state| state.type_url == type_url)
        else {
            return;
        };

        let Some(applied) = state.unanswered.remove(nonce) else {
            return;
        };
        if error.is_none() {
            for (name, version) in applied.set {
                if state.wanted.wildcard || state.wanted.names.contains(&name) || name.is_empty() {
                    state.held.insert(name, version);
                }
            }

            for name in &applied.removed {
                state.held.remove(name);
                // Unless it has come back since.
                if !state
                    .unanswered
                    .values()
                    .any(|later| later.set.iter().any(|(given, _)| given == name))
                {
                    state.given.remove(name);
                }
            }

            state.version = applied.version;
        }

        // The answer cannot be sent on an ended connection, but applied resources still count as
        // held.
        if applied.epoch == epoch {
            state.answers.push_back(Answer {
                nonce: applied.nonce,
                error,
            });
        }
    }

    fn state(&mut self, type_url: &str) -> &mut TypeState {
        let at = self
            .types
            .iter()
            .position(|state| state.type_url == type_url)
            .unwrap_or_else(|| {
                self.types
                    .push(TypeState::new(type_url.to_owned(), Subscription::default()));
                self.types.len() - 1
            });

        &mut self.types[at]
    }
}

impl TypeState {
    fn new(type_url: String, wanted: Subscription) -> Self {
        Self {
            type_url,
            wanted,
            held: BTreeMap::new(),
            given: BTreeSet::new(),
            announced: false,
            subscribe: BTreeSet::new(),
            unsubscribe: BTreeSet::new(),
            dropped_between: BTreeSet::new(),
            changed: false,
            unanswered: HashMap::new(),
            answers: VecDeque::new(),
            version: String::new(),
            nonce: String::new(),
        }
    }

    fn forget_connection(&mut self) {
        self.announced = false;
        self.subscribe.clear();
        self.unsubscribe.clear();
        self.dropped_between.clear();
        self.changed = false;
        self.answers.clear();
        self.nonce.clear();
    }

    fn next_subscription(&mut self, variant: Variant, epoch: u64) -> Option<ClientRequest> {
        let first = !self.announced;

        // An empty first request would subscribe to the wildcard.
        if (first && self.wanted.is_empty()) || (!first && !self.changed) {
            return None;
        }

        // In state of the world, a request needs the newest nonce. While a response is unanswered,
        // wait: its answer will carry the names.
        if variant == Variant::Sotw
            && self
                .unanswered
                .values()
                .any(|applied| applied.epoch == epoch)
        {
            return None;
        }

        self.announced = true;
        self.changed = false;
        let subscribe = std::mem::take(&mut self.subscribe);
        let unsubscribe = std::mem::take(&mut self.unsubscribe);

        Some(match variant {
            Variant::Sotw => ClientRequest::Sotw(self.sotw(None)),
            Variant::Delta if first => ClientRequest::Delta(DeltaDiscoveryRequest {
                type_url: self.type_url.clone(),
                resource_names_subscribe: self.all_names(),
                initial_resource_versions: self
                    .held
                    .iter()
                    .map(|(n, v)| (n.clone(), v.clone()))
                    .collect(),
                ..DeltaDiscoveryRequest::default()
            }),
            Variant::Delta => ClientRequest::Delta(DeltaDiscoveryRequest {
                type_url: self.type_url.clone(),
                resource_names_subscribe: subscribe.into_iter().collect(),
                resource_names_unsubscribe: unsubscribe.into_iter().collect(),
                ..DeltaDiscoveryRequest::default()
            }),
        })
    }

    fn next_answer(&mut self, variant: Variant) -> Option<ClientRequest> {
        while let Some(answer) = self.answers.pop_front() {
            match variant {
                Variant::Delta => {
                    return Some(ClientRequest::Delta(DeltaDiscoveryRequest {
                        type_url: self.type_url.clone(),
                        response_nonce: answer.nonce,
                        error_detail: answer.error.map(status),
                        ..DeltaDiscoveryRequest::default()
                    }));
                }
                // Only the newest response can be answered. The answer also carries changed names.
                Variant::Sotw if answer.nonce == self.nonce => {
                    self.changed = false;
                    self.subscribe.clear();
                    self.unsubscribe.clear();
                    return Some(ClientRequest::Sotw(self.sotw(answer.error)));
                }
                Variant::Sotw => {}
            }
        }

        None
    }

    fn sotw(&mut self, error: Option<String>) -> DiscoveryRequest {
        let mut names = self.all_names();
        let without = std::mem::take(&mut self.dropped_between);
        if !without.is_empty() {
            names.retain(|name| !without.contains(name));
            self.changed = true;
        }

        DiscoveryRequest {
            type_url: self.type_url.clone(),
            version_info: self.version.clone(),
            resource_names: names,
            response_nonce: self.nonce.clone(),
            error_detail: error.map(status),
            ..DiscoveryRequest::default()
        }
    }

    /// A subscription to the wildcard alone is sent as an empty list of names, the older form that
    /// every server supports.
    fn all_names(&self) -> Vec<String> {
        let wildcard =
            (self.wanted.wildcard && !self.wanted.names.is_empty()).then(|| "*".to_owned());
        wildcard
            .into_iter()
            .chain(self.wanted.names.iter().cloned())
            .collect()
    }
}

/// Whether a state-of-the-world response holds all resources of the type: true for clusters and
/// listeners, false for endpoints, routes and secrets.
pub(crate) fn is_full_type(url: &str) -> bool {
    !matches!(
        url,
        type_url::ENDPOINT
            | type_url::ROUTE
            | type_url::VIRTUAL_HOST
            | type_url::SECRET
            | type_url::EXTENSION_CONFIG
    )
}

fn status(message: String) -> google::rpc::Status {
    google::rpc::Status {
        code: INVALID_ARGUMENT,
        message,
        details: Vec::new(),
    }
}

fn parse_delta(
    response: DeltaDiscoveryResponse,
) -> Result<(Vec<NamedResource>, Vec<String>), String> {
    let mut set = Vec::with_capacity(response.resources.len());
    for resource in response.resources {
        let name = match resource.resource_name {
            Some(named) if resource.name.is_empty() => named.name,
            _ => resource.name,
        };

        match resource.resource {
            Some(any) => set.push(NamedResource {
                any: checked(any, &response.type_url, &name)?,
                name,
                version: resource.version,
            }),
            // A heartbeat for a resource with a time to live carries no content.
            None if resource.ttl.is_some() => {}
            None => return Err(format!("resource {name:?} has no content")),
        }
    }

    let mut removed = response.removed_resources;
    removed.extend(
        response
            .removed_resource_names
            .into_iter()
            .map(|named| named.name),
    );

    Ok((set, removed))
}

fn parse_sotw(response: DiscoveryResponse) -> Result<Vec<NamedResource>, String> {
    let mut set = Vec::with_capacity(response.resources.len());
    for any in response.resources {
        let (name, any) = if any.type_url == WRAPPED {
            let wrapped = Resource::decode(any.value.as_slice())
                .map_err(|error| format!("a wrapped resource: {error}"))?;
            let name = wrapped.name;
            let any = wrapped
                .resource
                .ok_or_else(|| format!("resource {name:?} has no content"))?;
            let name = if name.is_empty() {
                name_of(&any).unwrap_or_default()
            } else {
                name
            };

            (name, any)
        } else {
            let name = name_of(&any).ok_or_else(|| {
                format!("a resource of type {} is not such a message", any.type_url)
            })?;
            (name, any)
        };

        let any = checked(any, &response.type_url, &name)?;
        set.push(NamedResource {
            name,
            version: response.version_info.clone(),
            any,
        });
    }

    Ok(set)
}

fn checked(any: Any, type_url: &str, name: &str) -> Result<Any, String> {
    if any.type_url == type_url {
        Ok(any)
    } else {
        Err(format!(
            "resource {name:?} is a {} in a response of type {type_url}",
            any.type_url
        ))
    }
}

fn unique(set: Vec<NamedResource>) -> Result<Vec<NamedResource>, String> {
    let mut names = BTreeSet::new();
    if let Some(twice) = set
        .iter()
        .find(|resource| !names.insert(resource.name.as_str()))
    {
        return Err(format!(
            "resource {:?} comes twice in one response",
            twice.name
        ));
    }

    drop(names);

    Ok(set)
}
