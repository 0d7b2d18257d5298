//! What clients ask of a running node, over `RUN/node.sock`: packets of JSON, with file descriptors
//! where a program's own input and output are handed over.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use meltemi_types::Labels;
use serde::{Deserialize, Serialize};

use crate::events::PublishedPort;
use crate::spec::{Origin, ProxyKind, WorkloadKey, WorkloadSpec};

/// First packet of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Every workload: answered by [`Reply::Workloads`].
    List,
    /// Deployments of which something does not run as it is written: [`Reply::Problems`].
    Problems,
    /// Output of a container: [`Reply::Output`] until it ends.
    Logs {
        /// Whose.
        target: Target,
        /// The proxy's instead of the application's.
        proxy: bool,
        /// Begin with the last lines only.
        tail: Option<usize>,
        /// Go on until the client leaves.
        follow: bool,
    },
    /// Run a program where the application runs. Carries three descriptors: input, output, errors.
    /// Answered by [`Reply::Exited`].
    Exec {
        /// Where.
        target: Target,
        /// Program and arguments.
        argv: Vec<String>,
        /// Further environment (such as `TERM`).
        env: Vec<(String, String)>,
    },
    /// Add a program as a workload: [`Reply::Started`], then its output, until the client leaves or
    /// it is stopped.
    Run(Box<Run>),
    /// End a workload that was added with [`Request::Run`].
    Stop(Target),
    /// Start application and proxy, or one of them, anew.
    Restart {
        /// Which workload.
        target: Target,
        /// Which part; `None` is both.
        part: Option<PartName>,
    },
    /// Put another proxy beside a workload.
    Proxy {
        /// Which workload.
        target: Target,
        /// Which proxy.
        kind: ProxyKind,
    },
}

/// Further packets of a client while its request is served.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Further {
    /// Pass this signal on to the program of an [`Request::Exec`].
    Signal(i32),
}

/// Packets of the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Every workload, by namespace and name.
    Workloads(Vec<WorkloadStatus>),
    /// What does not run, and why.
    Problems(Vec<String>),
    /// A piece of output.
    Output(Vec<u8>),
    /// The workloads that were added.
    Started(Vec<WorkloadKey>),
    /// The program ended with this code (128 + signal, as shells say).
    Exited(i32),
    /// Done, in words.
    Done(String),
    /// Refused, in words.
    Refused {
        /// Nothing of that name exists.
        not_found: bool,
        /// Why, and what to do.
        message: String,
    },
}

/// A workload as a user names it: a Deployment's name or one replica's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Namespace.
    pub namespace: String,
    /// Name. [`ROUTER_TARGET`] is the router's own namespace.
    pub name: String,
}

/// Target of `exec` that means the router's namespace: where the bridge is.
pub const ROUTER_TARGET: &str = "@router";

/// One of a workload's two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartName {
    /// The application.
    App,
    /// The proxy.
    Proxy,
}

/// A program to be added as a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the workload; default `APP-VERSION`, or `APP`.
    pub name: Option<String>,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: Option<String>,
    /// TCP ports that it listens on.
    pub ports: Vec<u16>,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// How many.
    pub replicas: u32,
    /// Further labels.
    pub labels: Labels,
    /// What stands beside it; `None`: what the mesh has for a workload of its name.
    #[serde(default)]
    pub proxy: Option<ProxyKind>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Goes on when the client leaves.
    pub detach: bool,
}

/// One replica, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// Namespace and name of the replica.
    pub key: WorkloadKey,
    /// The Deployment's name.
    pub workload: String,
    /// Who wants it.
    pub origin: Origin,
    /// Identity.
    pub service_account: String,
    /// Name of the application's container.
    #[serde(default)]
    pub container: String,
    /// Labels of the pod.
    pub labels: Labels,
    /// Address.
    pub ip: Ipv4Addr,
    /// What it is doing.
    pub phase: Phase,
    /// Whether it gets traffic.
    pub ready: bool,
    /// What stands beside it.
    pub proxy_kind: ProxyKind,
    /// The application; gateways have none.
    pub app: Option<PartStatus>,
    /// The proxy; workloads outside the mesh have none.
    pub proxy: Option<PartStatus>,
    /// What is wrong, if something is.
    pub message: Option<String>,
    /// Ports of a gateway that the machine listens on.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
}

/// What a workload is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Ready.
    Running,
    /// A part of it ended and will start again.
    BackOff,
    /// It could not be set up.
    Failed,
}

/// One of a workload's programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStatus {
    /// Whether it runs.
    pub running: bool,
    /// Process id, as the node sees it.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last.
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
