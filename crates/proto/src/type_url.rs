//! Type URLs of the resources that travel over xDS, in push order. Source: Envoy xDS protocol,
//! Istio `pkg/model`.

/// `envoy.config.cluster.v3.Cluster` (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// `envoy.config.endpoint.v3.ClusterLoadAssignment` (EDS).
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// `envoy.config.listener.v3.Listener` (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// `envoy.config.route.v3.RouteConfiguration` (RDS).
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// `envoy.config.route.v3.VirtualHost` (VHDS).
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
/// `envoy.extensions.transport_sockets.tls.v3.Secret` (SDS).
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// `envoy.config.core.v3.TypedExtensionConfig` (ECDS).
pub const EXTENSION_CONFIG: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// `istio.networking.nds.v1.NameTable` (NDS), for the agent's DNS proxy only.
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// The order in which a push goes out; types that are not named here follow in any order.
pub const PUSH_ORDER: &[&str] = &[
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    VIRTUAL_HOST,
    SECRET,
    EXTENSION_CONFIG,
    NAME_TABLE,
];

/// The short name that people and metrics use: `CDS`, `EDS`, ...; the URL itself for a type without
/// one.
pub fn short(url: &str) -> &str {
    match url {
        CLUSTER => "CDS",
        ENDPOINT => "EDS",
        LISTENER => "LDS",
        ROUTE => "RDS",
        VIRTUAL_HOST => "VHDS",
        SECRET => "SDS",
        EXTENSION_CONFIG => "ECDS",
        NAME_TABLE => "NDS",
        other => other,
    }
}
