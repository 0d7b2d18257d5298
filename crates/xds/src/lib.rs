//! The xDS v3 protocol over aggregated discovery: client and server, delta and state of the world.
//! Resources are opaque.
//!
//! In: sets of named, versioned resources ([`ResourceSet`]) on the server's side, subscriptions on
//! the client's. Out: discovery requests and responses, and the peer's acknowledgement of each
//! resource (ACK, or NACK with its reason).
//!
//! The sessions ([`DeltaSession`], [`SotwSession`], [`ClientSession`]) are state machines without
//! IO, clock or randomness; [`AdsServer`] and [`Client`] drive them over tonic. This crate never
//! looks inside a resource, save for the name that the state-of-the-world variant hides there, and
//! must never import `api`, `model`, `translate` or anything of the proxy.

mod backoff;
mod client;
mod naming;
mod resource;
mod server;
mod session;

pub use backoff::Backoff;
pub use client::session::{ClientRequest, ClientResponse, ClientSession, Received};
pub use client::{
    BoxError, Client, ClientConfig, ClientEvent, ClientHandle, Connection, Connector,
    NamedResource, Service, Subscription, Update,
};
pub use naming::name_of;
pub use resource::{Packed, Resource, ResourceSet, TypeSet};
pub use server::{AdsServer, Feed, Observer, Opening, ServerTerms, SessionView, Source};
pub use session::delta::DeltaSession;
pub use session::sotw::SotwSession;
pub use session::status::{Nack, ResourceStatus, TypeStatus, Verdict};
pub use session::{ProtocolError, ServerSession};

/// The variant of the protocol that a stream uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Incremental: changes only, resources named and versioned one by one.
    Delta,
    /// State of the world: whole lists per type.
    Sotw,
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Delta => "delta",
            Self::Sotw => "state of the world",
        })
    }
}

/// Maximum size of a message in bytes, for both ends. tonic's default of 4 MiB is too small for the
/// clusters of a large mesh.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
