//! The workload tables that the node's main loop and its API share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::context::Context;
use crate::run_files;
use crate::spec::{WorkloadKey, WorkloadSpec};
use crate::workload::Handle;

/// A running node: its context and its workloads.
pub(crate) struct Node {
    pub(crate) context: Arc<Context>,
    state: Mutex<State>,
    /// Wakes the main loop after a change of [`State::runs`].
    pub(crate) changed: Notify,
}

/// The node's workloads.
#[derive(Default)]
pub(crate) struct State {
    /// Every running workload.
    pub(crate) handles: BTreeMap<WorkloadKey, Handle>,
    /// Workloads added with `meltemi run`.
    pub(crate) runs: BTreeMap<WorkloadKey, WorkloadSpec>,
    /// Messages about Deployments that run differently from what their YAML says.
    pub(crate) problems: Vec<String>,
}

impl Node {
    /// Creates the node with the workloads that `run -d` added to an earlier node.
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

    /// Locks the tables. Do not hold the guard across an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the state")
    }

    /// Removes added workloads from the table and from disk; the main loop then stops them.
    pub(crate) fn remove_runs(&self, keys: &[WorkloadKey]) {
        self.state().runs.retain(|key, _| !keys.contains(key));
        for key in keys {
            run_files::remove(&self.context.config.runs_dir(), key);
        }
        self.changed.notify_one();
    }
}
