//! The settings themselves and their defaults. Source: Istio `mesh/v1alpha1/config.proto`,
//! `pkg/config/mesh`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{DefaultProviders, ExtensionProvider, ProxyConfig};
use crate::duration::Duration;
use crate::networking::{
    ClientTlsSettings, H2UpgradePolicy, HttpRetry, LocalityLbSetting, TcpKeepalive, TlsProtocol,
};
use crate::schema::{message, words};

message! {
    /// Settings of the mesh. [`MeshConfig::istio_default`] has Istio's defaults; `Default` has
    /// nothing set.
    pub struct MeshConfig {
        /// Where sidecars take outbound connections.
        proxy_listen_port: u32 = "proxyListenPort",
        /// Where sidecars take inbound connections.
        proxy_inbound_listen_port: u32 = "proxyInboundListenPort",
        /// Where sidecars serve as an HTTP proxy; 0 is nowhere.
        proxy_http_port: u32 = "proxyHttpPort",
        /// Of connections to upstreams.
        connect_timeout: Option<Duration> = "connectTimeout",
        /// How long the first bytes are awaited where the protocol is sniffed; 0 is for ever.
        protocol_detection_timeout: Option<Duration> = "protocolDetectionTimeout",
        /// Kernel probes of upstream connections.
        tcp_keepalive: Option<TcpKeepalive> = "tcpKeepalive",
        /// Class of Ingress objects.
        ingress_class: String = "ingressClass",
        /// Service of the ingress gateway.
        ingress_service: String = "ingressService",
        /// Which Ingress objects are read.
        ingress_controller_mode: IngressControllerMode = "ingressControllerMode",
        /// Label `istio` of the ingress gateway's pods.
        ingress_selector: String = "ingressSelector",
        /// Whether spans are made.
        enable_tracing: bool = "enableTracing",
        /// Path of the access log; empty is none.
        access_log_file: String = "accessLogFile",
        /// Format; empty is Istio's default.
        access_log_format: String = "accessLogFormat",
        /// Text or JSON.
        access_log_encoding: AccessLogEncoding = "accessLogEncoding",
        /// Whether proxies send logs by gRPC.
        enable_envoy_access_log_service: bool = "enableEnvoyAccessLogService",
        /// Whether refused connections are not logged.
        disable_envoy_listener_log: bool = "disableEnvoyListenerLog",
        /// Settings of proxies.
        default_config: ProxyConfig = "defaultConfig",
        /// What happens to calls of unknown hosts.
        outbound_traffic_policy: OutboundTrafficPolicy = "outboundTrafficPolicy",
        /// What happens to calls of unknown ports of a workload.
        inbound_traffic_policy: InboundTrafficPolicy = "inboundTrafficPolicy",
        /// Other sources of configuration.
        config_sources: Vec<ConfigSource> = "configSources",
        /// Whether clients use mutual TLS wherever servers can.
        enable_auto_mtls: Option<bool> = "enableAutoMtls",
        /// Of our identities.
        trust_domain: String = "trustDomain",
        /// Domains that mean the same.
        trust_domain_aliases: Vec<String> = "trustDomainAliases",
        /// Further roots.
        ca_certificates: Vec<CertificateData> = "caCertificates",
        /// Where Services are seen.
        default_service_export_to: Vec<String> = "defaultServiceExportTo",
        /// Where VirtualServices are seen.
        default_virtual_service_export_to: Vec<String> = "defaultVirtualServiceExportTo",
        /// Where DestinationRules are seen.
        default_destination_rule_export_to: Vec<String> = "defaultDestinationRuleExportTo",
        /// Namespace whose objects are for the whole mesh.
        root_namespace: String = "rootNamespace",
        /// Preference among localities.
        locality_lb_setting: Option<LocalityLbSetting> = "localityLbSetting",
        /// How often names are resolved again after a failure.
        dns_refresh_rate: Option<Duration> = "dnsRefreshRate",
        /// HTTP/1.1 to HTTP/2.
        h2_upgrade_policy: H2UpgradePolicy = "h2UpgradePolicy",
        /// Statistics name of inbound clusters.
        inbound_cluster_stat_name: String = "inboundClusterStatName",
        /// Statistics name of outbound clusters.
        outbound_cluster_stat_name: String = "outboundClusterStatName",
        /// Deprecated.
        certificates: Vec<Value> = "certificates",
        /// Settings by host.
        service_settings: Vec<ServiceSettings> = "serviceSettings",
        /// Whether the agent serves the application's metrics too.
        enable_prometheus_merge: Option<bool> = "enablePrometheusMerge",
        /// Deprecated.
        verify_certificate_at_client: Option<bool> = "verifyCertificateAtClient",
        /// An external CA.
        ca: Option<Value> = "ca",
        /// Named services of the mesh's environment.
        extension_providers: Vec<ExtensionProvider> = "extensionProviders",
        /// Providers where Telemetry names none.
        default_providers: Option<DefaultProviders> = "defaultProviders",
        /// Which namespaces are read; empty is all.
        discovery_selectors: Vec<DiscoverySelector> = "discoverySelectors",
        /// How paths are made canonical.
        path_normalization: PathNormalization = "pathNormalization",
        /// Retries of outbound routes that name none.
        default_http_retry_policy: Option<HttpRetry> = "defaultHttpRetryPolicy",
        /// Retries of inbound routes; an empty one switches them off.
        default_inbound_http_retry_policy: Option<HttpRetry> = "defaultInboundHttpRetryPolicy",
        /// TLS between workloads.
        mesh_mtls: Option<TlsConfig> = "meshMTLS",
        /// TLS otherwise.
        tls_defaults: Option<TlsConfig> = "tlsDefaults",
        /// Scopes of services in ambient mode.
        service_scope_configs: Vec<Value> = "serviceScopeConfigs",
    }

    /// What happens to calls of unknown hosts.
    pub struct OutboundTrafficPolicy {
        /// Forwarded or refused.
        mode: OutboundTrafficMode = "mode",
    }

    /// What happens to calls of unknown ports of a workload.
    pub struct InboundTrafficPolicy {
        /// Where they go.
        mode: InboundTrafficMode = "mode",
    }

    /// Another source of configuration.
    pub struct ConfigSource {
        /// `fs:///path` or `xds://host:port`.
        address: String = "address",
        /// TLS towards it.
        tls_settings: Option<ClientTlsSettings> = "tlsSettings",
        /// What is asked for.
        subscribed_resources: Vec<String> = "subscribedResources",
    }

    /// A further root: one of both.
    pub struct CertificateData {
        pem: Option<String> = "pem",
        /// Where a bundle is fetched.
        spiffe_bundle_url: Option<String> = "spiffeBundleUrl",
        /// Signers that it is for.
        cert_signers: Vec<String> = "certSigners",
        /// Trust domains that it vouches for; empty is ours and its aliases.
        trust_domains: Vec<String> = "trustDomains",
    }

    /// Settings of hosts.
    pub struct ServiceSettings {
        settings: Option<ServiceSetting> = "settings",
        /// The hosts; `*.` prefixes allowed.
        hosts: Vec<String> = "hosts",
    }

    pub struct ServiceSetting {
        /// Whether only endpoints of the own cluster are used.
        cluster_local: bool = "clusterLocal",
    }

    /// Namespaces by label.
    pub struct DiscoverySelector {
        /// Pairs that must all be there.
        match_labels: BTreeMap<String, String> = "matchLabels",
        /// Further conditions.
        match_expressions: Vec<LabelExpression> = "matchExpressions",
    }

    /// A condition on a label.
    pub struct LabelExpression {
        /// Label.
        key: String = "key",
        /// In, NotIn, Exists, DoesNotExist.
        operator: String = "operator",
        values: Vec<String> = "values",
    }

    /// How paths are made canonical.
    pub struct PathNormalization {
        /// Which steps.
        normalization: NormalizationType = "normalization",
    }

    /// Limits of TLS.
    pub struct TlsConfig {
        /// Oldest version.
        min_protocol_version: TlsProtocol = "minProtocolVersion",
        /// Groups of the key exchange.
        ecdh_curves: Vec<String> = "ecdhCurves",
        /// In OpenSSL's names.
        cipher_suites: Vec<String> = "cipherSuites",
    }
}

words! {
    /// Which Ingress objects are read.
    pub enum IngressControllerMode {
        /// As `STRICT`.
        Unspecified = "UNSPECIFIED",
        /// None.
        Off = "OFF",
        /// Also those without class.
        Default = "DEFAULT",
        /// Those of our class.
        Strict = "STRICT",
    }

    /// Form of access logs.
    pub enum AccessLogEncoding {
        /// A line of text.
        Text = "TEXT",
        /// A JSON object.
        Json = "JSON",
    }

    /// What happens to calls of unknown hosts.
    pub enum OutboundTrafficMode {
        /// Refused.
        RegistryOnly = "REGISTRY_ONLY",
        /// Forwarded to the address called.
        AllowAny = "ALLOW_ANY",
        /// Forwarded to the host called, resolved by the proxy.
        AllowAnyDynamicDns = "ALLOW_ANY_DYNAMIC_DNS",
    }

    /// What happens to calls of unknown ports of a workload.
    pub enum InboundTrafficMode {
        /// To the address called.
        Passthrough = "PASSTHROUGH",
        /// To 127.0.0.1.
        Localhost = "LOCALHOST",
    }

    /// Steps of making paths canonical.
    pub enum NormalizationType {
        /// As `BASE`.
        Default = "DEFAULT",
        None = "NONE",
        /// RFC 3986.
        Base = "BASE",
        /// And merges slashes.
        MergeSlashes = "MERGE_SLASHES",
        /// And decodes `%2F` and `%5C`.
        DecodeAndMergeSlashes = "DECODE_AND_MERGE_SLASHES",
    }
}

impl MeshConfig {
    /// What holds when nothing is written.
    pub fn istio_default() -> Self {
        let everywhere = || vec!["*".to_owned()];
        Self {
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            connect_timeout: Some(Duration::from_secs(10)),
            protocol_detection_timeout: Some(Duration::from_secs(0)),
            ingress_class: "istio".to_owned(),
            ingress_service: "istio-ingressgateway".to_owned(),
            ingress_controller_mode: IngressControllerMode::Strict,
            enable_tracing: true,
            default_config: ProxyConfig::istio_default(),
            outbound_traffic_policy: OutboundTrafficPolicy {
                mode: OutboundTrafficMode::AllowAny,
            },
            enable_auto_mtls: Some(true),
            trust_domain: "cluster.local".to_owned(),
            default_service_export_to: everywhere(),
            default_virtual_service_export_to: everywhere(),
            default_destination_rule_export_to: everywhere(),
            root_namespace: "istio-system".to_owned(),
            locality_lb_setting: Some(LocalityLbSetting {
                enabled: Some(true),
                ..LocalityLbSetting::default()
            }),
            dns_refresh_rate: Some(Duration::from_secs(60)),
            enable_prometheus_merge: Some(true),
            extension_providers: ExtensionProvider::built_in(),
            path_normalization: PathNormalization {
                normalization: NormalizationType::Base,
            },
            ..Self::default()
        }
    }

    /// Whether clients use mutual TLS wherever servers can.
    pub fn auto_mtls(&self) -> bool {
        self.enable_auto_mtls.unwrap_or(true)
    }
}
