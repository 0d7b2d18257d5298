//! Envoy's `StringMatcher`, compiled.

use meltemi_proto::envoy::r#type::matcher::v3::StringMatcher;
use meltemi_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use memchr::memmem;

use super::FullRegex;
use crate::finding::{Rejection, Scope};

/// A pattern for one value.
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// The value equals this text.
    Exact(Box<[u8]>),
    /// The value starts with this text.
    Prefix(Box<[u8]>),
    /// The value ends with this text.
    Suffix(Box<[u8]>),
    /// The value contains this text.
    Contains(Box<memmem::Finder<'static>>),
    /// The whole value matches.
    Regex(FullRegex),
    /// One of the first three, or `Contains` (its needle lower case), ASCII case aside.
    IgnoreCase(IgnoreCase),
}

/// The patterns that may ignore ASCII case.
#[derive(Debug, Clone, PartialEq)]
pub enum IgnoreCase {
    /// The value equals this text.
    Exact(Box<[u8]>),
    /// The value starts with this text.
    Prefix(Box<[u8]>),
    /// The value ends with this text.
    Suffix(Box<[u8]>),
    /// The value contains this text.
    Contains(Box<[u8]>),
}

impl PartialEq for StringMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(two))
            | (Self::Prefix(one), Self::Prefix(two))
            | (Self::Suffix(one), Self::Suffix(two)) => one == two,
            (Self::Contains(one), Self::Contains(two)) => one.needle() == two.needle(),
            (Self::Regex(one), Self::Regex(two)) => one == two,
            (Self::IgnoreCase(one), Self::IgnoreCase(two)) => one == two,
            _ => false,
        }
    }
}

impl StringMatch {
    /// Compiles Envoy's message.
    pub fn compile(message: &StringMatcher, scope: &mut Scope) -> Result<Self, Rejection> {
        let bytes = |text: &String| text.as_bytes().into();
        let fold = message.ignore_case;
        let pattern = scope.required("match_pattern", message.match_pattern.as_ref())?;

        Ok(match pattern {
            MatchPattern::Exact(text) if fold => Self::IgnoreCase(IgnoreCase::Exact(bytes(text))),
            MatchPattern::Prefix(text) if fold => Self::IgnoreCase(IgnoreCase::Prefix(bytes(text))),
            MatchPattern::Suffix(text) if fold => Self::IgnoreCase(IgnoreCase::Suffix(bytes(text))),
            MatchPattern::Contains(text) if fold => {
                Self::IgnoreCase(IgnoreCase::Contains(bytes(text)))
            }
            MatchPattern::Exact(text) => Self::Exact(bytes(text)),
            MatchPattern::Prefix(text) => Self::Prefix(bytes(text)),
            MatchPattern::Suffix(text) => Self::Suffix(bytes(text)),
            MatchPattern::Contains(text) => Self::contains(text.as_bytes()),
            // Envoy ignores ignore_case here as well.
            MatchPattern::SafeRegex(regex) => Self::Regex(FullRegex::compile(regex, scope)?),
            MatchPattern::Custom(custom) => {
                return scope.refuse(format!(
                    "custom string matcher {:?} is unknown",
                    custom.name
                ));
            }
        })
    }

    /// Matches a value that equals `text`.
    pub fn exact(text: &str) -> Self {
        Self::Exact(text.as_bytes().into())
    }

    /// Matches a value that starts with `text`.
    pub fn prefix(text: &str) -> Self {
        Self::Prefix(text.as_bytes().into())
    }

    /// Matches a value that contains `needle`.
    pub fn contains(needle: &[u8]) -> Self {
        Self::Contains(Box::new(memmem::Finder::new(needle).into_owned()))
    }

    /// Whether the value matches. No allocation.
    pub fn is_match(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == &**text,
            Self::Prefix(text) => value.starts_with(text),
            Self::Suffix(text) => value.ends_with(text),
            Self::Contains(finder) => finder.find(value).is_some(),
            Self::Regex(regex) => regex.is_match(value),
            Self::IgnoreCase(pattern) => pattern.is_match(value),
        }
    }
}

impl IgnoreCase {
    fn is_match(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value.eq_ignore_ascii_case(text),
            Self::Prefix(text) => value
                .get(..text.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(text)),
            Self::Suffix(text) => {
                let tail = value
                    .len()
                    .checked_sub(text.len())
                    .map(|start| &value[start..]);
                tail.is_some_and(|tail| tail.eq_ignore_ascii_case(text))
            }
            Self::Contains(text) => {
                text.is_empty()
                    || value
                        .windows(text.len())
                        .any(|window| window.eq_ignore_ascii_case(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(pattern: MatchPattern, ignore_case: bool) -> StringMatch {
        let message = StringMatcher {
            ignore_case,
            match_pattern: Some(pattern),
        };
        StringMatch::compile(&message, &mut Scope::new()).expect("compiles")
    }

    #[test]
    fn every_kind_matches_as_named() {
        let yes = |pattern, value: &str| {
            assert!(
                compiled(pattern, false).is_match(value.as_bytes()),
                "{value}"
            )
        };

        let no = |pattern, value: &str| {
            assert!(
                !compiled(pattern, false).is_match(value.as_bytes()),
                "{value}"
            )
        };

        yes(MatchPattern::Exact("a.b".into()), "a.b");
        no(MatchPattern::Exact("a.b".into()), "axb");
        yes(MatchPattern::Prefix("/api".into()), "/api/x");
        yes(MatchPattern::Suffix(".com".into()), "a.com");
        no(MatchPattern::Suffix("long.com".into()), "com");
        yes(MatchPattern::Contains("id".into()), "aside");
        no(MatchPattern::Contains("id".into()), "aIDe");
    }

    #[test]
    fn case_is_ignored_where_asked() {
        for (pattern, value) in [
            (MatchPattern::Exact("Secret.com".into()), "sECRET.COM"),
            (MatchPattern::Prefix("Se".into()), "sEcret"),
            (MatchPattern::Suffix("ET".into()), "secret"),
            (MatchPattern::Contains("CR".into()), "secret"),
        ] {
            assert!(
                compiled(pattern, true).is_match(value.as_bytes()),
                "{value}"
            );
        }

        assert!(!compiled(MatchPattern::Prefix("abc".into()), true).is_match(b"ab"));
    }

    #[test]
    fn an_empty_or_custom_matcher_is_refused() {
        assert!(StringMatch::compile(&StringMatcher::default(), &mut Scope::new()).is_err());
    }
}
