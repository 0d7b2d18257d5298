//! The protocol between commands and a running node, over `RUN/node.sock`: one JSON value per
//! packet. `exec` passes file descriptors beside its packet.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use meltemi_types::Labels;
use serde::{Deserialize, Serialize};

use crate::events::PublishedPort;
use crate::spec::{Origin, ProxyKind, WorkloadKey, WorkloadSpec};

/// The first packet of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum NodeRequest {
    /// List every workload; answered by [`NodeReply::Workloads`].
    List,
    /// List the Deployments that run differently from what their YAML says; answered by
    /// [`NodeReply::Problems`].
    Problems,
    /// Read the output of a container; answered by [`NodeReply::Output`] until the connection
    /// closes.
    Logs {
        /// The workload whose output is read.
        target: Target,
        /// Read the proxy's output instead of the application's.
        proxy: bool,
        /// Start at this many lines from the end; `None` starts at the oldest line in memory.
        tail: Option<usize>,
        /// Keep sending new output until the client closes the connection.
        follow: bool,
    },
    /// Run a program in the application's namespaces. The packet carries three descriptors:
    /// standard input, output and error. Answered by [`NodeReply::Exited`].
    Exec {
        /// The workload to run in; [`ROUTER_TARGET`] is the router's network namespace.
        target: Target,
        /// Program and arguments.
        argv: Vec<String>,
        /// Variables added to the application's environment, such as `TERM`.
        env: Vec<(String, String)>,
    },
    /// Name the replica and port behind a destination; answered by [`NodeReply::Done`].
    Resolve {
        destination: Destination,
        /// Port of the workload, or of the Service.
        port: u16,
    },
    /// Open a connection to the destination, beside the workload's sidecar; answered by
    /// [`NodeReply::Connected`].
    Forward {
        destination: Destination,
        /// Port of the workload, or of the Service.
        port: u16,
    },
    /// Add a program as a workload; answered by [`NodeReply::Started`], then by its output until
    /// the client closes the connection or the workload is stopped.
    Run(Box<Run>),
    /// End a workload that [`NodeRequest::Run`] added.
    Stop(Target),
    /// Restart the application, the proxy, or both.
    Restart {
        /// The workload to restart.
        target: Target,
        /// The program to restart; `None` restarts both.
        part: Option<ProgramName>,
    },
    /// Replace the proxy of a workload by another kind.
    Proxy {
        /// The workload whose proxy is replaced.
        target: Target,
        /// The new kind of proxy; [`ProxyKind::None`] is refused.
        kind: ProxyKind,
    },
}

/// A packet that the client sends while its request is served.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum FollowUp {
    /// Pass this signal on to the program of an [`NodeRequest::Exec`].
    Signal(i32),
}

/// A packet that the node sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum NodeReply {
    /// Every workload, sorted by namespace and name.
    Workloads(Vec<WorkloadStatus>),
    /// One message per problem: the object, what is wrong, and the remedy.
    Problems(Vec<String>),
    /// A piece of output, at most 32 KiB.
    Output(Vec<u8>),
    /// The replicas that were added.
    Started(Vec<WorkloadKey>),
    /// The packet carries a connected TCP socket.
    Connected,
    /// The exit code of the program; 128 + signal if a signal killed it.
    Exited(i32),
    /// The request succeeded; the text is shown to the user.
    Done(String),
    /// The request was refused.
    Refused {
        /// True when no workload has the requested name.
        not_found: bool,
        /// The reason and the remedy, shown to the user.
        message: String,
    },
}

/// A workload as a user names it: by its Deployment or by one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Kubernetes namespace of the workload.
    pub namespace: String,
    /// Name of a Deployment or of a pod. [`ROUTER_TARGET`] is the router.
    pub name: String,
}

/// Where a forwarded connection ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// A ready replica of a workload.
    Workload(Target),
    /// A ready endpoint of a Service.
    Service { namespace: String, name: String },
}

/// The target name by which `exec` runs a program in the router's network namespace, where the
/// bridge and the control plane are.
pub const ROUTER_TARGET: &str = "@router";

/// One of the two programs of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgramName {
    /// The application.
    App,
    Proxy,
}

/// A program to add as a workload (`meltemi run`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the workload; by default `APP-VERSION`, or `APP` without a version.
    pub name: Option<String>,
    /// Value of the label `app`.
    pub app: String,
    /// Value of the label `version`.
    pub version: Option<String>,
    /// TCP ports that the program wait_until_listening on.
    pub ports: Vec<u16>,
    /// Kubernetes namespace of the workload.
    pub namespace: String,
    /// Service account, and so the SPIFFE identity, of the workload.
    pub service_account: String,
    /// Number of replicas, 1 to 100.
    pub replicas: u32,
    /// Labels beside `app` and `version`.
    pub labels: Labels,
    /// The kind of proxy; `None` uses what `meltemi up --proxy` chose for this name.
    #[serde(default)]
    pub proxy: Option<ProxyKind>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment of the program.
    pub env: Vec<(String, String)>,
    /// Working directory of the program.
    pub cwd: PathBuf,
    /// Keep the workload when the client closes the connection.
    pub detach: bool,
}

/// The current state of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// Namespace and name of the replica.
    pub key: WorkloadKey,
    /// Name of the Deployment, or the name given to `run`.
    pub workload: String,
    /// The source that asked for the workload.
    pub origin: Origin,
    /// Service account, and so the SPIFFE identity, of the workload.
    pub service_account: String,
    /// Name of the application's container in the pod template.
    #[serde(default)]
    pub container: String,
    /// Labels of the pod.
    pub labels: Labels,
    /// Pod address, in 10.44.0.0/16.
    pub ip: Ipv4Addr,
    /// Where the workload is in its life cycle.
    pub phase: Phase,
    /// Whether the workload is an endpoint that receives traffic.
    pub ready: bool,
    /// The kind of proxy that runs beside the application.
    pub proxy_kind: ProxyKind,
    /// State of the application; `None` for gateways.
    pub app: Option<ProgramStatus>,
    /// State of the proxy; `None` outside the mesh.
    pub proxy: Option<ProgramStatus>,
    /// The problem to show to the user; `None` if there is none.
    pub message: Option<String>,
    /// Ports on which the machine wait_until_listening for this gateway.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
}

/// Where a workload is in its life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Ready, or running with a proxy that stopped answering its readiness probe.
    Running,
    /// The application or the proxy ended and waits for its restart.
    BackOff,
    /// The node could not create the sandbox of the workload.
    Failed,
}

/// State of one program of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramStatus {
    /// Whether the program runs now.
    pub running: bool,
    /// Process id in the node's PID namespace.
    pub pid: Option<u32>,
    /// Number of restarts since the workload started.
    pub restarts: u32,
    /// How the last run ended, such as `exit code 1`.
    pub last_exit: Option<String>,
}

impl WorkloadStatus {
    pub(crate) fn new(spec: &WorkloadSpec, ip: Ipv4Addr) -> Self {
        Self {
            key: spec.key.clone(),
            workload: spec.workload.clone(),
            origin: spec.origin,
            service_account: spec.service_account.clone(),
            container: spec.container.clone(),
            labels: spec.labels.clone(),
            ip,
            phase: Phase::Starting,
            ready: false,
            proxy_kind: spec.proxy,
            app: None,
            proxy: None,
            message: None,
            published: Vec::new(),
        }
    }
}
