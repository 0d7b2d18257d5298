//! Secrets from SDS servers that the bootstrap names as static clusters, such as the `sds-grpc` of
//! Istio's agent.

use std::collections::HashMap;
use std::sync::Arc;

use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::type_url::SECRET;
use meltemi_proxy_config::bootstrap::Bootstrap;
use meltemi_proxy_config::cluster::Cluster;
use meltemi_proxy_config::tls::{SecretRef, SecretSource};
use meltemi_tls::SecretStore;
use meltemi_xds::{Client, ClientConfig, ClientEvent, Service, Subscription};
use tokio::task::AbortHandle;

use super::{secrets, servers};

/// The streams to SDS servers: one for each secret, as Envoy has it. Istio's agent ends a stream
/// when it cannot make one of its secrets, and the others must not wait for that one.
#[derive(Debug, Default)]
pub struct SdsStreams {
    node: Node,
    servers: HashMap<Arc<str>, Arc<Cluster>>,
    /// The stream of each secret; `None` where none can be opened, which has been said.
    streams: HashMap<SecretRef, Option<AbortHandle>>,
}

impl SdsStreams {
    /// Streams to the static clusters of a bootstrap.
    pub fn new(bootstrap: &Bootstrap) -> Self {
        let servers = bootstrap.clusters.iter();
        Self {
            node: bootstrap.node.clone(),
            servers: servers
                .map(|cluster| (cluster.value.name.clone(), cluster.value.clone()))
                .collect(),
            streams: HashMap::new(),
        }
    }

    /// Opens streams for wanted secrets that the store lacks, and ends those of secrets that no
    /// resource names any more. A secret that the store has already comes from a file or from the
    /// process around the proxy.
    pub fn keep(&mut self, wanted: &[SecretRef], store: &SecretStore) {
        self.streams.retain(|secret, stream| {
            let is_wanted = wanted.contains(secret);
            if !is_wanted && let Some(stream) = stream {
                stream.abort();
                store.remove(&secret.name);
            }
            is_wanted
        });

        for secret in wanted {
            let SecretSource::Cluster { cluster, delta } = &secret.source else {
                continue;
            };
            if self.streams.contains_key(secret) || store.get(&secret.name).is_some() {
                continue;
            }

            let stream = match self.client_of(cluster, *delta, &secret.name) {
                Ok(config) => {
                    let task = receive(config, store.clone(), secret.name.clone());
                    Some(tokio::spawn(task).abort_handle())
                }
                Err(reason) => {
                    tracing::error!(
                        secret = %secret.name,
                        "cannot ask for the secret: static cluster {cluster:?} {reason}"
                    );
                    None
                }
            };
            self.streams.insert(secret.clone(), stream);
        }
    }

    fn client_of(&self, cluster: &str, delta: bool, name: &str) -> Result<ClientConfig, String> {
        let server = self.servers.get(cluster).ok_or("does not exist")?;
        let mut config = servers::client_of(server, delta, self.node.clone())?;
        config.service = Service::Secrets;
        config.initial = vec![(SECRET.to_owned(), Subscription::names([name]))];

        Ok(config)
    }
}

/// Puts each version of a secret into the store, and answers for it.
async fn receive(config: ClientConfig, store: SecretStore, name: Arc<str>) {
    let (handle, mut events) = Client::spawn(config);
    let mut is_connected = true;
    while let Some(event) = events.recv().await {
        let update = match event {
            ClientEvent::Connected => {
                is_connected = true;
                continue;
            }
            ClientEvent::Disconnected { reason } => {
                // Once for each loss, however often the server cannot be reached again.
                if std::mem::replace(&mut is_connected, false) {
                    tracing::warn!(secret = %name, %reason, "no SDS server; the secret stays as it is");
                }
                continue;
            }
            ClientEvent::Update(update) => update,
        };

        let own = update.set.iter().find(|resource| *resource.name == *name);
        let applied = own.map_or(Ok(()), |own| secrets::apply(&store, &name, &own.any));
        match applied {
            Ok(()) => handle.ack(&update.type_url, &update.nonce),
            Err(reason) => {
                tracing::warn!(secret = %name, %reason, "secret refused");
                handle.nack(&update.type_url, &update.nonce, reason);
            }
        }
    }
}
