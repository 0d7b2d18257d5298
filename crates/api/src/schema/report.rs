//! Where reading and validation stand in a document, and what they found there.

use meltemi_types::Severity;
use serde_json::{Map, Value};

use super::closest;

/// What to do about a field that the message does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownFields {
    /// An error: mesh kinds, where a misspelt field would silently weaken a policy.
    Refuse,
    /// A warning: MeshConfig, which carries fields of newer versions.
    Warn,
    /// Nothing: core kinds, of which only the part that a mesh needs is read.
    Ignore,
}

/// One fault, not yet tied to an object and a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable code, `MEL….`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Path of the field.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// A path that grows and shrinks while a document is walked, and the findings on the way.
#[derive(Debug)]
pub struct Report {
    path: String,
    unknown: UnknownFields,
    findings: Vec<Finding>,
    /// Also when the list is full.
    has_errors: bool,
}

/// A document with ten thousand faults is told about the first so many.
const MAX_FINDINGS: usize = 100;

/// A longer list of fields is a reference, not a remedy.
const MAX_LISTED: usize = 120;

/// Appends `.key`, or `["key"]` where the key itself holds other characters than letters, digits,
/// `-` and `_`.
pub fn push_key(path: &mut String, key: &str) {
    if !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    } else {
        path.push_str("[\"");
        path.push_str(key);
        path.push_str("\"]");
    }
}

/// Appends `[index]`.
pub fn push_index(path: &mut String, index: usize) {
    path.push('[');
    path.push_str(&index.to_string());
    path.push(']');
}

impl Report {
    /// An empty report that stands at `path`.
    pub fn new(path: &str, unknown: UnknownFields) -> Self {
        Self {
            path: path.to_owned(),
            unknown,
            findings: Vec::new(),
            has_errors: false,
        }
    }

    /// The field that the walk stands at.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What was found, in document order.
    pub fn into_findings(self) -> Vec<Finding> {
        self.findings
    }

    /// Whether an error was found so far.
    pub fn has_errors(&self) -> bool {
        self.has_errors
    }

    /// Walks into a field.
    pub fn field<T>(&mut self, key: &str, walk: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        push_key(&mut self.path, key);
        let result = walk(self);
        self.path.truncate(length);
        result
    }

    /// Walks into an item of a list.
    pub fn index<T>(&mut self, index: usize, walk: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        push_index(&mut self.path, index);
        let result = walk(self);
        self.path.truncate(length);
        result
    }

    /// Walks over the items of the list `key`.
    pub fn each<T>(&mut self, key: &str, items: &[T], mut walk: impl FnMut(&T, &mut Self)) {
        self.field(key, |report| {
            for (index, item) in items.iter().enumerate() {
                report.index(index, |report| walk(item, report));
            }
        });
    }

    /// Walks into a message field that may be absent.
    pub fn some<T>(&mut self, key: &str, item: &Option<T>, walk: impl FnOnce(&T, &mut Self)) {
        if let Some(item) = item {
            self.field(key, |report| walk(item, report));
        }
    }

    /// Records a fault at the place of the walk.
    pub fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        if self.has_room(severity) {
            let (message, remedy) = (message.into(), remedy.into());
            self.findings.push(Finding {
                code,
                severity,
                field: self.path.clone(),
                message,
                remedy,
            });
        }

        self.has_errors |= severity == Severity::Error;
    }

    /// A full list still takes its first error: warnings must not hide that an object is invalid.
    fn has_room(&self, severity: Severity) -> bool {
        self.findings.len() < MAX_FINDINGS || (severity == Severity::Error && !self.has_errors)
    }

    /// Takes over a finding of another report.
    pub fn push(&mut self, finding: Finding) {
        let is_error = finding.severity == Severity::Error;
        if self.has_room(finding.severity) {
            self.findings.push(finding);
        }
        self.has_errors |= is_error;
    }

    /// Records an error at the place of the walk.
    pub fn error(
        &mut self,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Error, code, message, remedy);
    }

    /// Records a warning at the place of the walk.
    pub fn warn(
        &mut self,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Warning, code, message, remedy);
    }

    /// The value as an object, or a fault.
    pub fn object<'v>(&mut self, value: &'v Value) -> Option<&'v Map<String, Value>> {
        let map = value.as_object();
        if map.is_none() {
            self.wrong_type("object", value);
        }
        map
    }

    /// The value as a list, or a fault.
    pub fn list<'v>(&mut self, value: &'v Value) -> Option<&'v [Value]> {
        let list = value.as_array().map(Vec::as_slice);
        if list.is_none() {
            self.wrong_type("array", value);
        }
        list
    }

    /// The index of the value among `words`, or a fault with the nearest word.
    pub fn word(&mut self, value: &Value, words: &[&str]) -> Option<usize> {
        let Some(text) = value.as_str() else {
            self.wrong_type("string", value);
            return None;
        };

        let index = words.iter().position(|word| *word == text);
        if index.is_none() {
            let supported = words
                .iter()
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(", ");

            let remedy = match closest(text, words) {
                Some(word) => format!("did you mean {word}?"),
                None => "use one of the supported values".to_owned(),
            };

            self.error(
                "MEL0105",
                format!(
                    "Unsupported value: {:?}: supported values: {supported}",
                    shorten(text)
                ),
                remedy,
            );
        }

        index
    }

    /// Records that a value has another JSON type than the field.
    pub fn wrong_type(&mut self, expected: &str, value: &Value) {
        let (found, remedy) = match value {
            Value::Null => ("null", format!("write a value of type {expected}, or remove the field")),
            Value::Bool(_) if expected == "string" => (
                "boolean",
                "put the value in quotes: unquoted true, yes, on, y and their opposites are booleans".to_owned(),
            ),
            Value::Number(_) if expected == "string" => ("number", "put the value in quotes".to_owned()),
            Value::Bool(_) => ("boolean", format!("write a value of type {expected}")),
            Value::Number(_) => ("number", format!("write a value of type {expected}")),
            Value::String(_) if matches!(expected, "integer" | "number" | "boolean") => {
                ("string", format!("write the {expected} without quotes"))
            }
            Value::String(_) => ("string", format!("write a value of type {expected}")),
            Value::Array(_) => ("array", format!("write a value of type {expected}, not a list")),
            Value::Object(_) => ("object", format!("write a value of type {expected}, not a mapping")),
        };

        self.error(
            "MEL0102",
            format!(
                "{} in body must be of type {expected}: \"{found}\"",
                self.path
            ),
            remedy,
        );
    }

    /// Records a field that the message does not have, as the policy for this kind says.
    pub fn unknown_field(&mut self, key: &str, known: &[&str]) {
        let severity = match self.unknown {
            UnknownFields::Refuse => Severity::Error,
            UnknownFields::Warn => Severity::Warning,
            UnknownFields::Ignore => return,
        };

        if !self.has_room(severity) {
            return;
        }
        let remedy = match closest(key, known) {
            Some(name) => format!("did you mean {name}?"),
            None if known.is_empty() => "remove it: nothing can be set here".to_owned(),
            None => match known.join(", ") {
                all if all.len() <= MAX_LISTED => format!("remove it, or use one of: {all}"),
                _ => format!(
                    "remove it: none of the {} fields that can stand here has a similar name",
                    known.len()
                ),
            },
        };

        self.field(key, |report| {
            report.add(
                severity,
                "MEL0103",
                format!("unknown field {:?}", shorten(key)),
                remedy,
            )
        });
    }

    /// Records that a field is missing from the message at the place of the walk.
    pub fn required(&mut self, key: &str) {
        self.field(key, |report| {
            report.error("MEL0104", "Required value", format!("add the field {key}"))
        });
    }

    /// Checks that a string, or each string of a list, has at least one character.
    pub fn non_empty(&mut self, value: &Value) {
        match value {
            Value::String(text) if text.is_empty() => {
                let message = format!("{} in body should be at least 1 chars long", self.path);
                self.error("MEL0110", message, "write a value, or remove the field");
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.index(index, |report| report.non_empty(item));
                }
            }
            _ => {}
        }
    }
}

/// A foreign text, short enough for a message.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
