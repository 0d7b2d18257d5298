//! What a source says.

use std::sync::Arc;

use meltemi_api::{Object, ObjectKey};
use meltemi_types::Diagnostic;
use tokio::sync::mpsc;

/// One step of a source. `Init` to `InitDone` lists everything that there is; what an earlier
/// listing had and this one has not is gone.
#[derive(Debug, Clone)]
pub enum Delta {
    /// A complete listing begins.
    Init,
    /// An object is there, new or changed.
    Apply(Arc<Object>),
    /// An object is gone.
    Delete(ObjectKey),
    /// The listing is complete.
    InitDone,
}

/// Steps that belong together: they reach one snapshot.
#[derive(Debug, Clone, Default)]
pub struct SourceUpdate {
    /// In order.
    pub deltas: Vec<Delta>,
    /// All findings of the source as they are now; `None` if they have not changed.
    pub diagnostics: Option<Vec<Diagnostic>>,
}

/// The way from a source to the store. Sending waits while the store is busy, so a source merges
/// what happens meanwhile.
#[derive(Debug, Clone)]
pub struct SourceSender {
    pub(crate) source: usize,
    pub(crate) channel: mpsc::Sender<(usize, SourceUpdate)>,
}

impl SourceSender {
    /// Sends from a task; false if the store has ended.
    pub async fn send(&self, update: SourceUpdate) -> bool {
        self.channel.send((self.source, update)).await.is_ok()
    }

    /// Sends from a thread without a runtime; false if the store has ended.
    pub fn send_blocking(&self, update: SourceUpdate) -> bool {
        self.channel.blocking_send((self.source, update)).is_ok()
    }
}
