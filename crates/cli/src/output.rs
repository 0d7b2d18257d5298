//! Writes to standard output and standard error, and recognises a reader that closed the pipe. What
//! a terminal would act on is escaped: much of the text comes from proxies and configuration.

use std::fmt::Display;
use std::io::{self, Write as _};

use anyhow::Result;
use clap::ValueEnum;
use meltemi_types::{Diagnostic, printable_lines};
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
    all.iter().for_each(note);
}
