//! Diagnostics: every message of the control plane about configuration has this form.

use std::fmt::{self, Write as _};

use crate::printable;

use serde::{Deserialize, Serialize};

/// Severity of a diagnostic. Only [`Severity::Error`] keeps an object out of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For information.
    Info,
    /// The object has an effect, but probably not the intended one.
    Warning,
    /// The object, or the named part of it, has no effect.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// The object of a diagnostic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectRef {
    /// For example `VirtualService`; empty where the text was not an object at all.
    pub kind: String,
    /// The API group of a kind that the mesh does not read, such as `gateway.networking.k8s.io`.
    /// Empty for the mesh's kinds, whose word alone names them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// The object's name; empty if it has none.
    pub name: String,
}

impl ObjectRef {
    /// Names an object of one of the mesh's kinds.
    pub fn new(
        kind: impl Into<String>,
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        Self {
            kind: kind.into(),
            group: String::new(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Adds the API group of a kind that the mesh does not read.
    pub fn in_group(self, group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            ..self
        }
    }

    /// `VirtualService`, or `HTTPRoute.gateway.networking.k8s.io` for a kind that the mesh does not
    /// read.
    pub fn qualified_kind(&self) -> String {
        match self.group.as_str() {
            "" => self.kind.clone(),
            group => format!("{}.{group}", self.kind),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.qualified_kind())?;
        match (self.namespace.is_empty(), self.name.is_empty()) {
            (_, true) => Ok(()),
            (true, false) => write!(f, "/{}", self.name),
            (false, false) => write!(f, "/{}.{}", self.name, self.namespace),
        }
    }
}

/// The position of an object or field in a file. Lines and columns count from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The file as the user named it; empty for objects from an API server.
    pub file: String,
    /// 0 if unknown.
    pub line: u32,
    /// 0 if unknown.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => f.write_str(&self.file),
            (line, 0) => write!(f, "{}:{line}", self.file),
            (line, column) => write!(f, "{}:{line}:{column}", self.file),
        }
    }
}

/// One finding about one object: from parsing, validation, lowering, analysis or translation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Stable and greppable, for example `MEL0102`; Istio's own code (`IST0101`) where its
    /// analyzers have one.
    pub code: String,
    /// Severity of the diagnostic.
    pub severity: Severity,
    pub object: ObjectRef,
    /// Path of the field: `spec.http[0].route[1].destination.host`. Empty if the diagnostic is
    /// about the whole object.
    pub field: String,
    /// File and line of the field.
    pub position: Position,
    /// The problem, in a sentence.
    pub message: String,
    /// The remedy, in a sentence; never empty for errors.
    pub remedy: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        if !self.position.file.is_empty() {
            write!(line, "{}: ", self.position)?;
        }
        write!(line, "{}[{}]: ", self.severity, self.code)?;

        // A whole directory, or a text that is no object, has neither.
        if !self.object.kind.is_empty() {
            write!(line, "{}: ", self.object)?;
        }
        if !self.field.is_empty() {
            write!(line, "{}: ", self.field)?;
        }
        line.push_str(&self.message);
        if !self.remedy.is_empty() {
            write!(line, " ({})", self.remedy)?;
        }

        // Names and values come from whoever wrote the configuration.
        f.write_str(&printable(&line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_what_it_has() {
        let mut finding = Diagnostic {
            code: "MEL0405".into(),
            severity: Severity::Warning,
            object: ObjectRef::default(),
            field: String::new(),
            position: Position::default(),
            message: "the disk is full".into(),
            remedy: "free space".into(),
        };

        assert_eq!(
            finding.to_string(),
            "warning[MEL0405]: the disk is full (free space)"
        );

        finding.field = "spec.hosts".into();
        finding.object = ObjectRef::new("Gateway", "shop", "");
        finding.position = Position {
            file: "a.yaml".into(),
            line: 3,
            column: 0,
        };

        assert_eq!(
            finding.to_string(),
            "a.yaml:3: warning[MEL0405]: Gateway: spec.hosts: the disk is full (free space)"
        );
    }
}
