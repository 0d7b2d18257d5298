//! What a server knows of a client: what was sent, taken and refused.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A refusal of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The version that was refused.
    pub version: Arc<str>,
    /// In the client's words, cut to a few kilobytes.
    pub reason: String,
}

/// One resource, as seen by one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceStatus {
    /// The version that the server wants the client to have; `None` if it is to be removed.
    pub wanted: Option<Arc<str>>,
    /// The version last sent on this stream, or that the client said to hold when the stream began.
    pub sent: Option<Arc<str>>,
    /// The version that the client last took.
    pub acked: Option<Arc<str>>,
    /// Set while the client's last word on this resource is a refusal.
    pub nack: Option<Nack>,
}

/// One type, as seen by one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// Of the resources.
    pub type_url: String,
    /// Whether the client wants everything.
    pub wildcard: bool,
    /// How many names the client asked for.
    pub names: usize,
    /// Whether a response waits for its answer.
    pub in_flight: bool,
    /// Responses sent on this stream.
    pub pushes: u64,
    /// Answers that took a response.
    pub acks: u64,
    /// Answers that refused one.
    pub nacks: u64,
    /// By name: all that the client is to have, was sent or refused.
    pub resources: BTreeMap<String, ResourceStatus>,
}

impl TypeStatus {
    /// Whether the client took everything that it is to have.
    pub fn is_synced(&self) -> bool {
        !self.in_flight
            && self
                .resources
                .values()
                .all(|resource| resource.nack.is_none() && resource.wanted == resource.acked)
    }
}

/// What a request said of an earlier response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Taken.
    Acked {
        /// Of which type.
        type_url: String,
        /// Of which response.
        nonce: String,
    },
    /// Refused.
    Nacked {
        /// Of which type.
        type_url: String,
        /// Of which response.
        nonce: String,
        /// The resources that the reason names; all of the response if it names none.
        names: Vec<String>,
        /// In the client's words.
        reason: String,
    },
}
