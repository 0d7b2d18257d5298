//! Receives the name table (Istio's NDS) from the control plane over xDS.

use std::collections::BTreeMap;

use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::istio::NameTable;
use meltemi_proto::{type_url, unpack};
use meltemi_xds::{Client, ClientConfig, ClientEvent, Subscription};
use tokio::sync::watch;

use crate::ControlPlane;
use crate::dns::{NameIndex, Names};

/// Keeps `names` equal to the control plane's table, and `connected` to the state of the stream.
/// Runs until dropped. While disconnected, the last table stays.
pub async fn follow_names(
    control_plane: ControlPlane,
    node: Node,
    names: Names,
    connected: watch::Sender<bool>,
) {
    let initial = vec![(type_url::NAME_TABLE.to_owned(), Subscription::wildcard())];
    let (handle, mut events) =
        Client::spawn(ClientConfig::new(control_plane.connector(), node, initial));

    // Istio sends one table; other servers may split it into several resources.
    let mut tables: BTreeMap<String, NameTable> = BTreeMap::new();

    while let Some(event) = events.recv().await {
        match event {
            ClientEvent::Connected => _ = connected.send_replace(true),
            ClientEvent::Disconnected { reason } => {
                if connected.send_replace(false) {
                    tracing::warn!(%reason, "name table: disconnected, the last one stays");
                }
            }
            ClientEvent::Update(update) => {
                let parsed: Result<Vec<_>, _> = update
                    .set
                    .iter()
                    .map(|resource| {
                        unpack::<NameTable>(&resource.any)
                            .map(|table| (resource.name.clone(), table))
                    })
                    .collect();

                match parsed {
                    Ok(parsed) => {
                        if update.full {
                            tables.clear();
                        }
                        tables.extend(parsed);
                        for name in &update.removed {
                            tables.remove(name);
                        }
                        names.set(NameIndex::from_tables(tables.values()));
                        handle.ack(&update.type_url, &update.nonce);
                    }
                    Err(error) => handle.nack(&update.type_url, &update.nonce, error.to_string()),
                }
            }
        }
    }
}
