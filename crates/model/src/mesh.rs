//! Settings of the whole mesh: MeshConfig, lowered once, with Istio's defaults filled in.

use std::collections::BTreeMap;
use std::time::Duration;

use meltemi_types::{Keepalive, TrustDomain};

use crate::{LocalityLb, LogFormat, OutboundMode, Provider};

/// What holds for every proxy unless an object says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshSettings {
    /// rootNamespace: policies there hold for the whole mesh.
    pub root_namespace: String,
    pub trust_domain: TrustDomain,
    /// trustDomainAliases, without the mesh's own domain.
    pub trust_domain_aliases: Vec<String>,
    /// Who sees objects whose `exportTo` is empty.
    pub default_export_to: DefaultExportTo,
    /// proxyListenPort; 15001 by default.
    pub outbound_port: u16,
    /// proxyInboundListenPort; 15006 by default.
    pub inbound_port: u16,
    /// connectTimeout; 10 s by default.
    pub connect_timeout: Duration,
    /// tcpKeepalive of upstream connections.
    pub keepalive: Option<Keepalive>,
    /// enableAutoMtls: clients use mutual TLS wherever the server's endpoint has a proxy.
    pub auto_mtls: bool,
    pub paths: PathNormalization,
    /// h2UpgradePolicy: HTTP/1.1 requests go to upstreams as HTTP/2.
    pub h2_upgrade: bool,
    pub locality: Option<LocalityLb>,
    /// outboundTrafficPolicy.mode.
    pub outbound_mode: OutboundMode,
    /// defaultInboundHttpRetryPolicy; `None` switches retries off.
    pub inbound_retries: Option<InboundRetries>,
    /// Where access logs go, and in which form.
    pub access_logs: MeshAccessLogs,
    /// extensionProviders, by name, for policies with action CUSTOM.
    pub providers: BTreeMap<String, Provider>,
}

/// `defaultServiceExportTo` and its siblings, as written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefaultExportTo {
    /// defaultServiceExportTo, for Services and ServiceEntries.
    pub services: Vec<String>,
    /// defaultVirtualServiceExportTo.
    pub virtual_services: Vec<String>,
    /// defaultDestinationRuleExportTo.
    pub destination_rules: Vec<String>,
}

/// How paths are made canonical before anything decides on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathNormalization {
    /// Dot segments are resolved, percent encodings are upper case (RFC 3986 §6.2.2).
    pub normalize: bool,
    /// `//` is `/`.
    pub merge_slashes: bool,
    /// `%2F` and `%5C` are slashes.
    pub unescape_slashes: bool,
}

/// Retries of inbound routes. The default is Istio's: two, of requests that were not sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InboundRetries {
    /// Attempts after the first.
    pub attempts: u32,
    /// Envoy's `retry_on` words.
    pub retry_on: String,
}

impl Default for InboundRetries {
    fn default() -> Self {
        Self {
            attempts: 2,
            retry_on: "reset-before-request".to_owned(),
        }
    }
}

/// Access logging as MeshConfig sets it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshAccessLogs {
    /// accessLogFile; `None` if it is empty.
    pub file: Option<FileLog>,
    /// defaultProviders.accessLogging: names of providers.
    pub default_providers: Vec<String>,
    /// extensionProviders[].envoyFileAccessLog, by the provider's name. Logs of other sorts are not
    /// written; analysis reports who refers to them.
    pub providers: BTreeMap<String, FileLog>,
    /// disableEnvoyListenerLog: connections that find no filter chain are not logged.
    pub omits_listeners: bool,
}

/// A log that a proxy writes to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLog {
    /// Path; `/dev/stdout` where a provider names none.
    pub path: String,
    /// How a line looks.
    pub format: LogFormat,
}
