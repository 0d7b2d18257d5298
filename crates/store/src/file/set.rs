//! All files together: the objects in force, their findings, the changes. No disk,
//! no clock.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_api::{FOREIGN, Kind, Object, ObjectKey, parse, validate};
use meltemi_types::{Diagnostic, Severity};

use super::Directory;
use super::last_good::LastGood;
use super::scan::{Content, FileChange, FileKey};
use crate::delta::Delta;

type Objects = BTreeMap<ObjectKey, Arc<Object>>;

/// The object that counts, and the index of its directory.
type Winner = (usize, Arc<Object>);

/// One file's share.
#[derive(Debug, Default)]
struct FileState {
    /// In force unless an earlier file has them too: good now, or good before and broken now.
    objects: Objects,
    /// Written twice in this file.
    doubles: Vec<Arc<Object>>,
    findings: Vec<Diagnostic>,
    /// It holds documents, and none is meant for the mesh.
    is_foreign: bool,
}

/// All files.
#[derive(Debug, Default)]
pub(crate) struct FileSet {
    files: BTreeMap<FileKey, FileState>,
    winners: BTreeMap<ObjectKey, Winner>,
}

impl FileSet {
    /// Takes in what became of a file.
    pub fn change(&mut self, change: FileChange, mut last_good: Option<&mut LastGood>) {
        let FileChange { file, content } = change;
        let previous = self.files.remove(&file);
        let before: Objects = match (previous, &mut last_good) {
            (Some(state), _) => state.objects,
            (None, Some(last_good)) => last_good
                .load(&file.path)
                .into_iter()
                .map(|object| (object.key(), object))
                .collect(),
            (None, None) => Objects::new(),
        };

        let state = match content {
            Content::Gone => {
                if let Some(last_good) = last_good {
                    last_good.note(&file.path, std::iter::empty());
                }
                return;
            }
            Content::Unreadable(finding) => FileState {
                objects: before,
                doubles: Vec::new(),
                findings: vec![*finding],
                is_foreign: false,
            },
            Content::Text(text) => read(&file, &text, before),
        };

        if let Some(last_good) = last_good {
            last_good.note(&file.path, state.objects.values());
        }
        self.files.insert(file, state);
    }

    /// What changed since the last call; a complete listing if `listing`.
    pub fn deltas(&mut self, listing: bool) -> Vec<Delta> {
        let mut winners = BTreeMap::new();
        for (file, state) in &self.files {
            for (key, object) in &state.objects {
                winners
                    .entry(key.clone())
                    .or_insert_with(|| (file.directory, object.clone()));
            }
        }

        let mut deltas = Vec::new();
        if listing {
            deltas.push(Delta::Init);
            deltas.extend(
                winners
                    .values()
                    .map(|(_, object)| Delta::Apply(object.clone())),
            );
            deltas.push(Delta::InitDone);
        } else {
            let gone = self
                .winners
                .keys()
                .filter(|key| !winners.contains_key(*key));

            deltas.extend(gone.cloned().map(Delta::Delete));
            for (key, (_, object)) in &winners {
                if !self
                    .winners
                    .get(key)
                    .is_some_and(|(_, held)| Arc::ptr_eq(held, object))
                {
                    deltas.push(Delta::Apply(object.clone()));
                }
            }
        }

        self.winners = winners;

        deltas
    }

    /// Everything there is to say, as of the last `deltas`.
    pub fn findings(&self, directories: &[Directory]) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        for (file, state) in &self.files {
            findings.extend(state.findings.iter().cloned());
            let yields = directories
                .get(file.directory)
                .is_some_and(|directory| directory.yields);
            for object in state.objects.values().chain(&state.doubles) {
                if let Some((directory, winner)) = self.winners.get(&object.key())
                    && !Arc::ptr_eq(winner, object)
                    && !(yields && *directory < file.directory && object.kind != Kind::Pod)
                {
                    findings.push(double(object, winner));
                }
            }
        }

        findings.extend((0..directories.len()).filter_map(|index| self.left_alone(index)));
        findings
    }

    /// The files of a directory that are not meant for the mesh. A project's folder holds many of
    /// them, so they are one finding.
    fn left_alone(&self, directory: usize) -> Option<Diagnostic> {
        const SHOWN: usize = 5;

        let of_directory = |file: &&FileKey| file.directory == directory;
        let foreign: Vec<&FileKey> = self
            .files
            .iter()
            .filter(|(_, state)| state.is_foreign)
            .map(|(file, _)| file)
            .filter(of_directory)
            .collect();
        let first = foreign.first()?;

        let name = |file: &&FileKey| file.path.file_name().map(|name| name.display().to_string());
        let mut names: Vec<String> = foreign.iter().take(SHOWN).filter_map(name).collect();
        if foreign.len() > SHOWN {
            names.push(format!("{} more", foreign.len() - SHOWN));
        }
        let folder = first.path.parent().unwrap_or(&first.path);
        Some(Diagnostic {
            code: "MEL0406".to_owned(),
            severity: Severity::Info,
            object: meltemi_types::ObjectRef::default(),
            field: String::new(),
            position: meltemi_types::Position {
                file: folder.display().to_string(),
                ..Default::default()
            },
            message: format!(
                "left alone, since they hold no Kubernetes object: {}",
                names.join(", ")
            ),
            remedy: String::new(),
        })
    }
}

fn double(object: &Object, winner: &Object) -> Diagnostic {
    Diagnostic {
        code: "MEL0402".to_owned(),
        severity: Severity::Error,
        object: object.object_ref(),
        field: String::new(),
        position: object.source.position("metadata.name"),
        message: format!(
            "this object is also in {}, which counts",
            winner.source.position("metadata.name")
        ),
        remedy: "remove or rename one of them".to_owned(),
    }
}

/// Reads a file's text; a broken object keeps its version before.
fn read(file: &FileKey, text: &str, before: Objects) -> FileState {
    let parsed = parse(&file.path.to_string_lossy(), text);
    let mut findings = parsed.diagnostics;
    let is_foreign = parsed.foreign > 0 && parsed.objects.is_empty() && parsed.refused.is_empty();
    if parsed.foreign > 0 {
        findings.retain(|finding| finding.code != FOREIGN || finding.severity != Severity::Info);
    }
    let mut broken: BTreeSet<ObjectKey> = parsed.refused.into_iter().collect();
    let mut objects = Objects::new();
    let mut doubles = Vec::new();

    for object in parsed.objects {
        let key = object.key();
        let faults = validate(&object);
        let invalid = faults.iter().any(|fault| fault.severity == Severity::Error);
        findings.extend(faults);
        if invalid {
            broken.insert(key);
        } else {
            match objects.entry(key) {
                Entry::Occupied(_) => doubles.push(Arc::new(object)),
                Entry::Vacant(place) => {
                    let object = keep_if_same(object, before.get(place.key()));
                    place.insert(object);
                }
            }
        }
    }

    for (key, object) in before {
        if objects.contains_key(&key) {
            continue;
        }

        // A document that does not parse may be any of those that are missing now; if its lines
        // show which, it is that one.
        if broken.contains(&key)
            || (parsed.unreadable > 0 && may_be_unreadable(&key, &findings, parsed.unreadable))
        {
            let position = findings
                .iter()
                .find(|finding| finding.object == key.object_ref())
                .map(|finding| finding.position.clone());

            findings.push(Diagnostic {
                code: "MEL0403".to_owned(),
                severity: Severity::Warning,
                object: key.object_ref(),
                field: String::new(),
                position: position.unwrap_or_else(|| meltemi_types::Position {
                    file: file.path.display().to_string(),
                    ..Default::default()
                }),
                message: "the last good version stays in force".to_owned(),
                remedy: "correct the errors, or remove the object".to_owned(),
            });

            objects.insert(key, object);
        }
    }

    FileState {
        objects,
        doubles,
        findings,
        is_foreign,
    }
}

/// An object that says the same at the same place keeps its allocation, by which changes are told.
fn keep_if_same(object: Object, before: Option<&Arc<Object>>) -> Arc<Object> {
    let same = |held: &&Arc<Object>| {
        ***held == object
            && held.source.positions == object.source.positions
            && held.source.document == object.source.document
    };
    before
        .filter(same)
        .cloned()
        .unwrap_or_else(|| Arc::new(object))
}

fn may_be_unreadable(key: &ObjectKey, findings: &[Diagnostic], unreadable: usize) -> bool {
    let named: Vec<&Diagnostic> = findings
        .iter()
        .filter(|finding| {
            finding.code == "MEL0101"
                && !finding.object.name.is_empty()
                && !finding.object.kind.is_empty()
        })
        .collect();

    let fits = |finding: &&Diagnostic| {
        let wanted = key.object_ref();
        finding.object.qualified_kind() == wanted.qualified_kind()
            && finding.object.name == wanted.name
            && (finding.object.namespace == wanted.namespace || !key.kind.is_namespaced())
    };

    named.len() < unreadable || named.iter().any(fits)
}
