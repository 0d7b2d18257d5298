//! Regular expressions as RE2 has them: ASCII classes, linear time, the whole text must match.

use meltemi_proto::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use meltemi_re2::{Error, Pattern};

use crate::finding::{Rejection, Scope};

/// A pattern that must match the whole text. Source: Envoy `RegexMatcher` with `google_re2`.
#[derive(Debug, Clone)]
pub struct FullRegex(regex::bytes::Regex);

impl FullRegex {
    /// Compiles Envoy's message.
    pub fn compile(message: &RegexMatcher, scope: &mut Scope) -> Result<Self, Rejection> {
        Self::new(&message.regex).map_err(|reason| scope.reject(reason))
    }

    /// Compiles a pattern of RE2.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let full = parse(pattern)?.full();
        full.map(Self).map_err(|error| fault(pattern, &error))
    }

    /// Whether the whole of `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }

    /// The pattern as the `regex` crate writes it, anchored at both ends.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// Replaces every match of a pattern. Source: Envoy `RegexMatchAndSubstitute`, whose references are
/// `\1` to `\9`.
#[derive(Debug, Clone)]
pub struct Substitution {
    pattern: regex::bytes::Regex,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Literal(Vec<u8>),
    Group(usize),
}

impl Substitution {
    /// Compiles Envoy's message.
    pub fn compile(
        message: &RegexMatchAndSubstitute,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let pattern = scope.required("pattern", message.pattern.as_ref())?;
        Self::new(&pattern.regex, &message.substitution).map_err(|reason| scope.reject(reason))
    }

    /// Compiles a pattern and its replacement.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, String> {
        let pattern = parse(pattern)?
            .search()
            .map_err(|error| fault(pattern, &error))?;
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut bytes = substitution.bytes();

        while let Some(byte) = bytes.next() {
            if byte != b'\\' {
                literal.push(byte);
                continue;
            }

            match bytes.next() {
                Some(digit @ b'0'..=b'9') => {
                    let group = usize::from(digit - b'0');
                    if group >= pattern.captures_len() {
                        return Err(format!(
                            "substitution refers to group {group}, which the pattern does not have"
                        ));
                    }

                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Group(group));
                }
                Some(b'\\') => literal.push(b'\\'),
                _ => {
                    return Err(
                        "a backslash in a substitution must be followed by a digit or a backslash"
                            .to_owned(),
                    );
                }
            }
        }

        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }

        Ok(Self { pattern, parts })
    }

    /// Appends `text` to `out` with every match replaced; `false`, and nothing appended, if there
    /// is no match.
    pub fn replace_into(&self, text: &[u8], out: &mut Vec<u8>) -> bool {
        let mut copied = 0;
        let mut matched = false;
        for captures in self.pattern.captures_iter(text) {
            let Some(whole) = captures.get(0) else {
                continue;
            };
            matched = true;
            out.extend_from_slice(&text[copied..whole.start()]);
            for part in &self.parts {
                match part {
                    Part::Literal(literal) => out.extend_from_slice(literal),
                    Part::Group(group) => {
                        if let Some(found) = captures.get(*group) {
                            out.extend_from_slice(found.as_bytes());
                        }
                    }
                }
            }

            copied = whole.end();
        }

        if matched {
            out.extend_from_slice(&text[copied..]);
        }

        matched
    }
}

/// Reads a pattern of RE2; the message names the pattern.
fn parse(pattern: &str) -> Result<Pattern, String> {
    Pattern::parse(pattern).map_err(|error| fault(pattern, &error))
}

fn fault(pattern: &str, error: &Error) -> String {
    format!("regex {:?}: {error}", shorten(pattern))
}

fn shorten(pattern: &str) -> &str {
    let end = (0..=pattern.len().min(80))
        .rev()
        .find(|at| pattern.is_char_boundary(*at))
        .unwrap_or(0);
    &pattern[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_text_must_match() {
        let regex = FullRegex::new("a|b").expect("compiles");
        assert!(regex.is_match(b"a") && regex.is_match(b"b"));
        assert!(!regex.is_match(b"ab") && !regex.is_match(b"xa"));
        assert!(
            FullRegex::new("a)|(b").is_err(),
            "anchors must not be escaped"
        );

        assert!(
            !FullRegex::new("a(?m)$")
                .expect("compiles")
                .is_match(b"a\nb")
        );
    }

    #[test]
    fn classes_are_ascii_as_in_re2() {
        let digits = FullRegex::new(r"\d+").expect("compiles");
        assert!(digits.is_match(b"123"));
        assert!(
            !digits.is_match("١٢٣".as_bytes()),
            "Arabic-Indic digits are not \\d in RE2"
        );

        assert!(
            FullRegex::new(r"\pL+")
                .expect("compiles")
                .is_match("é".as_bytes())
        );

        assert!(
            !FullRegex::new("[^/]+")
                .expect("compiles")
                .is_match(b"\xff\xfe"),
            "bytes that are no UTF-8 are no characters to RE2"
        );
    }

    #[test]
    fn bombs_are_refused() {
        assert!(FullRegex::new(&"a".repeat(64 << 10)).is_err());
        assert!(FullRegex::new("(?:(?:(?:a{100}){100}){100}){100}").is_err());
    }

    #[test]
    fn substitution_replaces_every_match() {
        let rewrite = Substitution::new("/v([0-9])/", r"/api\1/").expect("compiles");
        let mut out = Vec::new();
        assert!(rewrite.replace_into(b"/v1/x/v2/y", &mut out));
        assert_eq!(out, b"/api1/x/api2/y");
        out.clear();
        assert!(!rewrite.replace_into(b"/none", &mut out));
        assert!(out.is_empty());
        assert!(Substitution::new("a", r"\1").is_err());
        assert!(Substitution::new("a", r"\").is_err());
    }
}
