//! Copies the descriptor set of Envoy's messages out of the package that brings the messages, for `/config_dump`.
//! The package does not expose it; where it cannot be found the dump shows packed messages as they are.

use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("types.bin");
    let bytes = find().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    std::fs::write(out, bytes).expect("OUT_DIR can be written");
    println!("cargo:rerun-if-changed=build.rs");
}

fn find() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let lock = std::env::var_os("CARGO_MANIFEST_DIR").map(|dir| PathBuf::from(dir).join("../../Cargo.lock"))?;
    let package = format!("envoy-types-{}", version(&std::fs::read_to_string(lock).ok()?)?);
    let registries = std::fs::read_dir(home.join("registry/src")).ok()?;
    let candidates = registries.flatten().map(|entry| entry.path().join(&package).join("src/generated/types.bin"));
    candidates.into_iter().find(|path: &PathBuf| Path::exists(path))
}

fn version(lock: &str) -> Option<&str> {
    let at = lock.find("name = \"envoy-types\"")?;
    let line = lock[at..].lines().nth(1)?;
    line.strip_prefix("version = \"")?.strip_suffix('"')
}
