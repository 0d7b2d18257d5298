//! Starts Envoy as the sidecar's proxy.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{ProxyInputs, RunningProxy};
use crate::BoxFuture;
use crate::envoy::{
    Bootstrap, EnvoyOptions, EnvoyProcess, StatsInclusion, render, serve_sockets, write_bootstrap,
};
use crate::status::fetch;

/// Options of Envoy as a sidecar.
#[derive(Debug, Clone)]
pub struct EnvoySidecar {
    /// Path of the Envoy binary.
    pub program: PathBuf,
    /// Folder for the sockets and the bootstrap. Only this workload's sidecar may have access.
    pub folder: PathBuf,
    /// Number of worker threads; 0 starts one per CPU. Default 2.
    pub concurrency: u32,
    /// Envoy's log level. Default `warning`.
    pub log_level: String,
    /// How long listeners drain after a change. Default 45 s.
    pub drain: Duration,
    /// Port of Envoy's admin interface. Default 15000.
    pub admin_port: u16,
    /// Port of Envoy's Prometheus listener. Default 15090.
    pub prometheus_port: u16,
    /// Port of the readiness probe. Default 15021.
    pub health_port: u16,
}

impl EnvoySidecar {
    /// Istio's defaults.
    pub fn new(program: PathBuf, folder: PathBuf) -> Self {
        Self {
            program,
            folder,
            concurrency: 2,
            log_level: "warning".to_owned(),
            drain: Duration::from_secs(45),
            admin_port: 15000,
            prometheus_port: 15090,
            health_port: 15021,
        }
    }

    pub(super) fn start(
        self,
        inputs: ProxyInputs,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) -> anyhow::Result<Box<dyn RunningProxy>> {
        let ProxyInputs {
            node,
            control_plane,
            secrets,
            metrics,
            workload,
            mark,
            status_port,
        } = inputs;

        let (xds, sds, config) = (
            self.folder.join("XDS"),
            self.folder.join("SDS"),
            self.folder.join("envoy.json"),
        );

        let streams = watch::Sender::new(0);
        tasks.spawn(
            serve_sockets(&xds, &sds, control_plane, secrets, metrics, streams.clone())
                .context("sockets for Envoy")?,
        );

        let bootstrap = render(&Bootstrap {
            node,
            xds_socket: xds,
            sds_socket: sds,
            admin_port: self.admin_port,
            prometheus_port: self.prometheus_port,
            status_port,
            health_port: self.health_port,
            mark,
            stats: StatsInclusion::from_annotations(&workload.annotations),
        });

        write_bootstrap(&config, &bootstrap).with_context(|| format!("{}", config.display()))?;
        let process = EnvoyProcess::start(&EnvoyOptions {
            program: self.program,
            config,
            concurrency: self.concurrency,
            log_level: self.log_level,
            drain: self.drain,
            admin_port: self.admin_port,
        })
        .context("starting Envoy")?;

        Ok(Box::new(RunningEnvoy {
            process,
            admin: SocketAddr::from(([127, 0, 0, 1], self.admin_port)),
            streams,
        }))
    }
}

struct RunningEnvoy {
    process: EnvoyProcess,
    admin: SocketAddr,
    streams: watch::Sender<usize>,
}

impl RunningProxy for RunningEnvoy {
    fn metrics(&self) -> Arc<dyn Fn() -> BoxFuture<'static, io::Result<String>> + Send + Sync> {
        let admin = self.admin;
        Arc::new(move || {
            Box::pin(async move {
                let text =
                    fetch(admin, "/stats/prometheus?usedonly", Duration::from_secs(10)).await?;
                Ok(String::from_utf8_lossy(&text).into_owned())
            })
        })
    }

    fn ready(&self) -> Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync> {
        let (admin, streams) = (self.admin, self.streams.clone());
        Arc::new(move || {
            let streams = *streams.borrow();
            Box::pin(async move {
                match fetch(admin, "/ready", Duration::from_secs(1)).await {
                    Ok(_) => Ok(()),
                    Err(error) if streams == 0 => Err(format!(
                        "Envoy is not connected to the control plane yet ({error})"
                    )),
                    Err(error) => Err(format!("Envoy is not ready: {error}")),
                }
            })
        })
    }

    fn exited(&mut self) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async {
            match self.process.exited().await {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(anyhow::anyhow!("Envoy ended by itself: {status}")),
                Err(error) => Err(anyhow::anyhow!("Envoy cannot be watched: {error}")),
            }
        })
    }

    fn drain_and_stop(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.process.drain_and_stop(grace))
    }
}
