//! `telemetry.istio.io`: what proxies report.

use std::collections::BTreeMap;

use crate::duration::Duration;
use crate::schema::{message, words};
use crate::shared::{TargetReference, WorkloadSelector};

message! {
    /// What proxies report.
    pub struct Telemetry {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        selector: Option<WorkloadSelector> = "selector",
        /// One target instead of workloads.
        target_ref: Option<TargetReference> = "targetRef",
        /// Targets instead of workloads.
        target_refs: Vec<TargetReference> = "targetRefs",
        /// Spans.
        tracing: Vec<Tracing> = "tracing",
        metrics: Vec<Metrics> = "metrics",
        /// Access logs.
        access_logging: Vec<AccessLogging> = "accessLogging",
    }

    /// A provider of MeshConfig.
    pub struct ProviderRef {
        name: String = "name" [required, non_empty],
    }

    /// Spans.
    pub struct Tracing {
        /// On which side.
        r#match: Option<TelemetryMatch> = "match",
        /// Where to; empty is inherited.
        providers: Vec<ProviderRef> = "providers",
        /// 0 to 100; absent is inherited.
        random_sampling_percentage: Option<f64> = "randomSamplingPercentage",
        /// Whether spans are not reported.
        disable_span_reporting: Option<bool> = "disableSpanReporting",
        /// Further tags.
        custom_tags: BTreeMap<String, CustomTag> = "customTags",
        /// Whether the request id decides about sampling; absent is yes.
        use_request_id_for_trace_sampling: Option<bool> = "useRequestIdForTraceSampling",
        /// Whether `istio.*` tags are added; absent is yes.
        enable_istio_tags: Option<bool> = "enableIstioTags",
        /// Whether trace headers are left alone.
        disable_context_propagation: Option<bool> = "disableContextPropagation",
    }

    /// A tag: one of these.
    pub struct CustomTag {
        /// A text.
        literal: Option<TagValue> = "literal",
        /// A variable of the proxy's environment.
        environment: Option<TagSource> = "environment",
        /// A request header.
        header: Option<TagSource> = "header",
        /// An access-log format.
        formatter: Option<TagValue> = "formatter",
    }

    /// A text.
    pub struct TagValue {
        /// The text.
        value: String = "value" [required, non_empty],
    }

    /// Where a tag's value comes from.
    pub struct TagSource {
        name: String = "name" [required, non_empty],
        /// If it is absent there.
        default_value: String = "defaultValue",
    }

    /// On which side.
    pub struct TelemetryMatch {
        /// Side.
        mode: WorkloadMode = "mode",
    }

    pub struct Metrics {
        /// Where to; empty is inherited.
        providers: Vec<ProviderRef> = "providers",
        /// In order; later ones win.
        overrides: Vec<MetricsOverrides> = "overrides",
        /// How often TCP metrics are reported; absent is 5 s.
        reporting_interval: Option<Duration> = "reportingInterval",
    }

    /// A change of metrics.
    pub struct MetricsOverrides {
        /// Which; absent is all.
        r#match: Option<MetricSelector> = "match",
        /// Whether they are left out.
        disabled: Option<bool> = "disabled",
        /// Changes of their tags.
        tag_overrides: BTreeMap<String, TagOverride> = "tagOverrides",
    }

    /// Which metrics: one of metric and customMetric.
    pub struct MetricSelector {
        /// A standard metric; absent, without a custom one, is all.
        metric: Option<IstioMetric> = "metric",
        /// By name.
        custom_metric: Option<String> = "customMetric" [non_empty],
        /// On which side.
        mode: WorkloadMode = "mode",
    }

    /// A change of a tag.
    pub struct TagOverride {
        /// Set or removed.
        operation: TagOperation = "operation",
        /// CEL expression, for UPSERT.
        value: Option<String> = "value",
    }

    /// Access logs.
    pub struct AccessLogging {
        /// On which side.
        r#match: Option<TelemetryMatch> = "match",
        /// Where to; empty is inherited.
        providers: Vec<ProviderRef> = "providers",
        /// Whether they are off.
        disabled: Option<bool> = "disabled",
        /// Which requests.
        filter: Option<AccessLogFilter> = "filter",
    }

    /// Which requests.
    pub struct AccessLogFilter {
        /// CEL expression.
        expression: String = "expression",
    }
}

words! {
    /// On which side of a call.
    pub enum WorkloadMode {
        /// Both.
        ClientAndServer = "CLIENT_AND_SERVER",
        /// The caller's.
        Client = "CLIENT",
        /// The callee's.
        Server = "SERVER",
    }

    /// Set or removed.
    pub enum TagOperation {
        /// Set.
        Upsert = "UPSERT",
        Remove = "REMOVE",
    }

    /// Standard metrics.
    pub enum IstioMetric {
        /// All of them.
        AllMetrics = "ALL_METRICS",
        /// `istio_requests_total`.
        RequestCount = "REQUEST_COUNT",
        /// `istio_request_duration_milliseconds`.
        RequestDuration = "REQUEST_DURATION",
        /// `istio_request_bytes`.
        RequestSize = "REQUEST_SIZE",
        /// `istio_response_bytes`.
        ResponseSize = "RESPONSE_SIZE",
        /// `istio_tcp_connections_opened_total`.
        TcpOpenedConnections = "TCP_OPENED_CONNECTIONS",
        /// `istio_tcp_connections_closed_total`.
        TcpClosedConnections = "TCP_CLOSED_CONNECTIONS",
        /// `istio_tcp_sent_bytes_total`.
        TcpSentBytes = "TCP_SENT_BYTES",
        /// `istio_tcp_received_bytes_total`.
        TcpReceivedBytes = "TCP_RECEIVED_BYTES",
        /// `istio_request_messages_total`.
        GrpcRequestMessages = "GRPC_REQUEST_MESSAGES",
        /// `istio_response_messages_total`.
        GrpcResponseMessages = "GRPC_RESPONSE_MESSAGES",
    }
}
