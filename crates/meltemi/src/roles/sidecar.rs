//! A sidecar or gateway as the node starts it: the agent, with our proxy in the same process or
//! Envoy as its child.

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
use meltemi_proxy::ProxyOptions;
use meltemi_types::{Labels, Locality, SpiffeId, TrustDomain};
use tokio::signal::unix::{SignalKind, signal};

/// Flags between the node and a sidecar.
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
    /// KEY=VALUE,...
    #[arg(long, default_value = "")]
    labels: String,
    /// The pod's annotations: a JSON object of strings.
    #[arg(long, default_value = "{}")]
    annotations: String,
    #[arg(long)]
    ip: IpAddr,
    /// Of the control plane.
    #[arg(long)]
    control: SocketAddr,
    #[arg(long)]
    root_cert: PathBuf,
    /// An inherited file with tokens, a line each; the node appends a new one while the last is
    /// good.
    #[arg(long)]
    token_fd: Option<i32>,
    /// SO_MARK of the proxy's own connections.
    #[arg(long)]
    mark: Option<u32>,
    /// A folder that only this sidecar uses.
    #[arg(long)]
    run_dir: PathBuf,
    /// Where a gateway asks for listening sockets of the machine.
    #[arg(long)]
    host_socket: Option<PathBuf>,
    /// A gateway: no application beside it.
    #[arg(long)]
    router: bool,
    /// `meltemi` or `envoy`.
    #[arg(long, default_value = "meltemi")]
    proxy: String,
    #[arg(long)]
    envoy_path: Option<PathBuf>,
    /// Seconds, with an `s`.
    #[arg(long)]
    certificate_lifetime: Option<String>,
    /// Worker threads.
    #[arg(long)]
    concurrency: Option<usize>,
}

pub(crate) fn sidecar(args: SidecarArgs) -> Result<i32> {
    let levels = super::log("info");
    meltemi_tls::install_default();
    let identity = SpiffeId::new(
        TrustDomain::default(),
        &args.namespace,
        &args.service_account,
    )?;

    let workload = Workload {
        kind: if args.router {
            NodeKind::Router
        } else {
            NodeKind::Sidecar
        },
        identity: identity.clone(),
        pod: args.pod,
        ips: vec![args.ip],
        labels: Labels::from_iter(
            args.labels
                .split(',')
                .filter_map(|pair| pair.split_once('=')),
        ),
        annotations: serde_json::from_str(&args.annotations).context("--annotations")?,
        workload_name: args.workload,
        cluster_id: "Kubernetes".to_owned(),
        locality: Locality::default(),
        node_name: "meltemi".to_owned(),
        domain_suffix: "cluster.local".to_owned(),
        extra: std::collections::BTreeMap::new(),
    };

    let mut issue = IdentityOptions::new(identity);
    if let Some(seconds) = args
        .certificate_lifetime
        .as_deref()
        .and_then(|text| text.strip_suffix('s'))
    {
        issue.ttl =
            Duration::try_from_secs_f64(seconds.parse().context("--certificate-lifetime")?)?;
    }

    let router = args.control.ip();
    let proxy = match args.proxy.as_str() {
        "envoy" => {
            let program = args.envoy_path.unwrap_or_else(|| PathBuf::from("envoy"));
            let mut envoy = EnvoySidecar::new(program, args.run_dir);
            envoy.concurrency = args.concurrency.map_or(envoy.concurrency, |n| n as u32);
            ProxyChoice::Envoy(envoy)
        }
        _ => {
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
    };

    let dns = (!args.router).then(|| {
        // No zone is ours alone: the node's resolver also knows the services that a Sidecar hides
        // from this proxy.
        let server = DnsOptions::new(workload.search_domains());
        SidecarDns {
            server,
            upstreams: vec![(router, 53).into()],
        }
    });

    let own_health = !matches!(proxy, ProxyChoice::Envoy(_));
    let options = SidecarOptions {
        control_plane: ControlPlaneOptions {
            address: args.control.to_string(),
            server_name: "istiod.istio-system.svc".to_owned(),
            roots: args.root_cert,
            // Opened anew through /proc for each connection: the node renews it.
            token: args
                .token_fd
                .map(|fd| Token::File(format!("/proc/self/fd/{fd}").into())),
            mark: args.mark,
            cluster_id: workload.cluster_id.clone(),
        },
        workload,
        identity: issue,
        dns,
        status: ([0, 0, 0, 0], 15020).into(),
        health: own_health.then_some(([0, 0, 0, 0], 15021).into()),
        termination_drain: Duration::from_secs(5),
        proxy,
    };

    // The proxy's workers have threads of their own; what is left is little.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
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
