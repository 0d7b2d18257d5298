//! Objects that users apply: one file each in the mesh's own state, or the user's own file, if it
//! holds the object.
//!
//! The file source reads the state's directory like any other, so what is applied takes effect, and
//! survives a restart, the same way as what is written with an editor.

mod edit;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use std::{fs, io};

use meltemi_api::{Object, ObjectKey, chunks, not_found, parse, to_yaml};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::atomic;
use crate::file::{Directory, readable_files};
use edit::Located;

/// Why an object could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No file holds the object.
    #[error("{}", not_found(&.0.kind.resource(), &.0.namespace, &.0.name))]
    NotFound(ObjectKey),
    /// It stands where it cannot be changed by program.
    #[error("{key} is in {}, which has to be edited by hand: {reason}", file.display())]
    NotEditable {
        key: ObjectKey,
        /// Where it is.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// Writing failed; nothing has changed.
    #[error("{} cannot be written: {error}; nothing was changed", file.display())]
    Io {
        key: ObjectKey,
        /// Where.
        file: PathBuf,
        /// Why.
        error: io::Error,
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
    pub key: ObjectKey,
    /// What became of it.
    pub action: Action,
    /// The file that was changed.
    pub file: PathBuf,
    /// Whether that is the user's own file.
    pub is_users: bool,
}

/// Keeps applied objects. Calls are served one after the other.
#[derive(Debug)]
pub struct AppliedStore {
    directory: PathBuf,
    users: Vec<PathBuf>,
    turn: Mutex<()>,
}

impl AppliedStore {
    /// `directory` is the mesh's own, made if it is missing; `users` are the directories that users
    /// write.
    pub fn open(directory: impl Into<PathBuf>, users: Vec<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        atomic::make_private_directory(&directory)?;
        atomic::sweep(&directory);
        Ok(Self {
            directory,
            users,
            turn: Mutex::new(()),
        })
    }

    /// The directory that a file source has to read for this.
    pub fn source(&self) -> Directory {
        Directory::of_users(&self.directory)
    }

    /// Applies sound objects, one after the other; what fails keeps the others from nothing. `text`
    /// is what they were read from: what is kept are its lines, comments included.
    pub fn apply(&self, objects: &[Object], text: &str) -> Vec<Result<Outcome, ApplyError>> {
        let _turn = self.turn();
        objects
            .iter()
            .map(|object| self.apply_object(object, text))
            .collect()
    }

    /// Removes an object from the file that holds it.
    pub fn delete(&self, key: &ObjectKey) -> Result<Outcome, ApplyError> {
        let _turn = self.turn();
        let (located, is_users) = self
            .locate(key)
            .ok_or_else(|| ApplyError::NotFound(key.clone()))?;
        let rest = located.without(key)?;
        let written = if rest.trim().is_empty() {
            atomic::remove(&located.file)
        } else {
            write(&located.file, &rest)
        };

        written.map_err(|error| ApplyError::Io {
            key: key.clone(),
            file: located.file.clone(),
            error,
        })?;

        Ok(Outcome {
            key: key.clone(),
            action: Action::Deleted,
            file: located.file,
            is_users,
        })
    }

    fn apply_object(&self, object: &Object, text: &str) -> Result<Outcome, ApplyError> {
        let key = object.key();
        let document = document_text(object, text);
        let held = self.locate(&key);
        let (file, is_users) = match &held {
            Some((located, is_users)) => (located.file.clone(), *is_users),
            None => (self.directory.join(file_name(&key)), false),
        };

        let (action, content) = match &held {
            Some((located, _)) if located.says(object) => (Action::Unchanged, None),
            // The user's own file says what the user writes.
            Some((located, true)) => (
                Action::Configured,
                Some(located.with(&key, object, &document)?),
            ),
            Some((located, false)) => (
                Action::Configured,
                Some(stamped(object, &document, &located.created())),
            ),
            None => (
                Action::Created,
                Some(stamped(object, &document, &rfc3339(SystemTime::now()))),
            ),
        };

        if let Some(content) = content {
            write(&file, &content).map_err(|error| ApplyError::Io {
                key: key.clone(),
                file: file.clone(),
                error,
            })?;
        }

        Ok(Outcome {
            key,
            action,
            file,
            is_users,
        })
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

        // JSON, several documents in a chunk, and an object whose namespace was given beside the
        // text, are written anew.
        let again = parse("", lines);
        if !lines.trim_start().starts_with('{')
            && again.objects.len() == 1
            && again.objects[0] == *object
        {
            let mut lines = lines.trim_end().to_owned();
            lines.push('\n');
            return lines;
        }
    }

    to_yaml(&object.raw)
}

/// The document with the time of its object's creation, as an API server would have it: what the
/// user says about that does not count.
fn stamped(object: &Object, document: &str, created: &str) -> String {
    let mut wanted = object.clone();
    if let Some(metadata) = wanted
        .raw
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
    {
        metadata.insert("creationTimestamp".to_owned(), created.into());
    }

    // A line of its own, where metadata is written in lines.
    let metadata = document
        .find("\nmetadata:\n")
        .map(|at| at + "\nmetadata:\n".len());
    let metadata = metadata.or_else(|| {
        document
            .starts_with("metadata:\n")
            .then_some("metadata:\n".len())
    });

    if let (Some(at), None) = (metadata, &object.meta.creation) {
        let indent: String = document[at..].chars().take_while(|c| *c == ' ').collect();
        let text = format!(
            "{}{indent}creationTimestamp: \"{created}\"\n{}",
            &document[..at],
            &document[at..]
        );

        let again = parse("", &text);
        if again.objects.len() == 1 && again.objects[0] == wanted {
            return text;
        }
    }

    to_yaml(&wanted.raw)
}

/// Whole seconds, as an API server writes times.
fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    at.replace_nanosecond(0)
        .unwrap_or(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    // Through a link, so that the link stays.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    atomic::write(&target, text.as_bytes())
}

/// One name for each key, within what file systems take. A group may hold dots, as a name may: no
/// name holds a plus.
fn file_name(key: &ObjectKey) -> String {
    let group = match key.kind.group() {
        group if key.kind.is_mesh() || group.is_empty() => String::new(),
        group => format!("+{}+", group.replace('/', "_")),
    };

    let readable = format!(
        "{}{group}.{}.{}",
        key.kind.word().to_ascii_lowercase(),
        key.namespace,
        key.name
    );

    if readable.len() <= 200 && !readable.contains('/') {
        return format!("{readable}.yaml");
    }
    let start: String = readable.chars().filter(|c| *c != '/').take(150).collect();

    format!("{start}-{:016x}.yaml", fnv1a(readable.as_bytes()))
}

/// FNV-1a, 64 bits (RFC 9923): the same in every release, since it names files.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
