//! Findings of compilers: a [`Rejection`] refuses the resource and becomes a NACK, a [`Warning`]
//! names a field that has no effect. [`Scope`] collects warnings and knows the path of the field
//! that is being compiled.

use std::fmt;

use meltemi_proto::google::protobuf::Duration as ProtoDuration;
use meltemi_proto::{Any, UnpackError};

/// Why a resource is refused: the field makes no sense, or ignoring it would weaken security.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Rejection {
    /// The field, as a path below the resource: `filter_chains[0].filters[1]`.
    pub path: String,
    /// A sentence for the operator.
    pub reason: String,
}

/// A field that this proxy does not honour; the resource serves without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The field, as a path below the resource.
    pub path: String,
    /// Why the field has no effect.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// How many warnings one resource may collect; further ones are dropped.
const MAX_WARNINGS: usize = 64;

/// The path of the field that is being compiled, and the warnings so far.
#[derive(Debug, Default)]
pub struct Scope {
    path: String,
    warnings: Vec<Warning>,
}

impl Scope {
    /// Begins at the root of a resource.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `compile` with the field added to the path.
    pub fn within<T>(
        &mut self,
        field: impl fmt::Display,
        compile: impl FnOnce(&mut Self) -> T,
    ) -> T {
        use fmt::Write;

        let parent = self.path.len();
        if parent > 0 {
            self.path.push('.');
        }

        // Writing to a String cannot fail.
        let _ = write!(self.path, "{field}");
        let result = compile(self);
        self.path.truncate(parent);

        result
    }

    /// Compiles every element of a repeated field.
    pub fn each<'m, M, T>(
        &mut self,
        field: &str,
        messages: &'m [M],
        mut compile: impl FnMut(&mut Self, &'m M) -> Result<T, Rejection>,
    ) -> Result<Vec<T>, Rejection> {
        messages
            .iter()
            .enumerate()
            .map(|(index, message)| {
                self.within(format_args!("{field}[{index}]"), |scope| {
                    compile(scope, message)
                })
            })
            .collect()
    }

    /// Compiles every element of a repeated field whose elements have names. The path of an element
    /// shows its name, which an operator can search for, or its index if the name is empty.
    pub fn each_named<'m, M, T>(
        &mut self,
        field: &str,
        messages: &'m [M],
        name: impl Fn(&M) -> &str,
        mut compile: impl FnMut(&mut Self, &'m M) -> Result<T, Rejection>,
    ) -> Result<Vec<T>, Rejection> {
        let compile_one = |(index, message)| {
            let place = match name(message) {
                "" => format!("{field}[{index}]"),
                name => format!("{field}[{name:?}]"),
            };
            self.within(place, |scope| compile(scope, message))
        };
        messages.iter().enumerate().map(compile_one).collect()
    }

    /// A rejection of the current field.
    pub fn reject(&self, reason: impl Into<String>) -> Rejection {
        Rejection {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }

    /// [`Scope::reject`] as the result of a compiler.
    pub fn refuse<T>(&self, reason: impl Into<String>) -> Result<T, Rejection> {
        Err(self.reject(reason))
    }

    /// Warns that a field has no effect.
    pub fn warn(&mut self, field: &str, reason: impl Into<String>) {
        if self.warnings.len() < MAX_WARNINGS {
            let path = match (self.path.is_empty(), field.is_empty()) {
                (_, true) => self.path.clone(),
                (true, false) => field.to_owned(),
                (false, false) => format!("{}.{field}", self.path),
            };
            self.warnings.push(Warning {
                path,
                reason: reason.into(),
            });
        }
    }

    /// Warns of a field that is set and that this proxy does not honour.
    pub fn unsupported(&mut self, field: &str, is_set: bool) {
        if is_set {
            self.warn(field, "not honoured by this proxy");
        }
    }

    /// Unpacks an `Any`; one of another type is rejected.
    pub fn unpack<M: prost::Message + prost::Name + Default>(
        &self,
        any: &Any,
    ) -> Result<M, Rejection> {
        meltemi_proto::unpack(any).map_err(|error: UnpackError| self.reject(error.to_string()))
    }

    /// The value of a field; an absent one is rejected.
    pub fn required<'m, M>(&self, field: &str, message: Option<&'m M>) -> Result<&'m M, Rejection> {
        message.ok_or_else(|| self.reject(format!("{field} is missing")))
    }

    /// Lowers a protobuf duration. Negative ones, and those above Envoy's limit of 10,000 years,
    /// are rejected.
    pub fn duration(
        &self,
        field: &str,
        value: Option<&ProtoDuration>,
    ) -> Result<Option<std::time::Duration>, Rejection> {
        let Some(value) = value else { return Ok(None) };
        match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
            // Envoy's own bound; also keeps sums of deadlines from overflowing.
            (Ok(seconds), Ok(nanos)) if seconds <= 315_576_000_000 && nanos < 1_000_000_000 => {
                Ok(Some(std::time::Duration::new(seconds, nanos)))
            }
            _ => self.refuse(format!(
                "{field} is not a valid duration ({} s, {} ns)",
                value.seconds, value.nanos
            )),
        }
    }

    /// The warnings, once the resource is compiled.
    pub fn into_warnings(self) -> Vec<Warning> {
        self.warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_name_their_place() {
        let mut scope = Scope::new();
        let error = scope
            .within("filters[1]", |scope| {
                scope.warn("x", "ignored");
                scope.within("rules", |scope| scope.refuse::<()>("bad"))
            })
            .expect_err("refused");

        assert_eq!(error.to_string(), "filters[1].rules: bad");
        assert_eq!(
            scope.into_warnings()[0].to_string(),
            "filters[1].x: ignored"
        );
    }
}
