//! The architecture test: which crate may import which, and what some crates must never import.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Layers of ARCHITECTURE.md; a crate imports only from layers below its own.
const LAYERS: &[(&str, u8)] = &[
    ("types", 0),
    ("proto", 0),
    ("samples", 0),
    ("api", 1),
    ("xds", 1),
    ("tls", 1),
    ("telemetry", 1),
    ("admin-api", 1),
    ("lb", 1),
    ("redirect", 1),
    ("model", 2),
    ("ca", 2),
    ("filters", 2),
    ("net", 2),
    ("store", 3),
    ("translate", 3),
    ("proxy-config", 3),
    ("node", 4),
    ("proxy", 4),
    ("control", 5),
    ("cli", 5),
    ("agent", 5),
    ("meltemi", 6),
];

/// The data plane knows xDS only, so that any server can drive it.
const DATA_PLANE: &[&str] = &["lb", "filters", "net", "proxy-config", "proxy", "agent"];
const CONFIGURATION: &[&str] = &["api", "model", "store", "translate", "control"];

/// Same input, same bytes: no IO, no clock, no randomness of their own.
const PURE: &[&str] = &["types", "model", "translate", "proxy-config", "filters", "lb"];
const IMPURE: &[&str] = &["tokio", "hyper", "socket2", "rustix", "rand", "notify", "tonic"];
const IMPURE_WORDS: &[&str] = &["SystemTime::now", "Instant::now", "std::net::TcpStream", "std::fs::", "thread::spawn"];

/// The only crates that may hold `unsafe`.
const UNSAFE: &[&str] = &["net", "redirect", "node"];

pub fn run() -> Result<()> {
    let findings = findings()?;
    ensure!(findings.is_empty(), "the tree does not match ARCHITECTURE.md:\n  {}", findings.join("\n  "));
    println!("tidy: {} crates as ARCHITECTURE.md says", LAYERS.len());
    Ok(())
}

fn findings() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let metadata = MetadataCommand::new().current_dir(crate::shell::root()).no_deps().exec()?;
    for package in &metadata.packages {
        let name = package.name.strip_prefix("meltemi-").unwrap_or(&package.name).to_owned();
        if name == "xtask" || name == "testkit" {
            continue;
        }
        let Some(layer) = layers.get(name.as_str()) else {
            found.push(format!("crate {name} has no layer: give it one here and in ARCHITECTURE.md"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            let on = dependency.name.strip_prefix("meltemi-").unwrap_or(&dependency.name);
            match layers.get(on) {
                Some(below) if below >= layer => {
                    found.push(format!("{name} (layer {layer}) imports {on} (layer {below})"))
                }
                Some(_) if DATA_PLANE.contains(&name.as_str()) && CONFIGURATION.contains(&on) => {
                    found.push(format!("{name} is data plane and imports {on}: it may know xDS only"));
                }
                Some(_) => {}
                None if PURE.contains(&name.as_str()) && IMPURE.contains(&on) => {
                    found.push(format!("{name} is pure and imports {on}"));
                }
                None if on == "envoy-types" && name != "proto" => {
                    found.push(format!("{name} imports envoy-types: only proto does"));
                }
                None if matches!(on, "kube" | "k8s-openapi") && name != "kube" => {
                    found.push(format!("{name} imports {on}: only kube does"));
                }
                None => {}
            }
        }
        let folder = package.manifest_path.parent().expect("a manifest lies in a folder").join("src");
        for file in sources(folder.as_std_path())? {
            check_source(&name, &file, &mut found)?;
        }
    }
    Ok(found)
}

fn check_source(name: &str, file: &Path, found: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let shown = file.strip_prefix(crate::shell::root()).unwrap_or(file).display();
    let is_front = file.ends_with("src/lib.rs") || file.ends_with("src/main.rs");
    if is_front && !text.starts_with("//!") {
        found.push(format!("{shown} has no front page (//! ...)"));
    }
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    for (number, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        if PURE.contains(&name) && IMPURE_WORDS.iter().any(|word| line.contains(word)) {
            found.push(format!("{shown}:{}: {name} is pure: {}", number + 1, line.trim()));
        }
        if !UNSAFE.contains(&name)
            && (line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl"))
        {
            found.push(format!("{shown}:{}: unsafe outside {UNSAFE:?}", number + 1));
        }
    }
    Ok(())
}

fn sources(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_matches_the_architecture() {
        let findings = super::findings().expect("the workspace can be read");
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}
