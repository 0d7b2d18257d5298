//! Copies the descriptor set that the `envoy-types` package carries (but does not expose) to where `json` includes it.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let source = package_folder("envoy-types").join("src/generated/types.bin");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("envoy.bin");
    fs::copy(&source, &target).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
}

/// Where cargo keeps a dependency's sources.
fn package_folder(name: &str) -> PathBuf {
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform"])
        .arg(env::var("TARGET").expect("cargo sets TARGET"))
        .current_dir(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo metadata prints UTF-8");
    // One field of a well-known document: not worth a JSON parser in every build.
    let manifest = text
        .split("\"manifest_path\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .find(|path| path.contains(&format!("/{name}-")) || path.contains(&format!("/{name}/")))
        .unwrap_or_else(|| panic!("{name} is not among the dependencies"));
    PathBuf::from(manifest).parent().expect("a manifest lies in a folder").to_owned()
}
