//! A proxy in the sidecar's own process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_tls::SecretStore;

use super::{Parts, Running};
use crate::{BoxFuture, ControlPlane};

/// How often a proxy is asked whether its threads still run.
const WATCH: Duration = Duration::from_millis(500);

/// What the proxy is fed with.
pub struct EmbeddedFeed {
    /// Who it is.
    pub node: Node,
    /// Makes connections for its discovery client: [`ControlPlane::connector`].
    pub control_plane: ControlPlane,
    /// `default` and `ROOTCA`, rotating.
    pub secrets: SecretStore,
    /// SO_MARK of its upstream connections.
    pub mark: Option<u32>,
}

/// A proxy that runs on threads of its own. Dropping it ends it at once.
pub trait EmbeddedProxy: Send + Sync + 'static {
    /// Prometheus text.
    fn metrics(&self) -> BoxFuture<'_, String>;
    /// Whether its listeners serve; the error says what is missing.
    fn ready(&self) -> BoxFuture<'_, Result<(), String>>;
    /// Whether its threads run.
    fn is_running(&self) -> bool;
    /// Whether its admin interface was asked for its end.
    fn was_asked_to_end(&self) -> bool;
    /// No new work; open work may finish within the grace; then its threads end.
    fn shutdown(&self, grace: Duration) -> BoxFuture<'_, ()>;
}

/// Starts the proxy once its feed is known.
pub struct Embedded(Box<dyn FnOnce(EmbeddedFeed) -> anyhow::Result<Arc<dyn EmbeddedProxy>> + Send>);

impl Embedded {
    /// From whatever starts it.
    pub fn new(
        start: impl FnOnce(EmbeddedFeed) -> anyhow::Result<Arc<dyn EmbeddedProxy>> + Send + 'static,
    ) -> Self {
        Self(Box::new(start))
    }

    pub(super) fn start(self, parts: Parts) -> anyhow::Result<Box<dyn Running>> {
        let Parts {
            node,
            control_plane,
            secrets,
            options,
            ..
        } = parts;

        let proxy = (self.0)(EmbeddedFeed {
            node,
            control_plane,
            secrets,
            mark: options.mark,
        })?;

        Ok(Box::new(RunningEmbedded(proxy)))
    }
}

struct RunningEmbedded(Arc<dyn EmbeddedProxy>);

impl Running for RunningEmbedded {
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
                tokio::time::sleep(WATCH).await;
            }
            let asked = self.0.was_asked_to_end();
            asked
                .then_some(())
                .context("a thread of the proxy ended by itself; its reason is in the log")
        })
    }

    fn drain_and_stop(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.0.shutdown(grace).await })
    }
}
