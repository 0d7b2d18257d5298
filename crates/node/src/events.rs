//! What the node tells the user through the supervisor.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Something worth a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The node's namespaces and network stand, and its socket listens.
    NodeUp,
    /// The control plane answers.
    ControlUp,
    /// A workload is ready.
    WorkloadReady {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A gateway's port is published on the machine.
    Published {
        /// The gateway's workload.
        gateway: String,
        /// The port as configuration names it.
        port: u16,
        /// Where the machine listens.
        address: SocketAddr,
    },
    /// Every workload that was wanted at the start is ready.
    AllReady,
    /// Something is wrong but the rest goes on.
    Warning(String),
    /// The node cannot go on.
    Failed(String),
}
