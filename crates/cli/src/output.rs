//! Writes to standard output and standard error, and recognises a reader that closed the pipe. What
//! a terminal would act on is escaped: much of the text comes from proxies and configuration.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use clap::ValueEnum;
use meltemi_types::{Diagnostic, Severity, printable_lines};
use serde::Serialize;

/// The output format (`-o`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table with additional columns.
    Wide,
    /// The objects as YAML.
    Yaml,
    /// The objects as JSON.
    Json,
    /// One `KIND/NAME` per line.
    Name,
}

/// The reader of standard output closed the pipe, as `head` does. The command ends without an error
/// message.
#[derive(Debug)]
pub(crate) struct ReaderLeft;

impl Display for ReaderLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the reader of the output left")
    }
}

impl std::error::Error for ReaderLeft {}

/// Exit code after [`ReaderLeft`]: 128 + SIGPIPE, as for commands that the signal kills.
pub(crate) const READER_LEFT: i32 = 141;

/// Writes to standard output and flushes.
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderLeft.into()),
        other => Ok(other?),
    }
}

/// Writes text to standard output.
pub(crate) fn text(text: &str) -> Result<()> {
    bytes(printable_lines(text).as_bytes())
}

/// Writes a line to standard output.
pub(crate) fn line(text: impl Display) -> Result<()> {
    self::text(&format!("{text}\n"))
}

/// Writes a line to standard error. Errors are ignored, since there is nowhere left to report them.
pub(crate) fn note(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(io::stderr().lock(), "{}", printable_lines(&text));
}

/// Prints a value as YAML or JSON. Returns false, and prints nothing, for any other format.
pub(crate) fn structured(output: Option<Output>, value: &impl Serialize) -> Result<bool> {
    match output {
        Some(Output::Json) => line(serde_json::to_string_pretty(value)?)?,
        Some(Output::Yaml) => text(&serde_saphyr::to_string(value)?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Writes diagnostics to standard error, one per line.
pub(crate) fn diagnostics(all: &[Diagnostic]) {
    for finding in all {
        diagnostic(finding, None);
    }
}

/// Writes a diagnostic to standard error, and below it the line of the file with a caret below the
/// diagnostic's column.
pub(crate) fn diagnostic(finding: &Diagnostic, line: Option<&str>) {
    let colours = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let text = shown(finding, line, colours);
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The text of a diagnostic. Colours are added last, since the text's own escapes are made visible.
fn shown(finding: &Diagnostic, line: Option<&str>, colours: bool) -> String {
    let mut text = printable_lines(&finding.to_string()).into_owned();
    if colours {
        let colour = match finding.severity {
            Severity::Error => 31,
            Severity::Warning => 33,
            Severity::Info => 36,
        };
        // A file's name may hold the same word.
        let (word, code) = (finding.severity, &finding.code);
        let painted = format!("\x1b[1;{colour}m{word}\x1b[0m[{code}]");
        text = text.replacen(&format!("{word}[{code}]"), &painted, 1);
    }

    let column = usize::try_from(finding.position.column).unwrap_or(0);
    if let Some(line) = line
        && let Some(before) = column.checked_sub(1)
        && line.chars().count() <= LONGEST_EXCERPT
    {
        // A tab before the caret takes as much room as in the line above.
        let padding: String = line
            .chars()
            .take(before)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let number = finding.position.line.to_string();
        let margin = " ".repeat(number.len());
        text.push_str(&format!(
            "\n {number} | {}\n {margin} | {padding}^",
            printable_lines(line)
        ));
    }

    text
}

/// Longer lines, such as a file of JSON in one line, are not shown below a diagnostic.
const LONGEST_EXCERPT: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use meltemi_types::{ObjectRef, Position};

    #[test]
    fn a_diagnostic_shows_its_line_with_a_caret_and_colours() {
        let finding = Diagnostic {
            code: "MEL0201".into(),
            severity: Severity::Error,
            object: ObjectRef::default(),
            field: String::new(),
            position: Position {
                file: "error.yaml".into(),
                line: 12,
                column: 5,
            },
            message: "no such mode".into(),
            remedy: String::new(),
        };

        let plain = "error.yaml:12:5: error[MEL0201]: no such mode";
        assert_eq!(shown(&finding, None, false), plain);
        assert_eq!(
            shown(&finding, Some("    mode: X"), false),
            format!("{plain}\n 12 |     mode: X\n    |     ^")
        );
        assert_eq!(shown(&finding, Some(&"x".repeat(201)), false), plain);
        assert_eq!(
            shown(&finding, None, true),
            "error.yaml:12:5: \x1b[1;31merror\x1b[0m[MEL0201]: no such mode"
        );
    }
}
