//! What the node's main loop and its API share: what runs, and what was added by hand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::context::Context;
use crate::spec::{WorkloadKey, WorkloadSpec};
use crate::workload::Handle;

/// A running node.
pub(crate) struct Node {
    pub(crate) context: Arc<Context>,
    state: Mutex<State>,
    /// Something changed in [`State::runs`].
    pub(crate) changed: Notify,
}

/// Its workloads.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) handles: BTreeMap<WorkloadKey, Handle>,
    pub(crate) runs: BTreeMap<WorkloadKey, WorkloadSpec>,
    /// Deployments of which something does not run as it is written, and why.
    pub(crate) problems: Vec<String>,
}

impl Node {
    /// With no workload yet.
    pub(crate) fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context, state: Mutex::default(), changed: Notify::new() })
    }

    /// The workloads, for as long as nothing is awaited.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }

    /// Lets the main loop end what was added by hand.
    pub(crate) fn end_runs(&self, keys: &[WorkloadKey]) {
        self.state().runs.retain(|key, _| !keys.contains(key));
        self.changed.notify_one();
    }
}
