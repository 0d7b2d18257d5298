#![allow(missing_docs)]
use meltemi_model::{ChangeSet, Snapshot, Tables};
use std::sync::Arc;
pub struct World { pub snapshot: Arc<Snapshot>, pub changes: ChangeSet, pub diagnostics: Vec<meltemi_types::Diagnostic> }
impl World { pub fn is_ready(&self) -> bool { true } pub fn tables(&self) -> &Tables { self.snapshot.tables() } }
pub struct Store;
