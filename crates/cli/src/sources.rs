//! The files of `-f` as one stream of documents, and the way back from a line of the stream to a
//! line of a file.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use meltemi_types::{Diagnostic, Position};

/// What the control plane calls a text that was applied.
const STREAM: &str = "applied";

/// Texts with the names that the user gave them.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) text: String,
    /// Name, and how many lines of the stream stand before it.
    parts: Vec<(String, u32)>,
}

impl Sources {
    /// Reads files, directories (their YAML and JSON files, not what is below) and `-`, standard
    /// input.
    pub(crate) fn read(files: &[PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for file in files {
            if file == Path::new("-") {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("cannot read standard input")?;
                all.push("stdin", &text);
            } else if file.is_dir() {
                for path in inside(file)? {
                    all.push_file(&path)?;
                }
            } else {
                all.push_file(file)?;
            }
        }

        Ok(all)
    }

    fn push_file(&mut self, path: &Path) -> Result<()> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.push(&path.display().to_string(), &text);
        Ok(())
    }

    fn push(&mut self, name: &str, text: &str) {
        if !self.text.is_empty() {
            if !self.text.ends_with('\n') {
                self.text.push('\n');
            }
            self.text.push_str("---\n");
        }

        let before = self.text.bytes().filter(|byte| *byte == b'\n').count();
        self.parts
            .push((name.to_owned(), u32::try_from(before).unwrap_or(u32::MAX)));
        self.text
            .push_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    }

    /// Lets findings about the stream point into the file.
    pub(crate) fn place(&self, diagnostics: &mut [Diagnostic]) {
        diagnostics
            .iter_mut()
            .for_each(|finding| self.place_one(&mut finding.position));
    }

    fn place_one(&self, position: &mut Position) {
        if position.file != STREAM {
            return;
        }
        let within = self
            .parts
            .iter()
            .rev()
            .find(|(_, before)| position.line == 0 || position.line > *before);

        if let Some((name, before)) = within.filter(|_| position.line > 0 || self.parts.len() == 1)
        {
            position.file.clone_from(name);
            position.line = position.line.saturating_sub(*before);
        }
    }
}

fn inside(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut inside: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        })
        .collect();

    inside.sort();
    ensure!(
        !inside.is_empty(),
        "{} holds no .yaml, .yml or .json file",
        folder.display()
    );

    Ok(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_point_into_the_file_that_the_user_named() {
        let mut sources = Sources::default();
        sources.push("a.yaml", "kind: A\nname: a");
        sources.push("b.yaml", "\u{feff}kind: B\nname: b\n");
        assert_eq!(sources.text, "kind: A\nname: a\n---\nkind: B\nname: b\n");
        let place = |line| {
            let mut position = Position {
                file: STREAM.into(),
                line,
                column: 3,
            };
            sources.place_one(&mut position);
            position.to_string()
        };

        assert_eq!(place(2), "a.yaml:2:3");
        assert_eq!(place(5), "b.yaml:2:3");
        let mut elsewhere = Position {
            file: "/etc/mesh/vs.yaml".into(),
            line: 5,
            column: 1,
        };

        sources.place_one(&mut elsewhere);
        assert_eq!(elsewhere.to_string(), "/etc/mesh/vs.yaml:5:1");
    }
}
