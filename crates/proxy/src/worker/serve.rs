//! A worker's loop: it accepts connections, sweeps pools, and applies what the control thread
//! publishes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::command::Command;
use super::state::{SWEEP, Worker};
use crate::downstream::DrainReason;
use crate::listener;
use crate::network_rbac::{Admission, admission};
use crate::published::Published;

/// Serves until told to stop.
pub async fn run(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut accepting: HashMap<(Arc<str>, SocketAddr), Vec<AbortHandle>> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    let mut flushing = std::pin::pin!(worker.logs.keep_flushing());

    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            () = &mut flushing => continue,
            _ = sweep.tick() => {
                worker.sweep();
                continue;
            }
        };

        match command {
            Some(Command::Publish(published)) => publish(&worker, published),
            Some(Command::Listen(name, address, socket)) => {
                let accept = listener::accept(worker.clone(), name.clone(), socket);
                let task = tokio::task::spawn_local(accept);
                accepting
                    .entry((name, address))
                    .or_default()
                    .push(task.abort_handle());
            }
            Some(Command::Unlisten(name, address)) => {
                let tasks = accepting.remove(&(name, address));
                tasks.into_iter().flatten().for_each(|task| task.abort());
            }
            // Who asked may have gone meanwhile.
            Some(Command::Counts(answer)) => _ = answer.send(worker.copy_counts()),
            Some(Command::Pools(answer)) => _ = answer.send(worker.pools()),
            Some(Command::Stop) | None => {
                worker.logs.flush();
                return;
            }
        }
    }
}

/// Serves from this configuration from now on, and asks the connections to end that it would not
/// accept.
fn publish(worker: &Worker, published: Arc<Published>) {
    let before = worker.swap(published.clone());
    let same_listeners = published.snapshot.has_listeners_of(&before.snapshot);
    if same_listeners && published.draining.is_none() {
        return;
    }
    worker.counts.keep(published.snapshot.listeners());

    worker.each_connection(|conn| {
        let view = worker.view_of(conn);
        let drained = published.draining;
        if drained.is_some_and(|drained| drained.has(&view.listener)) {
            conn.ask_to_drain(DrainReason::Draining);
        } else if let Admission::Refused(policy) = admission(&view.chain, &conn.info) {
            conn.ask_to_drain(DrainReason::Forbidden(policy));
        }
    });
}
