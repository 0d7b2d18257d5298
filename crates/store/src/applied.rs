//! Objects that users apply: one file each in the mesh's own state, or the user's own file, if it holds the object.
//!
//! The file source reads the state's directory like any other, so what is applied takes effect, and survives a restart, the
//! same way as what is written with an editor.

mod edit;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use meltemi_api::{Object, ObjectKey, chunks, parse, parse_in, to_yaml, validate};
use meltemi_types::{Diagnostic, Severity};

use crate::atomic;
use crate::file::{Directory, readable_files};
use edit::Located;

/// Why an object could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nobody holds it.
    #[error("{0} is not there")]
    NotFound(ObjectKey),
    /// It stands where it cannot be changed by program.
    #[error("{key} is in {}, which has to be edited by hand: {reason}", file.display())]
    NotEditable {
        /// The object.
        key: ObjectKey,
        /// Where it is.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// Reading or writing failed; nothing has changed.
    #[error("{}: {error}; nothing was changed", file.display())]
    Io {
        /// Where.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It was not there.
    Created,
    /// It was there, and is different now.
    Configured,
    /// It said the same already.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// What became of an object, and where it stands.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The object.
    pub key: ObjectKey,
    /// What became of it.
    pub action: Action,
    /// The file that was changed.
    pub file: PathBuf,
    /// Whether that is the user's own file.
    pub is_users: bool,
}

/// What became of a text of objects.
#[derive(Debug, Default)]
pub struct ApplyReport {
    /// Objects that are in force as written, in order.
    pub outcomes: Vec<Outcome>,
    /// Objects that could not be written, and why.
    pub failures: Vec<ApplyError>,
    /// What was found in the text; an object with an error was not applied.
    pub diagnostics: Vec<Diagnostic>,
}

impl ApplyReport {
    /// Whether everything is in force.
    pub fn is_success(&self) -> bool {
        self.failures.is_empty() && self.diagnostics.iter().all(|finding| finding.severity != Severity::Error)
    }
}

/// Keeps applied objects. Calls are served one after the other.
#[derive(Debug)]
pub struct AppliedStore {
    directory: PathBuf,
    users: Vec<PathBuf>,
    turn: Mutex<()>,
}

impl AppliedStore {
    /// `directory` is the mesh's own, made if it is missing; `users` are the directories that users write.
    pub fn open(directory: impl Into<PathBuf>, users: Vec<PathBuf>) -> std::io::Result<Self> {
        let directory = directory.into();
        atomic::make_private_directory(&directory)?;
        Ok(Self { directory, users, turn: Mutex::new(()) })
    }

    /// The directory that a file source has to read for this.
    pub fn source(&self) -> Directory {
        Directory::of_users(&self.directory)
    }

    /// Applies every object of a text; those that name no namespace belong to `namespace`. `file` names the text in findings.
    /// Objects with errors are left out, the others are applied.
    pub fn apply(&self, file: &str, text: &str, namespace: &str) -> ApplyReport {
        let _turn = self.turn();
        let parsed = parse_in(file, text, namespace);
        let mut report = ApplyReport { diagnostics: parsed.diagnostics, ..ApplyReport::default() };
        for object in &parsed.objects {
            let findings = validate(object);
            let invalid = findings.iter().any(|finding| finding.severity == Severity::Error);
            report.diagnostics.extend(findings);
            if !invalid {
                match self.apply_object(object, text) {
                    Ok(outcome) => report.outcomes.push(outcome),
                    Err(error) => report.failures.push(error),
                }
            }
        }
        report
    }

    /// Removes an object from the file that holds it.
    pub fn delete(&self, key: &ObjectKey) -> Result<Outcome, ApplyError> {
        let _turn = self.turn();
        let (located, is_users) = self.locate(key).ok_or_else(|| ApplyError::NotFound(key.clone()))?;
        let rest = located.without(key)?;
        if rest.trim().is_empty() {
            atomic::remove(&located.file).map_err(|error| ApplyError::Io { file: located.file.clone(), error })?;
        } else {
            write(&located.file, &rest)?;
        }
        Ok(Outcome { key: key.clone(), action: Action::Deleted, file: located.file, is_users })
    }

    /// The text of an object as it is written, and its file.
    pub fn written(&self, key: &ObjectKey) -> Option<(PathBuf, String)> {
        let (located, _) = self.locate(key)?;
        let text = located.document().to_owned();
        Some((located.file, text))
    }

    fn apply_object(&self, object: &Object, text: &str) -> Result<Outcome, ApplyError> {
        let key = object.key();
        let document = document_text(object, text);
        if let Some((located, is_users)) = self.locate(&key) {
            let action = if located.says(object) { Action::Unchanged } else { Action::Configured };
            if action == Action::Configured {
                write(&located.file, &located.with(&key, object, &document)?)?;
            }
            return Ok(Outcome { key, action, file: located.file, is_users });
        }
        let file = self.directory.join(file_name(&key));
        write(&file, &document)?;
        Ok(Outcome { key, action: Action::Created, file, is_users: false })
    }

    /// Where an object is: users' directories first, as for the file source.
    fn locate(&self, key: &ObjectKey) -> Option<(Located, bool)> {
        for directory in &self.users {
            for file in readable_files(directory) {
                if let Some(located) = Located::find(&file, key) {
                    return Some((located, true));
                }
            }
        }
        let own = self.directory.join(file_name(key));
        Located::find(&own, key).map(|located| (located, false))
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // There is nothing behind the lock that a panic could have left half done.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The object's own lines of the text, comments included, where it has such; else new YAML.
fn document_text(object: &Object, text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if object.source.item.is_none()
        && let Some(chunk) = chunks(text).get(object.source.document)
    {
        let lines = edit::body(&text[chunk.start..chunk.end]);
        // JSON, several documents in a chunk, and an object whose namespace was given beside the text, are written anew.
        let again = parse("", lines);
        if !lines.trim_start().starts_with('{') && again.objects.len() == 1 && again.objects[0] == *object {
            let mut lines = lines.trim_end().to_owned();
            lines.push('\n');
            return lines;
        }
    }
    to_yaml(&object.raw)
}

fn write(file: &Path, text: &str) -> Result<(), ApplyError> {
    // Through a link, so that the link stays.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    atomic::write(&target, text.as_bytes()).map_err(|error| ApplyError::Io { file: file.to_owned(), error })
}

/// One name for each key, within what file systems take.
fn file_name(key: &ObjectKey) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let group = if key.kind.is_mesh() || key.kind.group().is_empty() {
        String::new()
    } else {
        format!(".{}", key.kind.group().replace('/', "_"))
    };
    let readable = format!("{}{group}.{}.{}", key.kind.word().to_ascii_lowercase(), key.namespace, key.name);
    if readable.len() <= 200 && !readable.contains('/') {
        return format!("{readable}.yaml");
    }
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let start: String = readable.chars().filter(|c| *c != '/').take(150).collect();
    format!("{start}-{:016x}.yaml", hasher.finish())
}
