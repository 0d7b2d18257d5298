//! YAML in, facts about the snapshot out.

mod analyzers;
mod changes;
mod ext_authz;
mod mistakes;
mod policies;
mod render;
mod routes;
mod samples;
mod scopes;
mod services;
mod whole;

use std::path::PathBuf;
use std::sync::Arc;

use meltemi_api::{Object, parse_documents};
use meltemi_model::{Build, BuildOptions, Labels, Snapshot, Tables};

/// A file below `tests/data`.
fn data(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The objects of a text; every one must be valid.
fn objects(text: &str) -> Vec<Arc<Object>> {
    let (objects, diagnostics) = parse_documents("test.yaml", text);
    assert_eq!(diagnostics, vec![], "the test's own YAML is wrong");
    objects.into_iter().map(Arc::new).collect()
}

fn tables(text: &str) -> Tables {
    objects(text).into_iter().collect()
}

fn build(text: &str) -> Build {
    Snapshot::build(None, &tables(text), &BuildOptions::default())
}

/// A snapshot of objects that must be without fault.
fn clean(text: &str) -> Snapshot {
    let build = build(text);
    assert_eq!(build.diagnostics, vec![]);
    build.snapshot
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

/// Code and field of each finding.
fn codes(build: &Build) -> Vec<String> {
    build
        .diagnostics
        .iter()
        .map(|found| format!("{} {} {}", found.code, found.object, found.field))
        .collect()
}
