//! Access logging, as MeshConfig and Telemetry objects ask for it.

use serde_json::Value;

use meltemi_types::{ObjectRef, Selector};

use crate::Origin;

/// The access-log settings of one Telemetry object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Telemetry {
    /// The object.
    pub origin: Origin,
    /// Which workloads; `None` for the whole namespace, or mesh in the root namespace.
    pub selector: Option<Selector>,
    /// Whether it has targetRefs instead: then it is for what they name alone, and for no whole
    /// namespace.
    pub is_attached: bool,
    /// In declaration order.
    pub access_logging: Vec<AccessLoggingRule>,
}

/// Telemetry.accessLogging[].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccessLoggingRule {
    /// For which side; `None` for both.
    pub mode: Option<WorkloadMode>,
    /// Names of providers; empty for the inherited ones.
    pub providers: Vec<String>,
    /// Switches off (`Some(true)`), on again (`Some(false)`).
    pub disabled: Option<bool>,
    /// CEL over the finished request.
    pub filter: Option<String>,
}

/// Which side of a workload's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkloadMode {
    /// Outbound, and gateways.
    Client,
    /// Inbound.
    Server,
}

/// One access log that a proxy writes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccessLog {
    /// Name of the provider; `envoy` for the built-in one.
    pub provider: String,
    /// Where it goes.
    pub path: String,
    /// How a line looks.
    pub format: LogFormat,
    /// CEL: only what fits is written.
    pub filter: Option<String>,
    /// Who asked for it; empty for MeshConfig.
    pub sources: Vec<ObjectRef>,
}

/// How an access log line looks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// Istio's default line.
    DefaultText,
    /// Istio's default JSON keys.
    DefaultJson,
    /// A format string of Envoy's; ends with a newline.
    Text(String),
    /// An object whose strings are format strings.
    Json(serde_json::Map<String, Value>),
}
