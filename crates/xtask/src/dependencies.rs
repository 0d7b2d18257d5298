//! `cargo xtask dependencies`: what may be in the dependency tree, and that each entry is used.

use std::process::Command;

use anyhow::Result;

use crate::peers;
use crate::shell::{execute, root};

pub fn run() -> Result<()> {
    let peers = peers::set_up()?;
    let program = |name: &str| {
        let mut command = Command::new(peers.python.with_file_name(name));
        command.current_dir(root());
        command
    };

    // `deny.toml`: licences, refused crates, sources. Advisories need a database from the network.
    execute(program("cargo-deny").args(["--locked", "check", "bans", "licenses", "sources"]))?;

    // Entries of a Cargo.toml that no code uses.
    execute(program("cargo-shear").arg("--locked"))
}
