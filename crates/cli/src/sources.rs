//! Joins the files of `-f` into one YAML stream for the control plane, and maps lines of the stream
//! back to lines of the files.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use meltemi_types::{Diagnostic, Position};

use crate::output;

/// File name that the control plane uses in positions within an applied text.
const STREAM: &str = "applied";

/// The stream, and the files that it consists of.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) text: String,
    /// Name of each file, and the number of lines before it in the stream.
    files: Vec<(String, u32)>,
}

impl Sources {
    /// Reads files, directories (the YAML and JSON files directly in them) and `-`, which is
    /// standard input.
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
                for path in files_in(file)? {
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
        self.files
            .push((name.to_owned(), u32::try_from(before).unwrap_or(u32::MAX)));

        // A byte order mark is only valid at the beginning of the whole stream.
        self.text
            .push_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    }

    /// Changes positions within the stream into positions within the user's files.
    pub(crate) fn set_positions(&self, diagnostics: &mut [Diagnostic]) {
        diagnostics
            .iter_mut()
            .for_each(|finding| self.map_position(&mut finding.position));
    }

    /// Prints findings whose positions [`Self::set_positions`] has mapped, each with its line. Lines
    /// of Secrets stay out of terminals and logs.
    pub(crate) fn report(&self, diagnostics: &[Diagnostic]) {
        for finding in diagnostics {
            let line = match finding.object.kind.as_str() {
                "Secret" => None,
                _ => self.line(&finding.position),
            };
            output::diagnostic(finding, line);
        }
    }

    /// The text of a line of one of the files.
    fn line(&self, position: &Position) -> Option<&str> {
        let (_, before) = self.files.iter().find(|(name, _)| *name == position.file)?;
        let at = before.checked_add(position.line)?.checked_sub(1)?;
        self.text.lines().nth(usize::try_from(at).ok()?)
    }

    fn map_position(&self, position: &mut Position) {
        if position.file != STREAM {
            return;
        }

        // The file is the last one that begins before the line. A position without a line (0) is
        // mapped only if there is a single file.
        let within = self
            .files
            .iter()
            .rev()
            .find(|(_, before)| position.line == 0 || position.line > *before);

        if let Some((name, before)) = within.filter(|_| position.line > 0 || self.files.len() == 1)
        {
            position.file.clone_from(name);
            position.line = position.line.saturating_sub(*before);
        }
    }
}

/// The YAML and JSON files of a folder, sorted. An error if there are none.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        })
        .collect();

    files.sort();
    ensure!(
        !files.is_empty(),
        "{} holds no .yaml, .yml or .json file",
        folder.display()
    );

    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagnostics_point_into_the_users_files() {
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
            sources.map_position(&mut position);
            position.to_string()
        };

        assert_eq!(place(2), "a.yaml:2:3");
        assert_eq!(place(5), "b.yaml:2:3");
        let mut elsewhere = Position {
            file: "/etc/mesh/vs.yaml".into(),
            line: 5,
            column: 1,
        };

        sources.map_position(&mut elsewhere);
        assert_eq!(elsewhere.to_string(), "/etc/mesh/vs.yaml:5:1");

        let line = |file: &str, line| {
            let position = Position {
                file: file.into(),
                line,
                column: 1,
            };
            sources.line(&position)
        };
        assert_eq!(line("b.yaml", 2), Some("name: b"));
        assert_eq!(line("a.yaml", 1), Some("kind: A"));
        assert_eq!(line("/etc/mesh/vs.yaml", 1), None);
    }
}
