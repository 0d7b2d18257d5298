//! The seam for a proxy that runs in the sidecar's process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_tls::SecretStore;

use super::{ProxyInputs, RunningProxy};
use crate::{BoxFuture, ControlPlane};

/// How often the sidecar checks whether the proxy's threads still run.
const LIVENESS_CHECK: Duration = Duration::from_millis(500);

/// What the sidecar provides to an embedded proxy.
pub struct EmbeddedFeed {
    /// The xDS node of the workload.
    pub node: Node,
    /// Connects the proxy's discovery client: [`ControlPlane::connector`].
    pub control_plane: ControlPlane,
    /// The store with `default` and `ROOTCA`, which change when the certificate is renewed.
    pub secrets: SecretStore,
    /// SO_MARK of the proxy's upstream connections.
    pub mark: Option<u32>,
}

/// A proxy that runs on its own threads. Dropping it ends it at once.
pub trait EmbeddedProxy: Send + Sync + 'static {
    /// The proxy's metrics in Prometheus text format.
    fn metrics(&self) -> BoxFuture<'_, String>;
    /// Whether the listeners serve; the error says what is missing.
    fn ready(&self) -> BoxFuture<'_, Result<(), String>>;
    /// Whether all threads run.
    fn is_running(&self) -> bool;
    /// Whether a client told the admin interface to quit.
    fn was_asked_to_end(&self) -> bool;
    /// Refuses new work, lets open work finish within `grace`, then ends the threads.
    fn shutdown(&self, grace: Duration) -> BoxFuture<'_, ()>;
}

/// A function that starts an embedded proxy from its [`EmbeddedFeed`].
pub struct Embedded(Box<dyn FnOnce(EmbeddedFeed) -> anyhow::Result<Arc<dyn EmbeddedProxy>> + Send>);

impl Embedded {
    /// Wraps the function.
    pub fn new(
        start: impl FnOnce(EmbeddedFeed) -> anyhow::Result<Arc<dyn EmbeddedProxy>> + Send + 'static,
    ) -> Self {
        Self(Box::new(start))
    }

    pub(super) fn start(self, inputs: ProxyInputs) -> anyhow::Result<Box<dyn RunningProxy>> {
        let ProxyInputs {
            node,
            control_plane,
            secrets,
            mark,
            ..
        } = inputs;

        let proxy = (self.0)(EmbeddedFeed {
            node,
            control_plane,
            secrets,
            mark,
        })?;

        Ok(Box::new(RunningEmbedded(proxy)))
    }
}

struct RunningEmbedded(Arc<dyn EmbeddedProxy>);

impl RunningProxy for RunningEmbedded {
    fn metrics(&self) -> Arc<dyn Fn() -> BoxFuture<'static, io::Result<String>> + Send + Sync> {
        let proxy = self.0.clone();
        Arc::new(move || {
            let proxy = proxy.clone();
            Box::pin(async move { Ok(proxy.metrics().await) })
        })
    }

    fn ready(&self) -> Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync> {
        let proxy = self.0.clone();
        Arc::new(move || {
            let proxy = proxy.clone();
            Box::pin(async move { proxy.ready().await })
        })
    }

    fn exited(&mut self) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async {
            while self.0.is_running() {
                tokio::time::sleep(LIVENESS_CHECK).await;
            }
            self.0
                .was_asked_to_end()
                .then_some(())
                .context("a thread of the proxy ended by itself; its reason is in the log")
        })
    }

    fn drain_and_stop(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.0.shutdown(grace).await })
    }
}
