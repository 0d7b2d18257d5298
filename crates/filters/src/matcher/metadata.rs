//! Envoy's `MetadataMatcher` and `ValueMatcher`, compiled.

use meltemi_proto::envoy::r#type::matcher::v3 as proto;
use proto::value_matcher::MatchPattern;

use super::StringMatch;
use crate::finding::{Rejection, Scope};
use crate::metadata::{Metadata, Value};

/// How deep `or_match` and `list_match` may nest.
const MAX_DEPTH: usize = 16;

/// A condition on one value in metadata.
#[derive(Debug, Clone)]
pub struct MetadataMatch {
    filter: Box<str>,
    path: Box<[Box<str>]>,
    value: ValueMatch,
    invert: bool,
}

/// A condition on a value.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    Null,
    /// A number at least the first and below the second.
    Range(f64, f64),
    /// Exactly this number.
    Number(f64),
    /// Text.
    String(StringMatch),
    /// This boolean.
    Bool(bool),
    /// Whether the value is present.
    Present(bool),
    /// A list with an element that matches.
    OneOf(Box<ValueMatch>),
    /// Any of these.
    Any(Vec<ValueMatch>),
}

impl MetadataMatch {
    /// Compiles Envoy's message.
    pub fn compile(message: &proto::MetadataMatcher, scope: &mut Scope) -> Result<Self, Rejection> {
        let path = scope.each("path", &message.path, |scope, segment| {
            match &segment.segment {
                Some(proto::metadata_matcher::path_segment::Segment::Key(key)) => {
                    Ok(key.as_str().into())
                }
                None => scope.refuse("a path segment without key"),
            }
        })?;

        let value = scope.required("value", message.value.as_ref())?;
        Ok(Self {
            filter: message.filter.as_str().into(),
            path: path.into(),
            value: scope.within("value", |scope| ValueMatch::compile(value, scope, 0))?,
            invert: message.invert,
        })
    }

    /// Whether the metadata matches.
    pub fn is_match(&self, metadata: &Metadata) -> bool {
        let value = metadata.at(&self.filter, &self.path);
        self.value.is_match(value.unwrap_or(&Value::Null)) != self.invert
    }

    /// Whether the metadata has a value at the path.
    pub fn finds(&self, metadata: &Metadata) -> bool {
        metadata.at(&self.filter, &self.path).is_some()
    }
}

impl ValueMatch {
    fn compile(
        message: &proto::ValueMatcher,
        scope: &mut Scope,
        depth: usize,
    ) -> Result<Self, Rejection> {
        if depth > MAX_DEPTH {
            return scope.refuse("value matchers are nested too deeply");
        }
        Ok(
            match scope.required("match_pattern", message.match_pattern.as_ref())? {
                MatchPattern::NullMatch(_) => Self::Null,
                MatchPattern::DoubleMatch(number) => match &number.match_pattern {
                    Some(proto::double_matcher::MatchPattern::Exact(number)) => {
                        Self::Number(*number)
                    }
                    Some(proto::double_matcher::MatchPattern::Range(range)) => {
                        Self::Range(range.start, range.end)
                    }
                    None => return scope.refuse("a double matcher without pattern"),
                },
                MatchPattern::StringMatch(text) => Self::String(StringMatch::compile(text, scope)?),
                MatchPattern::BoolMatch(value) => Self::Bool(*value),
                MatchPattern::PresentMatch(present) => Self::Present(*present),
                MatchPattern::ListMatch(list) => match &list.match_pattern {
                    Some(proto::list_matcher::MatchPattern::OneOf(element)) => {
                        Self::OneOf(Box::new(Self::compile(element, scope, depth + 1)?))
                    }
                    None => return scope.refuse("a list matcher without pattern"),
                },
                MatchPattern::OrMatch(any) => Self::Any(scope.each(
                    "value_matchers",
                    &any.value_matchers,
                    |scope, value| Self::compile(value, scope, depth + 1),
                )?),
            },
        )
    }

    /// Whether the value matches; a value that is not there is null.
    pub fn is_match(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null) => true,
            (Self::Range(start, end), Value::Number(number)) => number >= start && number < end,
            (Self::Number(wanted), Value::Number(number)) => wanted == number,
            (Self::String(pattern), Value::String(text)) => pattern.is_match(text.as_bytes()),
            (Self::Bool(wanted), Value::Bool(value)) => wanted == value,
            (Self::Present(wanted), value) => *wanted != matches!(value, Value::Null),
            (Self::OneOf(element), Value::List(values)) => {
                values.iter().any(|value| element.is_match(value))
            }
            (Self::Any(any), value) => any.iter().any(|pattern| pattern.is_match(value)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_inversion() {
        let mut metadata = Metadata::default();
        metadata.set(
            "jwt",
            "groups",
            Value::List(vec![Value::string("a"), Value::string("b")]),
        );

        let string = |text: &str| proto::StringMatcher {
            ignore_case: false,
            match_pattern: Some(proto::string_matcher::MatchPattern::Exact(text.to_owned())),
        };

        let element = proto::ValueMatcher {
            match_pattern: Some(MatchPattern::StringMatch(string("b"))),
        };
        let list = proto::ListMatcher {
            match_pattern: Some(proto::list_matcher::MatchPattern::OneOf(Box::new(element))),
        };
        let mut message = proto::MetadataMatcher {
            filter: "jwt".into(),
            path: vec![proto::metadata_matcher::PathSegment {
                segment: Some(proto::metadata_matcher::path_segment::Segment::Key(
                    "groups".into(),
                )),
            }],
            value: Some(proto::ValueMatcher {
                match_pattern: Some(MatchPattern::ListMatch(Box::new(list))),
            }),
            invert: false,
        };

        let compile =
            |message: &_| MetadataMatch::compile(message, &mut Scope::new()).expect("compiles");
        assert!(compile(&message).is_match(&metadata));
        assert!(!compile(&message).is_match(&Metadata::default()));
        message.invert = true;
        assert!(!compile(&message).is_match(&metadata));
    }
}
