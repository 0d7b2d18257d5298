//! Options of `meltemi up`, the default folders, and the configuration that the supervisor passes
//! to the node process.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dialler::DialMap;
use crate::events::Event;
use crate::images::ImageMap;
use crate::launch::Folder;
use crate::publication::ServicePublication;
use crate::spec::ProxyChoice;

/// Options of a mesh on this machine.
pub struct UpOptions {
    /// Name of the mesh. Meshes with different names can run at the same time.
    pub name: String,
    /// Directories of YAML files, watched for changes.
    pub dirs: Vec<PathBuf>,
    /// YAML built into the program, as (file name, text). Treated like files of a directory.
    pub embedded: Vec<(String, String)>,
    /// Maps from container images to local programs; the first match wins.
    pub images: Vec<ImageMap>,
    /// Files of further image maps, searched before `images` and watched for changes.
    pub image_files: Vec<PathBuf>,
    /// Folder of sockets, logs and generated files, removed at the end. Default: [`run_dir`].
    pub run_dir: Option<PathBuf>,
    /// Folder of everything that survives a restart: applied objects, addresses, keys. Default:
    /// [`state_dir`].
    pub state_dir: Option<PathBuf>,
    /// Forget what earlier runs left: applied objects and last good versions. Default: false.
    pub fresh: bool,
    /// Address of the machine on which gateway ports are published. Default: 127.0.0.1.
    pub publish_address: IpAddr,
    /// Machine port by gateway port, for gateway ports published under another number; 0 lets the
    /// kernel choose.
    pub publish: BTreeMap<u16, u16>,
    /// Ports of Services to publish on the machine.
    pub publish_services: Vec<ServicePublication>,
    /// Publish a gateway's port on a free one if another program has it. Default: false.
    pub take_free_ports: bool,
    /// Redirections of outside names and addresses.
    pub dial_map: DialMap,
    /// Whether to start the ingress and egress gateways. Default: true.
    pub gateways: bool,
    /// Further arguments of the control plane.
    pub control_args: Vec<String>,
    /// Further arguments of every sidecar and gateway.
    pub sidecar_args: Vec<String>,
    /// The kind of sidecar: `envoy` for all workloads, `WORKLOAD=envoy` for one; later words win.
    pub proxies: Vec<String>,
    /// Path of an Envoy binary, for workloads that use Envoy. `None` looks up `envoy` on the PATH.
    pub envoy: Option<PathBuf>,
    /// Called with every event that the user should see.
    pub on_event: Box<dyn FnMut(Event) + Send>,
}

impl UpOptions {
    /// Creates options with the documented defaults and no directories.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            dirs: Vec::new(),
            embedded: Vec::new(),
            images: Vec::new(),
            image_files: Vec::new(),
            run_dir: None,
            state_dir: None,
            fresh: false,
            publish_address: Ipv4Addr::LOCALHOST.into(),
            publish: BTreeMap::new(),
            publish_services: Vec::new(),
            take_free_ports: false,
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

/// The default folder of a mesh's sockets: `$XDG_RUNTIME_DIR/meltemi/NAME`, else
/// `/tmp/meltemi-UID/NAME`.
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

/// The default folder of everything that survives a restart: `$XDG_STATE_HOME/meltemi/NAME`, else
/// `~/.local/state/meltemi/NAME`.
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

/// Folder of the applied objects below the state folder.
pub(crate) const APPLIED: &str = "applied";

/// Folder below the state folder in which the node keeps last good versions. The control plane's
/// is `last-good`.
pub(crate) const LAST_GOOD: &str = "node-last-good";

/// Configuration of the node process. The supervisor passes it in a memory file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) images: Vec<ImageMap>,
    pub(crate) image_files: Vec<PathBuf>,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// The folders that no application may reach: `run_dir` and `state_dir`.
    pub(crate) covered: Vec<Folder>,
    pub(crate) gateways: bool,
    pub(crate) publish_services: Vec<ServicePublication>,
    pub(crate) control_args: Vec<String>,
    pub(crate) sidecar_args: Vec<String>,
    pub(crate) proxies: ProxyChoice,
    pub(crate) envoy: Option<PathBuf>,
    /// Process id of the supervisor in the machine's PID namespace.
    pub(crate) supervisor: i32,
    /// Inherited descriptor of the socket to the supervisor.
    pub(crate) channel: RawFd,
    /// User and group ids that applications see as their own.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The user's umask, for applications.
    pub(crate) umask: u32,
    /// Soft limit of open files for applications; `None` keeps the node's limit.
    pub(crate) open_files: Option<u64>,
}

impl NodeConfig {
    /// Folder of the Pod objects that the node writes and the control plane reads.
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    /// Folder of the other objects that the node or the binary provides: gateways, generated
    /// Services, embedded YAML.
    pub(crate) fn objects_dir(&self) -> PathBuf {
        self.run_dir.join("objects")
    }

    /// Folder of the workloads that `run -d` added.
    pub(crate) fn runs_dir(&self) -> PathBuf {
        self.run_dir.join("runs")
    }

    /// Folder of the objects that the user applied.
    pub(crate) fn applied_dir(&self) -> PathBuf {
        self.state_dir.join(APPLIED)
    }
}
