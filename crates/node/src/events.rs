//! Events that the node shows to the user through the supervisor.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use meltemi_types::Protocol;
use serde::{Deserialize, Serialize};

/// A gateway port that is published on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Port that the gateway wait_until_listening on.
    pub port: u16,
    /// Address on which the machine wait_until_listening for it.
    pub address: SocketAddr,
    /// `port.number` of the Gateway servers behind this port; the Service may map 80 to 8080.
    pub gateway_ports: BTreeSet<u16>,
    /// Protocol of the oldest Gateway server on this port; `None` before its configuration is
    /// known.
    pub protocol: Option<Protocol>,
}

impl fmt::Display for PublishedPort {
    /// `port 8080 (Gateway port 80): http://127.0.0.1:8080`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}", self.port)?;
        let others = self.gateway_ports.iter().filter(|port| **port != self.port);
        let others: Vec<String> = others.map(ToString::to_string).collect();
        if !others.is_empty() {
            write!(f, " (Gateway port {})", others.join(", "))?;
        }

        match self.protocol {
            Some(protocol) if protocol.is_http() => write!(f, ": http://{}", self.address),
            Some(Protocol::Https) => write!(f, ": https://{}", self.address),
            Some(protocol) if protocol.is_tls() => write!(f, ": {}, TLS", self.address),
            Some(_) => write!(f, ": {}, TCP", self.address),
            None => write!(f, ": {}", self.address),
        }
    }
}

/// An object in force that `meltemi apply` left in the mesh's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedObject {
    /// `VirtualService/reviews.default`.
    pub name: String,
    /// When it was first applied, in RFC 3339; `None` if that is not known.
    pub created: Option<String>,
}

/// What became of an object of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectChange {
    Created,
    Changed,
    Deleted,
}

/// What became of a workload after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkloadChange {
    Started,
    /// Its specification changed: it ended and was started anew.
    Changed,
    Ended,
}

/// One line of the output of `meltemi up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The node's network is set up and its socket accepts commands.
    NodeUp,
    /// The objects that were applied before the start and are in force.
    Applied(Vec<AppliedObject>),
    /// The control plane answers for the first time.
    ControlUp,
    /// A workload was started, changed or ended after the start.
    Workload {
        /// Kubernetes namespace of the workload.
        namespace: String,
        /// Name of the pod.
        name: String,
        change: WorkloadChange,
    },
    /// A workload became ready, during the start or later.
    WorkloadReady {
        /// Kubernetes namespace of the workload.
        namespace: String,
        /// Name of the pod.
        name: String,
    },
    /// The machine wait_until_listening on a port for a gateway.
    Published {
        /// Name of the gateway's workload.
        gateway: String,
        /// The port and its address on the machine.
        port: PublishedPort,
    },
    /// Every workload that was configured at the start is ready.
    AllReady,
    /// A diagnostic of the configuration: position, code, message and remedy.
    Finding(String),
    /// A diagnostic or problem that went away.
    Mended(String),
    /// An object of the user was created, changed or deleted.
    Object {
        /// `VirtualService/reviews.default`.
        object: String,
        /// File and line, or `applied`.
        place: String,
        change: ObjectChange,
    },
    /// Many objects of the user changed at once: their number.
    Objects(usize),
    /// The node stops this number of workloads, as asked.
    Stopping(usize),
    /// A problem that affects a part of the mesh; the rest keeps running.
    Warning(String),
    /// The node cannot continue and ends.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_is_shown_as_what_it_speaks() {
        let shown = |port, ports: &[u16], protocol| {
            let gateway_ports = ports.iter().copied().collect();
            let address = SocketAddr::from(([127, 0, 0, 1], 18080));
            PublishedPort {
                port,
                address,
                gateway_ports,
                protocol,
            }
            .to_string()
        };

        assert_eq!(
            shown(8080, &[80, 8080], Some(Protocol::Http2)),
            "port 8080 (Gateway port 80): http://127.0.0.1:18080"
        );

        assert_eq!(
            shown(8443, &[8443], Some(Protocol::Https)),
            "port 8443: https://127.0.0.1:18080"
        );

        assert_eq!(
            shown(15443, &[15443], Some(Protocol::Tls)),
            "port 15443: 127.0.0.1:18080, TLS"
        );

        assert_eq!(
            shown(31400, &[31400], Some(Protocol::Mongo)),
            "port 31400: 127.0.0.1:18080, TCP"
        );

        assert_eq!(shown(9, &[], None), "port 9: 127.0.0.1:18080");
    }
}
