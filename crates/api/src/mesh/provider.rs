//! Extension providers: named services of the mesh's environment that policies refer to.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::duration::Duration;
use crate::schema::message;

message! {
    /// A provider: a name and one kind.
    pub struct ExtensionProvider {
        /// Name that policies use.
        name: String = "name" [required],
        /// Authorization over HTTP.
        envoy_ext_authz_http: Option<ExtAuthzHttp> = "envoyExtAuthzHttp",
        /// Authorization over gRPC.
        envoy_ext_authz_grpc: Option<ExtAuthzGrpc> = "envoyExtAuthzGrpc",
        /// Spans.
        zipkin: Option<TracingProvider> = "zipkin",
        /// Deprecated.
        lightstep: Option<Value> = "lightstep",
        /// Spans.
        datadog: Option<TracingProvider> = "datadog",
        /// Google Cloud.
        stackdriver: Option<Value> = "stackdriver",
        /// Deprecated.
        opencensus: Option<Value> = "opencensus",
        /// Spans.
        skywalking: Option<TracingProvider> = "skywalking",
        /// Spans.
        opentelemetry: Option<OpenTelemetryProvider> = "opentelemetry",
        /// Metrics.
        prometheus: Option<Empty> = "prometheus",
        /// Access log to a file.
        envoy_file_access_log: Option<FileAccessLog> = "envoyFileAccessLog",
        /// Access log over gRPC.
        envoy_http_als: Option<AlsProvider> = "envoyHttpAls",
        /// Access log over gRPC, of TCP.
        envoy_tcp_als: Option<AlsProvider> = "envoyTcpAls",
        /// Access log over OpenTelemetry.
        envoy_otel_als: Option<OtelAlsProvider> = "envoyOtelAls",
        /// Secrets.
        sds: Option<ServiceProvider> = "sds",
    }

    /// Nothing to set.
    pub struct Empty {}

    /// A service and a port.
    pub struct ServiceProvider {
        /// `host` or `namespace/host`.
        service: String = "service",
        port: u32 = "port",
        name: String = "name",
    }

    /// An external authorizer that answers over HTTP: status 200 allows.
    pub struct ExtAuthzHttp {
        /// `host` or `namespace/host`; the host of a service, in full.
        service: String = "service" [required],
        /// Port of the service.
        port: u32 = "port" [required],
        /// Limit of one check; absent is 600 s.
        timeout: Option<Duration> = "timeout",
        /// Put before the path of the request to make the path of the check.
        path_prefix: String = "pathPrefix",
        /// Whether requests pass when the authorizer cannot be asked or answers with 5xx.
        fail_open: bool = "failOpen",
        /// Status for the client when the authorizer cannot be asked; empty is 403.
        status_on_error: String = "statusOnError",
        /// Whether the route is chosen again after the check; absent is no.
        clear_route_cache: Option<bool> = "clearRouteCache",
        /// Deprecated; counts if `includeRequestHeadersInCheck` is empty.
        include_headers_in_check: Vec<String> = "includeHeadersInCheck",
        /// Request headers that the check carries, as names, `prefix*` or `*suffix`.
        include_request_headers_in_check: Vec<String> = "includeRequestHeadersInCheck",
        /// Headers with fixed values that the check carries.
        include_additional_headers_in_check: BTreeMap<String, String> = "includeAdditionalHeadersInCheck",
        /// Whether the check carries the body of the request.
        include_request_body_in_check: Option<ExtAuthzBody> = "includeRequestBodyInCheck",
        /// Headers of an allowing answer that are set on the request.
        headers_to_upstream_on_allow: Vec<String> = "headersToUpstreamOnAllow",
        /// Headers of a denying answer that the client gets; empty is all.
        headers_to_downstream_on_deny: Vec<String> = "headersToDownstreamOnDeny",
        /// Headers of an allowing answer that are added to the response.
        headers_to_downstream_on_allow: Vec<String> = "headersToDownstreamOnAllow",
    }

    /// An external authorizer that answers `envoy.service.auth.v3.Authorization/Check`.
    pub struct ExtAuthzGrpc {
        /// `host` or `namespace/host`; the host of a service, in full.
        service: String = "service" [required],
        /// Port of the service.
        port: u32 = "port" [required],
        /// Limit of one check; absent is 600 s.
        timeout: Option<Duration> = "timeout",
        /// Whether requests and connections pass when the authorizer cannot be asked.
        fail_open: bool = "failOpen",
        /// Status for the client when the authorizer cannot be asked; empty is 403.
        status_on_error: String = "statusOnError",
        /// Whether the route is chosen again after the check; absent is no.
        clear_route_cache: Option<bool> = "clearRouteCache",
        /// Whether the check carries the body of the request.
        include_request_body_in_check: Option<ExtAuthzBody> = "includeRequestBodyInCheck",
    }

    /// The body of a request in a check.
    pub struct ExtAuthzBody {
        /// The most bytes that are held back and sent.
        max_request_bytes: u32 = "maxRequestBytes",
        /// Whether the check of a longer body carries its beginning; else the client gets 413.
        allow_partial_message: bool = "allowPartialMessage",
        /// Whether a gRPC check carries the body as bytes instead of UTF-8 text.
        pack_as_bytes: bool = "packAsBytes",
    }

    /// Spans to a collector.
    pub struct TracingProvider {
        /// `host` or `namespace/host`.
        service: String = "service" [required],
        port: u32 = "port" [required],
        /// Longest path.
        max_tag_length: u32 = "maxTagLength",
        /// Whether trace ids have 64 bits.
        enable_64bit_trace_id: bool = "enable64bitTraceId",
        /// Path of the collector.
        path: String = "path",
        /// Which headers carry the context.
        trace_context_option: String = "traceContextOption",
        /// Of the collector's calls.
        timeout: Option<Duration> = "timeout",
        /// Headers of the collector's calls.
        headers: Vec<Value> = "headers",
        /// Token for the collector.
        access_token: String = "accessToken",
    }

    /// Spans over OpenTelemetry.
    pub struct OpenTelemetryProvider {
        /// `host` or `namespace/host`.
        service: String = "service" [required],
        port: u32 = "port" [required],
        /// Longest path.
        max_tag_length: u32 = "maxTagLength",
        /// Over HTTP instead of gRPC.
        http: Option<OpenTelemetryHttp> = "http",
        /// Over gRPC.
        grpc: Option<OpenTelemetryGrpc> = "grpc",
        /// Where attributes of the resource come from.
        resource_detectors: Option<Value> = "resourceDetectors",
        /// Sampling by Dynatrace.
        dynatrace_sampler: Option<Value> = "dynatraceSampler",
        /// How the service's attributes are found.
        service_attribute_enrichment: String = "serviceAttributeEnrichment",
    }

    /// OpenTelemetry over HTTP.
    pub struct OpenTelemetryHttp {
        path: String = "path",
        /// Of a call.
        timeout: Option<Duration> = "timeout",
        headers: Vec<Value> = "headers",
    }

    /// OpenTelemetry over gRPC.
    pub struct OpenTelemetryGrpc {
        /// Of a call.
        timeout: Option<Duration> = "timeout",
        initial_metadata: Vec<Value> = "initialMetadata",
    }

    /// Access log to a file.
    pub struct FileAccessLog {
        /// Path; empty is `/dev/stdout`.
        path: String = "path",
        /// Form; absent is Istio's text.
        log_format: Option<LogFormat> = "logFormat",
        /// Whether empty values are left out.
        omit_empty_values: bool = "omitEmptyValues",
    }

    /// Form of a log: one of both.
    pub struct LogFormat {
        /// A line with `%COMMANDS%`.
        text: Option<String> = "text",
        /// A JSON object; empty is Istio's.
        labels: Option<Value> = "labels",
    }

    /// Access log over gRPC.
    pub struct AlsProvider {
        /// `host` or `namespace/host`.
        service: String = "service" [required],
        port: u32 = "port" [required],
        /// Name of the log.
        log_name: String = "logName",
        /// Objects of filter state.
        filter_state_objects_to_log: Vec<String> = "filterStateObjectsToLog",
        additional_request_headers_to_log: Vec<String> = "additionalRequestHeadersToLog",
        additional_response_headers_to_log: Vec<String> = "additionalResponseHeadersToLog",
        additional_response_trailers_to_log: Vec<String> = "additionalResponseTrailersToLog",
    }

    /// Access log over OpenTelemetry.
    pub struct OtelAlsProvider {
        /// `host` or `namespace/host`.
        service: String = "service" [required],
        port: u32 = "port" [required],
        /// Name of the log.
        log_name: String = "logName",
        log_format: Option<LogFormat> = "logFormat",
        /// Objects of filter state.
        filter_state_objects_to_log: Vec<String> = "filterStateObjectsToLog",
    }

    /// Providers where Telemetry names none.
    pub struct DefaultProviders {
        /// Of spans.
        tracing: Vec<String> = "tracing",
        metrics: Vec<String> = "metrics",
        /// Of access logs.
        access_logging: Vec<String> = "accessLogging",
    }
}

impl ExtensionProvider {
    /// Istio's own: `prometheus`, `stackdriver`, `envoy` (a text log on standard output).
    pub fn built_in() -> Vec<Self> {
        let named = |name: &str| Self {
            name: name.to_owned(),
            ..Self::default()
        };

        vec![
            Self {
                prometheus: Some(Empty {}),
                ..named("prometheus")
            },
            Self {
                stackdriver: Some(Value::Object(serde_json::Map::new())),
                ..named("stackdriver")
            },
            Self {
                envoy_file_access_log: Some(FileAccessLog {
                    path: "/dev/stdout".to_owned(),
                    ..FileAccessLog::default()
                }),
                ..named("envoy")
            },
        ]
    }
}
