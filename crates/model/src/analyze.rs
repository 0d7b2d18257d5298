//! Faults between objects: missing references, conflicts, policies that select no workload.
//!
//! Findings only; nothing here changes the snapshot. Codes are those of Istio's analyzers where one
//! says the same.

mod authorization;
mod authorizers;
mod conflicts;
mod references;
mod selectors;
mod service_ports;
mod unreached;
mod unsupported;

use meltemi_api::{Kind, Object, ObjectKey};
use meltemi_types::{Diagnostic, ObjectRef, Severity};

use crate::Snapshot;
use crate::lower::finding;

/// All findings about one state of the mesh.
pub(crate) fn analyze(snapshot: &Snapshot) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    authorizers::analyze(snapshot, &mut found);
    references::analyze(snapshot, &mut found);
    conflicts::analyze(snapshot, &mut found);
    selectors::analyze(snapshot, &mut found);
    service_ports::analyze(snapshot, &mut found);
    unreached::analyze(snapshot, &mut found);
    authorization::analyze(snapshot, &mut found);
    unsupported::analyze(snapshot, &mut found);
    found
}

/// Adds a warning about an object, if it is there.
fn tell(
    snapshot: &Snapshot,
    object: &ObjectRef,
    code: &str,
    field: &str,
    message: String,
    remedy: &str,
    found: &mut Vec<Diagnostic>,
) {
    if let Some(object) = object_of(snapshot, object) {
        found.push(finding(
            object,
            Severity::Warning,
            code,
            field,
            message,
            remedy,
        ));
    }
}

fn object_of<'a>(snapshot: &'a Snapshot, reference: &ObjectRef) -> Option<&'a Object> {
    let kind = Kind::from_word(&reference.qualified_kind())?;
    snapshot
        .tables
        .get(&ObjectKey::new(kind, &reference.namespace, &reference.name))
        .map(|object| &**object)
}
