//! The command line's grammar. Doc comments of fields are the help texts.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

use crate::candidates;
use crate::jsonpath::Path;
use crate::output::Output;
use crate::view::View;

/// A service mesh in one binary: on this machine without Kubernetes and without root, configured by
/// Istio's YAML.
#[derive(Debug, Parser)]
#[command(name = "meltemi", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Name of the mesh; several meshes can run on one machine. `up` starts the mesh `default`,
    /// `demo` the mesh `demo`; other commands find the only mesh that runs
    #[arg(
        long,
        global = true,
        env = "MELTEMI_MESH",
        value_name = "NAME",
        add = ArgValueCompleter::new(candidates::meshes)
    )]
    pub mesh: Option<String>,
    /// Folder of the mesh's sockets and logs, if the mesh was started with --run-dir
    #[arg(long, global = true, env = "MELTEMI_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 not found, refused, or no mesh; 2 the command line is not understood. \
                          `exec` ends with the code of its program.";

/// All commands of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run Bookinfo in a mesh, with a web page at http://127.0.0.1:8080/productpage
    Demo(UpArgs),
    /// Run a mesh from directories and files of YAML, which are watched for changes
    Up(UpArgs),
    /// Run only the proxy, from an Envoy bootstrap file
    Proxy(ProxyArgs),
    /// A command for a running mesh.
    #[command(flatten)]
    Mesh(MeshCommand),
    /// Print a completion script for a shell: `source <(meltemi completion bash)`
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Commands for a running mesh.
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
    #[command(visible_alias = "ps", visible_alias = "proxy-status")]
    Status(StatusArgs),
    /// Print the output of a workload
    Logs(LogsArgs),
    /// Run a command inside a workload
    Exec(ExecArgs),
    /// Reach a port of a workload or Service from this machine
    PortForward(PortForwardArgs),
    /// End a workload that `run` added
    Stop(StopArgs),
    /// Restart a workload's program and its proxy
    Restart(WorkloadArgs),
}

/// Arguments of `demo` and `up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// A directory of YAML files, or a file, watched for changes; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// An image map, which names the program of this machine for each container image; may be given
    /// several times
    #[arg(long, value_name = "FILE")]
    pub images: Vec<PathBuf>,
    /// The address on which gateway ports are published
    #[arg(long, default_value = "127.0.0.1")]
    pub publish_address: IpAddr,
    /// Publish a Service's port on the machine, web:80=8000 (web.shop:80 in namespace shop), or a
    /// gateway's port under another number, 8080=9090; 0 picks a free port
    #[arg(long, value_name = "[SERVICE:]PORT=PORT", value_parser = publication)]
    pub publish: Vec<Publication>,
    /// Kind of the sidecars: meltemi or envoy for all workloads, WORKLOAD=envoy for one; may be
    /// given several times
    #[arg(long, value_name = "[WORKLOAD=]PROXY")]
    pub proxy: Vec<String>,
    /// Path of an Envoy binary; without it `envoy` is looked up on the PATH
    #[arg(long, value_name = "FILE", env = "MELTEMI_ENVOY")]
    pub envoy: Option<PathBuf>,
    /// A YAML mapping that redirects outside names and addresses to addresses of this machine
    #[arg(long, value_name = "FILE")]
    pub dial_map: Option<PathBuf>,
    /// Lifetime of workload certificates, 30s or more, such as 24h
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    pub certificate_lifetime: Option<std::time::Duration>,
    /// Folder of everything that survives a restart: applied objects, addresses, keys
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Begin anew: forget applied objects and last good versions of earlier runs; keys stay
    #[arg(long)]
    pub fresh: bool,
    /// Worker threads of every proxy
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Serve xDS on port 15010 as well: in plaintext, to every workload, without authentication
    #[arg(long)]
    pub plaintext_xds: bool,
    /// Do not start the ingress and egress gateways
    #[arg(long)]
    pub no_gateways: bool,
}

/// Arguments of `proxy`.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// Envoy bootstrap, YAML or JSON
    #[arg(short = 'c', long = "config-path", value_name = "FILE")]
    pub config: PathBuf,
    /// Worker threads; default: one per core
    #[arg(long)]
    pub concurrency: Option<usize>,
    /// Check the bootstrap and exit without serving
    #[arg(long)]
    pub validate: bool,
    #[command(flatten)]
    pub envoy: EnvoyFlags,
}

/// Envoy's flags, so that the proxy can be started in Envoy's place, as by Istio's agent.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Envoy's flags")]
pub struct EnvoyFlags {
    /// Further bootstrap, YAML or JSON, merged into the file's
    #[arg(long, value_name = "TEXT")]
    pub config_yaml: Option<String>,
    /// How long connections may drain, in seconds; default: 5
    #[arg(long, value_name = "SECONDS")]
    pub drain_time_s: Option<u64>,
    /// Level of the proxy's log
    #[arg(
        short = 'l',
        long,
        value_name = "LEVEL",
        value_parser = ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"]
    )]
    pub log_level: Option<String>,
    #[command(flatten)]
    pub ignored: IgnoredEnvoyFlags,
}

/// Flags of Envoy's that are taken and have no effect, since they choose between ways of Envoy's
/// own. They are hidden from the help.
#[derive(Debug, Clone, Default, Args)]
pub struct IgnoredEnvoyFlags {
    /// Levels of single components of Envoy's
    #[arg(long, hide = true)]
    component_log_level: Option<String>,
    /// Connections are always asked to end at once
    #[arg(long, hide = true)]
    drain_strategy: Option<String>,
    /// The host of outgoing `Host` headers of Envoy's admin interface
    #[arg(long, hide = true)]
    local_address_ip_version: Option<String>,
    /// Access logs are written at once
    #[arg(long, hide = true)]
    file_flush_interval_msec: Option<String>,
    /// Access logs are written at once
    #[arg(long, hide = true)]
    file_flush_min_size_kb: Option<String>,
    /// Nothing here restarts hot
    #[arg(long, hide = true)]
    disable_hot_restart: bool,
    /// Unknown fields are warned of
    #[arg(long, hide = true)]
    allow_unknown_static_fields: bool,
    /// Deprecated fields are not logged
    #[arg(long, hide = true)]
    skip_deprecated_logs: bool,
    /// The system decides about core dumps
    #[arg(long, hide = true)]
    enable_core_dump: bool,
}

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Value of the label `app`, and name of the Service for it
    #[arg(long)]
    pub app: String,
    /// Value of the label `version`
    #[arg(long, default_value = "v1")]
    pub version: String,
    /// The workload's name; default: APP-VERSION
    #[arg(long)]
    pub name: Option<String>,
    /// Number of replicas
    #[arg(long, default_value_t = 1)]
    pub replicas: u32,
    /// Run in the background; `meltemi stop` ends the workload
    #[arg(short, long)]
    pub detach: bool,
    /// With --detach: return once the workload is ready; =false: at once
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub wait: bool,
    /// A TCP port that the program serves; may be given several times
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<u16>,
    /// Namespace of the workload
    #[arg(short, long, default_value = "default", value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: String,
    /// Service account of the workload, which is its identity
    #[arg(long, default_value = "default")]
    pub service_account: String,
    /// Run the workload without a sidecar, outside the mesh
    #[arg(long)]
    pub no_sidecar: bool,
    /// Kind of the sidecar; default: as chosen by `up --proxy`
    #[arg(long, value_parser = ["meltemi", "envoy"])]
    pub proxy: Option<String>,
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

/// Whether `apply` only says what it would do, and who says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Change the mesh.
    None,
    /// This command checks each object by itself. No mesh needs to run.
    Client,
    /// The control plane checks all objects together with those in force.
    Server,
}

/// Arguments of `apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    /// A file, a directory, or - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects without one
    #[arg(short, long, default_value = "default", value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: String,
    /// Print what would change, and change nothing; =client checks each object by itself, without
    /// a running mesh
    #[arg(
        long,
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value = "none",
        default_missing_value = "server",
        hide_default_value = true
    )]
    pub dry_run: DryRun,
    /// Change an object that stands in a file of `up -f` in that file; comments are kept
    #[arg(long)]
    pub write: bool,
    /// Output format
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

/// Arguments of `get`.
#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// KIND, KIND,KIND, KIND NAME..., or KIND/NAME...; a KIND is a name that kubectl accepts (vs,
    /// virtualservices) or `all`
    #[arg(required_unless_present = "files", value_name = "KIND [NAME]", add = ArgValueCompleter::new(candidates::Objects))]
    pub what: Vec<String>,
    /// Show the objects that these files name, as they are in force
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with_all = ["what", "all_namespaces"])]
    pub files: Vec<PathBuf>,
    /// Namespace of the objects
    #[arg(short, long, default_value = "default", value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: String,
    /// Show objects of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Show only objects with these labels: KEY=VALUE, KEY!=VALUE or KEY, separated by commas
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Show only objects with these fields: FIELD=VALUE or FIELD!=VALUE, separated by commas
    #[arg(long, value_name = "FIELDS")]
    pub field_selector: Option<String>,
    /// Sort by a field, such as .metadata.creationTimestamp; several kinds stay apart
    #[arg(long, value_name = "PATH", value_parser = jsonpath)]
    pub sort_by: Option<Path>,
    /// Show the labels in a last column
    #[arg(long)]
    pub show_labels: bool,
    /// Leave the headings of tables out
    #[arg(long)]
    pub no_headers: bool,
    /// Output format: wide, yaml, json, name, jsonpath=TEMPLATE or
    /// custom-columns=HEADING:PATH,...
    #[arg(short, long, value_name = "FORMAT", value_parser = view)]
    pub output: Option<View>,
}

/// Arguments of `delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// KIND NAME... or KIND/NAME...; with --all also a KIND alone, or nothing
    #[arg(required_unless_present_any = ["files", "all"], value_name = "KIND NAME", add = ArgValueCompleter::new(candidates::Objects))]
    pub what: Vec<String>,
    /// Namespace of the objects
    #[arg(short, long, value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: Option<String>,
    /// Delete every applied object, or with a KIND every applied one of the kind; objects in files
    /// stay
    #[arg(long, conflicts_with_all = ["files", "write"])]
    pub all: bool,
    /// With --all: in all namespaces, which is the default without a KIND
    #[arg(short = 'A', long, requires = "all", conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Delete the objects that these files name
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with = "what"
    )]
    pub files: Vec<PathBuf>,
    /// Delete the objects of a KIND with these labels: KEY=VALUE, KEY!=VALUE or KEY, separated by
    /// commas
    #[arg(
        short = 'l',
        long,
        value_name = "LABELS",
        requires = "what",
        conflicts_with = "all"
    )]
    pub selector: Option<String>,
    /// Succeed for an object that does not exist
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Print what would be deleted, and delete nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Remove an object that stands in files of `up -f` from those files
    #[arg(long)]
    pub write: bool,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Show only this workload: the name of a Deployment or of one replica
    #[arg(add = ArgValueCompleter::new(candidates::workloads))]
    pub workload: Option<String>,
    /// Show only this namespace
    #[arg(short, long, value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: Option<String>,
    /// Show all namespaces, which is the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Output format
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

/// Arguments of `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// A Deployment's name, or one replica's
    #[arg(add = ArgValueCompleter::new(candidates::workloads))]
    pub workload: String,
    /// Its namespace
    #[arg(short, long, default_value = "default", value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: String,
    /// `app` (or the container's own name), or `proxy` (or `istio-proxy`)
    #[arg(short, long, default_value = "app", add = ArgValueCompleter::new(candidates::containers))]
    pub container: String,
    /// Print the output of the run before the last restart
    #[arg(short, long, conflicts_with = "follow")]
    pub previous: bool,
    /// Keep printing new output
    #[arg(short, long)]
    pub follow: bool,
    /// Print only this many lines from the end; -1 prints all that is kept
    #[arg(long, value_name = "LINES", default_value_t = -1, allow_negative_numbers = true)]
    pub tail: i64,
}

/// Arguments of `exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// A Deployment's name, or one replica's
    #[arg(add = ArgValueCompleter::new(candidates::workloads))]
    pub workload: String,
    /// Its namespace
    #[arg(short, long, default_value = "default", value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: String,
    /// Accepted as by kubectl; the command always has this terminal's input
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Accepted as by kubectl; the command always has this terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Accepted as by kubectl; the command always runs beside the application, whose network the
    /// proxy shares
    #[arg(short = 'c', long, add = ArgValueCompleter::new(candidates::containers))]
    pub container: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Arguments of `port-forward`.
#[derive(Debug, Clone, Args)]
pub struct PortForwardArgs {
    /// A Deployment's name, one replica's, or svc/NAME
    #[arg(add = ArgValueCompleter::new(candidates::workloads))]
    pub target: String,
    /// LOCAL:PORT, PORT for the same number on both sides, or :PORT for any free local port
    #[arg(required = true, value_name = "PORTS")]
    pub ports: Vec<String>,
    /// Namespace of the workload or Service
    #[arg(short, long, default_value = "default", value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: String,
    /// The address of this machine to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub address: IpAddr,
}

/// Arguments of `stop`.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// Return once the workload has ended; =false: at once
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub wait: bool,
}

/// Arguments of `restart`, and what `stop` ends.
#[derive(Debug, Clone, Args)]
pub struct WorkloadArgs {
    /// A Deployment's name, or one replica's
    #[arg(add = ArgValueCompleter::new(candidates::workloads))]
    pub workload: String,
    /// Its namespace
    #[arg(short, long, default_value = "default", value_name = "NAME", add = ArgValueCompleter::new(candidates::namespaces))]
    pub namespace: String,
}

/// A port to publish on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// A gateway's port, under another number.
    Gateway { port: u16, machine: u16 },
    /// A Service's port.
    Service {
        name: String,
        namespace: String,
        port: u16,
        machine: u16,
    },
}

fn publication(text: &str) -> Result<Publication, String> {
    let parse = |part: &str| {
        part.parse::<u16>()
            .map_err(|_| format!("{part:?} is not a port"))
    };
    let (port, machine) = text
        .split_once('=')
        .ok_or("expected GATEWAY-PORT=MACHINE-PORT or SERVICE:PORT=MACHINE-PORT")?;
    let machine = parse(machine)?;

    let Some((service, port)) = port.split_once(':') else {
        let port = parse(port)?;
        return Ok(Publication::Gateway { port, machine });
    };
    let (name, namespace) = service.split_once('.').unwrap_or((service, "default"));
    if name.is_empty() || namespace.is_empty() {
        return Err(format!(
            "{service:?} is not a Service; write NAME or NAME.NAMESPACE"
        ));
    }
    Ok(Publication::Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        port: parse(port)?,
        machine,
    })
}

fn view(text: &str) -> Result<View, String> {
    View::parse(text).map_err(|error| format!("{error:#}"))
}

fn jsonpath(text: &str) -> Result<Path, String> {
    text.parse().map_err(|error| format!("{error:#}"))
}

/// Parses a duration in Go's format (`30s`, `1h30m`). At least 30 s, so that certificates can be
/// renewed in time.
fn lifetime(text: &str) -> Result<std::time::Duration, String> {
    let shortest = std::time::Duration::from_secs(30);
    match meltemi_api::Duration::parse(text).map(|duration| duration.0) {
        None => Err(format!("{text:?} is no duration; write 30s, 15m or 24h")),
        Some(duration) if duration < shortest => Err("a certificate lives 30s at least".to_owned()),
        Some(duration) => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_port_pairs_are_validated() {
        assert_eq!(lifetime("1h30m"), Ok(std::time::Duration::from_secs(5400)));
        assert!(lifetime("29s").unwrap_err().contains("30s at least"));
        assert!(lifetime("soon").is_err());
        let gateway = Publication::Gateway {
            port: 8080,
            machine: 0,
        };
        assert_eq!(publication("8080=0"), Ok(gateway));
        let service = |namespace: &str| Publication::Service {
            name: "web".to_owned(),
            namespace: namespace.to_owned(),
            port: 80,
            machine: 8000,
        };
        assert_eq!(publication("web:80=8000"), Ok(service("default")));
        assert_eq!(publication("web.shop:80=8000"), Ok(service("shop")));
        for wrong in [
            "8080",
            "8080=http",
            "web=80",
            ":80=1",
            "web.:80=1",
            "web:http=1",
        ] {
            assert!(publication(wrong).is_err(), "{wrong}");
        }
    }
}
