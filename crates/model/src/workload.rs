//! Workloads, from Pods and WorkloadEntries, and the endpoints that they make.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_types::{Labels, Locality, Protocol, SpiffeId};

use crate::{Hostname, NamespacedName, Origin};

/// One running instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Workload {
    /// The Pod or WorkloadEntry.
    pub origin: Origin,
    /// Name of the Pod or WorkloadEntry.
    pub name: String,
    pub namespace: String,
    pub labels: Labels,
    /// Its addresses, the primary first; empty for a WorkloadEntry with a DNS name or Unix socket,
    /// or a Pod without IP.
    pub ips: Vec<IpAddr>,
    /// Where it is reached, if anywhere.
    pub address: Option<EndpointAddress>,
    /// The Kubernetes service account, `default` if none is named.
    pub service_account: String,
    /// Its identity in the mesh's trust domain; `None` if the names do not make one.
    pub identity: Option<SpiffeId>,
    /// Declared ports, for target ports by name.
    pub ports: Vec<WorkloadPort>,
    /// Whether it takes traffic.
    pub health: Health,
    /// Where it is.
    pub locality: Locality,
    /// Its network (`topology.istio.io/network`); empty is the mesh's own.
    pub network: String,
    /// Its cluster (`topology.istio.io/cluster`); empty is the control plane's own.
    pub cluster: String,
    /// The node that runs it; empty if unknown.
    pub node: String,
    /// Whether it terminates the mesh's mutual TLS.
    pub tls_mode: TlsMode,
    /// Its controller, for example the Deployment `reviews-v1`; its own name if it has none.
    pub workload_name: String,
    /// Kind of the controller: `Deployment`, `StatefulSet`, `Pod`, `WorkloadEntry`, ...
    pub workload_kind: String,
    /// Load balancing weight; 0 is unset.
    pub weight: u32,
    /// `hostname` and `subdomain` of the Pod, which name it below a headless Service.
    pub pod_dns: Option<(String, String)>,
}

impl Workload {
    /// Namespace and name.
    pub fn key(&self) -> NamespacedName {
        NamespacedName::new(&self.namespace, &self.name)
    }

    /// `canonical_service` of the standard labels.
    pub fn canonical_service(&self) -> &str {
        self.labels.canonical_service(&self.workload_name)
    }

    /// `canonical_revision` of the standard labels.
    pub fn canonical_revision(&self) -> &str {
        self.labels.canonical_revision()
    }

    /// The number of a declared port.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| port.name == name)
            .map(|port| port.number)
    }
}

/// A port that a workload declares.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadPort {
    /// Its name; may be empty.
    pub name: String,
    pub number: u16,
    /// Declared by name, as for services.
    pub protocol: Protocol,
}

/// Whether an endpoint takes new traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready; left out unless a policy asks for unhealthy endpoints.
    Unhealthy,
    /// Terminating: sticky sessions may still reach it.
    Draining,
}

/// The label `security.istio.io/tlsMode` as a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsMode {
    /// Plaintext only.
    #[default]
    Disabled,
    /// The mesh's mutual TLS.
    Istio,
}

/// Where an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// An address.
    Ip(IpAddr),
    /// A name that the client resolves.
    Dns(Hostname),
    /// A Unix socket's path (WorkloadEntry `unix:///path`); the port means nothing.
    Unix(String),
}

impl EndpointAddress {
    /// Reads a WorkloadEntry's address.
    pub fn parse(text: &str) -> Self {
        if let Some(path) = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"))
        {
            return Self::Unix(path.to_owned());
        }

        match text.parse() {
            Ok(ip) => Self::Ip(ip),
            Err(_) => Self::Dns(Hostname::new(text)),
        }
    }

    /// The address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        if let Self::Ip(ip) = self {
            Some(*ip)
        } else {
            None
        }
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Dns(name) => write!(f, "{name}"),
            Self::Unix(path) => write!(f, "unix://{path}"),
        }
    }
}

/// One endpoint of one service port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Its port; 0 for Unix sockets.
    pub port: u16,
    /// Who runs there; `None` for a ServiceEntry's own endpoints and DNS names.
    pub workload: Option<Arc<Workload>>,
    /// Labels that subsets select by.
    pub labels: Labels,
    /// Load balancing weight, at least 1.
    pub weight: u32,
    /// Where it is.
    pub locality: Locality,
    /// Its network; empty is the mesh's own.
    pub network: String,
    /// Whether it takes new traffic.
    pub health: Health,
    /// Whether it terminates the mesh's mutual TLS.
    pub tls_mode: TlsMode,
    /// The identity that it must show.
    pub identity: Option<SpiffeId>,
}

/// The endpoints of one service port, in a stable order (address, port). Shared, and the same
/// allocation as in the previous snapshot when nothing changed.
pub type EndpointSet = Arc<[Endpoint]>;
