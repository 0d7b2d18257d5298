//! Copies the descriptor set that the `envoy-types` package carries (but does not expose) to where
//! `json` includes it.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let source = package_folder("envoy-types").join("src/generated/types.bin");
    let target =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("envoy.bin");
    fs::copy(&source, &target).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
}

/// Where cargo keeps a dependency's sources.
///
/// `cargo metadata` is asked about a package made up for the question, which depends on this one
/// alone. Asked about the workspace, it would fail offline unless the dependencies of all tests and
/// chores are downloaded, and a build of the binary does without them.
fn package_folder(name: &str) -> PathBuf {
    let variable = |name: &str| {
        PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")))
    };
    let (here, question) = (
        variable("CARGO_MANIFEST_DIR"),
        variable("OUT_DIR").join("question"),
    );

    let lock = here
        .ancestors()
        .map(|folder| folder.join("Cargo.lock"))
        .find(|lock| lock.is_file());

    let lock = lock.expect("the workspace has a lock file");
    println!("cargo::rerun-if-changed={}", lock.display());
    let manifest = format!(
        "[package]\nname = \"question\"\nedition = \"2024\"\n[lib]\npath = \"lib.rs\"\n[dependencies]\n{name} = \"*\"\n[workspace]\n"
    );
    let write = |file: &str, text: &[u8]| {
        fs::write(question.join(file), text).expect("OUT_DIR is writable")
    };
    fs::create_dir_all(&question).expect("OUT_DIR is writable");
    write("Cargo.toml", manifest.as_bytes());
    write("Cargo.lock", &fs::read(lock).expect("a readable lock file"));
    write("lib.rs", b"");
    let output = Command::new(variable("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--filter-platform",
        ])
        .arg(variable("TARGET"))
        .arg("--manifest-path")
        .arg(question.join("Cargo.toml"))
        .current_dir(here)
        .output()
        .expect("cargo runs");

    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let metadata: Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == name)
        .and_then(|package| package["manifest_path"].as_str())
        .unwrap_or_else(|| panic!("{name} is not among the dependencies"));

    PathBuf::from(manifest)
        .parent()
        .expect("a manifest lies in a folder")
        .to_owned()
}
