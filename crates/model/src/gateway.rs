//! Gateways: which ports and hosts a proxy at the edge serves.

use std::net::IpAddr;

use meltemi_types::{Protocol, Selector};

use crate::{Hostname, NamespacedName, Origin};

/// One Gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// The object.
    pub origin: Origin,
    /// Which proxies; of every namespace, as Istio's default is.
    pub selector: Selector,
    /// In declaration order.
    pub servers: Vec<Server>,
}

impl Gateway {
    /// Namespace and name.
    pub fn name(&self) -> NamespacedName {
        self.origin.name()
    }
}

/// One port of a Gateway with its hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// Its name; may be empty.
    pub name: String,
    /// The port clients connect to; the proxy may listen on another (the Service's targetPort).
    pub port: u16,
    pub port_name: String,
    /// The protocol of the port.
    pub protocol: Protocol,
    /// Address to listen on; `None` is any.
    pub bind: Option<IpAddr>,
    /// Which hosts, and VirtualServices of which namespaces.
    pub hosts: Vec<ServerHost>,
    /// TLS at the edge.
    pub tls: Option<ServerTls>,
}

impl Server {
    /// Whether requests are read: HTTP in plaintext, or HTTPS that is terminated here.
    pub fn is_http(&self) -> bool {
        self.protocol.is_http()
            || (self.protocol == Protocol::Https
                && self
                    .tls
                    .as_ref()
                    .is_some_and(|tls| !tls.mode.is_passthrough()))
    }

    /// Whether TLS is terminated here.
    pub fn terminates_tls(&self) -> bool {
        self.protocol.is_tls()
            && self
                .tls
                .as_ref()
                .is_some_and(|tls| !tls.mode.is_passthrough())
    }

    /// The hosts of a VirtualService in `namespace` that this server serves: the narrower of the
    /// two names each time. Source: Istio `IntersectVirtualHosts`.
    pub fn intersect(&self, namespace: &str, hosts: &[Hostname]) -> Vec<Hostname> {
        let mut found = Vec::new();
        for host in hosts {
            for own in self
                .hosts
                .iter()
                .filter(|own| own.namespace.includes(namespace))
            {
                let narrower = if host.is_within(&own.host) {
                    host
                } else if own.host.is_within(host) {
                    &own.host
                } else {
                    continue;
                };

                if !found.contains(narrower) {
                    found.push(narrower.clone());
                }
            }
        }

        found
    }
}

/// `ns/dns` in Gateway.servers[].hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerHost {
    /// VirtualServices of this namespace may bind to it.
    pub namespace: NamespaceScope,
    /// The name clients ask for.
    pub host: Hostname,
}

/// The namespace part of `ns/dns`, `.` already replaced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NamespaceScope {
    /// `*`, or nothing written.
    Any,
    /// This one.
    One(String),
    /// `~`.
    Nobody,
}

impl NamespaceScope {
    /// Whether objects of `namespace` are meant.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Any => true,
            Self::One(name) => name == namespace,
            Self::Nobody => false,
        }
    }

    /// Reads it; `own` is what `.` stands for.
    pub fn parse(text: &str, own: &str) -> Self {
        match text {
            "*" | "" => Self::Any,
            "." => Self::One(own.to_owned()),
            "~" => Self::Nobody,
            name => Self::One(name.to_owned()),
        }
    }
}

/// Gateway.servers[].tls, and Sidecar.ingress[].tls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// Plain HTTP answers with a redirect to https.
    pub https_redirect: bool,
    /// How the server handles TLS.
    pub mode: ServerTlsMode,
    /// File of the certificate chain.
    pub server_certificate: String,
    /// File of its key.
    pub private_key: String,
    /// File of the roots for clients.
    pub ca_certificates: String,
    /// File of revocations.
    pub ca_crl: String,
    /// Secrets with certificate and key; the first is the only one unless several were listed.
    pub credential_names: Vec<String>,
    /// Secret with the roots for clients; empty for `NAME-cacert`.
    pub ca_credential_name: String,
    /// Accepted names of clients.
    pub subject_alt_names: Vec<String>,
    /// Accepted key fingerprints of clients.
    pub verify_spki: Vec<String>,
    /// Accepted certificate fingerprints of clients.
    pub verify_hash: Vec<String>,
    /// Lowest version.
    pub min_version: TlsVersion,
    /// Highest version.
    pub max_version: TlsVersion,
    /// Empty for the default list.
    pub cipher_suites: Vec<String>,
}

/// Gateway.servers[].tls.mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerTlsMode {
    /// Not terminated: routed by SNI through VirtualService tls routes.
    Passthrough,
    /// Not terminated: the SNI names the cluster.
    AutoPassthrough,
    /// Server certificate only.
    Simple,
    /// Clients must show a certificate.
    Mutual,
    /// Clients may show a certificate.
    OptionalMutual,
    /// The mesh's own identities on both sides.
    IstioMutual,
}

impl ServerTlsMode {
    /// Whether the bytes go on encrypted.
    pub fn is_passthrough(self) -> bool {
        matches!(self, Self::Passthrough | Self::AutoPassthrough)
    }
}

/// A TLS version bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsVersion {
    /// Not written.
    #[default]
    Auto,
    /// 1.0.
    V1_0,
    /// 1.1.
    V1_1,
    /// 1.2.
    V1_2,
    /// 1.3.
    V1_3,
}
