//! Assembles a sidecar or gateway: certificate, name table, DNS server, status server, and one of
//! two proxies. [`run`] ends when it is told to, or when any part fails.

mod embedded;
mod meltemi;
mod with_envoy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use meltemi_proto::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use meltemi_tls::{DEFAULT_SECRET, SecretStore};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub use embedded::{Embedded, EmbeddedFeed, EmbeddedProxy};
pub use with_envoy::EnvoySidecar;

use crate::dns::{DnsOptions, DnsServer, Names, UpstreamForwarder};
use crate::identity::{IdentityAgent, IdentityOptions, IdentityView};
use crate::status::{AppMetrics, Pages, StatusOptions, StatusServer, StatusSources};
use crate::{
    AgentMetrics, BoxFuture, Clock, ControlPlane, ControlPlaneOptions, SystemClock, Workload,
    follow_names, node_of,
};

/// How often certificate files are checked for changes.
const FILE_CHECK: Duration = Duration::from_secs(5);

/// The proxy that carries the traffic.
pub enum ProxyChoice {
    /// Our own proxy, in this process.
    Embedded(Embedded),
    /// Envoy, as a child process.
    Envoy(EnvoySidecar),
}

/// Options of the DNS server.
#[derive(Debug, Clone)]
pub struct SidecarDns {
    /// Address, search domains and limits.
    pub server: DnsOptions,
    /// Name servers for all names that are not of the mesh, tried in order.
    pub upstreams: Vec<SocketAddr>,
}

/// Options of a sidecar or gateway.
pub struct SidecarOptions {
    /// The workload that the proxy serves.
    pub workload: Workload,
    /// Address of the control plane and credentials for it.
    pub control_plane: ControlPlaneOptions,
    /// The certificate to request, and when to renew it.
    pub identity: IdentityOptions,
    /// Options of the DNS server; `None` starts none, and the workload keeps its own resolver.
    pub dns: Option<SidecarDns>,
    /// Address of probes, merged metrics and commands; usually 0.0.0.0:15020.
    pub status: SocketAddr,
    /// Address of the readiness probe; usually 0.0.0.0:15021. `None` where Envoy listens there.
    pub health: Option<SocketAddr>,
    /// Time for open requests to finish at the end. Istio's ProxyConfig `terminationDrainDuration`:
    /// 5 s.
    pub termination_drain: Duration,
    /// The proxy to start.
    pub proxy: ProxyChoice,
}

/// Input for starting either kind of proxy.
struct ProxyInputs {
    node: Node,
    control_plane: ControlPlane,
    secrets: SecretStore,
    metrics: AgentMetrics,
    workload: Workload,
    mark: Option<u32>,
    status_port: u16,
}

/// A running proxy of either kind.
trait RunningProxy: Send {
    /// A source of the proxy's metrics in Prometheus text format.
    fn metrics(&self)
    -> Arc<dyn Fn() -> BoxFuture<'static, std::io::Result<String>> + Send + Sync>;
    /// A readiness check; its error says what is missing.
    fn ready(&self) -> Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;
    /// Waits until the proxy ends by itself: `Ok` if its admin interface was told to quit, else the
    /// failure. Cancellation safe.
    fn exited(&mut self) -> BoxFuture<'_, anyhow::Result<()>>;
    /// Refuses new work, lets open work finish within `grace`, then ends the proxy.
    fn drain_and_stop(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()>;
}

/// Runs a sidecar until `shutdown` completes or a client sends `POST /quitquitquit` or `POST
/// /drain`; then drains and returns.
///
/// # Errors
/// When a socket cannot be bound, the proxy cannot start, or a part of the sidecar ends by itself.
pub async fn run(
    options: SidecarOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let SidecarOptions {
        workload,
        control_plane,
        identity,
        dns,
        status,
        health,
        termination_drain,
        proxy,
    } = options;

    let (secrets, metrics, names) = (
        SecretStore::new(),
        AgentMetrics::default(),
        Names::default(),
    );

    let mark = control_plane.mark;
    let control_plane = ControlPlane::new(control_plane, secrets.clone());
    let node = node_for(&workload, &proxy);
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();

    // Bind the DNS port first: if it is taken, fail before anything else starts.
    let has_dns = dns.is_some();
    if let Some(dns) = dns {
        spawn_dns(&mut tasks, dns, mark, names.clone(), metrics.clone()).await?;
    }

    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let agent = IdentityAgent::new(
        identity,
        Arc::new(control_plane.clone()),
        clock,
        secrets.clone(),
        metrics.clone(),
    );

    let identity = agent.state();
    tasks.spawn(async move {
        agent.run().await;
        Ok(())
    });

    if has_dns {
        spawn_name_table(
            &mut tasks,
            control_plane.clone(),
            node.clone(),
            names.clone(),
            &secrets,
        );
    }
    spawn_file_refresh(&mut tasks, secrets.clone());

    let app_metrics = AppMetrics::from_annotations(&workload.annotations);
    let inputs = ProxyInputs {
        node,
        control_plane,
        secrets,
        metrics: metrics.clone(),
        workload,
        mark,
        status_port: status.port(),
    };

    let mut proxy = match proxy {
        ProxyChoice::Embedded(embedded) => embedded.start(inputs)?,
        ProxyChoice::Envoy(envoy) => envoy.start(inputs, &mut tasks)?,
    };

    let (quit, drain) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let sources = StatusSources {
        ready: readiness(
            identity.clone(),
            has_dns.then(|| names.clone()),
            proxy.ready(),
        ),
        proxy_metrics: proxy.metrics(),
        app_metrics,
        metrics,
        names,
        identity: Some(identity),
        quit: quit.clone(),
        drain: drain.clone(),
    };

    spawn_status(&mut tasks, status, Pages::All, sources.clone()).await?;
    if let Some(health) = health {
        spawn_status(&mut tasks, health, Pages::Probes, sources).await?;
    }

    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        () = quit.notified() => Ok(()),
        // A drained workload does not come back, so the process ends after the drain.
        () = drain.notified() => Ok(()),
        exited = proxy.exited() => exited,
        Some(task) = tasks.join_next() => match task {
            Ok(Ok(())) => Err(anyhow::anyhow!("a part of the sidecar ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(panic.into()),
        },
    };

    tracing::info!(grace = ?termination_drain, "draining");

    // DNS and secrets keep running meanwhile: open requests may need them.
    proxy.drain_and_stop(termination_drain).await;
    tasks.shutdown().await;

    outcome
}

/// The node that the proxy sends to the control plane. The control plane reads the user agent to
/// decide which filters it may send.
fn node_for(workload: &Workload, proxy: &ProxyChoice) -> Node {
    let mut node = node_of(workload);
    if matches!(proxy, ProxyChoice::Embedded(_)) {
        node.user_agent_name = "meltemi".to_owned();
        node.user_agent_version_type = Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        ));
    }

    node
}

/// Binds the DNS server and serves it in the background.
async fn spawn_dns(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    SidecarDns { server, upstreams }: SidecarDns,
    mark: Option<u32>,
    names: Names,
    metrics: AgentMetrics,
) -> anyhow::Result<()> {
    let address = server.address;
    let forwarder = Arc::new(UpstreamForwarder::new(upstreams, mark));
    let server = DnsServer::bind(server, names, forwarder, metrics)
        .await
        .with_context(|| format!("DNS server on {address}"))?;

    tasks.spawn(async move {
        server.run().await;
        Ok(())
    });

    Ok(())
}

/// Follows the name table once the workload has a certificate, so that the token is used for
/// the certificate request only.
fn spawn_name_table(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    control_plane: ControlPlane,
    node: Node,
    names: Names,
    secrets: &SecretStore,
) {
    let mut issued = secrets.watch(DEFAULT_SECRET);
    tasks.spawn(async move {
        let _ = issued.wait_for(Option::is_some).await;
        follow_names(control_plane, node, names, watch::Sender::new(false)).await;
        Ok(())
    });
}

/// Rereads certificate files of the store when they change.
fn spawn_file_refresh(tasks: &mut JoinSet<anyhow::Result<()>>, secrets: SecretStore) {
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(FILE_CHECK);
        loop {
            tick.tick().await;
            secrets.refresh_files();
        }
    });
}

/// Binds a status server and serves it in the background.
async fn spawn_status(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    address: SocketAddr,
    pages: Pages,
    sources: StatusSources,
) -> anyhow::Result<()> {
    let options = StatusOptions {
        pages,
        ..StatusOptions::default()
    };
    let server = StatusServer::bind(address, sources, options)
        .await
        .with_context(|| format!("status server on {address}"))?;

    tasks.spawn(async move {
        server.run().await;
        Ok(())
    });

    Ok(())
}

/// The readiness check. It reports the first missing part, in the order in which they become
/// available: certificate, name table, proxy.
fn readiness(
    identity: IdentityView,
    names: Option<Names>,
    proxy: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
) -> crate::status::Ready {
    Arc::new(move || {
        let (identity, names, proxy) = (identity.get(), names.clone(), proxy.clone());
        Box::pin(async move {
            if identity.certificate.is_none() {
                let reason = identity
                    .last_error
                    .unwrap_or_else(|| "asking for it".to_owned());
                return Err(format!("no certificate yet: {reason}"));
            }

            if names.is_some_and(|names| names.get().is_none()) {
                return Err("no name table from the control plane yet".to_owned());
            }
            proxy().await
        })
    })
}
