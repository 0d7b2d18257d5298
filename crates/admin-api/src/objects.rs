//! Applying, listing and deleting configuration objects.

use meltemi_types::{Diagnostic, ObjectRef, Position};
use serde::{Deserialize, Serialize};

/// Where an object lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// In a file of the user's; applying changes it there.
    #[default]
    File,
    /// In the mesh's own state; changed by applying.
    Applied,
    /// Written by the node about what it runs.
    Runtime,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It replaces an older one.
    Configured,
    /// It was there already, the same.
    Unchanged,
    /// It is gone.
    Deleted,
    /// It was not taken; diagnostics say why.
    Refused,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Refused => "refused",
        })
    }
}

/// One object of an apply or delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Which.
    pub object: ObjectRef,
    /// What became of it.
    pub action: Action,
    /// The file that holds it; empty if there is none yet.
    #[serde(default)]
    pub file: String,
    /// Whether that is a file of the user's, not the mesh's own state.
    #[serde(default)]
    pub in_users_file: bool,
}

/// The answer to apply and delete. Sound objects are taken also where others beside them are
/// refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyResponse {
    /// Whether all objects were taken (or, on a dry run, would be).
    pub ok: bool,
    /// Nothing was changed because that was asked for.
    pub dry_run: bool,
    /// In the order of the text.
    pub objects: Vec<Applied>,
    /// Errors that kept objects out, and warnings.
    pub diagnostics: Vec<Diagnostic>,
}

/// Which objects `get` and `delete` mean. Empty fields match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectSelector {
    /// A kind as kubectl takes it: `VirtualService`, `virtualservices`, `vs`.
    pub kind: String,
    /// A namespace.
    pub ns: String,
    /// A name.
    pub name: String,
}

/// One object as it is in force.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectView {
    /// Which.
    pub object: ObjectRef,
    /// Where it lives.
    pub origin: Origin,
    /// Where it is written.
    pub position: Position,
    /// All of it.
    pub value: serde_json::Value,
    /// Findings about it.
    pub diagnostics: Vec<Diagnostic>,
}

/// The answer to `get`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectList {
    /// By kind, namespace and name.
    pub items: Vec<ObjectView>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    /// What is wrong, and what to do.
    pub error: String,
}
