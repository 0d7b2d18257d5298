//! The last good version of every object, on disk: one state file beside each source file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meltemi_api::{Object, object_from_value};
use meltemi_types::{Diagnostic, ObjectRef, Position, Severity};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::atomic;

/// State that waits to be written, and what could not be.
#[derive(Debug)]
pub(crate) struct LastGood {
    directory: Option<PathBuf>,
    /// By source file: the bytes to write, or `None` to remove.
    pending: BTreeMap<PathBuf, Option<Vec<u8>>>,
    /// State files whose source file has not been looked for yet.
    orphans: BTreeSet<PathBuf>,
    findings: Vec<Diagnostic>,
}

impl LastGood {
    pub fn open(directory: Option<PathBuf>) -> Self {
        let mut orphans = BTreeSet::new();
        if let Some(directory) = &directory {
            atomic::sweep(directory);
        }
        if let Some(entries) = directory
            .as_ref()
            .and_then(|directory| fs::read_dir(directory).ok())
        {
            orphans.extend(
                entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| path.extension().is_some_and(|ext| ext == "json")),
            );
        }

        Self {
            directory,
            pending: BTreeMap::new(),
            orphans,
            findings: Vec::new(),
        }
    }

    /// The valid objects of a source file when the state was last written. Damaged state counts as
    /// none.
    pub fn load(&mut self, file: &Path) -> Vec<Arc<Object>> {
        let Some(path) = self.state_file(file) else {
            return Vec::new();
        };
        self.orphans.remove(&path);
        let Ok(bytes) = fs::read(&path) else {
            return Vec::new();
        };
        let Ok(Value::Object(mut state)) = serde_json::from_slice(&bytes) else {
            warn!(path = %path.display(), "state file is damaged and not used");
            return Vec::new();
        };

        // Two files whose names hash alike would share a state file.
        if state.get("file").and_then(Value::as_str) != Some(&file.to_string_lossy()) {
            return Vec::new();
        }
        let Some(Value::Array(objects)) = state.remove("objects") else {
            return Vec::new();
        };
        let name: Arc<str> = Arc::from(file.to_string_lossy());
        let objects = objects
            .into_iter()
            .flat_map(|value| object_from_value(value).objects);

        objects
            .map(|mut object| {
                object.source.file = name.clone();
                Arc::new(object)
            })
            .collect()
    }

    /// Notes the valid objects of a source file; the state is written later.
    pub fn note<'a>(&mut self, file: &Path, objects: impl Iterator<Item = &'a Arc<Object>>) {
        if self.directory.is_none() {
            return;
        }
        let objects: Vec<&Value> = objects.map(|object| &object.raw).collect();
        let state = (!objects.is_empty()).then(|| {
            json!({"file": file.to_string_lossy(), "objects": objects})
                .to_string()
                .into_bytes()
        });

        self.pending.insert(file.to_owned(), state);
    }

    /// What could not be written at the last attempt.
    pub fn findings(&self) -> &[Diagnostic] {
        &self.findings
    }

    /// Whether something waits to be written.
    pub fn has_work(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes what waits. What cannot be written goes on waiting.
    pub fn write(&mut self) {
        let Some(directory) = self.directory.clone() else {
            return;
        };
        let before = std::mem::take(&mut self.findings);
        for orphan in std::mem::take(&mut self.orphans) {
            if is_orphan(&orphan) {
                let _ = atomic::remove(&orphan);
            }
        }

        if self.pending.is_empty() {
            return;
        }
        let mut failed = BTreeMap::new();
        let mut first_error = atomic::make_private_directory(&directory).err();
        let mut fails = |file, state, error| {
            first_error.get_or_insert(error);
            failed.insert(file, state);
        };

        let (mut sources, mut staged) = (Vec::new(), Vec::new());
        for (file, state) in std::mem::take(&mut self.pending) {
            let path = self.state_file(&file).unwrap_or_default();
            let Some(bytes) = &state else {
                if let Err(error) = atomic::remove(&path) {
                    fails(file, state, error);
                }
                continue;
            };

            if fs::read(&path).is_ok_and(|held| held == *bytes) {
                continue;
            }
            match atomic::stage(&path, bytes) {
                Ok(new) => {
                    sources.push((file, state));
                    staged.push(new);
                }
                Err(error) => fails(file, state, error),
            }
        }

        for ((file, state), result) in sources.into_iter().zip(atomic::commit(staged)) {
            if let Err(error) = result {
                fails(file, state, error);
            }
        }

        if let Some(error) = first_error.filter(|_| !failed.is_empty()) {
            let finding = Diagnostic {
                code: "MEL0405".to_owned(),
                severity: Severity::Warning,
                object: ObjectRef::default(),
                field: String::new(),
                position: Position {
                    file: directory.display().to_string(),
                    ..Position::default()
                },
                message: format!(
                    "the last good versions of {} files cannot be kept for a restart: {error}",
                    failed.len()
                ),
                remedy: "free space on the disk, or make the directory writable; it is tried again"
                    .to_owned(),
            };

            if before.first() != Some(&finding) {
                warn!(%error, files = failed.len(), "last good versions cannot be written");
            }
            self.findings.push(finding);
        } else if !before.is_empty() {
            info!("last good versions can be written again");
        }

        self.pending = failed;
    }

    fn state_file(&self, file: &Path) -> Option<PathBuf> {
        // Fixed keys: the same name gives the same hash in every run.
        let mut hasher = DefaultHasher::new();
        file.hash(&mut hasher);
        Some(
            self.directory
                .as_ref()?
                .join(format!("{:016x}.json", hasher.finish())),
        )
    }
}

/// Whether the source file of a state file went away while nobody looked. While its directory is
/// missing (not mounted yet, perhaps), nobody knows.
fn is_orphan(state: &Path) -> bool {
    let Ok(bytes) = fs::read(state) else {
        return false;
    };
    let Ok(state) = serde_json::from_slice::<Value>(&bytes) else {
        return true;
    };
    let Some(file) = state.get("file").and_then(Value::as_str).map(Path::new) else {
        return true;
    };

    !file.exists() && file.parent().is_some_and(Path::is_dir)
}
