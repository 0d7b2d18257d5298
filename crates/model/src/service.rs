//! Services: what clients call by name, from a Kubernetes Service or a ServiceEntry.

use std::fmt;
use std::net::IpAddr;

use meltemi_types::{Cidr, Labels, Protocol, Selector};

use crate::{Hostname, Origin, Visibility};

/// Which service: two namespaces may each declare the same host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The full name.
    pub host: Hostname,
    /// The namespace of the declaring object.
    pub namespace: String,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.host)
    }
}

/// One host with its ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Service {
    /// Host and namespace.
    pub key: ServiceKey,
    /// The declaring object.
    pub origin: Origin,
    /// The Service's name, or the ServiceEntry's host.
    pub name: String,
    /// Which API declared it.
    pub registry: Registry,
    /// Where clients connect to: a ClusterIP (given or allocated), a ServiceEntry's addresses.
    /// Empty for headless services and for entries without address.
    pub addresses: Vec<Cidr>,
    /// Set when `addresses` was allocated by us, so that it means something only to captured
    /// clients.
    pub is_address_allocated: bool,
    /// In declaration order. UDP ports are among them: the mesh names them, and captures none.
    pub ports: Vec<ServicePort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Part of the mesh or outside.
    pub location: Location,
    /// Who may see it.
    pub export_to: Visibility,
    /// Which workloads stand behind it; `None` without selector.
    pub selector: Option<Selector>,
    /// Labels of the declaring object.
    pub labels: Labels,
    /// Names accepted in the server's certificate (ServiceEntry: subjectAltNames).
    pub subject_alt_names: Vec<String>,
    /// ExternalName Services that point here: their hosts are answered by this service's routes,
    /// too.
    pub aliases: Vec<ServiceKey>,
    /// Preference for near endpoints.
    pub traffic_distribution: TrafficDistribution,
    /// Service: publishNotReadyAddresses.
    pub publish_not_ready: bool,
}

impl Service {
    /// The full name.
    pub fn host(&self) -> &Hostname {
        &self.key.host
    }

    /// The namespace of the declaring object.
    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// The port for connections with this number; a UDP port may have the same number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports
            .iter()
            .find(|port| port.number == number && !port.is_udp())
    }

    /// The first single address, if there is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses
            .iter()
            .find(|cidr| cidr.is_host())
            .map(Cidr::address)
    }

    /// Whether it lies outside the mesh.
    pub fn is_external(&self) -> bool {
        self.location == Location::External
    }

    /// Whether clients connect to endpoints by their own addresses.
    pub fn is_headless(&self) -> bool {
        self.resolution == Resolution::Passthrough && self.registry == Registry::Kubernetes
    }
}

/// The API that declared a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Registry {
    /// core/v1 Service.
    Kubernetes,
    /// networking.istio.io ServiceEntry.
    ServiceEntry,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Its name; may be empty when it is the only one.
    pub name: String,
    /// What clients connect to.
    pub number: u16,
    /// What the workload listens on.
    pub target: TargetPort,
    /// The declared protocol.
    pub protocol: Protocol,
}

impl ServicePort {
    /// Whether it takes datagrams, which the mesh neither captures nor routes.
    pub fn is_udp(&self) -> bool {
        self.protocol == Protocol::Udp
    }
}

/// The workload's side of a service port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetPort {
    Number(u16),
    /// The name of a container port.
    Name(String),
}

/// How a client finds the endpoints of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// From the control plane; the client balances (STATIC; Services with a ClusterIP).
    ClientSide,
    /// The connection's original destination: headless Services, ServiceEntry NONE.
    Passthrough,
    /// Asynchronous DNS, every address an endpoint.
    Dns,
    /// Asynchronous DNS, one address at a time (Envoy LOGICAL_DNS).
    DnsRoundRobin,
    /// The host of each request is resolved as it comes (wildcard hosts).
    DynamicDns,
}

impl Resolution {
    /// Whether the client itself asks DNS.
    pub fn is_dns(self) -> bool {
        matches!(self, Self::Dns | Self::DnsRoundRobin | Self::DynamicDns)
    }
}

/// ServiceEntry.location; Services are always internal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Location {
    /// Part of the mesh.
    Internal,
    /// Outside: no automatic mutual TLS.
    External,
}

/// Service.spec.trafficDistribution, or the annotation `networking.istio.io/traffic-distribution`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    /// No preference of its own.
    #[default]
    Any,
    /// The same network, region, zone first (PreferSameZone, and PreferClose, its older name).
    PreferSameZone,
    /// The same network, region, zone, subzone, node first.
    PreferSameNode,
}
