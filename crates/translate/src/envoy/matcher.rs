//! String, header and path matchers.

use super::route::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use super::types::matcher::v3::string_matcher::MatchPattern;
use super::types::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher, StringMatcher};

pub(crate) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher {
        regex: pattern.to_owned(),
        engine_type: None,
    }
}

pub(crate) fn substitute(pattern: &str, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(regex(pattern)),
        substitution: substitution.to_owned(),
    }
}

fn string(match_pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(match_pattern),
        ignore_case: false,
    }
}

pub(crate) fn exact(text: &str) -> StringMatcher {
    string(MatchPattern::Exact(text.to_owned()))
}

pub(crate) fn prefix(text: &str) -> StringMatcher {
    string(MatchPattern::Prefix(text.to_owned()))
}

pub(crate) fn suffix(text: &str) -> StringMatcher {
    string(MatchPattern::Suffix(text.to_owned()))
}

pub(crate) fn matches(pattern: &str) -> StringMatcher {
    string(MatchPattern::SafeRegex(regex(pattern)))
}

pub(crate) fn ignoring_case(mut matcher: StringMatcher) -> StringMatcher {
    // Envoy refuses ignore_case on a regular expression.
    if !matches!(matcher.match_pattern, Some(MatchPattern::SafeRegex(_))) {
        matcher.ignore_case = true;
    }
    matcher
}

/// Istio's wildcard strings: `*` is presence (`.+`), `a*` a prefix, `*a` a suffix, else exact.
pub(crate) fn wildcard(text: &str) -> StringMatcher {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text == "*" => matches(".+"),
        (Some(rest), _) => suffix(rest),
        (_, Some(rest)) => prefix(rest),
        _ => exact(text),
    }
}

pub(crate) fn header(name: &str, matcher: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..Default::default()
    }
}

pub(crate) fn header_present(name: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    }
}

/// A literal for use in a regular expression, as Go's `regexp.QuoteMeta` writes it.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_follow_istio() {
        assert_eq!(wildcard("*"), matches(".+"));
        assert_eq!(wildcard("a*"), prefix("a"));
        assert_eq!(wildcard("*a"), suffix("a"));
        assert_eq!(wildcard("a"), exact("a"));
        assert_eq!(wildcard(""), exact(""));
    }

    #[test]
    fn quoting_leaves_dashes_and_slashes() {
        assert_eq!(quote("a-b/c.d[0]"), r"a-b/c\.d\[0\]");
    }
}
