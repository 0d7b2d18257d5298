//! Envoy's `%...%` format strings: access logs, header values, filter state. Parsed once, rendered
//! into a buffer.
//!
//! [`Facts`] supplies the values of operators. A value that is unknown prints as nothing in headers
//! and as `-` in logs. Source: Envoy "Access logging: command operators".

mod connection;
mod facts;
mod parse;
mod place;
#[cfg(test)]
mod tests;
mod time;

use std::borrow::Cow;

pub use self::connection::connection_fact;
pub use self::facts::{Fact, Facts, Head, MetadataOf, Moment, NoFacts, Point, Precision};
use self::parse::parse_operator;
pub use self::place::Place;
pub use self::time::{TimeFormat, write_http_date};
use crate::digits;
use crate::metadata::Value;

/// A parsed format string.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(Box<str>),
    Operator(Operator, Option<usize>),
}

/// One operator with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Operator {
    /// `%REQ(name?alternative)%` and its kin; names lower case.
    Header(Head, Box<str>, Option<Box<str>>),
    /// `%REQ_WITHOUT_QUERY(name?alternative)%` and `%PATH(NQ)%`: a request header up to its query.
    WithoutQuery(Box<str>, Option<Box<str>>),
    /// An operator without parameters.
    Fact(Fact),
    /// `%START_TIME(format)%` and its kin.
    Time(Moment, TimeFormat),
    /// `%DYNAMIC_METADATA(filter:key:...)%` and its kin.
    Metadata(MetadataOf, Box<str>, Box<[Box<str>]>),
    /// `%FILTER_STATE(key:kind)%`; with `%FILTER_STATE(key:FIELD:name)%` the field's name.
    FilterState(Box<str>, Option<Box<str>>),
    /// `%COMMON_DURATION(from:to:precision)%`.
    CommonDuration(Point, Point, Precision),
    /// `%ENVIRONMENT(name)%`: for the caller to look up, since nothing here reads the environment.
    Environment(Box<str>),
}

/// Longest format string.
const MAX_FORMAT: usize = 64 * 1024;

impl Template {
    /// Parses a format string. `%%` is a percent sign.
    pub fn parse(format: &str) -> Result<Self, String> {
        if format.len() > MAX_FORMAT {
            return Err("format string is too long".to_owned());
        }
        Self::read(format, Err)
    }

    /// Parses a format string whose unknown or broken operators stay as text; returns the reasons
    /// beside it.
    pub fn parse_what_is_known(format: &str) -> (Self, Vec<String>) {
        if format.len() > MAX_FORMAT {
            return (
                Self::literal(format),
                vec!["format string is too long".to_owned()],
            );
        }

        let mut reasons = Vec::new();
        let read = Self::read(format, |reason| {
            reasons.push(reason);
            Ok(())
        });

        (read.unwrap_or_default(), reasons)
    }

    /// `on_error` says whether a percent sign that begins no operator is text.
    fn read(
        format: &str,
        mut on_error: impl FnMut(String) -> Result<(), String>,
    ) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = format;

        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(tail) = rest.strip_prefix('%') {
                text.push('%');
                rest = tail;
                continue;
            }

            match parse_operator(rest) {
                Ok((operator, length, tail)) => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text).into()));
                    }
                    parts.push(Part::Operator(operator, length));
                    rest = tail;
                }
                Err(reason) => {
                    on_error(reason)?;
                    text.push('%');

                    // Its closing sign begins no other one.
                    let word = rest
                        .bytes()
                        .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
                        .count();

                    text.push_str(&rest[..word]);
                    rest = &rest[word..];
                    if let Some(tail) = rest.strip_prefix('%').filter(|_| word > 0) {
                        text.push('%');
                        rest = tail;
                    }
                }
            }
        }

        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }

        Ok(Self { parts })
    }

    /// Plain text.
    pub fn literal(text: &str) -> Self {
        match text.is_empty() {
            true => Self::default(),
            false => Self {
                parts: vec![Part::Text(text.into())],
            },
        }
    }

    /// The text, if there is no operator in it.
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Renders; what is unknown becomes `unknown` (`-` in logs, nothing in headers).
    pub fn render(&self, facts: &dyn Facts, unknown: &str, out: &mut Vec<u8>) {
        self.render_each(facts, unknown, out, |_, _| {});
    }

    /// Renders for a log of lines. Values may hold bytes from the wire, so they are escaped: they
    /// can forge neither a line nor a quote.
    pub fn render_line(&self, facts: &dyn Facts, out: &mut Vec<u8>) {
        self.render_each(facts, "-", out, escape_from);
    }

    /// Renders for a writer that escapes by itself and knows types, as JSON does.
    pub fn render_typed(&self, facts: &dyn Facts, out: &mut Vec<u8>) -> Shape {
        let [Part::Operator(operator, length)] = self.parts.as_slice() else {
            self.render(facts, "-", out);
            return Shape::Text;
        };

        let start = out.len();
        if let Operator::Metadata(of, filter, path) = operator {
            return match facts.metadata(*of, filter, path) {
                None => Shape::Nothing,
                Some(value) if *value == Value::Null => Shape::Nothing,
                Some(value) if value.as_str().is_some() => {
                    write_value(&value, out);
                    cut(out, start, *length);
                    Shape::Text
                }
                Some(value) => {
                    write_value(&value, out);
                    Shape::Json
                }
            };
        }

        if !operator.render(facts, out) {
            out.truncate(start);
            return Shape::Nothing;
        }

        if operator.is_number() {
            return Shape::Json;
        }
        cut(out, start, *length);

        Shape::Text
    }

    fn render_each(
        &self,
        facts: &dyn Facts,
        unknown: &str,
        out: &mut Vec<u8>,
        finish: fn(&mut Vec<u8>, usize),
    ) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Operator(operator, length) => {
                    let start = out.len();
                    if !operator.render(facts, out) {
                        out.truncate(start);
                        out.extend_from_slice(unknown.as_bytes());
                    }
                    // Cut first: a cut must not go through an escape.
                    cut(out, start, *length);
                    finish(out, start);
                }
            }
        }
    }
}

/// What [`Template::render_typed`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The value is unknown.
    Nothing,
    /// A number, or JSON text that is written unchanged.
    Json,
    /// Text that is not escaped.
    Text,
}

fn cut(out: &mut Vec<u8>, start: usize, length: Option<usize>) {
    if let Some(length) = length {
        out.truncate(start.saturating_add(length).min(out.len()));
    }
}

/// Quotes, backslashes and everything that is not printable ASCII become `\xNN`.
fn escape_from(out: &mut Vec<u8>, start: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";

    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    let Some(first) = out[start..].iter().position(|byte| !plain(*byte)) else {
        return;
    };

    for byte in out.split_off(start + first) {
        if plain(byte) {
            out.push(byte);
        } else {
            out.extend_from_slice(&[
                b'\\',
                b'x',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]);
        }
    }
}

impl Operator {
    /// Whether it is a number where types matter (JSON).
    fn is_number(&self) -> bool {
        match self {
            Self::Fact(fact) => fact.is_number(),
            Self::CommonDuration(..) => true,
            _ => false,
        }
    }

    /// Writes the value; `false`: unknown.
    pub fn render(&self, facts: &dyn Facts, out: &mut Vec<u8>) -> bool {
        let bytes = |value: Option<Cow<'_, [u8]>>, out: &mut Vec<u8>| match value {
            Some(value) => {
                out.extend_from_slice(&value);
                true
            }
            None => false,
        };

        match self {
            Self::Header(head, name, alternative) => {
                let value = facts.header(*head, name);
                let value = value.or_else(|| {
                    alternative
                        .as_ref()
                        .and_then(|name| facts.header(*head, name))
                });
                bytes(value, out)
            }
            Self::WithoutQuery(name, alternative) => {
                let value = facts.header(Head::Request, name);
                let value = value.or_else(|| facts.header(Head::Request, alternative.as_ref()?));
                let Some(value) = value else { return false };
                let end = memchr::memchr2(b'?', b'#', &value).unwrap_or(value.len());
                out.extend_from_slice(&value[..end]);
                true
            }
            Self::Fact(fact) => facts.fact(*fact, out),
            Self::Time(moment, format) => facts
                .time(*moment)
                .map(|at| format.write(at, out))
                .is_some(),
            Self::Metadata(of, filter, path) => match facts.metadata(*of, filter, path) {
                Some(value) if *value != Value::Null => {
                    write_value(&value, out);
                    true
                }
                _ => false,
            },
            Self::FilterState(key, field) => match facts.filter_state(key, field.as_deref()) {
                Some(text) => bytes(Some(Cow::Owned(text.into_owned().into_bytes())), out),
                None => false,
            },
            Self::CommonDuration(from, to, precision) => {
                let (Some(from), Some(to)) = (facts.point(*from), facts.point(*to)) else {
                    return false;
                };
                let Some(between) = to.checked_duration_since(from) else {
                    return false;
                };
                let count = match precision {
                    Precision::Milliseconds => between.as_millis(),
                    Precision::Microseconds => between.as_micros(),
                    Precision::Nanoseconds => between.as_nanos(),
                };

                digits::integer(count, out);
                true
            }
            Self::Environment(name) => match facts.environment(name) {
                Some(text) => {
                    out.extend_from_slice(text.as_bytes());
                    true
                }
                None => false,
            },
        }
    }
}

/// Text as it is, everything else as JSON.
pub fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::String(text) => out.extend_from_slice(text.as_bytes()),
        value => out.extend_from_slice(json_of(value).to_string().as_bytes()),
    }
}

/// A value as JSON.
pub fn json_of(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        // Whole numbers without a fraction, as Envoy prints them.
        Value::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
            (*number as i64).into()
        }
        Value::Number(number) => (*number).into(),
        Value::String(text) => (&**text).into(),
        Value::List(list) => list.iter().map(json_of).collect::<Vec<_>>().into(),
        Value::Struct(fields) => serde_json::Value::Object(
            fields
                .iter()
                .map(|(key, value)| (key.to_string(), json_of(value)))
                .collect(),
        ),
    }
}
