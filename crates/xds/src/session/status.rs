//! The state of one client as the server sees it: resources sent, acknowledged and refused.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The rejection of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The rejected version.
    pub version: Arc<str>,
    /// The client's error message, at most 4 KiB.
    pub reason: String,
}

/// One resource, as seen by one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceStatus {
    /// The version that the client should have; `None` if the resource should be removed.
    pub wanted: Option<Arc<str>>,
    /// The version last sent on this stream, or reported by the client when the stream began.
    pub sent: Option<Arc<str>>,
    /// The version that the client last acknowledged.
    pub acked: Option<Arc<str>>,
    /// Set while the client's last answer about this resource is a rejection.
    pub nack: Option<Nack>,
}

/// One type, as seen by one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// Of the resources.
    pub type_url: String,
    /// Whether the client subscribed to the wildcard.
    pub wildcard: bool,
    /// Number of names that the client subscribed to.
    pub names: usize,
    /// Whether a response waits for its acknowledgement.
    pub in_flight: bool,
    /// Number of responses sent on this stream.
    pub pushes: u64,
    /// Number of acknowledged responses.
    pub acks: u64,
    /// Number of rejected responses.
    pub nacks: u64,
    /// By name: all resources that the client should have, was sent, or rejected.
    pub resources: BTreeMap<String, ResourceStatus>,
}

impl TypeStatus {
    /// Whether the client acknowledged everything that it should have.
    pub fn is_synced(&self) -> bool {
        !self.in_flight
            && self
                .resources
                .values()
                .all(|resource| resource.nack.is_none() && resource.wanted == resource.acked)
    }
}

/// The client's answer to the response in flight.
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
