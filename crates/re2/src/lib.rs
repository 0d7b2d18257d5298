//! Regular expressions in RE2's syntax, matched by the `regex` crate.
//!
//! Istio and Envoy read expressions as RE2 does. [`Pattern::parse`] takes what RE2 takes, refuses
//! what RE2 refuses, and writes the same expression in the syntax of the `regex` crate. So
//! validation on the control side and matching in the proxy agree with each other, and with Envoy.
//!
//! Source of the syntax: <https://github.com/google/re2/wiki/Syntax>, with the flags of
//! `RE2::Options` by default: Perl classes, `\Q..\E`, no back-references, no look-around.

mod class;
mod escape;
mod literal;
mod parser;
mod unicode;

use regex::bytes::{Regex, RegexBuilder};

use crate::parser::Parser;

/// The longest pattern in bytes; a longer one is refused unread.
const MAX_PATTERN: usize = 32 << 10;

/// The most instructions that RE2 may need by our estimate. Envoy refuses a program of more than
/// 32768, as our bootstrap and Istio's set `re2.max_program_size.error_level`.
const MAX_PROGRAM: u64 = 24_000;

/// Bytes that the `regex` crate may use for one compiled expression, and for its lazy automaton.
const MAX_COMPILED: usize = 8 << 20;

/// Groups may be nested so deep.
const MAX_DEPTH: usize = 100;

/// Why RE2 refuses an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Longer than is read.
    #[error("the expression is longer than {MAX_PATTERN} bytes")]
    TooLong,
    /// The program would be larger than Envoy takes.
    #[error("the expression is too large when compiled")]
    TooLarge,
    #[error("expression nests too deeply")]
    TooDeep,
    #[error("missing closing ): {0}")]
    MissingParen(String),
    #[error("unexpected )")]
    UnexpectedParen,
    #[error("missing closing ]: {0}")]
    MissingBracket(String),
    #[error("missing argument to repetition operator: {0}")]
    MissingRepeatArgument(String),
    #[error("bad repetition operator: {0}")]
    BadRepeatOperator(String),
    #[error("bad repetition size: {0}")]
    BadRepeatSize(String),
    #[error("invalid escape sequence: {0}")]
    BadEscape(String),
    #[error("invalid character class range: {0}")]
    BadRange(String),
    #[error("invalid perl operator: {0}")]
    BadPerlOperator(String),
    #[error("invalid named capture group: {0}")]
    BadName(String),
    #[error("trailing \\")]
    TrailingBackslash,
    /// The `regex` crate does not take the translation: a fault of this crate.
    #[error("not supported: {0}")]
    Untranslated(String),
}

/// An expression that RE2 takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    translated: String,
    groups: usize,
}

impl Pattern {
    /// Reads an expression of RE2.
    pub fn parse(pattern: &str) -> Result<Self, Error> {
        if pattern.len() > MAX_PATTERN {
            return Err(Error::TooLong);
        }
        let (translated, groups) = Parser::new(pattern).run()?;
        Ok(Self { translated, groups })
    }

    /// How many capturing groups there are, the whole match not among them.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The expression as the `regex` crate writes it.
    pub fn as_regex(&self) -> &str {
        &self.translated
    }

    /// An expression that finds a match anywhere in a text.
    pub fn search(&self) -> Result<Regex, Error> {
        build(&self.translated)
    }

    /// An expression that must match a text as a whole.
    pub fn full(&self) -> Result<Regex, Error> {
        build(&format!(r"\A(?:{})\z", self.translated))
    }
}

/// Compiles a translated expression.
fn build(translated: &str) -> Result<Regex, Error> {
    RegexBuilder::new(translated)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        // Each group of the pattern may become two, and classes nest as well.
        .nest_limit(4 * MAX_DEPTH as u32)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => Error::TooLarge,
            other => Error::Untranslated(other.to_string()),
        })
}

#[cfg(test)]
mod tests;
