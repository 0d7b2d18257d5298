//! What the user asks for, and what of it the node needs to know.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dialler::DialMap;
use crate::events::Event;
use crate::images::ImageMap;
use crate::spec::ProxyChoice;

/// A mesh on this machine, as the user asks for it.
pub struct UpOptions {
    /// Name of the mesh: several may run beside each other.
    pub name: String,
    /// Directories of YAML, watched.
    pub dirs: Vec<PathBuf>,
    /// YAML that comes with the program: (file name, text). Served as if it were a directory's.
    pub embedded: Vec<(String, String)>,
    /// Which image is which program; earlier maps win.
    pub images: Vec<ImageMap>,
    /// Files of further image maps, which count before those; a change of one is obeyed.
    pub image_files: Vec<PathBuf>,
    /// Folder of sockets, logs and generated files; removed at the end. Default: [`run_dir`].
    pub run_dir: Option<PathBuf>,
    /// Folder of what outlives a restart: applied objects, addresses, keys. Default: [`state_dir`].
    pub state_dir: Option<PathBuf>,
    /// Address of the machine on which gateways' ports are published.
    pub publish_address: IpAddr,
    /// Gateway ports published under another number; 0 lets the kernel choose.
    pub publish: BTreeMap<u16, u16>,
    /// Outside names and addresses that lead elsewhere.
    pub dial_map: DialMap,
    /// Start the ingress and egress gateways.
    pub gateways: bool,
    /// Further arguments of the control plane.
    pub control_args: Vec<String>,
    /// Further arguments of every sidecar and gateway.
    pub sidecar_args: Vec<String>,
    /// Which proxy sidecars are: `envoy` for all, `WORKLOAD=envoy` for one; later words win.
    pub proxies: Vec<String>,
    /// Path of an Envoy binary, for workloads that ask for it; else `envoy` is looked up on the
    /// PATH.
    pub envoy: Option<PathBuf>,
    /// Called for what the user should see.
    pub on_event: Box<dyn FnMut(Event) + Send>,
}

impl UpOptions {
    /// A mesh with defaults and nothing in it.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            dirs: Vec::new(),
            embedded: Vec::new(),
            images: Vec::new(),
            image_files: Vec::new(),
            run_dir: None,
            state_dir: None,
            publish_address: Ipv4Addr::LOCALHOST.into(),
            publish: BTreeMap::new(),
            dial_map: DialMap::default(),
            gateways: true,
            control_args: Vec::new(),
            sidecar_args: Vec::new(),
            proxies: Vec::new(),
            envoy: None,
            on_event: Box::new(|_| {}),
        }
    }
}

/// Where a mesh of this name keeps its sockets: `$XDG_RUNTIME_DIR/meltemi/NAME`, else
/// `/tmp/meltemi-UID/NAME`.
pub fn run_dir(name: &str) -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && dir.is_dir())
    {
        Some(dir) => dir.join("meltemi").join(name),
        None => PathBuf::from(format!(
            "/tmp/meltemi-{}",
            rustix::process::geteuid().as_raw()
        ))
        .join(name),
    }
}

/// Where a mesh of this name keeps what outlives it: `$XDG_STATE_HOME/meltemi/NAME`, else
/// `~/.local/state/meltemi/NAME`.
pub fn state_dir(name: &str) -> PathBuf {
    let home = || {
        std::env::var_os("HOME")
            .map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
            .join(".local/state")
    };

    std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .unwrap_or_else(home)
        .join("meltemi")
        .join(name)
}

/// What the node is told, in a memory file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) images: Vec<ImageMap>,
    pub(crate) image_files: Vec<PathBuf>,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) gateways: bool,
    pub(crate) control_args: Vec<String>,
    pub(crate) sidecar_args: Vec<String>,
    pub(crate) proxies: ProxyChoice,
    pub(crate) envoy: Option<PathBuf>,
    /// The supervisor's process id, as the machine sees it.
    pub(crate) supervisor: i32,
    /// Socket to the supervisor.
    pub(crate) channel: RawFd,
    /// User and group whom the applications see themselves as.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Soft limit of open files that applications get; `None`: as the node's.
    pub(crate) open_files: Option<u64>,
}

impl NodeConfig {
    /// Pods as the node runs them, for the control plane to read.
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    /// Other objects that the node or the program brings.
    pub(crate) fn objects_dir(&self) -> PathBuf {
        self.run_dir.join("objects")
    }

    /// What `run -d` added.
    pub(crate) fn runs_dir(&self) -> PathBuf {
        self.run_dir.join("runs")
    }

    /// Objects applied by the user.
    pub(crate) fn applied_dir(&self) -> PathBuf {
        self.state_dir.join("applied")
    }
}
