//! What the tests of several crates share: counted skips, reference material, free ports.
//!
//! In: the environment of the test run. Out: nothing that ships; every crate that uses this one
//! lists it among its `[dev-dependencies]`.
//!
//! Must never import: anything of ours, so that any crate can use it in its tests.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// Says why a test is skipped, and adds a line to the file that `MELTEMI_SKIPS` names. `cargo xtask
/// test` prints and counts these lines.
pub fn skip(test: &str, why: &str) {
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("SKIPPED {test}: {why}");

    if let Some(file) = std::env::var_os("MELTEMI_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| writeln!(file, "{test}: {why}"));
    }
}

/// A folder of reference material such as Istio's samples: below `MELTEMI_SHARED`, else below
/// `../shared` beside the workspace. `None` if it is not there.
pub fn shared(below: &str) -> Option<PathBuf> {
    let root = std::env::var_os("MELTEMI_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    Some(root.join(below)).filter(|folder| folder.is_dir())
}

/// [`shared`], or a counted skip of the current test.
pub fn shared_or_skip(below: &str) -> Option<PathBuf> {
    let folder = shared(below);
    if folder.is_none() {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or(below);
        skip(test, &format!("{below} is not there (MELTEMI_SHARED)"));
    }

    folder
}

/// A TCP port of 127.0.0.1 that nobody listens on. Another process may take it before the caller
/// does: bind port 0 wherever the caller binds itself.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free_port();
        TcpListener::bind(("127.0.0.1", port)).expect("nobody listens there");
    }

    #[test]
    fn what_is_not_there_is_none() {
        assert_eq!(shared("no/such/folder"), None);
    }
}
