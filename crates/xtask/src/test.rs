//! `cargo xtask test`: everything, on a fresh machine.

use std::fs;

use anyhow::Result;

use crate::shell::{cargo, execute, target};
use crate::{peers, tidy};

pub fn run(arguments: &[String]) -> Result<()> {
    tidy::run()?;
    let peers = peers::set_up_with_istio()?;
    execute(cargo().args(["build", "--release", "--package", "meltemi"]))?;
    let skips = target().join("skipped-tests");
    let _ = fs::remove_file(&skips);
    let mut tests = cargo();

    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments);
    peers
        .apply(&mut tests)
        .env("MELTEMI_BIN", target().join("release/meltemi"))
        .env("MELTEMI_SKIPS", &skips);

    let passed = execute(&mut tests);
    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    println!("\n{} tests skipped", skipped.lines().count());
    for line in skipped.lines() {
        println!("  {line}");
    }

    passed
}
