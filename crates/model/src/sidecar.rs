//! Sidecars: what a workload's proxy knows of the mesh, and which ports it serves.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use meltemi_types::{Protocol, Selector};

use crate::{
    ConnectionPool, Destination, Hostname, NamespaceScope, Origin, ServerTls, Service,
    VirtualService,
};

/// One Sidecar object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sidecar {
    /// The object.
    pub origin: Origin,
    /// Which workloads; `None` for the whole namespace (or mesh, in the root namespace).
    pub selector: Option<Selector>,
    /// Ingress listeners; empty means the ports of the workload's services.
    pub ingress: Vec<IngressListener>,
    /// Egress listeners; empty means every visible service.
    pub egress: Vec<EgressListener>,
    pub inbound_connection_pool: Option<ConnectionPool>,
    /// outboundTrafficPolicy; `None` is the mesh's.
    pub outbound_policy: Option<OutboundPolicy>,
}

/// Sidecar.ingress[].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IngressListener {
    /// The port that is served.
    pub port: u16,
    pub port_name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Address to listen on; `None` is the workload's.
    pub bind: Option<IpAddr>,
    /// Whether traffic comes by capture.
    pub capture: CaptureMode,
    /// Where the application is; `None` for the port itself.
    pub default_endpoint: Option<IngressEndpoint>,
    /// TLS that this listener terminates itself, instead of the mesh's.
    pub tls: Option<ServerTls>,
    pub connection_pool: Option<ConnectionPool>,
}

/// Where an ingress listener forwards to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum IngressEndpoint {
    /// 127.0.0.1:port or [::1]:port.
    Loopback(SocketAddr),
    /// 0.0.0.0:port or [::]:port: the workload's own address.
    Instance(u16),
    /// A Unix socket.
    Unix(String),
}

/// Sidecar.egress[].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EgressListener {
    /// Only this port; `None` for all ports that no other listener names.
    pub port: Option<EgressPort>,
    /// Address or Unix socket to listen on; empty if unset.
    pub bind: String,
    /// Whether traffic comes by capture.
    pub capture: CaptureMode,
    /// The reachable services.
    pub hosts: Vec<EgressHost>,
}

impl EgressListener {
    /// Whether it imports a host that `namespace` declares.
    pub fn imports(&self, namespace: &str, host: &Hostname) -> bool {
        self.hosts
            .iter()
            .any(|own| own.namespace.includes(namespace) && host.is_within(&own.host))
    }

    /// Whether it imports routes: some name is both the routes' and imported.
    pub fn imports_routes(&self, routes: &VirtualService) -> bool {
        let declared_in = routes.origin.object.namespace.as_str();
        routes.hosts.iter().any(|host| {
            self.hosts
                .iter()
                .any(|own| own.namespace.includes(declared_in) && host.overlaps(&own.host))
        })
    }
}

/// Sidecar.egress[].port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EgressPort {
    /// Its number; 0 with a Unix socket.
    pub number: u16,
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
}

/// `ns/dns` in Sidecar.egress[].hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EgressHost {
    /// Of which namespace.
    pub namespace: NamespaceScope,
    /// Which host.
    pub host: Hostname,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CaptureMode {
    /// As the workload is set up.
    #[default]
    Default,
    /// By redirection.
    Iptables,
    /// Clients connect to the listener themselves.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutboundPolicy {
    /// What happens to unknown destinations.
    pub mode: OutboundMode,
    /// Where they are sent instead.
    pub egress_proxy: Option<Destination>,
}

/// outboundTrafficPolicy.mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OutboundMode {
    /// Passed on.
    #[default]
    AllowAny,
    /// Refused.
    RegistryOnly,
    /// HTTP is passed on by resolving its authority.
    AllowAnyDynamicDns,
}

/// What one proxy knows: the result of applying its Sidecar, or none, to the mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct SidecarScope {
    /// The Sidecar that applies, if any.
    pub sidecar: Option<Arc<Sidecar>>,
    /// The namespace of the proxy.
    pub namespace: String,
    /// At least one; the default is a single one for all ports that imports `*/*`.
    pub egress: Vec<ScopedEgress>,
    /// Every service of any egress listener, by host; one namespace's for each host.
    pub services: Vec<Arc<Service>>,
    /// Hosts that imported routes lead to, aliases replaced: known without being imported.
    pub destinations: BTreeSet<Hostname>,
    /// What happens to unknown destinations, the mesh's default applied.
    pub outbound_policy: OutboundPolicy,
}

/// One egress listener with the services and VirtualServices that it imports.
#[derive(Debug, Clone, PartialEq)]
pub struct ScopedEgress {
    /// As written; `None` for the default listener.
    pub listener: Option<EgressListener>,
    /// Imported services, by host.
    pub services: Vec<Arc<Service>>,
    /// Imported routes for sidecars, in the order in which they win.
    pub virtual_services: Vec<Arc<VirtualService>>,
}

impl SidecarScope {
    /// The service that this proxy means by `host`.
    pub fn service(&self, host: &Hostname) -> Option<&Arc<Service>> {
        let at = self
            .services
            .binary_search_by(|service| service.key.host.cmp(host))
            .ok()?;
        self.services.get(at)
    }

    /// Every service that the proxy may call. A service may come several times, for one listener
    /// narrowed to its port.
    pub fn all_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let of_listeners = self.egress.iter().flat_map(|egress| &egress.services);
        self.services.iter().chain(of_listeners)
    }

    /// Whether a service that is exported to the proxy's namespace would be known.
    pub fn imports(&self, service: &Service) -> bool {
        let is_imported =
            |listener: &EgressListener| listener.imports(service.namespace(), service.host());

        self.destinations.contains(service.host())
            || self
                .egress
                .iter()
                .any(|egress| egress.listener.as_ref().is_none_or(is_imported))
    }

    /// Whether routes that are exported to the proxy's namespace would be applied.
    pub fn imports_routes(&self, routes: &VirtualService) -> bool {
        self.egress.iter().any(|egress| {
            let listener = egress.listener.as_ref();
            listener.is_none_or(|listener| listener.imports_routes(routes))
        })
    }
}
