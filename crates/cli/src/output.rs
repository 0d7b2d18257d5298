//! YAML, JSON, and where diagnostics go.

use anyhow::Result;
use meltemi_types::Diagnostic;
use serde::Serialize;

use crate::args::Output;

/// Prints a value in a machine's form; false if a table was asked for.
pub(crate) fn machine(output: Option<Output>, value: &impl Serialize) -> Result<bool> {
    match output {
        Some(Output::Json) => println!("{}", serde_json::to_string_pretty(value)?),
        Some(Output::Yaml) => print!("{}", yaml(value)?),
        _ => return Ok(false),
    }
    Ok(true)
}

/// A value as YAML.
pub(crate) fn yaml(value: &impl Serialize) -> Result<String> {
    Ok(serde_saphyr::to_string(value)?)
}

/// Findings go to standard error, one a line.
pub(crate) fn diagnostics(all: &[Diagnostic]) {
    for diagnostic in all {
        eprintln!("{diagnostic}");
    }
}
