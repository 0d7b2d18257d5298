//! The role `sidecar`: a sidecar or gateway, as the node starts it. It is the agent with our proxy
//! in the same process or Envoy as its child.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use meltemi_agent::dns::DnsOptions;
use meltemi_agent::sidecar::{Embedded, EnvoySidecar, ProxyChoice, SidecarDns, SidecarOptions};
use meltemi_agent::{ControlPlaneOptions, IdentityOptions, NodeKind, Token, Workload};
use meltemi_net::{Binder, OsBinder, PublishingBinder};
use meltemi_proxy::{Levels, ProxyOptions};
use meltemi_types::{Labels, Locality, SpiffeId, TrustDomain};
use tokio::signal::unix::{SignalKind, signal};

/// Flags that the node passes to a sidecar.
#[derive(Debug, Parser)]
pub(crate) struct SidecarArgs {
    /// Node id: `type~ip~pod.ns~ns.svc.domain`.
    #[arg(long)]
    id: String,
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    service_account: String,
    #[arg(long)]
    pod: String,
    #[arg(long)]
    workload: String,
    /// Labels of the pod: KEY=VALUE,...
    #[arg(long, default_value = "")]
    labels: String,
    /// Annotations of the pod: a JSON object of strings.
    #[arg(long, default_value = "{}")]
    annotations: String,
    #[arg(long)]
    ip: IpAddr,
    /// Address of the control plane.
    #[arg(long)]
    control: SocketAddr,
    #[arg(long)]
    root_cert: PathBuf,
    /// Descriptor of an inherited file with tokens, one per line. The node appends a new token
    /// before the last one expires.
    #[arg(long)]
    token_fd: Option<i32>,
    /// SO_MARK of the proxy's own connections.
    #[arg(long)]
    mark: Option<u32>,
    /// Folder for this sidecar's own files.
    #[arg(long)]
    run_dir: PathBuf,
    /// Socket at which a gateway requests listening sockets of the machine.
    #[arg(long)]
    host_socket: Option<PathBuf>,
    /// Whether this is a gateway, without an application.
    #[arg(long)]
    router: bool,
    /// `meltemi` or `envoy`.
    #[arg(long, default_value = "meltemi")]
    proxy: String,
    #[arg(long)]
    envoy_path: Option<PathBuf>,
    /// Requested lifetime of certificates in seconds, with the suffix `s`.
    #[arg(long)]
    certificate_lifetime: Option<String>,
    /// Worker threads.
    #[arg(long)]
    concurrency: Option<usize>,
}

pub(crate) fn sidecar(args: SidecarArgs) -> Result<i32> {
    let levels = super::log("info");
    meltemi_tls::install_default();
    let options = sidecar_options(args, levels)?;

    // One thread is enough for the agent: the proxy's workers have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::spawn(crate::memory::give_back());
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );

        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };

        meltemi_agent::sidecar::run(options, shutdown).await
    })?;

    Ok(0)
}

fn sidecar_options(args: SidecarArgs, levels: Option<Arc<dyn Levels>>) -> Result<SidecarOptions> {
    let workload = workload(&args)?;
    let identity = identity_options(&args, workload.identity.clone())?;

    // The node's resolver also knows Services that a Sidecar resource hides from this proxy, so
    // a name that the proxy lacks is forwarded and not denied.
    let dns = (!args.router).then(|| SidecarDns {
        server: DnsOptions::new(workload.search_domains()),
        upstreams: vec![(args.control.ip(), 53).into()],
    });

    let control_plane = ControlPlaneOptions {
        address: args.control.to_string(),
        server_name: "istiod.istio-system.svc".to_owned(),
        roots: args.root_cert.clone(),
        // Opening the path anew for each connection reads the tokens that were appended meanwhile.
        token: args
            .token_fd
            .map(|fd| Token::File(format!("/proc/self/fd/{fd}").into())),
        mark: args.mark,
        cluster_id: workload.cluster_id.clone(),
    };

    // Envoy itself listens on the health port and forwards probes to the status port.
    let proxy = proxy_choice(args, levels);
    let is_envoy = matches!(proxy, ProxyChoice::Envoy(_));

    Ok(SidecarOptions {
        control_plane,
        workload,
        identity,
        dns,
        status: ([0, 0, 0, 0], 15020).into(),
        health: (!is_envoy).then_some(([0, 0, 0, 0], 15021).into()),
        termination_drain: Duration::from_secs(5),
        proxy,
    })
}

fn workload(args: &SidecarArgs) -> Result<Workload> {
    Ok(Workload {
        kind: if args.router {
            NodeKind::Router
        } else {
            NodeKind::Sidecar
        },
        identity: SpiffeId::new(
            TrustDomain::default(),
            &args.namespace,
            &args.service_account,
        )?,
        pod: args.pod.clone(),
        ips: vec![args.ip],
        labels: Labels::from_iter(
            args.labels
                .split(',')
                .filter_map(|pair| pair.split_once('=')),
        ),
        annotations: serde_json::from_str(&args.annotations).context("--annotations")?,
        workload_name: args.workload.clone(),
        cluster_id: "Kubernetes".to_owned(),
        locality: Locality::default(),
        node_name: "meltemi".to_owned(),
        domain_suffix: "cluster.local".to_owned(),
        extra: std::collections::BTreeMap::new(),
    })
}

fn identity_options(args: &SidecarArgs, identity: SpiffeId) -> Result<IdentityOptions> {
    let mut options = IdentityOptions::new(identity);
    if let Some(seconds) = args
        .certificate_lifetime
        .as_deref()
        .and_then(|text| text.strip_suffix('s'))
    {
        options.ttl =
            Duration::try_from_secs_f64(seconds.parse().context("--certificate-lifetime")?)?;
    }

    Ok(options)
}

fn proxy_choice(args: SidecarArgs, levels: Option<Arc<dyn Levels>>) -> ProxyChoice {
    if args.proxy == "envoy" {
        let program = args.envoy_path.unwrap_or_else(|| PathBuf::from("envoy"));
        let mut envoy = EnvoySidecar::new(program, args.run_dir);
        envoy.concurrency = args.concurrency.map_or(envoy.concurrency, |n| n as u32);
        return ProxyChoice::Envoy(envoy);
    }

    let binder: Arc<dyn Binder> = match args.host_socket {
        Some(path) => Arc::new(PublishingBinder { path }),
        None => Arc::new(OsBinder),
    };

    ProxyChoice::Embedded(Embedded::meltemi(ProxyOptions {
        workers: args.concurrency.unwrap_or(2),
        admin: Some(([127, 0, 0, 1], 15000).into()),
        metrics: Some(([0, 0, 0, 0], 15090).into()),
        binder,
        levels,
        ..ProxyOptions::default()
    }))
}
