//! Objects that users apply: one file each in the mesh's own state. A file of the user that holds
//! the object is left alone unless the user allows the edit.
//!
//! The file source reads the state's directory like any other, so what is applied takes effect, and
//! survives a restart, the same way as what is written with an editor.

mod comments;
mod edit;
mod own;
mod split;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use meltemi_api::{Object, ObjectKey, not_found, parse};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::atomic::{self, Staged};
use crate::file::{Directory, readable_files};
use crate::turn::Turn;
use edit::Located;
use own::{Documents, file_name, stamped};
use split::SplitFile;

/// Why an object could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No file holds the object.
    #[error("{}", not_found(&.0.kind.resource(), &.0.namespace, &.0.name))]
    NotFound(ObjectKey),
    /// A file of the user holds the object, and [`ChangeOptions::write`] is not set.
    #[error("this object stands here, and files count before what is applied; nothing was changed")]
    InUsersFile {
        key: ObjectKey,
        /// The user's file, and the line of the object's name in it.
        file: PathBuf,
        line: u32,
    },
    /// The document cannot be edited by program.
    #[error("{reason}; nothing was changed")]
    NotEditable {
        key: ObjectKey,
        /// The user's file, and the line of the object's name in it.
        file: PathBuf,
        line: u32,
        reason: &'static str,
    },
    /// Writing failed; nothing has changed.
    #[error("{} cannot be written: {error}; nothing was changed", file.display())]
    Io {
        key: ObjectKey,
        file: PathBuf,
        error: io::Error,
    },
}

/// What a call may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChangeOptions {
    /// Change nothing; only say what would become of each object.
    pub dry_run: bool,
    /// Edit the user's own files where they hold the object.
    pub write: bool,
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
    turn: Turn,
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
            turn: Turn::default(),
        })
    }

    /// Held while a call writes. A source that takes it before it reads sees all files of a call or
    /// none.
    pub fn turn(&self) -> Turn {
        self.turn.clone()
    }

    /// The directory that a file source has to read for this.
    pub fn source(&self) -> Directory {
        Directory::of_users(&self.directory)
    }

    /// Applies sound objects, one after the other; what fails keeps the others from nothing. `text`
    /// is what they were read from: what is kept are its lines, comments included.
    pub fn apply(
        &self,
        objects: &[Object],
        text: &str,
        options: ChangeOptions,
    ) -> Vec<Result<Outcome, ApplyError>> {
        let _turn = self.turn.take();
        let mut users = UsersFiles::read(&self.users);
        let documents = Documents::of(text);
        let mut staged = Vec::new();
        let mut outcomes = Vec::new();

        // Nothing is replaced before all is written, so that many objects cost one flush.
        for object in objects {
            let planned = self.apply_object(object, &documents, &mut users, options);
            let outcome = planned.and_then(|(outcome, content)| {
                if let Some(content) = content
                    && !options.dry_run
                {
                    let new = stage(&outcome.file, &content)
                        .map_err(|error| failed(&outcome.key, &outcome.file, error))?;
                    staged.push((outcomes.len(), new));
                }
                Ok(outcome)
            });
            outcomes.push(outcome);
        }

        let (places, staged): (Vec<usize>, Vec<_>) = staged.into_iter().unzip();
        for (place, result) in places.into_iter().zip(atomic::commit(staged)) {
            if let (Ok(outcome), Err(error)) = (&outcomes[place], result) {
                outcomes[place] = Err(failed(&outcome.key, &outcome.file, error));
            }
        }

        outcomes
    }

    /// Removes an object: the applied one, and with [`ChangeOptions::write`] also the document of
    /// every file of the user that holds it, since the next one would come into force. There is
    /// one outcome for each file.
    ///
    /// # Errors
    /// [`ApplyError::InUsersFile`] leaves the applied object alone, too.
    pub fn delete(
        &self,
        key: &ObjectKey,
        options: ChangeOptions,
    ) -> Result<Vec<Outcome>, ApplyError> {
        let _turn = self.turn.take();
        let mut users = UsersFiles::read(&self.users);
        let mut outcomes = Vec::new();

        while let Some(located) = users.find(key) {
            if !options.write {
                return Err(located.in_users_file(key));
            }

            let rest = located.without(key)?;
            let file = located.file().to_owned();
            if !options.dry_run {
                write(&file, &rest).map_err(|error| failed(key, &file, error))?;
            }
            users.replace(&file, rest);
            outcomes.push(Outcome {
                key: key.clone(),
                action: Action::Deleted,
                file,
                is_users: true,
            });
        }

        match self.delete_applied(key, options) {
            Err(ApplyError::NotFound(_)) if !outcomes.is_empty() => {}
            applied => outcomes.push(applied?),
        }
        Ok(outcomes)
    }

    /// Removes the applied objects that are wanted, whatever the user's files hold. There is one
    /// answer for each.
    pub fn delete_all(
        &self,
        is_wanted: impl Fn(&ObjectKey) -> bool,
        options: ChangeOptions,
    ) -> Vec<Result<Outcome, ApplyError>> {
        let _turn = self.turn.take();
        let keys = self.keys().into_iter().filter(is_wanted);
        keys.map(|key| self.delete_applied(&key, options)).collect()
    }

    /// The keys of all applied objects, sound or not.
    fn keys(&self) -> BTreeSet<ObjectKey> {
        let texts = readable_files(&self.directory)
            .into_iter()
            .filter_map(|file| fs::read_to_string(file).ok());
        texts
            .flat_map(|text| {
                let parsed = parse("", &text);
                let sound = parsed.objects.iter().map(Object::key);
                sound.chain(parsed.refused).collect::<Vec<_>>()
            })
            .collect()
    }

    fn delete_applied(
        &self,
        key: &ObjectKey,
        options: ChangeOptions,
    ) -> Result<Outcome, ApplyError> {
        let file = self.directory.join(file_name(key));
        if !file.exists() {
            return Err(ApplyError::NotFound(key.clone()));
        }

        if !options.dry_run {
            atomic::remove(&file).map_err(|error| failed(key, &file, error))?;
        }
        Ok(Outcome {
            key: key.clone(),
            action: Action::Deleted,
            file,
            is_users: false,
        })
    }

    /// What becomes of an object, and the new content of its file if that changes.
    fn apply_object(
        &self,
        object: &Object,
        documents: &Documents<'_>,
        users: &mut UsersFiles,
        options: ChangeOptions,
    ) -> Result<(Outcome, Option<String>), ApplyError> {
        let key = object.key();
        if let Some(located) = users.find(&key) {
            return apply_to_users_file(object, documents, &located, users, options);
        }

        let file = self.directory.join(file_name(&key));
        let held = SplitFile::read(&file).and_then(|file| file.find(&key));
        let document = documents.text_of(object);
        let (action, content) = match &held {
            Some(located) if located.says(object) => (Action::Unchanged, None),
            Some(located) => (
                Action::Configured,
                Some(stamped(object, &document, &located.created())),
            ),
            None => (
                Action::Created,
                Some(stamped(object, &document, &rfc3339(SystemTime::now()))),
            ),
        };

        let outcome = Outcome {
            key,
            action,
            file,
            is_users: false,
        };
        Ok((outcome, content))
    }
}

/// What becomes of an object that a file of the user holds, and the new content of that file if it
/// changes.
fn apply_to_users_file(
    object: &Object,
    documents: &Documents<'_>,
    located: &Located,
    users: &mut UsersFiles,
    options: ChangeOptions,
) -> Result<(Outcome, Option<String>), ApplyError> {
    let key = object.key();
    let file = located.file().to_owned();
    let outcome = |action| Outcome {
        key: key.clone(),
        action,
        file: file.clone(),
        is_users: true,
    };
    if located.says(object) {
        return Ok((outcome(Action::Unchanged), None));
    }
    if !options.write {
        return Err(located.in_users_file(&key));
    }

    let content = located.with(&key, object, &documents.text_of(object))?;
    users.replace(&file, content.clone());
    Ok((outcome(Action::Configured), Some(content)))
}

/// The files of the user's directories in their order of precedence, read once for all objects of
/// a call.
struct UsersFiles(Vec<SplitFile>);

impl UsersFiles {
    fn read(directories: &[PathBuf]) -> Self {
        let files = directories
            .iter()
            .flat_map(|directory| readable_files(directory));
        Self(files.filter_map(|file| SplitFile::read(&file)).collect())
    }

    /// The object's first place.
    fn find(&self, key: &ObjectKey) -> Option<Located> {
        self.0.iter().find_map(|file| file.find(key))
    }

    /// Takes in the new text of a file.
    fn replace(&mut self, path: &Path, text: String) {
        if let Some(held) = self.0.iter_mut().find(|file| file.path() == path) {
            *held = SplitFile::of(path.to_owned(), text);
        }
    }
}

fn failed(key: &ObjectKey, file: &Path, error: io::Error) -> ApplyError {
    ApplyError::Io {
        key: key.clone(),
        file: file.to_owned(),
        error,
    }
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    atomic::write(&target_of(file), text.as_bytes())
}

fn stage(file: &Path, text: &str) -> io::Result<Staged> {
    atomic::stage(&target_of(file), text.as_bytes())
}

/// The file behind a link, so that the link stays.
fn target_of(file: &Path) -> PathBuf {
    fs::canonicalize(file).unwrap_or_else(|_| file.to_owned())
}

/// Whole seconds, as an API server writes times.
fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    at.replace_nanosecond(0)
        .unwrap_or(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}
