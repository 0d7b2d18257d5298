//! Istio's own samples and fixtures, where they are at hand.

mod findings;
mod fixtures;
mod heads;
mod istio;
mod mutations;
mod policies;
mod samples;

use std::path::PathBuf;

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
