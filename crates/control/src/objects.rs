//! Apply, get and delete: over the store's own files, and the user's if that is allowed.

mod delete;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meltemi_admin_api::{
    Action, Applied, ApplyResponse, ChangeOptions, ObjectList, ObjectSelector, ObjectView, Origin,
};
use meltemi_api::{Kind, Object, ObjectKey};
use meltemi_model::{BuildOptions, Snapshot, Tables};
use meltemi_store::{AppliedStore, ApplyError, Outcome, World};
use meltemi_types::{Diagnostic, ObjectRef, Position, Severity};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// How long an answer waits until the store has taken up what was written, so that `get` after
/// `apply` shows it.
const TAKE_UP: Duration = Duration::from_secs(2);

pub(crate) struct Objects {
    pub(crate) applied: Arc<AppliedStore>,
    /// The folder of the mesh's state that keeps applied objects.
    pub(crate) applied_folder: PathBuf,
    /// The folders in which the node writes the objects of what it runs.
    pub(crate) runtime: Vec<PathBuf>,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) options: Arc<BuildOptions>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Why nothing was deleted.
pub(crate) enum Refusal {
    /// The request cannot be understood.
    Unclear(String),
    /// There is no such object.
    NotFound(String),
}

impl Objects {
    /// Takes the objects of a text that are sound, one after the other; each of the others is
    /// refused for itself.
    pub(crate) async fn apply(
        &self,
        text: &str,
        namespace: &str,
        options: ChangeOptions,
    ) -> ApplyResponse {
        let namespace = if namespace.is_empty() {
            "default"
        } else {
            namespace
        };

        let world = self.worlds.borrow().clone();
        let meltemi_api::Parsed {
            objects,
            refused,
            mut diagnostics,
            ..
        } = meltemi_api::parse_in("applied", text, namespace);

        let is_error = |finding: &Diagnostic| finding.severity == Severity::Error;
        if objects.is_empty() && refused.is_empty() && !diagnostics.iter().any(is_error) {
            let remedy = "give YAML or JSON with apiVersion, kind and metadata.name";
            diagnostics.push(diagnostic(
                ObjectRef::default(),
                "the text holds no object".to_owned(),
                remedy,
            ));
        }

        let mut sound = Vec::new();
        let mut planned = Vec::new();
        let mut earlier: BTreeMap<ObjectKey, &Object> = BTreeMap::new();

        for object in &objects {
            let key = object.key();
            let held = world.tables.get(&key);
            let mut findings = meltemi_api::validate(object);

            findings.extend(self.forbidden(&world, object));
            let action = if findings.iter().any(is_error) {
                Action::Refused
            } else {
                let before = earlier.insert(key.clone(), object);
                if before.is_some() {
                    findings.push(duplicate_object(object));
                }
                sound.push(object.clone());
                match before.or(held.map(|held| &**held)) {
                    None => Action::Created,
                    Some(before) if before.says_as(object) => Action::Unchanged,
                    Some(_) => Action::Configured,
                }
            };

            planned.push(Applied {
                action,
                ..self.described(&key, held)
            });

            diagnostics.extend(findings);
        }

        for key in &refused {
            planned.push(Applied {
                action: Action::Refused,
                ..self.described(key, world.tables.get(key))
            });
        }

        let ok = !diagnostics.iter().any(is_error);

        // Some of it validation has said already.
        let consequences = self.consequences(&world, &sound).into_iter();
        let news: Vec<Diagnostic> = consequences
            .filter(|finding| !diagnostics.contains(finding))
            .collect();
        diagnostics.extend(news);
        self.metrics.validated.add(sound.len() as u64);
        self.metrics
            .invalid
            .add((planned.len() - sound.len()) as u64);
        let mut response = ApplyResponse {
            ok,
            dry_run: options.dry_run,
            objects: planned,
            diagnostics,
        };

        self.write(sound, text, options, &mut response).await;

        response
    }

    /// Writes sound objects, and puts what became of each into the response.
    async fn write(
        &self,
        sound: Vec<Object>,
        text: &str,
        options: ChangeOptions,
        response: &mut ApplyResponse,
    ) {
        let (store, owned, sound) = (self.applied.clone(), text.to_owned(), Arc::new(sound));
        let written = tokio::task::spawn_blocking({
            let sound = sound.clone();
            move || store.apply(&sound, &owned, store_options(options))
        });

        let written = match written.await {
            Ok(written) => written,
            Err(error) => {
                let message = format!("applying broke off: {error}");
                response.ok = false;
                return response.diagnostics.push(diagnostic(
                    ObjectRef::default(),
                    message,
                    "apply it again",
                ));
            }
        };

        let mut taken: BTreeMap<ObjectKey, &Object> = BTreeMap::new();
        let planned = response
            .objects
            .iter_mut()
            .filter(|planned| planned.action != Action::Refused);

        for ((planned, object), outcome) in planned.zip(&*sound).zip(written) {
            match outcome {
                Ok(outcome) => {
                    let before = planned.action;
                    *planned = outcome_of(&outcome);
                    if options.dry_run || planned.action == Action::Created {
                        // New in our state, and perhaps in the place of one that the mesh brings,
                        // or that an earlier document of a dry run would create.
                        planned.action = before;
                    }
                    taken.insert(object.key(), object);
                }
                Err(error) => {
                    planned.action = Action::Refused;
                    response.ok = false;
                    response
                        .diagnostics
                        .push(apply_failed(&error, Action::Configured));
                }
            }
        }

        if options.dry_run {
            return;
        }
        self.taken_up(|tables| {
            taken
                .iter()
                .all(|(key, object)| tables.get(key).is_some_and(|held| held.says_as(object)))
        })
        .await;
    }

    /// The objects in force.
    pub(crate) fn get(&self, which: &ObjectSelector) -> Result<ObjectList, String> {
        let world = self.worlds.borrow().clone();
        let kind = kind_of(&world, &which.kind)?;
        let items = world
            .tables
            .iter()
            .filter(|object| selects(which, kind.as_ref(), object))
            .map(|object| {
                let reference = object.object_ref();
                ObjectView {
                    origin: self.origin(Path::new(&*object.source.file)),
                    position: object.source.position(""),
                    value: shown(object),
                    diagnostics: world
                        .diagnostics
                        .iter()
                        .filter(|d| d.object == reference)
                        .cloned()
                        .collect(),
                    object: reference,
                }
            });

        Ok(ObjectList {
            items: items.collect(),
        })
    }

    fn origin(&self, file: &Path) -> Origin {
        if file.starts_with(&self.applied_folder) {
            Origin::Applied
        } else if self.runtime.iter().any(|folder| file.starts_with(folder)) {
            Origin::Runtime
        } else {
            Origin::File
        }
    }

    fn described(&self, key: &ObjectKey, held: Option<&Arc<Object>>) -> Applied {
        let file = held
            .map(|object| object.source.file.to_string())
            .unwrap_or_default();
        let in_users_file = held.is_some() && self.origin(Path::new(&file)) == Origin::File;
        Applied {
            object: key.object_ref(),
            action: Action::Unchanged,
            file,
            in_users_file,
        }
    }

    /// What keeps a well-formed object from being applied: a Pod that the node runs is as it is.
    /// What else the mesh brings is there to be replaced, since applied objects come first.
    fn forbidden(&self, world: &World, object: &Object) -> Option<Diagnostic> {
        world
            .tables
            .get(&object.key())
            .filter(|held| held.kind == Kind::Pod)
            .and_then(|held| self.brought(held))
    }

    /// The refusal to delete an object that the mesh itself brings; `None` for the user's objects.
    fn brought(&self, object: &Object) -> Option<Diagnostic> {
        let file = &object.source.file;
        (self.origin(Path::new(&**file)) == Origin::Runtime).then(|| {
            let (message, remedy) = match object.kind {
                Kind::Pod => (
                    "the node writes this object about what it runs",
                    "change the workload instead",
                ),
                _ => (
                    "this object comes with the mesh",
                    "to change it, apply another one of this name",
                ),
            };

            diagnostic(object.object_ref(), format!("{message} ({file})"), remedy)
        })
    }

    /// What the mesh as a whole would have to say about these objects: references to nothing,
    /// conflicts.
    fn consequences(&self, world: &World, sound: &[Object]) -> Vec<Diagnostic> {
        let mut tables = world.tables.clone();
        for object in sound {
            tables.apply(Arc::new(object.clone()));
        }
        let concerned: BTreeSet<ObjectRef> = sound.iter().map(Object::object_ref).collect();
        let build = Snapshot::build(Some(&world.snapshot), &tables, &self.options);

        build
            .diagnostics
            .into_iter()
            .filter(|d| concerned.contains(&d.object))
            .collect()
    }

    async fn taken_up(&self, is_there: impl Fn(&Tables) -> bool) {
        let mut worlds = self.worlds.clone();
        let seen =
            tokio::time::timeout(TAKE_UP, worlds.wait_for(|world| is_there(&world.tables))).await;
        if seen.is_err() {
            tracing::warn!("the store has not taken up what was applied yet");
        }
    }
}

fn outcome_of(outcome: &Outcome) -> Applied {
    use meltemi_store::Action as Done;

    let action = match outcome.action {
        Done::Created => Action::Created,
        Done::Configured => Action::Configured,
        Done::Unchanged => Action::Unchanged,
        Done::Deleted => Action::Deleted,
    };

    let file = outcome.file.display().to_string();

    Applied {
        object: outcome.key.object_ref(),
        action,
        file,
        in_users_file: outcome.is_users,
    }
}

fn store_options(options: ChangeOptions) -> meltemi_store::ChangeOptions {
    let ChangeOptions { dry_run, write } = options;
    meltemi_store::ChangeOptions { dry_run, write }
}

/// The finding about an object that could not be configured or deleted.
fn apply_failed(error: &ApplyError, wanted: Action) -> Diagnostic {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};

    let (verb, edit) = match wanted {
        Action::Deleted => ("delete", "remove it"),
        _ => ("apply", "change it"),
    };
    let (key, position, remedy) = match error {
        ApplyError::NotFound(key) => (key, None, "name another object".to_owned()),
        ApplyError::InUsersFile { key, file, line } => (
            key,
            Some((file, *line)),
            format!("{edit} there, or {verb} with --write, which edits that document alone"),
        ),
        ApplyError::NotEditable {
            key, file, line, ..
        } => (key, Some((file, *line)), format!("{edit} there")),
        ApplyError::Io { key, file, error } => {
            let folder = file.parent().unwrap_or(file).display();
            let remedy = match error.kind() {
                StorageFull | QuotaExceeded => {
                    format!("free space on the file system of {folder}, then do it again")
                }
                _ => format!("make {folder} writable, then do it again"),
            };
            (key, None, remedy)
        }
    };

    let position = position.map(|(file, line)| Position {
        file: file.display().to_string(),
        line,
        ..Position::default()
    });
    Diagnostic {
        position: position.unwrap_or_default(),
        ..diagnostic(key.object_ref(), error.to_string(), &remedy)
    }
}

/// The same object twice in one text is applied twice, as with kubectl, and most likely a slip.
fn duplicate_object(object: &Object) -> Diagnostic {
    let message = "the object stands twice in this text; this one counts".to_owned();
    let position = object.source.position("");
    let finding = diagnostic(object.object_ref(), message, "keep one of them");
    Diagnostic {
        position,
        severity: Severity::Warning,
        ..finding
    }
}

fn diagnostic(object: ObjectRef, message: String, remedy: &str) -> Diagnostic {
    Diagnostic {
        code: "MEL0601".to_owned(),
        severity: Severity::Error,
        object,
        field: String::new(),
        position: Position::default(),
        message,
        remedy: remedy.to_owned(),
    }
}

fn kind_of(world: &World, word: &str) -> Result<Option<Kind>, String> {
    if word.is_empty() {
        return Ok(None);
    }

    // Objects of kinds that the mesh does not read are kept, and go by their name as well.
    let held = || {
        world
            .tables
            .iter()
            .map(|object| &object.kind)
            .find(|kind| kind.is_called(word))
            .cloned()
    };

    Kind::from_word(word)
        .or_else(held)
        .map(Some)
        .ok_or_else(|| {
            let meant = Kind::meant_by(word)
                .map_or_else(String::new, |name| format!(" (did you mean {name}?)"));
            format!("the mesh knows no kind {word:?}{meant}")
        })
}

fn selects(which: &ObjectSelector, kind: Option<&Kind>, object: &Object) -> bool {
    kind.is_none_or(|kind| object.kind == *kind)
        && (which.ns.is_empty()
            || object.meta.namespace.is_empty()
            || object.meta.namespace == which.ns)
        && (which.name.is_empty() || object.meta.name == which.name)
}

/// A Secret's content stays in its file.
fn shown(object: &Object) -> serde_json::Value {
    let mut value = object.raw.clone();
    if object.kind == Kind::Secret {
        for field in ["data", "stringData"] {
            if let Some(entries) = value
                .get_mut(field)
                .and_then(serde_json::Value::as_object_mut)
            {
                entries.values_mut().for_each(|entry| *entry = "***".into());
            }
        }
    }

    value
}
