//! Sockets between the node's namespaces and the machine's network. The node ([`Dialler`]) requests
//! connections, listening sockets and DNS answers; the supervisor ([`Server`]), which runs in the
//! machine's network namespace, opens them and passes the descriptors over a Unix socket.

mod bytes;
mod client;
mod map;
mod request_queue;
mod server;

pub(crate) use client::{Dialler, Listening};
pub use map::{DialMap, DialMapError};
pub(crate) use server::{Machine, Server, ServerOptions};

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::events::Event;
use crate::publication::ServicePublication;

/// A message from the node to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// A request with its id; the [`DiallerReply`] carries the same id.
    Request(u64, DiallerRequest),
    /// An event to show to the user; it has no reply.
    Event(Event),
}

/// A request of the node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum DiallerRequest {
    /// Open a TCP connection from the machine's network.
    Connect(SocketAddr),
    /// Open listening TCP sockets on the machine for a gateway's port.
    Listen {
        /// The gateway's port number.
        port: u16,
        /// Number of sockets that share the port (`SO_REUSEPORT`).
        count: u16,
        /// All ports of the gateway. A port published under another number avoids these.
        others: Vec<u16>,
    },
    /// Open a listening TCP socket on the machine for a Service's port.
    Publish(ServicePublication),
    /// Forward a raw DNS query to the machine's resolver.
    Dns {
        #[serde(with = "bytes")]
        query: Vec<u8>,
        /// Whether to query over TCP instead of UDP.
        tcp: bool,
    },
}

/// The supervisor's reply to the request with the same id.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DiallerReply {
    pub(crate) id: u64,
    pub(crate) answer: Result<Answer, Failure>,
}

/// A successful answer. The sockets of `Connect` and `Listen` are passed beside the message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The connection is established.
    Done,
    /// The sockets listen on this address of the machine.
    Listening {
        address: SocketAddr,
        /// The port that was wanted, if another program has it and a free one was taken instead.
        taken: Option<u16>,
    },
    /// The raw DNS answer of the machine's resolver.
    Dns(#[serde(with = "bytes")] Vec<u8>),
}

/// Why the supervisor could not serve a request.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// `errno`, if a system call failed.
    pub(crate) os_error: Option<i32>,
}
