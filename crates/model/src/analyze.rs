//! Faults between objects: missing references, conflicts, policies that select no workload.
//!
//! Findings only; nothing here changes the snapshot. Codes are those of Istio's analyzers where one
//! says the same.

mod authorizers;
mod conflicts;
mod references;
mod selectors;
mod unsupported;

use meltemi_types::Diagnostic;

use crate::Snapshot;

/// All findings about one state of the mesh.
pub(crate) fn analyze(snapshot: &Snapshot) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    authorizers::analyze(snapshot, &mut found);
    references::analyze(snapshot, &mut found);
    conflicts::analyze(snapshot, &mut found);
    selectors::analyze(snapshot, &mut found);
    unsupported::analyze(snapshot, &mut found);
    found
}
