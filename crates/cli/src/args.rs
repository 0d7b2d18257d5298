//! What can be typed.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A service mesh in one binary: on this machine without Kubernetes and without root, configured by Istio's YAML.
#[derive(Debug, Parser)]
#[command(name = "meltemi", version, max_term_width = 100)]
pub struct Cli {
    /// Which mesh of this machine; several may run beside each other.
    #[arg(long, global = true, env = "MELTEMI_MESH", default_value = "default")]
    pub mesh: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Everything the binary does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run Bookinfo in a mesh, with a web page at http://127.0.0.1:8080/productpage
    Demo(UpArgs),
    /// Run a mesh from directories of YAML, watching them
    Up(UpArgs),
    /// Run our proxy alone, from an Envoy bootstrap file
    Proxy(ProxyArgs),
    /// Talk to a running mesh.
    #[command(flatten)]
    Mesh(MeshCommand),
    /// Print a completion script for a shell
    Completion {
        /// Which shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Commands for a mesh that runs.
#[derive(Debug, Subcommand)]
pub enum MeshCommand {
    /// Add any program to the mesh as a workload
    Run(RunArgs),
    /// Create or change configuration objects
    Apply(ApplyArgs),
    /// Show configuration objects
    Get(GetArgs),
    /// Delete configuration objects
    Delete(DeleteArgs),
    /// Show workloads and proxies, their configuration and certificates
    Status(StatusArgs),
    /// Print what a workload wrote
    Logs(LogsArgs),
    /// Run a command inside a workload
    Exec(ExecArgs),
    /// End a workload that `run` added
    Stop(WorkloadArgs),
    /// Start a workload's program and proxy anew
    Restart(WorkloadArgs),
}

/// `demo` and `up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// A directory of YAML files; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// An image map: which container image is which program of this machine; may be given several times
    #[arg(long, value_name = "FILE")]
    pub images: Vec<PathBuf>,
    /// The address on which gateway ports are published
    #[arg(long, default_value = "127.0.0.1")]
    pub publish_address: IpAddr,
    /// Publish a gateway's port under another number: GATEWAY-PORT=MACHINE-PORT, 0 for any free one
    #[arg(long, value_name = "PORT=PORT", value_parser = port_pair)]
    pub publish: Vec<(u16, u16)>,
    /// Which proxy sidecars are; WORKLOAD=envoy for one workload, may be given several times
    #[arg(long, value_name = "[WORKLOAD=]PROXY")]
    pub proxy: Vec<String>,
    /// Path of an Envoy binary; without it `envoy` is looked up on the PATH
    #[arg(long, value_name = "FILE", env = "MELTEMI_ENVOY")]
    pub envoy: Option<PathBuf>,
    /// Outside names and addresses that lead to this machine instead: a YAML mapping
    #[arg(long, value_name = "FILE")]
    pub dial_map: Option<PathBuf>,
    /// Lifetime of workload certificates, 30s or more, such as 24h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub certificate_lifetime: Option<std::time::Duration>,
    /// Where the mesh keeps sockets and logs while it runs
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where the mesh keeps what outlives it
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Worker threads of every proxy
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Do not start the ingress and egress gateways
    #[arg(long)]
    pub no_gateways: bool,
}

/// `proxy`.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// Envoy bootstrap, YAML or JSON
    #[arg(short = 'c', long = "config-path", value_name = "FILE")]
    pub config: PathBuf,
    /// Worker threads; default: one per core
    #[arg(long)]
    pub concurrency: Option<usize>,
    /// Whether the bootstrap is sound; exits without serving
    #[arg(long)]
    pub validate: bool,
}

/// `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The label `app`, and the name of the Service that leads to it
    #[arg(long)]
    pub app: String,
    /// The label `version`
    #[arg(long, default_value = "v1")]
    pub version: String,
    /// The workload's name; default: APP-VERSION
    #[arg(long)]
    pub name: Option<String>,
    /// How many replicas
    #[arg(long, default_value_t = 1)]
    pub replicas: u32,
    /// Go on in the background; `meltemi stop` ends it
    #[arg(short, long)]
    pub detach: bool,
    /// A port that it serves; may be given several times
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<u16>,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Its service account, which is its identity
    #[arg(long, default_value = "default")]
    pub service_account: String,
    /// Leave it outside the mesh
    #[arg(long)]
    pub no_sidecar: bool,
    /// Use Envoy as its sidecar
    #[arg(long, value_parser = ["meltemi", "envoy"], default_value = "meltemi")]
    pub proxy: String,
    /// Further labels, KEY=VALUE
    #[arg(short = 'l', long = "labels", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Environment of the program, KEY=VALUE
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// `apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    /// A file, a directory, or - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Output form
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

/// `get`.
#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// A kind, such as virtualservices, vs or `all`; KIND/NAME names one object
    pub kind: String,
    /// Only the object of this name
    pub name: Option<String>,
    /// Only this namespace; default: `default`
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Output form
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

/// `delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// A kind; KIND/NAME names one object
    #[arg(required_unless_present = "files")]
    pub kind: Option<String>,
    /// The object's name
    pub name: Option<String>,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Delete the objects that these files name
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with = "kind")]
    pub files: Vec<PathBuf>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Only this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Output form
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

/// `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// A Deployment's name, or one replica's
    pub workload: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// `app` or `proxy`
    #[arg(short, long, default_value = "app", value_parser = ["app", "proxy", "istio-proxy"])]
    pub container: String,
    /// Go on printing
    #[arg(short = 'F', long)]
    pub follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
}

/// `exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// A Deployment's name, or one replica's
    pub workload: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// `stop` and `restart`.
#[derive(Debug, Clone, Args)]
pub struct WorkloadArgs {
    /// A Deployment's name, or one replica's
    pub workload: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table with more columns.
    Wide,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
    /// KIND/NAME only.
    Name,
}

fn port_pair(text: &str) -> Result<(u16, u16), String> {
    let parse = |part: &str| part.parse::<u16>().map_err(|_| format!("{part:?} is not a port"));
    let (gateway, machine) = text.split_once('=').ok_or("expected GATEWAY-PORT=MACHINE-PORT")?;
    Ok((parse(gateway)?, parse(machine)?))
}

/// A duration as Istio and Go write it: `30s`, `1h30m`, `500ms`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    meltemi_api::Duration::parse(text)
        .map(|duration| duration.0)
        .ok_or_else(|| format!("{text:?} is no duration; write 30s, 15m or 24h"))
}
