//! Sidecar: what a workload's proxy serves and sees.

use crate::networking::{ConnectionPoolSettings, Destination, ServerTlsSettings};
use crate::schema::{message, words};
use crate::shared::LabelSelector;

message! {
    /// Limits of what proxies serve and see.
    pub struct Sidecar {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        workload_selector: Option<LabelSelector> = "workloadSelector",
        /// What the workload serves; empty is what its services say.
        ingress: Vec<IstioIngressListener> = "ingress",
        /// What the workload calls; empty is the namespace-wide default.
        egress: Vec<IstioEgressListener> = "egress",
        /// Limits towards the application.
        inbound_connection_pool: Option<ConnectionPoolSettings> = "inboundConnectionPool",
        /// What happens to calls of unknown hosts; absent is MeshConfig's.
        outbound_traffic_policy: Option<SidecarOutboundTrafficPolicy> = "outboundTrafficPolicy",
    }

    /// A served port.
    pub struct IstioIngressListener {
        port: SidecarPort = "port" [required],
        /// Address to bind; empty is the workload's.
        bind: String = "bind",
        /// How connections come.
        capture_mode: CaptureMode = "captureMode",
        /// `127.0.0.1:PORT`, `[::1]:PORT`, `0.0.0.0:PORT`, `[::]:PORT` or `unix:///path`.
        default_endpoint: String = "defaultEndpoint",
        /// TLS instead of automatic mutual TLS.
        tls: Option<ServerTlsSettings> = "tls",
        /// Limits towards the application.
        connection_pool: Option<ConnectionPoolSettings> = "connectionPool",
    }

    /// Called hosts.
    pub struct IstioEgressListener {
        /// Absent is every port of the hosts.
        port: Option<SidecarPort> = "port",
        /// Address or `unix://` socket to bind.
        bind: String = "bind",
        /// How connections come.
        capture_mode: CaptureMode = "captureMode",
        /// `namespace/host`; namespace may be `.`, `*`, `~`.
        hosts: Vec<String> = "hosts" [required],
    }

    /// A port of a Sidecar.
    pub struct SidecarPort {
        /// 1 to 65535; 0 for a socket.
        number: u32 = "number",
        /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS.
        protocol: String = "protocol",
        name: String = "name",
        /// Deprecated, without effect.
        target_port: u32 = "targetPort",
    }

    /// What happens to calls of unknown hosts.
    pub struct SidecarOutboundTrafficPolicy {
        /// Forwarded or refused.
        mode: SidecarOutboundTrafficMode = "mode",
        /// Forwarded through this.
        egress_proxy: Option<Destination> = "egressProxy",
    }
}

words! {
    /// How connections come to a listener.
    pub enum CaptureMode {
        /// The environment's way.
        Default = "DEFAULT",
        /// Redirected.
        Iptables = "IPTABLES",
        /// Addressed to the listener.
        None = "NONE",
    }

    /// What happens to calls of unknown hosts.
    pub enum SidecarOutboundTrafficMode {
        /// Refused.
        RegistryOnly = "REGISTRY_ONLY",
        /// Forwarded.
        AllowAny = "ALLOW_ANY",
    }
}
