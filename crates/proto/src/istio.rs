//! Istio's own messages that travel beside Envoy's, written by hand. Field numbers are Istio's.

use std::collections::HashMap;

use crate::google::protobuf::Struct;

/// Reading text fields of a `Struct` without matching through three levels.
pub trait StructExt {
    /// The field's text, if the field exists and is a string.
    fn text(&self, key: &str) -> Option<&str>;
}

/// `istio.networking.nds.v1.NameTable`: the names that the DNS proxy of an agent answers itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NameTable {
    /// From host name, without trailing dot, to addresses.
    #[prost(map = "string, message", tag = "1")]
    pub table: HashMap<String, NameInfo>,
}

impl prost::Name for NameTable {
    const NAME: &'static str = "NameTable";
    const PACKAGE: &'static str = "istio.networking.nds.v1";
    fn type_url() -> String {
        crate::type_url::NAME_TABLE.to_owned()
    }
}

/// `istio.networking.nds.v1.NameTable.NameInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NameInfo {
    /// Addresses, IPv4 and IPv6 mixed.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// `Kubernetes`, `External`, ...
    #[prost(string, tag = "2")]
    pub registry: String,
    /// The short name of a Kubernetes service.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// The namespace of a Kubernetes service.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Istio's deprecated field, never sent by us.
    #[prost(string, repeated, tag = "5")]
    pub alt_hosts: Vec<String>,
}

/// `stats.PluginConfig`: configuration of the filters `istio.stats` (HTTP and TCP). Source: Istio
/// proxy `extensions/stats/config.proto`; only what the mesh sets.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsConfig {
    /// Off: the reporter's own host header may become the label `destination_service`.
    #[prost(bool, tag = "6")]
    pub disable_host_header_fallback: bool,
    /// How often open TCP connections are reported; default 5 s.
    #[prost(message, optional, tag = "7")]
    pub tcp_reporting_duration: Option<crate::google::protobuf::Duration>,
}

impl prost::Name for StatsConfig {
    const NAME: &'static str = "PluginConfig";
    const PACKAGE: &'static str = "stats";
    fn type_url() -> String {
        "type.googleapis.com/stats.PluginConfig".to_owned()
    }
}

/// `io.istio.http.peer_metadata.Config`: who the peer is, by headers. Istio's discovery and
/// propagation methods are oneofs; the mesh uses the method `istio_headers` on both sides.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerMetadataConfig {
    /// How the downstream peer is found.
    #[prost(message, repeated, tag = "1")]
    pub downstream_discovery: Vec<PeerMethod>,
    /// How the upstream peer is found.
    #[prost(message, repeated, tag = "2")]
    pub upstream_discovery: Vec<PeerMethod>,
    /// What is told to the downstream peer in the response.
    #[prost(message, repeated, tag = "3")]
    pub downstream_propagation: Vec<PeerMethod>,
    /// What is told to the upstream peer in the request.
    #[prost(message, repeated, tag = "4")]
    pub upstream_propagation: Vec<PeerMethod>,
}

impl prost::Name for PeerMetadataConfig {
    const NAME: &'static str = "Config";
    const PACKAGE: &'static str = "io.istio.http.peer_metadata";
    fn type_url() -> String {
        "type.googleapis.com/io.istio.http.peer_metadata.Config".to_owned()
    }
}

/// One method of finding or telling peer metadata.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerMethod {
    /// Headers `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.
    #[prost(message, optional, tag = "3")]
    pub istio_headers: Option<IstioHeaders>,
}

/// `io.istio.http.peer_metadata.Config.IstioHeaders`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioHeaders {
    /// Leave the headers away where the other side is outside the mesh.
    #[prost(bool, tag = "1")]
    pub skip_external_clusters: bool,
}

/// `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`: the ALPN a request offers upstream,
/// by its protocol.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AlpnConfig {
    /// One entry per upstream protocol.
    #[prost(message, repeated, tag = "1")]
    pub alpn_override: Vec<AlpnOverride>,
}

impl prost::Name for AlpnConfig {
    const NAME: &'static str = "FilterConfig";
    const PACKAGE: &'static str = "istio.envoy.config.filter.http.alpn.v2alpha1";
    fn type_url() -> String {
        "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig".to_owned()
    }
}

/// `FilterConfig.AlpnOverride`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AlpnOverride {
    /// 0: HTTP/1.0, 1: HTTP/1.1, 2: HTTP/2.
    #[prost(int32, tag = "1")]
    pub upstream_protocol: i32,
    /// What is offered instead of the cluster's list.
    #[prost(string, repeated, tag = "2")]
    pub alpn_override: Vec<String>,
}

/// `envoy.tcp.metadataexchange.config.MetadataExchange`: who the peer is, by bytes before those of
/// the application.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetadataExchange {
    /// The ALPN that both sides must have agreed on: `istio-peer-exchange`.
    #[prost(string, tag = "1")]
    pub protocol: String,
}

impl prost::Name for MetadataExchange {
    const NAME: &'static str = "MetadataExchange";
    const PACKAGE: &'static str = "envoy.tcp.metadataexchange.config";
    fn type_url() -> String {
        "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange".to_owned()
    }
}

/// `udpa.type.v1.TypedStruct` and `xds.type.v3.TypedStruct`, which share their shape: a message as
/// a `Struct`, for receivers that know its type by URL alone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypedStruct {
    /// The URL of the type that `value` stands for.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message in its JSON form.
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

impl prost::Name for TypedStruct {
    const NAME: &'static str = "TypedStruct";
    const PACKAGE: &'static str = "xds.type.v3";
    fn type_url() -> String {
        "type.googleapis.com/xds.type.v3.TypedStruct".to_owned()
    }
}
