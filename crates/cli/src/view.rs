//! The formats of `get -o`.

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;

use crate::jsonpath::{Path, Template};
use crate::output::Output;

/// The format of `get -o`.
#[derive(Debug, Clone, PartialEq)]
pub enum View {
    Known(Output),
    /// `jsonpath=TEMPLATE`
    JsonPath(Template),
    /// `custom-columns=HEADING:PATH,...`
    Columns(Vec<(String, Path)>),
}

impl View {
    /// Parses the value of `-o`.
    ///
    /// # Errors
    /// For an unknown format, and for a template or path that cannot be parsed.
    pub fn parse(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some(("jsonpath", template)) => Ok(Self::JsonPath(template.parse()?)),
            Some(("custom-columns", columns)) => Ok(Self::Columns(custom_columns(columns)?)),
            _ => match Output::from_str(text, false) {
                Ok(known) => Ok(Self::Known(known)),
                Err(_) => bail!(
                    "write wide, yaml, json, name, jsonpath='{{.metadata.name}}' or custom-columns=NAME:.metadata.name"
                ),
            },
        }
    }
}

fn custom_columns(text: &str) -> Result<Vec<(String, Path)>> {
    let column = |column: &str| {
        let (heading, path) = column
            .split_once(':')
            .with_context(|| format!("{column:?}: a column is written HEADING:PATH"))?;
        ensure!(!path.is_empty(), "{column:?}: the path is missing");
        Ok((heading.to_owned(), path.parse()?))
    };

    text.split(',').map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_formats_are_refused() {
        for fault in [
            "custom-columns=NAME",
            "custom-columns=NAME:",
            "jsonpath={.x",
            "table",
        ] {
            assert!(View::parse(fault).is_err(), "{fault}");
        }
        assert_eq!(View::parse("wide").unwrap(), View::Known(Output::Wide));
    }
}
