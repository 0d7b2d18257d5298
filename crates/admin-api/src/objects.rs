//! Requests and answers of the endpoints that apply, list and delete configuration objects.

use meltemi_types::{Diagnostic, ObjectRef, Position};
use serde::{Deserialize, Serialize};

/// Where an object is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// In a file of the user. `apply` and `delete` refuse to change it unless they may write files.
    #[default]
    File,
    /// In the mesh's own state, by `apply`.
    Applied,
    /// In a file that the node writes about running workloads.
    Runtime,
}

/// What an apply or delete may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChangeOptions {
    /// Change nothing; answer what would happen.
    pub dry_run: bool,
    /// Edit the user's own files where they hold the object.
    pub write: bool,
}

/// The result of an apply or delete for one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The object is new.
    Created,
    /// The object replaced an older version.
    Configured,
    /// The same object existed already.
    Unchanged,
    /// The object was deleted.
    Deleted,
    /// The object has no fault of its own; no mesh was asked.
    Valid,
    /// The object was refused; the diagnostics say why.
    Refused,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Valid => "valid",
            Self::Refused => "refused",
        })
    }
}

/// One object of an apply or delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Kind, namespace and name of the object.
    pub object: ObjectRef,
    /// The result.
    pub action: Action,
    /// Path of the file that holds the object; empty if there is none yet.
    #[serde(default)]
    pub file: String,
    /// Whether the file belongs to the user and not to the mesh's own state.
    #[serde(default)]
    pub in_users_file: bool,
}

/// The answer to apply and delete. Valid objects are accepted even if others in the same request
/// are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyResponse {
    /// Whether all objects were accepted; on a dry run, whether they would be.
    pub ok: bool,
    /// Whether this was a dry run, which changes nothing.
    pub dry_run: bool,
    /// The results in the order of the request's text.
    pub objects: Vec<Applied>,
    /// Errors of refused objects, and warnings.
    pub diagnostics: Vec<Diagnostic>,
}

/// Selects the objects for `get` and `delete`. An empty field matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectSelector {
    /// A kind in any spelling of kubectl: `VirtualService`, `virtualservices`, `vs`.
    pub kind: String,
    /// Namespace of the object.
    pub ns: String,
    /// Name of the object.
    pub name: String,
}

/// One object in force.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectView {
    /// Kind, namespace and name of the object.
    pub object: ObjectRef,
    /// Where the object is stored.
    pub origin: Origin,
    /// File and line of the object.
    pub position: Position,
    /// The whole object.
    pub value: serde_json::Value,
    /// Diagnostics about the object.
    pub diagnostics: Vec<Diagnostic>,
}

/// The answer to `get`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectList {
    /// The objects, sorted by kind, namespace and name.
    pub items: Vec<ObjectView>,
}

/// The body of every answer with an error status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    /// The problem and the remedy.
    pub error: String,
}
