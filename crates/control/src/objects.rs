//! Apply, get and delete: the mesh's own state as files, one per object, which the store reads like the user's.
//!
//! An object that a user's file holds is changed in that file; applying it is refused with the file's name.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meltemi_admin_api::{Action, Applied, ApplyResponse, ObjectList, ObjectSelector, ObjectView, Origin};
use meltemi_api::{Kind, Object, ObjectKey};
use meltemi_model::{BuildOptions, Snapshot, Tables};
use crate::shim::World;
use meltemi_types::{Diagnostic, ObjectRef, Position, Severity};
use tokio::sync::{Mutex, watch};

use crate::metrics::Metrics;

/// How long an answer waits until the store has taken up what was written, so that `get` after `apply` shows it.
const TAKE_UP: Duration = Duration::from_secs(2);

/// Where objects live.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Objects that were applied; this process alone writes here.
    pub(crate) applied: PathBuf,
    /// What the node writes about what it runs.
    pub(crate) runtime: Vec<PathBuf>,
}

impl Places {
    fn origin(&self, object: &Object) -> Origin {
        let file = Path::new(&*object.source.file);
        if file.starts_with(&self.applied) {
            Origin::Applied
        } else if self.runtime.iter().any(|folder| file.starts_with(folder)) {
            Origin::Runtime
        } else {
            Origin::File
        }
    }
}

pub(crate) struct Objects {
    pub(crate) places: Places,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) options: Arc<BuildOptions>,
    pub(crate) metrics: Arc<Metrics>,
    /// One writer at a time: check and write belong together.
    pub(crate) writing: Mutex<()>,
}

impl Objects {
    /// Takes all objects of a text, or none.
    pub(crate) async fn apply(&self, text: &str, dry_run: bool) -> io::Result<ApplyResponse> {
        let _writing = self.writing.lock().await;
        let world = self.worlds.borrow().clone();
        let parsed = meltemi_api::parse("applied", text);
        let mut diagnostics = parsed.diagnostics;
        for object in &parsed.objects {
            diagnostics.extend(meltemi_api::validate(object));
            diagnostics.extend(self.forbidden(&world, object));
        }
        diagnostics.extend(doubles(&parsed.objects));
        let refused = parsed.objects.is_empty() || parsed.unreadable > 0 || diagnostics.iter().any(|d| d.severity == Severity::Error);
        if refused && diagnostics.is_empty() {
            diagnostics.push(about(ObjectRef::default(), "the text holds no object".to_owned(), "give YAML or JSON with apiVersion, kind and metadata.name"));
        }
        let counter = if refused { &self.metrics.invalid } else { &self.metrics.validated };
        counter.add(parsed.objects.len().max(1) as u64);
        let action = |object: &Object| match world.tables().get(&object.key()) {
            _ if refused => Action::Refused,
            None => Action::Created,
            Some(held) if **held == *object => Action::Unchanged,
            Some(_) => Action::Configured,
        };
        let objects: Vec<Applied> =
            parsed.objects.iter().map(|object| Applied { object: object.object_ref(), action: action(object) }).collect();
        if refused {
            return Ok(ApplyResponse { ok: false, dry_run, objects, diagnostics });
        }
        diagnostics.extend(self.consequences(&world, &parsed.objects));
        if !dry_run {
            let changed: Vec<&Object> =
                parsed.objects.iter().zip(&objects).filter(|(_, applied)| applied.action != Action::Unchanged).map(|(o, _)| o).collect();
            self.write(&changed)?;
            self.taken_up(|tables| changed.iter().all(|object| tables.get(&object.key()).is_some_and(|held| **held == **object))).await;
        }
        Ok(ApplyResponse { ok: true, dry_run, objects, diagnostics })
    }

    /// The objects in force.
    pub(crate) fn get(&self, which: &ObjectSelector) -> Result<ObjectList, String> {
        let kind = kind_of(&which.kind)?;
        let world = self.worlds.borrow().clone();
        let items = world.tables().iter().filter(|object| selects(which, kind.as_ref(), object)).map(|object| {
            let reference = object.object_ref();
            ObjectView {
                origin: self.places.origin(object),
                position: object.source.position(""),
                value: shown(object),
                diagnostics: world.diagnostics.iter().filter(|d| d.object == reference).cloned().collect(),
                object: reference,
            }
        });
        Ok(ObjectList { items: items.collect() })
    }

    /// Deletes applied objects; all that are meant, or none.
    pub(crate) async fn delete(&self, which: &ObjectSelector, dry_run: bool) -> Result<ApplyResponse, String> {
        if which.kind.is_empty() || which.name.is_empty() {
            return Err("say which object: kind and name, and ns where it is not default".to_owned());
        }
        let kind = kind_of(&which.kind)?;
        let _writing = self.writing.lock().await;
        let world = self.worlds.borrow().clone();
        let found: Vec<&Arc<Object>> = world.tables().iter().filter(|object| selects(which, kind.as_ref(), object)).collect();
        let mut diagnostics = Vec::new();
        if found.is_empty() {
            return Err(format!("{} {:?} not found", which.kind, which.name));
        }
        for object in &found {
            if self.places.origin(object) != Origin::Applied {
                diagnostics.push(self.lives_elsewhere(object, "delete"));
            }
        }
        let ok = diagnostics.is_empty();
        let action = if ok { Action::Deleted } else { Action::Refused };
        let objects = found.iter().map(|object| Applied { object: object.object_ref(), action }).collect();
        if ok && !dry_run {
            for object in &found {
                remove(&self.path(&object.key())).map_err(|error| error.to_string())?;
            }
            let keys: Vec<ObjectKey> = found.iter().map(|object| object.key()).collect();
            self.taken_up(|tables| keys.iter().all(|key| tables.get(key).is_none())).await;
        }
        Ok(ApplyResponse { ok, dry_run, objects, diagnostics })
    }

    /// What keeps a well-formed object from being applied here.
    fn forbidden(&self, world: &World, object: &Object) -> Option<Diagnostic> {
        if matches!(object.kind, Kind::Other(_)) {
            let message = format!("kind {:?} of {:?} has no effect in this mesh", object.kind.word(), object.api_version);
            return Some(about(object.object_ref(), message, "apply kinds that the mesh reads; leave this object out"));
        }
        let held = world.tables().get(&object.key())?;
        (self.places.origin(held) != Origin::Applied).then(|| self.lives_elsewhere(held, "change"))
    }

    fn lives_elsewhere(&self, object: &Object, verb: &str) -> Diagnostic {
        let file = &object.source.file;
        let (message, remedy) = match self.places.origin(object) {
            Origin::Runtime => (format!("the node writes this object about what it runs ({file})"), format!("{verb} the workload instead")),
            _ => (format!("this object lives in {file}"), format!("{verb} it there; the mesh follows the file")),
        };
        Diagnostic { position: object.source.position(""), ..about(object.object_ref(), message, &remedy) }
    }

    /// What the mesh as a whole would have to say about these objects: references to nothing, conflicts.
    fn consequences(&self, world: &World, objects: &[Object]) -> Vec<Diagnostic> {
        let mut tables = world.tables().clone();
        let concerned: BTreeSet<ObjectRef> = objects.iter().map(Object::object_ref).collect();
        for object in objects {
            tables.apply(Arc::new(object.clone()));
        }
        let build = Snapshot::build(Some(&world.snapshot), &tables, &self.options);
        build.diagnostics.into_iter().filter(|d| concerned.contains(&d.object)).collect()
    }

    /// Writes every object, then puts all in place: what fails in the middle of writing leaves nothing behind.
    fn write(&self, objects: &[&Object]) -> io::Result<()> {
        std::fs::create_dir_all(&self.places.applied)?;
        let mut written = Vec::with_capacity(objects.len());
        for object in objects {
            let path = self.path(&object.key());
            // The suffix keeps the store from reading half of a file.
            let temporary = path.with_extension("new");
            let result = meltemi_ca::write_private(&temporary, meltemi_api::to_yaml(&object.raw).as_bytes());
            written.push((temporary, path));
            if let Err(error) = result {
                for (temporary, _) in written {
                    _ = remove(&temporary);
                }
                return Err(error);
            }
        }
        written.into_iter().try_for_each(|(temporary, path)| std::fs::rename(temporary, path))
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        let namespace = if key.namespace.is_empty() { "_" } else { &key.namespace };
        let group = key.kind.group();
        let kind = if group.is_empty() { key.kind.word().to_owned() } else { format!("{}.{group}", key.kind.word()) };
        self.places.applied.join(plain(namespace)).join(format!("{}~{}.yaml", plain(&kind), plain(&key.name)))
    }

    async fn taken_up(&self, is_there: impl Fn(&Tables) -> bool) {
        let mut worlds = self.worlds.clone();
        let seen = tokio::time::timeout(TAKE_UP, worlds.wait_for(|world| is_there(world.tables()))).await;
        if seen.is_err() {
            tracing::warn!("the store has not taken up what was applied yet");
        }
    }
}

/// A name as part of a file name: everything unusual as `%XX`, so that no name reaches out of the directory.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            b'.' if at > 0 => out.push('.'),
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_reaches_out_of_its_directory() {
        assert_eq!(plain("reviews-v1.example"), "reviews-v1.example");
        assert_eq!(plain("../../etc/passwd"), "%2E.%2F..%2Fetc%2Fpasswd");
        assert_eq!(plain(".."), "%2E.");
        assert_eq!(plain("a~b"), "a%7Eb");
    }
}
