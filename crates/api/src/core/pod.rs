//! Pod and Deployment.

use std::collections::BTreeMap;

use meltemi_types::Labels;
use serde_json::Value;

use crate::schema::{IntOrString, message};
use crate::shared::WorkloadSelector;

message! {
    /// The body of a Pod.
    pub struct PodSpec {
        containers: Vec<Container> = "containers",
        /// Containers that run before.
        init_containers: Vec<Container> = "initContainers",
        /// Identity; empty is `default`.
        service_account_name: String = "serviceAccountName",
        /// Deprecated spelling.
        service_account: String = "serviceAccount",
        /// Node that it runs on.
        node_name: String = "nodeName",
        /// Whether it has the node's network.
        host_network: bool = "hostNetwork",
        /// Host name; empty is the pod's name.
        hostname: String = "hostname",
        /// Domain below a headless Service.
        subdomain: String = "subdomain",
        /// Time to end in; absent is 30.
        termination_grace_period_seconds: Option<i64> = "terminationGracePeriodSeconds",
        /// Volumes, as written.
        volumes: Vec<Value> = "volumes",
    }

    pub struct Container {
        name: String = "name",
        image: String = "image",
        /// Program, instead of the image's.
        command: Vec<String> = "command",
        /// Arguments, instead of the image's.
        args: Vec<String> = "args",
        /// Where it starts.
        working_dir: String = "workingDir",
        /// Environment.
        env: Vec<EnvVar> = "env",
        ports: Vec<ContainerPort> = "ports",
        /// Whether it gets traffic.
        readiness_probe: Option<Probe> = "readinessProbe",
        /// Whether it is alive.
        liveness_probe: Option<Probe> = "livenessProbe",
        /// Whether it has started.
        startup_probe: Option<Probe> = "startupProbe",
        /// `Always` makes an init container a sidecar.
        restart_policy: String = "restartPolicy",
    }

    /// A variable.
    pub struct EnvVar {
        name: String = "name",
        value: String = "value",
        /// Where the value comes from instead, as written.
        value_from: Option<Value> = "valueFrom",
    }

    /// A port of a container.
    pub struct ContainerPort {
        name: String = "name",
        /// Number.
        container_port: u16 = "containerPort",
        /// TCP (also empty), UDP, SCTP.
        protocol: String = "protocol",
    }

    /// A health check.
    pub struct Probe {
        http_get: Option<HttpGetAction> = "httpGet",
        /// A connection.
        tcp_socket: Option<TcpSocketAction> = "tcpSocket",
        /// A command.
        exec: Option<ExecAction> = "exec",
        /// A gRPC health check.
        grpc: Option<GrpcAction> = "grpc",
        /// Before the first.
        initial_delay_seconds: i32 = "initialDelaySeconds",
        /// 0 is 10.
        period_seconds: i32 = "periodSeconds",
        /// 0 is 1.
        timeout_seconds: i32 = "timeoutSeconds",
        /// 0 is 1.
        success_threshold: i32 = "successThreshold",
        /// 0 is 3.
        failure_threshold: i32 = "failureThreshold",
    }

    pub struct HttpGetAction {
        path: String = "path",
        port: IntOrString = "port",
        /// Host header and address.
        host: String = "host",
        /// HTTP (also empty) or HTTPS.
        scheme: String = "scheme",
    }

    /// A connection.
    pub struct TcpSocketAction {
        port: IntOrString = "port",
    }

    /// A command.
    pub struct ExecAction {
        /// Program and arguments.
        command: Vec<String> = "command",
    }

    /// A gRPC health check.
    pub struct GrpcAction {
        port: u16 = "port",
        /// Service to ask for.
        service: String = "service",
    }

    /// What a Pod has become.
    pub struct PodStatus {
        /// Pending, Running, Succeeded, Failed.
        phase: String = "phase",
        /// Address.
        pod_ip: String = "podIP",
        /// Addresses of both families.
        pod_ips: Vec<PodIp> = "podIPs",
        /// Of its node.
        host_ip: String = "hostIP",
        /// Conditions; `Ready` counts.
        conditions: Vec<PodCondition> = "conditions",
    }

    /// An address.
    pub struct PodIp {
        /// Address.
        ip: String = "ip",
    }

    pub struct PodCondition {
        /// Which.
        r#type: String = "type",
        /// True, False, Unknown.
        status: String = "status",
    }

    /// A Pod: body and status.
    pub struct Pod {
        /// Body.
        spec: PodSpec = "spec",
        status: PodStatus = "status",
    }

    /// The body of a Deployment.
    pub struct DeploymentSpec {
        /// How many pods; absent is 1.
        replicas: Option<i32> = "replicas",
        /// Labels of its pods.
        selector: WorkloadSelector = "selector",
        template: PodTemplate = "template",
        /// Whether it makes no new pods.
        paused: bool = "paused",
    }

    /// A template of pods.
    pub struct PodTemplate {
        /// Labels and annotations.
        metadata: TemplateMeta = "metadata",
        /// Body.
        spec: PodSpec = "spec",
    }

    /// Labels and annotations.
    pub struct TemplateMeta {
        labels: Labels = "labels",
        /// Annotations.
        annotations: BTreeMap<String, String> = "annotations",
    }
}

impl PodSpec {
    /// The identity that the pod runs as.
    pub fn account(&self) -> &str {
        match (
            self.service_account_name.as_str(),
            self.service_account.as_str(),
        ) {
            ("", "") => "default",
            ("", older) => older,
            (name, _) => name,
        }
    }

    /// The number of the container port with this name.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        let ports = self
            .containers
            .iter()
            .chain(&self.init_containers)
            .flat_map(|container| &container.ports);
        ports
            .into_iter()
            .find(|port| port.name == name)
            .map(|port| port.container_port)
    }
}

impl Pod {
    /// Whether it gets traffic: running, and its `Ready` condition is true.
    pub fn is_ready(&self) -> bool {
        self.status
            .conditions
            .iter()
            .any(|condition| condition.r#type == "Ready" && condition.status == "True")
    }

    /// Whether it has ended for good.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}
