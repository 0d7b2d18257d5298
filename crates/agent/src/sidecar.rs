//! The whole sidecar, or gateway, put together: identity, discovery, DNS, probes, and one of two
//! proxies.

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

/// How often certificate files are looked at.
const FILES: Duration = Duration::from_secs(5);

/// Which proxy carries the traffic.
pub enum ProxyChoice {
    /// Ours, in this process.
    Embedded(Embedded),
    /// Envoy, as a child.
    Envoy(EnvoySidecar),
}

/// The DNS part.
#[derive(Debug, Clone)]
pub struct SidecarDns {
    /// Where and how it answers.
    pub server: DnsOptions,
    /// Who answers what the mesh does not know.
    pub upstreams: Vec<SocketAddr>,
}

/// Everything a sidecar needs to know.
pub struct SidecarOptions {
    /// Who it is beside of.
    pub workload: Workload,
    /// Where the control plane is.
    pub control_plane: ControlPlaneOptions,
    /// Which certificate is asked for.
    pub identity: IdentityOptions,
    /// `None`: the workload keeps its own resolver.
    pub dns: Option<SidecarDns>,
    /// Probes, merged metrics, commands; 0.0.0.0:15020.
    pub status: SocketAddr,
    /// Probes; 0.0.0.0:15021. `None` where Envoy listens there.
    pub health: Option<SocketAddr>,
    /// How long open requests may take to finish at the end. Source: ProxyConfig
    /// `terminationDrainDuration`, 5 s.
    pub termination_drain: Duration,
    /// Which proxy.
    pub proxy: ProxyChoice,
}

/// What both kinds of proxy are started with.
struct Parts {
    node: Node,
    control_plane: ControlPlane,
    secrets: SecretStore,
    metrics: AgentMetrics,
    options: SidecarTerms,
}

/// The part of the options that the proxies read.
struct SidecarTerms {
    workload: Workload,
    mark: Option<u32>,
    status_port: u16,
}

/// A proxy that runs, in whichever form.
trait Running: Send {
    /// Prometheus text.
    fn metrics(&self)
    -> Arc<dyn Fn() -> BoxFuture<'static, std::io::Result<String>> + Send + Sync>;
    /// Whether it serves.
    fn ready(&self) -> Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;
    /// Its end that did not come from here: in order if its admin interface was asked for it.
    /// Cancel safe.
    fn exited(&mut self) -> BoxFuture<'_, anyhow::Result<()>>;
    /// No new work; open work may finish within the grace; then it ends.
    fn drain_and_stop(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()>;
}

/// Runs until `shutdown` is done or `POST /quitquitquit` comes; then drains and returns. An error
/// means that a part ended by itself.
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
    let mut node = node_of(&workload);

    if matches!(proxy, ProxyChoice::Embedded(_)) {
        // By this the control plane knows which filters it may send.
        node.user_agent_name = "meltemi".to_owned();
        node.user_agent_version_type = Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        ));
    }

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();

    // Sockets first: a port that is taken must be known before anything else starts.
    let wants_names = dns.is_some();
    if let Some(SidecarDns { server, upstreams }) = dns {
        let address = server.address;
        let forwarder = Arc::new(UpstreamForwarder::new(upstreams, mark));
        let server = DnsServer::bind(server, names.clone(), forwarder, metrics.clone())
            .await
            .with_context(|| format!("DNS server on {address}"))?;
        tasks.spawn(async move {
            server.run().await;
            Ok(())
        });
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

    if wants_names {
        let (control_plane, node, names) = (control_plane.clone(), node.clone(), names.clone());
        let mut issued = secrets.watch(DEFAULT_SECRET);
        tasks.spawn(async move {
            // With the first certificate, so that the token is shown as rarely as possible.
            let _ = issued.wait_for(Option::is_some).await;
            follow_names(control_plane, node, names, watch::Sender::new(false)).await;
            Ok(())
        });
    }

    let files = secrets.clone();
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(FILES);
        loop {
            tick.tick().await;
            files.refresh_files();
        }
    });

    let app_metrics = AppMetrics::from_annotations(&workload.annotations);
    let parts = Parts {
        node,
        control_plane,
        secrets,
        metrics: metrics.clone(),
        options: SidecarTerms {
            workload,
            mark,
            status_port: status.port(),
        },
    };

    let mut proxy = match proxy {
        ProxyChoice::Embedded(embedded) => embedded.start(parts)?,
        ProxyChoice::Envoy(envoy) => envoy.start(parts, &mut tasks)?,
    };

    let (quit, drain) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let sources = StatusSources {
        ready: readiness(
            identity.clone(),
            wants_names.then(|| names.clone()),
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

    for (address, pages) in [(Some(status), Pages::All), (health, Pages::Probes)] {
        let Some(address) = address else { continue };
        let options = StatusOptions {
            pages,
            ..StatusOptions::default()
        };

        let server = StatusServer::bind(address, sources.clone(), options)
            .await
            .with_context(|| format!("status server on {address}"))?;
        tasks.spawn(async move {
            server.run().await;
            Ok(())
        });
    }

    let ended = tokio::select! {
        () = shutdown => Ok(()),
        () = quit.notified() => Ok(()),
        // Draining ends with the process: what asked for it does not want the workload back.
        () = drain.notified() => Ok(()),
        ended = proxy.exited() => ended,
        Some(part) = tasks.join_next() => match part {
            Ok(Ok(())) => Err(anyhow::anyhow!("a part of the sidecar ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(panic.into()),
        },
    };

    tracing::info!(grace = ?termination_drain, "draining");

    // DNS and secrets go on: open requests may need them.
    proxy.drain_and_stop(termination_drain).await;
    tasks.shutdown().await;

    ended
}

/// Certificate, names, proxy: in the order in which they come.
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
