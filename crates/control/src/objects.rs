//! Apply, get and delete: over the store's own files, or the user's where those hold the object.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meltemi_admin_api::{
    Action, Applied, ApplyResponse, ObjectList, ObjectSelector, ObjectView, Origin,
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
    pub(crate) async fn apply(&self, text: &str, namespace: &str, dry_run: bool) -> ApplyResponse {
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

        if objects.is_empty() && diagnostics.is_empty() {
            let remedy = "give YAML or JSON with apiVersion, kind and metadata.name";
            diagnostics.push(diagnostic(
                ObjectRef::default(),
                "the text holds no object".to_owned(),
                remedy,
            ));
        }

        let is_error = |finding: &Diagnostic| finding.severity == Severity::Error;
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
            dry_run,
            objects: planned,
            diagnostics,
        };

        if !dry_run {
            self.write(sound, text, &mut response).await;
        }

        response
    }

    /// Writes sound objects, and puts what became of each into the response.
    async fn write(&self, sound: Vec<Object>, text: &str, response: &mut ApplyResponse) {
        let (store, owned, sound) = (self.applied.clone(), text.to_owned(), Arc::new(sound));
        let written = tokio::task::spawn_blocking({
            let sound = sound.clone();
            move || store.apply(&sound, &owned)
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
                    if planned.action == Action::Created {
                        // New in our state, and perhaps in the place of one that the mesh brings.
                        planned.action = before;
                    }
                    taken.insert(object.key(), object);
                }
                Err(error) => {
                    planned.action = Action::Refused;
                    response.ok = false;
                    response.diagnostics.push(apply_failed(&error));
                }
            }
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

    /// Deletes one object by kind and name.
    pub(crate) async fn delete(
        &self,
        which: &ObjectSelector,
        dry_run: bool,
    ) -> Result<ApplyResponse, Refusal> {
        let kind = kind_of(&self.worlds.borrow(), &which.kind).map_err(Refusal::Unclear)?;
        let (Some(kind), false) = (kind, which.name.is_empty()) else {
            let what = "say which object: kind and name, and ns where it is not default";
            return Err(Refusal::Unclear(what.to_owned()));
        };

        let namespace = match (kind.is_namespaced(), which.ns.as_str()) {
            (false, _) => "",
            (true, "") => "default",
            (true, named) => named,
        };

        let key = ObjectKey::new(kind, namespace, &which.name);
        let held = self.worlds.borrow().tables.get(&key).cloned();
        let mut response = ApplyResponse {
            ok: true,
            dry_run,
            objects: Vec::new(),
            diagnostics: Vec::new(),
        };

        let planned = Applied {
            action: Action::Deleted,
            ..self.described(&key, held.as_ref())
        };

        if let Some(finding) = held.as_ref().and_then(|object| self.brought(object)) {
            response.ok = false;
            response.objects.push(Applied {
                action: Action::Refused,
                ..planned
            });
            response.diagnostics.push(finding);
            return Ok(response);
        }

        if dry_run {
            return match held {
                Some(_) => Ok(ApplyResponse {
                    objects: vec![planned],
                    ..response
                }),
                None => Err(Refusal::NotFound(ApplyError::NotFound(key).to_string())),
            };
        }

        let (store, wanted) = (self.applied.clone(), key.clone());
        let deleted = tokio::task::spawn_blocking(move || store.delete(&wanted)).await;
        match deleted.map_err(|error| Refusal::Unclear(format!("deleting broke off: {error}")))? {
            Ok(outcome) => {
                // What the mesh brings may stand behind it, and is in force again.
                let is_gone = |tables: &Tables| {
                    tables.get(&key).is_none_or(|next| {
                        held.as_ref().is_some_and(|held| !Arc::ptr_eq(held, next))
                    })
                };

                self.taken_up(is_gone).await;
                response.objects.push(outcome_of(&outcome));
                let next = self.worlds.borrow().tables.get(&key).cloned();
                if let Some(next) = next.filter(|next| self.brought(next).is_some()) {
                    let message = format!(
                        "the one that the mesh brings ({}) is in force again",
                        next.source.file
                    );

                    let finding =
                        diagnostic(key.object_ref(), message, "to change it, apply another one");
                    response.diagnostics.push(Diagnostic {
                        severity: Severity::Info,
                        ..finding
                    });
                }
            }
            Err(error @ ApplyError::NotFound(_)) => {
                return Err(Refusal::NotFound(error.to_string()));
            }
            Err(error) => {
                response.ok = false;
                response.objects.push(Applied {
                    action: Action::Refused,
                    ..planned
                });
                response.diagnostics.push(apply_failed(&error));
            }
        }

        Ok(response)
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

fn apply_failed(error: &ApplyError) -> Diagnostic {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};

    let (key, file, remedy) = match error {
        ApplyError::NotFound(key) => (key, None, "name another object".to_owned()),
        ApplyError::NotEditable { key, file, .. } => {
            (key, Some(file), "change the file by hand".to_owned())
        }
        ApplyError::Io { key, file, error } => {
            let folder = file.parent().unwrap_or(file).display();
            let remedy = match error.kind() {
                StorageFull | QuotaExceeded => {
                    format!("free space on the file system of {folder}, then do it again")
                }
                _ => format!("make {folder} writable, then do it again"),
            };
            (key, Some(file), remedy)
        }
    };

    let position = Position {
        file: file
            .map(|file| file.display().to_string())
            .unwrap_or_default(),
        ..Position::default()
    };

    Diagnostic {
        position,
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
