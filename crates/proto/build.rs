//! Copies the descriptor set that the `envoy-types` package carries (but does not expose) to where
//! `json` includes it.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

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
/// Asked for a package that depends on it alone: of the whole workspace cargo could tell only with
/// the tests' and the chores' dependencies downloaded, which a build of the binary does without.
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

    let text = String::from_utf8(output.stdout).expect("cargo metadata prints UTF-8");

    // One field of a well-known document: not worth a JSON parser in every build.
    let manifest = text
        .split("\"manifest_path\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .find(|path| path.contains(&format!("/{name}-")) || path.contains(&format!("/{name}/")))
        .unwrap_or_else(|| panic!("{name} is not among the dependencies"));

    PathBuf::from(manifest)
        .parent()
        .expect("a manifest lies in a folder")
        .to_owned()
}
