//! Settings of proxies: `MeshConfig.defaultConfig` and the annotation `proxy.istio.io/config`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::duration::Duration;
use crate::networking::{ClientTlsSettings, ProxyImage, ReadinessProbe, TcpKeepalive};
use crate::schema::{message, words};
use crate::telemetry::CustomTag;

message! {
    /// Settings of a proxy. [`ProxyConfig::istio_default`] has Istio's defaults; `Default` has
    /// nothing set.
    pub struct ProxyConfig {
        /// Where generated files go.
        config_path: String = "configPath",
        /// The proxy's program.
        binary_path: String = "binaryPath",
        /// Name of the service cluster.
        service_cluster: String = "serviceCluster",
        /// How the service is named in spans.
        tracing_service_name: TracingServiceName = "tracingServiceName",
        /// How long a proxy drains on reconfiguration.
        drain_duration: Option<Duration> = "drainDuration",
        /// The control plane.
        discovery_address: String = "discoveryAddress",
        /// Where statistics go by UDP.
        statsd_udp_address: String = "statsdUdpAddress",
        /// The proxy's admin port, on localhost.
        proxy_admin_port: u32 = "proxyAdminPort",
        /// How the control plane is authenticated.
        control_plane_auth_policy: AuthenticationPolicy = "controlPlaneAuthPolicy",
        /// A bootstrap to use as it is.
        custom_config_file: String = "customConfigFile",
        /// Longest name in statistics.
        stat_name_length: i32 = "statNameLength",
        /// Worker threads; absent is by CPU limit, 0 is all cores.
        concurrency: Option<i32> = "concurrency",
        /// Template of the bootstrap.
        proxy_bootstrap_template_path: String = "proxyBootstrapTemplatePath",
        /// How connections are captured.
        interception_mode: InterceptionMode = "interceptionMode",
        /// Spans.
        tracing: Option<ProxyTracing> = "tracing",
        envoy_access_log_service: Option<RemoteService> = "envoyAccessLogService",
        envoy_metrics_service: Option<RemoteService> = "envoyMetricsService",
        /// Environment and metadata of the proxy.
        proxy_metadata: BTreeMap<String, String> = "proxyMetadata",
        /// Envoy's runtime.
        runtime_values: BTreeMap<String, String> = "runtimeValues",
        /// The agent's health port.
        status_port: i32 = "statusPort",
        /// Further tags of statistics.
        extra_stat_tags: Vec<String> = "extraStatTags",
        /// How long a proxy drains before it ends.
        termination_drain_duration: Option<Duration> = "terminationDrainDuration",
        /// Name of the mesh.
        mesh_id: String = "meshId",
        /// Health check of the application, for workloads outside of Kubernetes.
        readiness_probe: Option<ReadinessProbe> = "readinessProbe",
        /// Which statistics are made beyond the usual.
        proxy_stats_matcher: Option<ProxyStatsMatcher> = "proxyStatsMatcher",
        /// Whether the application waits for the proxy.
        hold_application_until_proxy_starts: Option<bool> = "holdApplicationUntilProxyStarts",
        /// Further roots, in PEM.
        ca_certificates_pem: Vec<String> = "caCertificatesPem",
        /// Image of the proxy.
        image: Option<ProxyImage> = "image",
        /// Hardware for private keys.
        private_key_provider: Option<Value> = "privateKeyProvider",
        /// Headers that the proxy adds.
        proxy_headers: Option<ProxyHeaders> = "proxyHeaders",
        /// How often the log is flushed.
        file_flush_interval: Option<Duration> = "fileFlushInterval",
        /// How much is buffered for the log.
        file_flush_min_size_kb: Option<u32> = "fileFlushMinSizeKb",
        /// Deprecated.
        sds: Option<Value> = "sds",
        /// Deprecated.
        zipkin_address: String = "zipkinAddress",
    }

    /// Spans.
    pub struct ProxyTracing {
        zipkin: Option<AddressOnly> = "zipkin",
        /// Deprecated.
        lightstep: Option<Value> = "lightstep",
        datadog: Option<AddressOnly> = "datadog",
        stackdriver: Option<Value> = "stackdriver",
        /// Deprecated.
        open_census_agent: Option<Value> = "openCensusAgent",
        /// Further tags.
        custom_tags: BTreeMap<String, CustomTag> = "customTags",
        /// Longest path in spans; 0 is 256.
        max_path_tag_length: u32 = "maxPathTagLength",
        /// Percent of requests; 0 is the control plane's default.
        sampling: f64 = "sampling",
        /// TLS towards the collector.
        tls_settings: Option<ClientTlsSettings> = "tlsSettings",
        /// Whether `istio.*` tags are added.
        enable_istio_tags: Option<bool> = "enableIstioTags",
    }

    /// An address.
    pub struct AddressOnly {
        /// `host:port`.
        address: String = "address",
    }

    /// A service that proxies call.
    pub struct RemoteService {
        /// `host:port`.
        address: String = "address",
        /// TLS towards it.
        tls_settings: Option<ClientTlsSettings> = "tlsSettings",
        /// Kernel probes.
        tcp_keepalive: Option<TcpKeepalive> = "tcpKeepalive",
    }

    /// Which statistics are made beyond the usual.
    pub struct ProxyStatsMatcher {
        /// By prefix.
        inclusion_prefixes: Vec<String> = "inclusionPrefixes",
        /// By suffix.
        inclusion_suffixes: Vec<String> = "inclusionSuffixes",
        /// By expression.
        inclusion_regexps: Vec<String> = "inclusionRegexps",
    }

    /// Headers that the proxy adds; absent ones are as usual.
    pub struct ProxyHeaders {
        /// `x-forwarded-client-cert`.
        forwarded_client_cert: Option<String> = "forwardedClientCert",
        /// What is in it.
        set_current_client_cert_details: Option<Value> = "setCurrentClientCertDetails",
        /// `x-request-id`.
        request_id: Option<ProxyHeaderSwitch> = "requestId",
        /// `server`.
        server: Option<ProxyHeaderServer> = "server",
        /// `x-envoy-attempt-count`.
        attempt_count: Option<ProxyHeaderSwitch> = "attemptCount",
        /// `x-envoy-*`.
        envoy_debug_headers: Option<ProxyHeaderSwitch> = "envoyDebugHeaders",
        /// `x-envoy-peer-metadata`.
        metadata_exchange_headers: Option<MetadataExchangeHeaders> = "metadataExchangeHeaders",
        /// `x-forwarded-host`.
        x_forwarded_host: Option<Value> = "xForwardedHost",
        /// `x-forwarded-port`.
        x_forwarded_port: Option<Value> = "xForwardedPort",
        /// Whether header names keep their case.
        preserve_http1_header_case: Option<bool> = "preserveHttp1HeaderCase",
    }

    /// A header that can be left out.
    pub struct ProxyHeaderSwitch {
        /// Whether it is left out.
        disabled: Option<bool> = "disabled",
    }

    /// The `server` header.
    pub struct ProxyHeaderServer {
        /// Whether it is left alone.
        disabled: Option<bool> = "disabled",
        value: String = "value",
    }

    /// Headers about the peer.
    pub struct MetadataExchangeHeaders {
        /// `UNDEFINED` or `IN_MESH`.
        mode: String = "mode",
    }
}

words! {
    /// How the service is named in spans.
    pub enum TracingServiceName {
        /// `app` label and namespace.
        AppLabelAndNamespace = "APP_LABEL_AND_NAMESPACE",
        CanonicalNameOnly = "CANONICAL_NAME_ONLY",
        /// Canonical name and namespace.
        CanonicalNameAndNamespace = "CANONICAL_NAME_AND_NAMESPACE",
    }

    /// How the control plane is authenticated.
    pub enum AuthenticationPolicy {
        /// Not at all.
        None = "NONE",
        /// Mutual TLS.
        MutualTls = "MUTUAL_TLS",
        /// As `NONE`.
        Inherit = "INHERIT",
    }

    /// How connections are captured.
    pub enum InterceptionMode {
        /// Destination rewritten.
        Redirect = "REDIRECT",
        /// Source kept too.
        Tproxy = "TPROXY",
        /// Not at all.
        None = "NONE",
    }
}

impl ProxyConfig {
    /// What holds when nothing is written.
    pub fn istio_default() -> Self {
        Self {
            config_path: "./etc/istio/proxy".to_owned(),
            binary_path: "/usr/local/bin/envoy".to_owned(),
            service_cluster: "istio-proxy".to_owned(),
            drain_duration: Some(Duration::from_secs(45)),
            termination_drain_duration: Some(Duration::from_secs(5)),
            proxy_admin_port: 15000,
            control_plane_auth_policy: AuthenticationPolicy::MutualTls,
            discovery_address: "istiod.istio-system.svc:15012".to_owned(),
            stat_name_length: 189,
            status_port: 15020,
            ..Self::default()
        }
    }
}
