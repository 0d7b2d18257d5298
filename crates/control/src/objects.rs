//! Apply, get and delete: over the store's own files, or the user's where those hold the object.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meltemi_admin_api::{Action, Applied, ApplyResponse, ObjectList, ObjectSelector, ObjectView, Origin};
use meltemi_api::{Kind, Object, ObjectKey};
use meltemi_model::{BuildOptions, Snapshot, Tables};
use meltemi_store::{AppliedStore, ApplyError, Outcome, World};
use meltemi_types::{Diagnostic, ObjectRef, Position, Severity};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// How long an answer waits until the store has taken up what was written, so that `get` after `apply` shows it.
const TAKE_UP: Duration = Duration::from_secs(2);

pub(crate) struct Objects {
    pub(crate) applied: Arc<AppliedStore>,
    /// Where the mesh's own state keeps what was applied.
    pub(crate) applied_folder: PathBuf,
    /// Where the node writes what it runs.
    pub(crate) runtime: Vec<PathBuf>,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) options: Arc<BuildOptions>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Objects {
    /// Takes the objects of a text that are sound. A text with an unreadable part or an object twice is refused whole.
    pub(crate) async fn apply(&self, text: &str, namespace: &str, dry_run: bool) -> ApplyResponse {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let world = self.worlds.borrow().clone();
        let parsed = meltemi_api::parse_in("applied", text, namespace);
        let mut diagnostics = parsed.diagnostics;
        diagnostics.extend(parsed.objects.iter().flat_map(meltemi_api::validate));
        let mut forbidden: Vec<Diagnostic> = doubles(&parsed.objects);
        forbidden.extend(parsed.objects.iter().filter_map(|object| self.forbidden(&world, object)));
        if parsed.objects.is_empty() && diagnostics.is_empty() {
            let remedy = "give YAML or JSON with apiVersion, kind and metadata.name";
            forbidden.push(about(ObjectRef::default(), "the text holds no object".to_owned(), remedy));
        }
        let is_refused = !forbidden.is_empty() || parsed.unreadable > 0;
        diagnostics.extend(forbidden);
        let errors: BTreeSet<ObjectRef> = diagnostics
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(|finding| finding.object.clone())
            .collect();
        diagnostics.extend(self.consequences(&world, &parsed.objects, &errors));
        let is_sound = |object: &Object| !is_refused && !errors.contains(&object.object_ref());
        self.metrics.validated.add(parsed.objects.iter().filter(|object| is_sound(object)).count() as u64);
        self.metrics.invalid.add(errors.len() as u64);
        let planned = parsed.objects.iter().map(|object| Applied {
            action: match world.tables.get(&object.key()) {
                _ if !is_sound(object) => Action::Refused,
                None => Action::Created,
                Some(held) if **held == *object => Action::Unchanged,
                Some(_) => Action::Configured,
            },
            ..self.described(&object.key(), world.tables.get(&object.key()))
        });
        let mut response =
            ApplyResponse { ok: !is_refused && errors.is_empty(), dry_run, objects: planned.collect(), diagnostics };
        if is_refused || dry_run {
            return response;
        }
        let (store, owned, namespace) = (self.applied.clone(), text.to_owned(), namespace.to_owned());
        let written = tokio::task::spawn_blocking(move || store.apply("applied", &owned, &namespace)).await;
        let report = match written {
            Ok(report) => report,
            Err(error) => {
                response.ok = false;
                response.diagnostics.push(about(
                    ObjectRef::default(),
                    format!("applying broke off: {error}"),
                    "apply it again",
                ));
                return response;
            }
        };
        for outcome in &report.outcomes {
            let reference = outcome.key.object_ref();
            if let Some(planned) = response.objects.iter_mut().find(|planned| planned.object == reference) {
                *planned = told(outcome);
            }
        }
        for failure in &report.failures {
            response.ok = false;
            let finding = failed(failure);
            if let Some(planned) = response.objects.iter_mut().find(|planned| planned.object == finding.object) {
                planned.action = Action::Refused;
            }
            response.diagnostics.push(finding);
        }
        let taken: Vec<&Object> =
            parsed.objects.iter().filter(|o| report.outcomes.iter().any(|outcome| outcome.key == o.key())).collect();
        self.taken_up(|tables| {
            taken.iter().all(|object| tables.get(&object.key()).is_some_and(|held| **held == **object))
        })
        .await;
        response
    }

    /// The objects in force.
    pub(crate) fn get(&self, which: &ObjectSelector) -> Result<ObjectList, String> {
        let kind = kind_of(&which.kind)?;
        let world = self.worlds.borrow().clone();
        let items = world.tables.iter().filter(|object| selects(which, kind.as_ref(), object)).map(|object| {
            let reference = object.object_ref();
            ObjectView {
                origin: self.origin(Path::new(&*object.source.file)),
                position: object.source.position(""),
                value: shown(object),
                diagnostics: world.diagnostics.iter().filter(|d| d.object == reference).cloned().collect(),
                object: reference,
            }
        });
        Ok(ObjectList { items: items.collect() })
    }

    /// Deletes one object by kind and name.
    pub(crate) async fn delete(&self, which: &ObjectSelector, dry_run: bool) -> Result<ApplyResponse, String> {
        let (Some(kind), false) = (kind_of(&which.kind)?, which.name.is_empty()) else {
            return Err("say which object: kind and name, and ns where it is not default".to_owned());
        };
        let namespace = match (kind.is_namespaced(), which.ns.as_str()) {
            (false, _) => "",
            (true, "") => "default",
            (true, named) => named,
        };
        let key = ObjectKey::new(kind, namespace, &which.name);
        let held = self.worlds.borrow().tables.get(&key).cloned();
        let mut response = ApplyResponse { ok: true, dry_run, objects: Vec::new(), diagnostics: Vec::new() };
        let planned = Applied { action: Action::Deleted, ..self.described(&key, held.as_ref()) };
        if let Some(finding) = held.as_ref().and_then(|object| self.runs(object)) {
            response.ok = false;
            response.objects.push(Applied { action: Action::Refused, ..planned });
            response.diagnostics.push(finding);
            return Ok(response);
        }
        if dry_run {
            return match held {
                Some(_) => Ok(ApplyResponse { objects: vec![planned], ..response }),
                None => Err(ApplyError::NotFound(key).to_string()),
            };
        }
        let (store, wanted) = (self.applied.clone(), key.clone());
        match tokio::task::spawn_blocking(move || store.delete(&wanted)).await.map_err(|error| error.to_string())? {
            Ok(outcome) => {
                response.objects.push(told(&outcome));
                self.taken_up(|tables| tables.get(&key).is_none()).await;
            }
            Err(error @ ApplyError::NotFound(_)) => return Err(error.to_string()),
            Err(error) => {
                response.ok = false;
                response.objects.push(Applied { action: Action::Refused, ..planned });
                response.diagnostics.push(failed(&error));
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
        let file = held.map(|object| object.source.file.to_string()).unwrap_or_default();
        let in_users_file = held.is_some() && self.origin(Path::new(&file)) == Origin::File;
        Applied { object: key.object_ref(), action: Action::Unchanged, file, in_users_file }
    }

    /// What keeps a well-formed object from being applied.
    fn forbidden(&self, world: &World, object: &Object) -> Option<Diagnostic> {
        if matches!(object.kind, Kind::Other(_)) {
            let message =
                format!("kind {:?} of {:?} has no effect in this mesh", object.kind.word(), object.api_version);
            return Some(about(object.object_ref(), message, "apply kinds that the mesh reads; leave this object out"));
        }
        // Mesh configuration that comes with the program (the demo's) is there to be replaced: applied objects come first.
        world.tables.get(&object.key()).filter(|held| !held.kind.is_mesh()).and_then(|held| self.runs(held))
    }

    /// What the node writes about what it runs is not for users to change.
    fn runs(&self, object: &Object) -> Option<Diagnostic> {
        let file = &object.source.file;
        (self.origin(Path::new(&**file)) == Origin::Runtime).then(|| {
            let message = format!("the node writes this object about what it runs ({file})");
            about(object.object_ref(), message, "change the workload instead")
        })
    }

    /// What the mesh as a whole would have to say about these objects: references to nothing, conflicts.
    fn consequences(&self, world: &World, objects: &[Object], errors: &BTreeSet<ObjectRef>) -> Vec<Diagnostic> {
        let sound = || objects.iter().filter(|object| !errors.contains(&object.object_ref()));
        let mut tables = world.tables.clone();
        for object in sound() {
            tables.apply(Arc::new(object.clone()));
        }
        let concerned: BTreeSet<ObjectRef> = sound().map(Object::object_ref).collect();
        let build = Snapshot::build(Some(&world.snapshot), &tables, &self.options);
        build.diagnostics.into_iter().filter(|d| concerned.contains(&d.object)).collect()
    }

    async fn taken_up(&self, is_there: impl Fn(&Tables) -> bool) {
        let mut worlds = self.worlds.clone();
        let seen = tokio::time::timeout(TAKE_UP, worlds.wait_for(|world| is_there(&world.tables))).await;
        if seen.is_err() {
            tracing::warn!("the store has not taken up what was applied yet");
        }
    }
}

fn told(outcome: &Outcome) -> Applied {
    use meltemi_store::Action as Done;
    let action = match outcome.action {
        Done::Created => Action::Created,
        Done::Configured => Action::Configured,
        Done::Unchanged => Action::Unchanged,
        Done::Deleted => Action::Deleted,
    };
    let file = outcome.file.display().to_string();
    Applied { object: outcome.key.object_ref(), action, file, in_users_file: outcome.is_users }
}

fn failed(error: &ApplyError) -> Diagnostic {
    let (object, file) = match error {
        ApplyError::NotFound(key) => (key.object_ref(), None),
        ApplyError::NotEditable { key, file, .. } => (key.object_ref(), Some(file)),
        ApplyError::Io { file, .. } => (ObjectRef::default(), Some(file)),
    };
    let position =
        Position { file: file.map(|file| file.display().to_string()).unwrap_or_default(), ..Position::default() };
    Diagnostic { position, ..about(object, error.to_string(), "change the file, then apply again") }
}

/// The same object twice in one text: neither is the right one.
fn doubles(objects: &[Object]) -> Vec<Diagnostic> {
    let mut seen = BTreeSet::new();
    let twice = objects.iter().filter(|object| !seen.insert(object.key()));
    twice
        .map(|object| Diagnostic {
            position: object.source.position(""),
            ..about(object.object_ref(), "the object stands twice in this text".to_owned(), "keep one of them")
        })
        .collect()
}

fn about(object: ObjectRef, message: String, remedy: &str) -> Diagnostic {
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

fn kind_of(word: &str) -> Result<Option<Kind>, String> {
    if word.is_empty() {
        return Ok(None);
    }
    Kind::from_word(word).map(Some).ok_or_else(|| format!("the mesh knows no kind {word:?}"))
}

fn selects(which: &ObjectSelector, kind: Option<&Kind>, object: &Object) -> bool {
    kind.is_none_or(|kind| object.kind == *kind)
        && (which.ns.is_empty() || object.meta.namespace.is_empty() || object.meta.namespace == which.ns)
        && (which.name.is_empty() || object.meta.name == which.name)
}

/// A Secret's content stays in its file.
fn shown(object: &Object) -> serde_json::Value {
    let mut value = object.raw.clone();
    if object.kind == Kind::Secret {
        for field in ["data", "stringData"] {
            if let Some(entries) = value.get_mut(field).and_then(serde_json::Value::as_object_mut) {
                entries.values_mut().for_each(|entry| *entry = "***".into());
            }
        }
    }
    value
}
