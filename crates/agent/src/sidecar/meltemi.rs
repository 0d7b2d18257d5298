//! Starts `meltemi-proxy` as the embedded proxy.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use meltemi_proxy::{Proxy, ProxyHandle, ProxyOptions};
use meltemi_tls::{DEFAULT_SECRET, SecretStore};
use meltemi_xds::ClientConfig;
use tokio::sync::RwLock;

use super::{Embedded, EmbeddedFeed, EmbeddedProxy};
use crate::{BoxFuture, ControlPlane};

/// How long the first discovery stream waits for a certificate before it connects with the token.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(3);

impl Embedded {
    /// Starts our proxy. The sidecar fills in node, mark, secrets and xDS server; the other options
    /// (workers, admin address, binder, logs) are the caller's.
    pub fn meltemi(options: ProxyOptions) -> Self {
        Self::new(move |feed| {
            let EmbeddedFeed {
                node,
                control_plane,
                secrets,
                mark,
            } = feed;

            let xds = ClientConfig::new(
                connector_after_certificate(control_plane, secrets.clone()),
                node.clone(),
                Vec::new(),
            );

            let handle = Proxy::start(ProxyOptions {
                node,
                mark,
                secrets,
                xds: Some(xds),
                ..options
            })
            .context("starting the proxy")?;

            Ok(Arc::new(Meltemi {
                metrics: Box::new(handle.metrics_source()),
                handle: RwLock::new(Some(handle)),
            }))
        })
    }
}

/// A connector that first waits for a certificate, at most [`CERTIFICATE_WAIT`]: a stream that was
/// opened with the token stays authenticated by the token until it ends.
fn connector_after_certificate(
    control_plane: ControlPlane,
    secrets: SecretStore,
) -> impl meltemi_xds::Connector {
    let connect = Arc::new(control_plane.connector());
    move || {
        let (mut issued, connect) = (secrets.watch(DEFAULT_SECRET), connect.clone());
        async move {
            let _ = tokio::time::timeout(CERTIFICATE_WAIT, issued.wait_for(Option::is_some)).await;
            connect().await
        }
    }
}

struct Meltemi {
    /// Kept outside of the lock, which a shutdown holds while connections drain: scrapes must work
    /// meanwhile.
    metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// `None` after the shutdown has begun.
    handle: RwLock<Option<ProxyHandle>>,
}

impl EmbeddedProxy for Meltemi {
    fn metrics(&self) -> BoxFuture<'_, String> {
        Box::pin(std::future::ready((self.metrics)()))
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let handle = self.handle.read().await;
            let Some(proxy) = handle.as_ref() else {
                return Err("the proxy ends".to_owned());
            };
            if proxy.is_ready() {
                return Ok(());
            }
            let reasons = proxy.not_ready().await;
            Err(match reasons.is_empty() {
                true => "the proxy waits for its first configuration".to_owned(),
                false => reasons.join("; "),
            })
        })
    }

    fn is_running(&self) -> bool {
        // If the lock is held, an orderly shutdown is under way.
        self.handle.try_read().map_or(true, |handle| {
            handle.as_ref().is_some_and(ProxyHandle::is_running)
        })
    }

    fn was_asked_to_end(&self) -> bool {
        self.handle
            .try_read()
            .is_ok_and(|handle| handle.as_ref().is_some_and(ProxyHandle::was_asked_to_end))
    }

    fn shutdown(&self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // A statement of its own: within the `if let`, the lock would be held during the
            // shutdown.
            let handle = self.handle.write().await.take();
            if let Some(handle) = handle {
                handle.shutdown(grace).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metrics_are_available_during_and_after_the_shutdown() {
        let handle = Proxy::start(ProxyOptions {
            workers: 1,
            ..ProxyOptions::default()
        })
        .expect("started");

        let proxy = Meltemi {
            metrics: Box::new(handle.metrics_source()),
            handle: RwLock::new(Some(handle)),
        };

        assert!(!proxy.metrics().await.is_empty());
        {
            let _locked = proxy.handle.write().await;
            assert!(!proxy.metrics().await.is_empty());
        }

        proxy.shutdown(Duration::ZERO).await;
        assert!(!proxy.metrics().await.is_empty());
        assert!(proxy.ready().await.is_err() && !proxy.is_running());
    }
}
