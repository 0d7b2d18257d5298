//! The crates of the workspace, and the layer that `ARCHITECTURE.md` draws for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::shell::root;

/// A crate of ours.
pub struct Member {
    /// Without the prefix `meltemi-`.
    pub name: String,
    /// The layers that the drawing names this crate in: one, unless the page is wrong.
    pub layers: Vec<u8>,
    /// Whether the page's table of crates has a row for it.
    pub has_row: bool,
    pub dependencies: Vec<Dependency>,
    /// The folder of `Cargo.toml`.
    pub folder: PathBuf,
}

/// An entry of a crate's `Cargo.toml`.
pub struct Dependency {
    /// Without the prefix `meltemi-`.
    pub name: String,
    /// In `[dev-dependencies]`: tests use it, and nothing that ships does.
    pub is_dev: bool,
}

pub struct Workspace {
    pub members: Vec<Member>,
}

impl Workspace {
    pub fn read() -> Result<Self> {
        let metadata = MetadataCommand::new()
            .current_dir(root())
            .no_deps()
            .exec()?;

        let page = fs::read_to_string(root().join("ARCHITECTURE.md"))?;
        let names = metadata.packages.iter().map(|package| short(&package.name));
        let layers = layers(&page, &names.collect());

        let members = metadata.packages.iter().map(|package| {
            let name = short(&package.name);
            let dependencies = package.dependencies.iter().map(|dependency| Dependency {
                name: short(&dependency.name).to_owned(),
                is_dev: dependency.kind == DependencyKind::Development,
            });
            let folder = package
                .manifest_path
                .parent()
                .expect("a manifest lies in a folder");

            Member {
                name: name.to_owned(),
                layers: layers.get(name).cloned().unwrap_or_default(),
                has_row: has_row(&page, name),
                dependencies: dependencies.collect(),
                folder: folder.into(),
            }
        });

        Ok(Self {
            members: members.collect(),
        })
    }

    /// The crate of this name, if it is ours.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("meltemi-").unwrap_or(name)
}

fn has_row(page: &str, name: &str) -> bool {
    let row = format!("| `{name}` |");
    page.lines().any(|line| line.starts_with(&row))
}

/// The layers of each crate in the page's drawing, whose lines look like
/// `L3  store  translate | proxy-config  words`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_from_the_drawing() {
        let names = ["api", "lb", "proxy"].into();
        let page = "L9 is no drawing of lb's\n    L4  proxy | node   IO\n    L1  api  -- shared: xds --  lb\nLb 1\n";
        let expected = [("api", vec![1]), ("lb", vec![1]), ("proxy", vec![4])];

        assert_eq!(layers(page, &names), expected.into());
    }

    #[test]
    fn a_row_is_the_whole_name_of_a_crate() {
        let page = "| `proxy-config` | compiled |";

        assert!(has_row(page, "proxy-config"));
        assert!(!has_row(page, "proxy"));
    }
}
