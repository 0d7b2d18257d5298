//! Standard output and standard error: YAML, JSON, text, and readers that leave early.

use std::fmt::Display;
use std::io::{self, Write as _};

use anyhow::Result;
use clap::ValueEnum;
use meltemi_types::Diagnostic;
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table with more columns.
    Wide,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
    /// KIND/NAME only.
    Name,
}

/// Whoever read standard output has left (`| head`): no failure of ours, and nothing more to do.
#[derive(Debug)]
pub(crate) struct ReaderLeft;

impl Display for ReaderLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the reader of the output left")
    }
}

impl std::error::Error for ReaderLeft {}

/// Exit code when the reader left: 128 + SIGPIPE, as other commands end.
pub(crate) const READER_LEFT: i32 = 141;

/// Writes to standard output.
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderLeft.into()),
        other => Ok(other?),
    }
}

/// Writes text to standard output.
pub(crate) fn text(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes a line to standard output.
pub(crate) fn line(text: impl Display) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes a line to standard error; nobody can be told when that fails.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a value in a machine's form; false if a table was asked for.
pub(crate) fn machine(output: Option<Output>, value: &impl Serialize) -> Result<bool> {
    match output {
        Some(Output::Json) => line(serde_json::to_string_pretty(value)?)?,
        Some(Output::Yaml) => text(&serde_saphyr::to_string(value)?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Findings go to standard error, one a line.
pub(crate) fn diagnostics(all: &[Diagnostic]) {
    all.iter().for_each(note);
}
