//! Tables, on the screen and in docs/performance.md.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::machine;
use crate::shell::{output, root};

const PAGE: &str = "docs/performance.md";
const BEGIN: &str = "<!-- bench: written by cargo xtask bench --write -->";
const END: &str = "<!-- bench end -->";

/// One case's figures.
#[derive(Debug, Clone)]
pub struct Section {
    pub title: String,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
    pub notes: Vec<String>,
}

/// A whole run's.
pub struct Report {
    command: String,
    sections: Vec<Section>,
}

impl Report {
    /// Nothing yet; `words` are the chore's arguments.
    pub fn new(words: &[String]) -> Self {
        let command = ["cargo", "xtask", "bench"]
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" ");
        Self {
            command,
            sections: Vec::new(),
        }
    }

    /// Takes a case's figures.
    pub fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// Everything, as Markdown.
    pub fn markdown(&self) -> Result<String> {
        let mut text = format!(
            "| | |\n|---|---|\n| machine | {} |\n| commit | {} |\n| command | `{}` |\n",
            machine::description(),
            commit()?,
            self.command
        );

        text += "\nAll get their configuration from the same control plane. Ours writes Istio's access log to standard output and keeps \
                 Istio's metrics. Stock Envoy lacks Istio's own filters (`istio.stats`, `istio.alpn`, \
                 `envoy.filters.http.peer_metadata`) and is sent none of them; plain means that it writes no access log either.\n";
        for section in &self.sections {
            text += &section.markdown();
        }

        Ok(text)
    }

    /// Puts it into the page, between the markers.
    pub fn write(&self) -> Result<()> {
        let path = root().join(PAGE);
        let old = fs::read_to_string(&path).with_context(|| PAGE.to_owned())?;
        fs::write(&path, replaced(&old, &self.markdown()?)?)?;
        println!("\nwritten into {PAGE}");
        Ok(())
    }
}

impl Section {
    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("\n### {}\n\n{}", self.title, line(&self.header));
        text += &line(&vec!["---".to_owned(); self.header.len()]);
        for row in &self.rows {
            text += &line(row);
        }
        for note in &self.notes {
            text += &format!("\n{note}\n");
        }

        text
    }
}

fn replaced(page: &str, text: &str) -> Result<String> {
    let (head, rest) = page
        .split_once(BEGIN)
        .with_context(|| format!("{PAGE} has no line {BEGIN}"))?;
    let (_, tail) = rest
        .split_once(END)
        .with_context(|| format!("{PAGE} has no line {END}"))?;
    ensure!(!tail.contains(BEGIN), "{PAGE} has the line {BEGIN} twice");
    Ok(format!("{head}{BEGIN}\n\n{}\n\n{END}{tail}", text.trim()))
}

fn commit() -> Result<String> {
    let git = |words: &[&str]| output(Command::new("git").args(words).current_dir(root()));
    let id = git(&["rev-parse", "--short=12", "HEAD"])?.trim().to_owned();
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?
        .trim()
        .is_empty();
    let given = std::env::var_os("MELTEMI_BIN").is_some();
    let notes = [
        (changed, ", with changes"),
        (given, ", binary built earlier (MELTEMI_BIN)"),
    ];

    Ok(notes
        .into_iter()
        .filter(|(holds, _)| *holds)
        .fold(id, |text, (_, note)| text + note))
}

/// A count, its thousands separated.
pub fn number(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_go_between_the_markers() {
        let page = format!("# Performance\n{BEGIN}\nold\n{END}\ntail\n");
        let new = replaced(&page, "\nnew\n").unwrap();
        assert_eq!(
            new,
            format!("# Performance\n{BEGIN}\n\nnew\n\n{END}\ntail\n")
        );
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert!(replaced("# Performance\n", "new").is_err());
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [number(7.4), number(1234.0), number(123_456.0), number(1e6)],
            ["7", "1,234", "123,456", "1,000,000"]
        );
    }
}
