//! Services: what clients call by name, from a Kubernetes Service or a ServiceEntry.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use meltemi_types::{Labels, Protocol, Selector};

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
    /// In declaration order; UDP ports are kept and must be skipped by who builds listeners.
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

    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// The first single address, if there is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses
            .iter()
            .find(|cidr| cidr.is_host())
            .map(|cidr| cidr.address)
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
    /// What it is declared to speak.
    pub protocol: Protocol,
}

/// The workload's side of a service port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// A number.
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

/// A network in CIDR form; a single address has the full prefix length. Host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// The network's address.
    pub address: IpAddr,
    /// Bits of prefix.
    pub prefix: u8,
}

impl Cidr {
    /// A single address.
    pub fn host(address: IpAddr) -> Self {
        Self {
            address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
        }
    }

    /// A network; `None` if the prefix is longer than the address. Host bits are cleared.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(ip) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(ip) & mask))
            }
            IpAddr::V6(ip) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(ip) & mask))
            }
            _ => return None,
        };

        Some(Self { address, prefix })
    }

    /// Whether it is a single address.
    pub fn is_host(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether `ip` lies in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4()
            && Self::new(ip, self.prefix).is_some_and(|net| net.address == self.address)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither an IP address nor a network in CIDR form");
        match text.split_once('/') {
            None => text.parse().map(Self::host).map_err(|_| wrong()),
            Some((address, prefix)) => {
                let address = address.parse().map_err(|_| wrong())?;
                let prefix = prefix.parse().map_err(|_| wrong())?;
                Self::new(address, prefix).ok_or_else(wrong)
            }
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}
