//! The way out of and into the node's namespaces: a process in the machine's own network opens
//! sockets and hands them over.

mod bytes;
mod client;
mod lane;
mod map;
mod server;

pub(crate) use client::Dialler;
pub use map::{DialMap, DialMapError};
pub(crate) use server::{Machine, Server, ServerOptions};

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::events::Event;

/// From the node to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// Wants an answer with the same number.
    Ask(u64, Request),
    /// Something that the user should see.
    Tell(Event),
}

/// What the node may ask for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// A connected TCP socket.
    Connect(SocketAddr),
    /// Listening TCP sockets of the machine for a gateway's port.
    Listen {
        /// The port as the gateway's configuration names it.
        port: u16,
        /// How many sockets share it.
        count: u16,
        /// Every port of the gateway: the machine's ports of these numbers are theirs.
        others: Vec<u16>,
    },
    /// The machine's resolver's answer to a raw query.
    Dns {
        /// The query.
        #[serde(with = "bytes")]
        query: Vec<u8>,
        /// Ask over TCP.
        tcp: bool,
    },
}

/// The supervisor's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) id: u64,
    pub(crate) answer: Result<Answer, Failure>,
}

/// What accompanies a success; sockets travel beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Connected.
    Done,
    /// Listening on this address of the machine.
    Listening(SocketAddr),
    /// The resolver's raw answer.
    Dns(#[serde(with = "bytes")] Vec<u8>),
}

/// Why the supervisor could not.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// The kernel's error number, where there is one.
    pub(crate) os_error: Option<i32>,
}
