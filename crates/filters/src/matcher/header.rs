//! Conditions on header fields, query parameters and cookies, with Envoy's rules on absence and
//! repetition.

use meltemi_proto::envoy::config::route::v3 as proto;
use proto::header_matcher::HeaderMatchSpecifier;
use proto::query_parameter_matcher::QueryParameterMatchSpecifier;

use super::{FullRegex, StringMatch};
use crate::finding::{Rejection, Scope};
use crate::head::{Fields, RequestHead, ResponseHead};

/// A head whose fields can be matched.
pub trait HeaderSource {
    /// Every line of a field, or a pseudo-field.
    fn lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a;
}

impl HeaderSource for RequestHead {
    fn lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.get_all(name)
    }
}

impl HeaderSource for Fields {
    fn lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.get_all(name)
    }
}

impl HeaderSource for ResponseHead {
    fn lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        let status = (name == ":status").then(|| self.status_text());
        status.into_iter().chain(self.fields().get_all(name))
    }
}

/// A condition on one header field. Source: Envoy `HeaderMatcher`.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    name: Box<str>,
    kind: Kind,
    invert: bool,
    missing_is_empty: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    Present(bool),
    Range(i64, i64),
    Value(StringMatch),
}

/// How many lines of a repeated field must match. Repeating a field must not evade a policy: a DENY
/// matches if any line does, an ALLOW only if all do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// One line is enough.
    Any,
    /// Every line must match.
    All,
}

impl Judge {
    /// The rule inside a negation, where any and all change places.
    pub fn flipped(self) -> Self {
        match self {
            Self::Any => Self::All,
            Self::All => Self::Any,
        }
    }
}

impl HeaderMatch {
    /// Compiles Envoy's message.
    #[expect(deprecated, reason = "Istio sends the older field")]
    pub fn compile(message: &proto::HeaderMatcher, scope: &mut Scope) -> Result<Self, Rejection> {
        let text = |text: &String| text.as_bytes().into();
        let kind = match &message.header_match_specifier {
            None => Kind::Present(true),
            Some(HeaderMatchSpecifier::PresentMatch(present)) => Kind::Present(*present),
            Some(HeaderMatchSpecifier::RangeMatch(range)) => Kind::Range(range.start, range.end),
            Some(HeaderMatchSpecifier::ExactMatch(value)) => {
                Kind::Value(StringMatch::Exact(text(value)))
            }
            Some(HeaderMatchSpecifier::PrefixMatch(value)) => {
                Kind::Value(StringMatch::Prefix(text(value)))
            }
            Some(HeaderMatchSpecifier::SuffixMatch(value)) => {
                Kind::Value(StringMatch::Suffix(text(value)))
            }
            Some(HeaderMatchSpecifier::ContainsMatch(value)) => {
                Kind::Value(StringMatch::contains(value.as_bytes()))
            }
            Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
                Kind::Value(StringMatch::Regex(FullRegex::compile(regex, scope)?))
            }
            Some(HeaderMatchSpecifier::StringMatch(value)) => {
                Kind::Value(StringMatch::compile(value, scope)?)
            }
        };

        if message.name.is_empty() {
            return scope.refuse("a header matcher without name");
        }

        Ok(Self {
            name: message.name.to_ascii_lowercase().into(),
            kind,
            invert: message.invert_match,
            missing_is_empty: message.treat_missing_header_as_empty,
        })
    }

    /// Matches a head that has the field.
    pub fn present(name: &str) -> Self {
        Self {
            name: name.to_ascii_lowercase().into(),
            kind: Kind::Present(true),
            invert: false,
            missing_is_empty: false,
        }
    }

    /// Compiles a list of matchers, all of which must match.
    pub fn compile_all(
        field: &str,
        messages: &[proto::HeaderMatcher],
        scope: &mut Scope,
    ) -> Result<Box<[Self]>, Rejection> {
        Ok(scope
            .each(field, messages, |scope, message| {
                Self::compile(message, scope)
            })?
            .into())
    }

    /// The name of the field, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the head matches, as routing sees it: any line does, or with `invert_match` none.
    pub fn is_match(&self, head: &impl HeaderSource) -> bool {
        let mut lines = head.lines(&self.name).peekable();
        match (lines.peek().is_some(), self.missing_is_empty) {
            (true, _) => lines.any(|line| self.kind.is_match(line)) != self.invert,
            (false, true) => self.kind.is_match(b"") != self.invert,
            // An absent field matches only a matcher for absence, whether or not it is inverted.
            (false, false) => matches!(self.kind, Kind::Present(present) if present == self.invert),
        }
    }

    /// Whether the head matches, for a security decision on repeated fields.
    pub fn is_match_judged(&self, head: &impl HeaderSource, judge: Judge) -> bool {
        let mut lines = head.lines(&self.name).peekable();
        if lines.peek().is_none() {
            return self.is_match(head);
        }
        let judge_line = |line: &[u8]| self.kind.is_match(line) != self.invert;
        match judge {
            Judge::Any => lines.any(judge_line),
            Judge::All => lines.all(judge_line),
        }
    }
}

impl Kind {
    fn is_match(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(present) => *present,
            Self::Value(pattern) => pattern.is_match(value),
            Self::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.trim().parse::<i64>().ok())
                .is_some_and(|number| number >= *start && number < *end),
        }
    }
}

/// A condition on one query parameter. Source: Envoy `QueryParameterMatcher`; the first value
/// counts, undecoded.
#[derive(Debug, Clone)]
pub struct QueryMatch {
    name: Box<str>,
    value: Option<StringMatch>,
    present: bool,
}

impl QueryMatch {
    /// Compiles Envoy's message.
    pub fn compile(
        message: &proto::QueryParameterMatcher,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let (value, present) = match &message.query_parameter_match_specifier {
            Some(QueryParameterMatchSpecifier::StringMatch(value)) => {
                (Some(StringMatch::compile(value, scope)?), true)
            }
            Some(QueryParameterMatchSpecifier::PresentMatch(present)) => (None, *present),
            None => (None, true),
        };

        Ok(Self {
            name: message.name.as_str().into(),
            value,
            present,
        })
    }

    /// Whether a query (what follows `?`) matches.
    pub fn is_match(&self, query: Option<&str>) -> bool {
        match (
            query.and_then(|query| query_parameter(query, &self.name)),
            &self.value,
        ) {
            (Some(found), Some(pattern)) => pattern.is_match(found.as_bytes()),
            (found, None) => found.is_some() == self.present,
            (None, Some(_)) => false,
        }
    }
}

/// The first value of a query parameter; a name without `=` has an empty one.
pub fn query_parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// A condition on one cookie. Source: Envoy `CookieMatcher`.
#[derive(Debug, Clone)]
pub struct CookieMatch {
    name: Box<str>,
    value: StringMatch,
    invert: bool,
}

impl CookieMatch {
    /// Compiles Envoy's message.
    pub fn compile(message: &proto::CookieMatcher, scope: &mut Scope) -> Result<Self, Rejection> {
        let value = scope.required("string_match", message.string_match.as_ref())?;
        let value = StringMatch::compile(value, scope)?;
        Ok(Self {
            name: message.name.as_str().into(),
            value,
            invert: message.invert_match,
        })
    }

    /// Whether the request's cookies match; a missing cookie matches nothing but an inverted
    /// condition.
    pub fn is_match(&self, head: &RequestHead) -> bool {
        cookie(head, &self.name).is_some_and(|value| self.value.is_match(value)) != self.invert
    }
}

/// The first cookie of this name, without quotes around its value.
pub fn cookie<'h>(head: &'h RequestHead, name: &str) -> Option<&'h [u8]> {
    head.get_all("cookie")
        .flat_map(|line| line.split(|byte| *byte == b';'))
        .find_map(|pair| {
            let pair = pair.trim_ascii();
            let at = memchr::memchr(b'=', pair)?;
            let value = pair[at + 1..].trim_ascii();
            (pair[..at] == *name.as_bytes()).then(|| {
                value
                    .strip_prefix(b"\"")
                    .and_then(|inner| inner.strip_suffix(b"\""))
                    .unwrap_or(value)
            })
        })
}

#[cfg(test)]
#[expect(deprecated, reason = "Istio sends the older field")]
mod tests {
    use super::*;
    use meltemi_proto::envoy::r#type::v3::Int64Range;

    fn matcher(
        specifier: Option<HeaderMatchSpecifier>,
        invert: bool,
        missing_is_empty: bool,
    ) -> HeaderMatch {
        let message = proto::HeaderMatcher {
            name: "X-Test".into(),
            invert_match: invert,
            treat_missing_header_as_empty: missing_is_empty,
            header_match_specifier: specifier,
        };
        HeaderMatch::compile(&message, &mut Scope::new()).expect("compiles")
    }

    fn head(values: &[&str]) -> RequestHead {
        let mut head = RequestHead::of("GET", "host", "/p?a=1&b&a=2");
        values
            .iter()
            .for_each(|value| head.append("x-test", value.as_bytes()));
        head
    }

    #[test]
    fn absence_follows_envoys_table() {
        let exact = || Some(HeaderMatchSpecifier::ExactMatch("v".into()));
        let present = |yes| Some(HeaderMatchSpecifier::PresentMatch(yes));
        let none = head(&[]);

        assert!(!matcher(exact(), false, false).is_match(&none));
        assert!(
            !matcher(exact(), true, false).is_match(&none),
            "inverting does not make absence match"
        );

        assert!(
            matcher(exact(), true, true).is_match(&none),
            "unless absence counts as empty"
        );

        assert!(matcher(present(true), true, false).is_match(&none));
        assert!(matcher(present(false), false, false).is_match(&none));
        assert!(!matcher(present(true), false, false).is_match(&none));
        assert!(matcher(None, false, false).is_match(&head(&["x"])));
        assert!(!matcher(present(false), false, false).is_match(&head(&["x"])));
    }

    #[test]
    fn numbers_lie_in_half_open_ranges() {
        let range = matcher(
            Some(HeaderMatchSpecifier::RangeMatch(Int64Range {
                start: -1,
                end: 10,
            })),
            false,
            false,
        );

        assert!(range.is_match(&head(&["-1"])) && range.is_match(&head(&["9"])));
        assert!(!range.is_match(&head(&["10"])) && !range.is_match(&head(&["9x"])));
    }

    #[test]
    fn repeating_a_field_passes_no_policy() {
        let exact = matcher(
            Some(HeaderMatchSpecifier::ExactMatch("bad".into())),
            false,
            false,
        );

        let twice = head(&["good", "bad"]);
        assert!(exact.is_match(&twice), "routing takes any line");
        assert!(
            exact.is_match_judged(&twice, Judge::Any),
            "a DENY sees the bad one"
        );

        assert!(
            !exact.is_match_judged(&twice, Judge::All),
            "an ALLOW wants all of them"
        );

        assert!(exact.is_match_judged(&head(&["bad", "bad"]), Judge::All));
        let not = matcher(
            Some(HeaderMatchSpecifier::ExactMatch("bad".into())),
            true,
            false,
        );

        assert!(
            !not.is_match(&twice) && !not.is_match_judged(&twice, Judge::All),
            "nor does an inverted condition"
        );

        let joined = matcher(
            Some(HeaderMatchSpecifier::ExactMatch("good,bad".into())),
            false,
            false,
        );

        assert!(
            !joined.is_match(&twice),
            "and no line is what the lines are together"
        );

        let present = matcher(None, false, false);
        assert!(
            present.is_match_judged(&twice, Judge::All)
                && present.is_match_judged(&twice, Judge::Any)
        );
    }

    #[test]
    fn queries_and_cookies_are_found() {
        let head = {
            let mut head = head(&[]);
            head.append("cookie", b"a=1; b=\"2\"");
            head.append("cookie", b"c=3");
            head
        };

        assert_eq!(
            query_parameter(head.query().expect("query"), "a"),
            Some("1")
        );

        assert_eq!(query_parameter(head.query().expect("query"), "b"), Some(""));
        assert_eq!(cookie(&head, "b"), Some(b"2".as_slice()));
        assert_eq!(cookie(&head, "c"), Some(b"3".as_slice()));
        assert_eq!(cookie(&head, "d"), None);
    }
}
