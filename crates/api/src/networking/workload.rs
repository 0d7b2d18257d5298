//! WorkloadEntry and WorkloadGroup: workloads outside of Kubernetes.

use std::collections::BTreeMap;

use meltemi_types::Labels;

use crate::schema::message;

message! {
    /// One workload.
    pub struct WorkloadEntry {
        /// IP address, host name (with DNS resolution), or `unix:///path`; may be empty if
        /// `network` is set.
        address: String = "address",
        /// Port by the name of the service's port.
        ports: BTreeMap<String, u32> = "ports",
        labels: Labels = "labels",
        /// Network, if it is not reached directly.
        network: String = "network",
        /// `region/zone/subzone`.
        locality: String = "locality",
        /// Share of traffic; 0 is 1.
        weight: u32 = "weight",
        /// Identity in the object's namespace.
        service_account: String = "serviceAccount",
    }

    /// A template for workloads that register themselves.
    pub struct WorkloadGroup {
        /// Labels and annotations for them.
        metadata: Option<WorkloadGroupMetadata> = "metadata",
        /// What they have in common.
        template: WorkloadEntry = "template" [required],
        /// How their health is checked.
        probe: Option<ReadinessProbe> = "probe",
    }

    /// Labels and annotations.
    pub struct WorkloadGroupMetadata {
        labels: Labels = "labels",
        /// Annotations.
        annotations: BTreeMap<String, String> = "annotations",
    }

    /// A health check: one of http, tcp, exec or gRPC.
    pub struct ReadinessProbe {
        /// Before the first check.
        initial_delay_seconds: i32 = "initialDelaySeconds",
        /// 0 is 1.
        timeout_seconds: i32 = "timeoutSeconds",
        /// 0 is 10.
        period_seconds: i32 = "periodSeconds",
        /// 0 is 1.
        success_threshold: i32 = "successThreshold",
        /// 0 is 3.
        failure_threshold: i32 = "failureThreshold",
        /// A GET that answers 200 to 399.
        http_get: Option<HttpHealthCheck> = "httpGet",
        /// A connection that opens.
        tcp_socket: Option<TcpHealthCheck> = "tcpSocket",
        /// A command that exits with 0.
        exec: Option<ExecHealthCheck> = "exec",
        /// A `grpc.health.v1` check that serves.
        grpc: Option<GrpcHealthCheck> = "grpc",
    }

    /// A GET.
    pub struct HttpHealthCheck {
        path: String = "path",
        port: u32 = "port" [required],
        /// Host to connect to; empty is the workload's address.
        host: String = "host",
        /// HTTP or HTTPS.
        scheme: String = "scheme",
        /// Request headers.
        http_headers: Vec<HttpHeader> = "httpHeaders",
    }

    pub struct HttpHeader {
        name: String = "name",
        value: String = "value",
    }

    /// A connection.
    pub struct TcpHealthCheck {
        /// Host to connect to; empty is the workload's address.
        host: String = "host",
        port: u32 = "port" [required],
    }

    /// A command.
    pub struct ExecHealthCheck {
        /// Program and arguments.
        command: Vec<String> = "command" [required, non_empty],
    }

    /// A gRPC health check.
    pub struct GrpcHealthCheck {
        port: u32 = "port",
        /// Service to ask for.
        service: String = "service",
    }
}
