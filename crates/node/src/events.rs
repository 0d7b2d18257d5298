//! What the node tells the user through the supervisor.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use meltemi_types::Protocol;
use serde::{Deserialize, Serialize};

/// A gateway's port, published on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// What the gateway listens on.
    pub port: u16,
    /// Where the machine listens.
    pub address: SocketAddr,
    /// The ports as the Gateways name them.
    pub gateway_ports: BTreeSet<u16>,
    /// What is spoken there, as far as it is known.
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
        /// What, and where.
        port: PublishedPort,
    },
    /// Every workload that was wanted at the start is ready.
    AllReady,
    /// Something is wrong with the configuration: place, code, and what to do.
    Finding(String),
    /// Something is wrong but the rest goes on.
    Warning(String),
    /// The node cannot go on.
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
