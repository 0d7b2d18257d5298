//! How admin pages and the handle see what the control thread and the workers hold.

use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_proxy_config::Address;
use tokio::sync::{mpsc, oneshot};

use super::driver::{Request, Status};
use super::state::State;
use crate::common::Common;
use crate::counts::Copied;
use crate::published::Published;
use crate::worker::Command;

/// How admin pages see the process.
#[derive(Clone)]
pub struct Inspector {
    /// The state that all threads share.
    pub common: Arc<Common>,
    /// The control thread's inbox.
    pub requests: mpsc::Sender<Request>,
    /// The workers' inboxes.
    pub workers: Vec<mpsc::UnboundedSender<Command>>,
}

impl Inspector {
    /// Runs a closure on the control thread and returns its result.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State, &Published, &Status) -> T + Send + 'static,
    ) -> Option<T> {
        self::look(&self.requests, look).await
    }

    /// Why the proxy is not ready yet, one line for each listener and cluster.
    pub async fn not_ready(&self) -> Vec<String> {
        let secrets = self.common.secrets.clone();
        let reasons =
            self.look(move |state, _, _| state.not_ready(|name| secrets.get(name).is_some()));
        reasons.await.unwrap_or_default()
    }

    /// What an operator has to know of a proxy that is ready, one line each.
    pub async fn caveats(&self) -> Vec<String> {
        let caveats = self.look(|state, _, _| state.caveats());
        caveats.await.unwrap_or_default()
    }

    /// The listeners that serve, and the addresses that lead to them.
    pub async fn listeners(&self) -> Vec<(Arc<str>, Vec<Address>)> {
        let (answer, receiver) = oneshot::channel();
        let _ = self.requests.send(Request::Listeners(answer)).await;
        receiver.await.unwrap_or_default()
    }

    /// Asks for something without answer.
    pub async fn ask(&self, request: Request) {
        let _ = self.requests.send(request).await;
    }

    /// What all workers have counted.
    pub async fn counts(&self) -> Copied {
        let mut all = Copied::default();
        for worker in &self.workers {
            let (answer, receiver) = oneshot::channel();
            if worker.send(Command::Counts(answer)).is_ok() {
                all.add(receiver.await.unwrap_or_default());
            }
        }
        all
    }

    /// Open upstream connections, over all workers: cluster, endpoint, connections.
    pub async fn pools(&self) -> Vec<(Arc<str>, SocketAddr, usize)> {
        let mut all = Vec::new();
        for worker in &self.workers {
            let (answer, receiver) = oneshot::channel();
            if worker.send(Command::Pools(answer)).is_ok() {
                all.extend(receiver.await.unwrap_or_default());
            }
        }
        all
    }
}

/// Runs a look on the control thread and brings back its result; `None` once the proxy has stopped.
pub async fn look<T: Send + 'static>(
    requests: &mpsc::Sender<Request>,
    look: impl FnOnce(&State, &Published, &Status) -> T + Send + 'static,
) -> Option<T> {
    let (answer, receiver) = oneshot::channel();
    let look = Box::new(
        move |state: &State, published: &Published, status: &Status| {
            let _ = answer.send(look(state, published, status));
        },
    );
    requests.send(Request::Inspect(look)).await.ok()?;
    receiver.await.ok()
}
