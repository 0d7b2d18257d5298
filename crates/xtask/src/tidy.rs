//! The architecture test: which crate may import which, what some crates must never import, and in
//! which direction the files of a crate import each other.

mod circles;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// The data plane knows xDS only, so that any server can drive it.
const DATA_PLANE: &[&str] = &["lb", "filters", "net", "proxy-config", "proxy", "agent"];
const CONFIGURATION: &[&str] = &["api", "model", "store", "translate", "control"];

/// Same input, same bytes: no IO, no clock, no randomness of their own.
const PURE: &[&str] = &[
    "types",
    "model",
    "translate",
    "proxy-config",
    "filters",
    "lb",
];
const IMPURE: &[&str] = &[
    "tokio", "hyper", "socket2", "rustix", "rand", "notify", "tonic",
];
const IMPURE_WORDS: &[&str] = &[
    "SystemTime::now",
    "Instant::now",
    "std::net::TcpStream",
    "std::fs::",
    "thread::spawn",
];

/// The only crates that may hold `unsafe`.
const UNSAFE: &[&str] = &["net", "redirect", "node"];

/// Chores stand beside the layers and import none of them.
const CHORES: &str = "xtask";

pub fn run() -> Result<()> {
    let findings = findings()?;
    ensure!(
        findings.is_empty(),
        "the tree does not match ARCHITECTURE.md:\n  {}",
        findings.join("\n  ")
    );
    println!("tidy: the crates are as ARCHITECTURE.md says");
    Ok(())
}

fn short(name: &str) -> &str {
    name.strip_prefix("meltemi-").unwrap_or(name)
}

fn findings() -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .current_dir(crate::shell::root())
        .no_deps()
        .exec()?;

    let names: BTreeSet<&str> = metadata
        .packages
        .iter()
        .map(|package| short(&package.name))
        .collect();

    let page = fs::read_to_string(crate::shell::root().join("ARCHITECTURE.md"))?;
    let layers = layers(&page, &names);
    let mut found = Vec::new();

    for package in &metadata.packages {
        let name = short(&package.name).to_owned();
        if !page
            .lines()
            .any(|line| line.starts_with(&format!("| `{name}` |")))
        {
            found.push(format!(
                "crate {name} has no row in ARCHITECTURE.md's table of crates"
            ));
        }

        let layer = match layers.get(name.as_str()).map(Vec::as_slice) {
            Some([layer]) => layer,
            None if name == CHORES => &u8::MAX,
            Some(_) | None => {
                found.push(format!(
                    "crate {name} must have one layer in ARCHITECTURE.md"
                ));
                continue;
            }
        };

        for dependency in package
            .dependencies
            .iter()
            .filter(|d| d.kind != DependencyKind::Development)
        {
            let on = short(&dependency.name);
            match layers.get(on).and_then(|layers| layers.first()) {
                Some(_) if name == CHORES => {
                    found.push(format!("{CHORES} imports {on}: it builds alone"))
                }
                Some(below) if below >= layer => found.push(format!(
                    "{name} (layer {layer}) imports {on} (layer {below})"
                )),
                Some(_) if DATA_PLANE.contains(&name.as_str()) && CONFIGURATION.contains(&on) => {
                    found.push(format!(
                        "{name} is data plane and imports {on}: it may know xDS only"
                    ));
                }
                Some(_) if name == "translate" && on == "api" => {
                    found.push(format!("{name} imports {on}: it reads the model alone"));
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

        let folder = package
            .manifest_path
            .parent()
            .expect("a manifest lies in a folder")
            .join("src");

        for file in sources(folder.as_std_path())? {
            check_source(&name, &file, &mut found)?;
        }
    }

    found.extend(circles::findings()?);

    Ok(found)
}

/// The layers of each crate in the page's drawing: lines of `L3  store  translate | proxy-config
/// words`.
fn layers<'a>(page: &str, names: &BTreeSet<&'a str>) -> BTreeMap<&'a str, Vec<u8>> {
    let mut layers: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for line in page.lines() {
        let Some((number, crates)) = line
            .trim_start()
            .strip_prefix('L')
            .and_then(|line| line.split_once(' '))
        else {
            continue;
        };

        let Ok(number) = number.parse() else { continue };
        for name in crates.split_whitespace().filter_map(|word| names.get(word)) {
            layers.entry(name).or_default().push(number);
        }
    }

    layers
}

fn check_source(name: &str, file: &Path, found: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let shown = file
        .strip_prefix(crate::shell::root())
        .unwrap_or(file)
        .display();

    let is_front = file.ends_with("src/lib.rs") || file.ends_with("src/main.rs");
    if is_front && !text.starts_with("//!") {
        found.push(format!("{shown} has no front page (//! ...)"));
    }

    // Tests stand at the end of a file, or in one of their own.
    let is_test = file.file_stem().is_some_and(|stem| stem == "tests");
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    for (number, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        if !is_test && PURE.contains(&name) && IMPURE_WORDS.iter().any(|word| line.contains(word)) {
            found.push(format!(
                "{shown}:{}: {name} is pure: {}",
                number + 1,
                line.trim()
            ));
        }

        if !UNSAFE.contains(&name)
            && (line.contains("unsafe {")
                || line.contains("unsafe fn")
                || line.contains("unsafe impl"))
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

    #[test]
    fn layers_are_read_from_the_drawing() {
        let names = ["api", "lb", "proxy"].into();
        let page = "L9 is no drawing of lb's\n    L4  proxy | node   IO\n    L1  api  -- shared: xds --  lb\nLb 1\n";
        let layers = super::layers(page, &names);
        let expected = [("api", vec![1]), ("lb", vec![1]), ("proxy", vec![4])];
        assert_eq!(layers, expected.into());
    }
}
