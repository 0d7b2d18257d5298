//! Istio's own samples and fixtures, where they are at hand.

mod findings;
mod fixtures;
mod mutations;
mod samples;

use std::path::PathBuf;

include!("../../../xtask/skip.rs");

/// The folder of reference material: `MELTEMI_SHARED`, or `../shared` beside the workspace. Without
/// it the tests that need it say so and pass.
fn shared(below: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("MELTEMI_SHARED") {
        Some(root) => PathBuf::from(root),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
    };

    let folder = root.join(below);
    if folder.is_dir() {
        return Some(folder);
    }
    let test = std::thread::current();
    skip(
        test.name().unwrap_or(below),
        &format!("{} is not there (MELTEMI_SHARED)", folder.display()),
    );

    None
}

/// Every file below a folder, sorted.
fn files(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                open.push(path)
            } else {
                found.push(path)
            }
        }
    }

    found.sort();

    found
}
