//! What the node's main loop and its API share: what runs, and what was added by hand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::context::Context;
use crate::run_files;
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
    /// With no workload yet but what was added to the node before this one.
    pub(crate) fn new(context: Arc<Context>) -> Arc<Self> {
        let state = State {
            runs: run_files::load(&context.config.runs_dir()),
            ..State::default()
        };
        Arc::new(Self {
            context,
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    /// The workloads, for as long as nothing is awaited.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the state")
    }

    /// Lets the main loop end what was added by hand.
    pub(crate) fn end_runs(&self, keys: &[WorkloadKey]) {
        self.state().runs.retain(|key, _| !keys.contains(key));
        for key in keys {
            run_files::forget(&self.context.config.runs_dir(), key);
        }
        self.changed.notify_one();
    }
}
