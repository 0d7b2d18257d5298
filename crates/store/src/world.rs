//! The store: raw tables of all sources, merged, and one snapshot after the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

use meltemi_api::{Object, ObjectKey};
use meltemi_model::{Build, BuildOptions, ChangeSet, Snapshot, Tables};
use meltemi_types::{Diagnostic, Severity};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error};

use crate::delta::{Delta, SourceSender, SourceUpdate};

/// One consistent state of everything: published whole, never changed.
#[derive(Debug, Clone)]
pub struct World {
    /// Counts from 1; 0 is the empty world before the sources have listed what they have.
    pub version: u64,
    /// The raw objects in force.
    pub tables: Tables,
    /// The snapshot of these tables.
    pub snapshot: Arc<Snapshot>,
    /// Everything that is wrong now: from reading, validation, merging, lowering, analysis.
    pub diagnostics: Arc<Vec<Diagnostic>>,
    /// The changes of this version and of those before it, newest last.
    recent: VecDeque<Arc<ChangeSet>>,
}

/// So many versions a slow reader may skip without losing track.
const REMEMBERED_CHANGES: usize = 128;

impl World {
    /// The changes after `version`, oldest first. `None` if some are forgotten: then everything may
    /// have changed.
    pub fn changes_after(&self, version: u64) -> Option<Vec<Arc<ChangeSet>>> {
        let missed = usize::try_from(self.version.checked_sub(version)?).ok()?;
        if version == 0 || missed > self.recent.len() {
            return None;
        }

        let from = self.recent.len() - missed;
        Some(self.recent.iter().skip(from).cloned().collect())
    }

    /// Whether every source has listed its objects.
    pub fn is_ready(&self) -> bool {
        self.version > 0
    }
}

/// Collects sources before the store starts.
#[derive(Debug)]
pub struct StoreBuilder {
    options: BuildOptions,
    names: Vec<String>,
    sender: mpsc::Sender<(usize, SourceUpdate)>,
    receiver: mpsc::Receiver<(usize, SourceUpdate)>,
}

/// A running store. Dropping it ends its thread once every source has ended too, or at the next
/// update.
#[derive(Debug)]
pub struct Store {
    worlds: watch::Receiver<Arc<World>>,
    /// Dropped first: it tells the thread to end.
    stop: Option<mpsc::Sender<(usize, SourceUpdate)>>,
    thread: Option<JoinHandle<()>>,
}

/// Updates that wait while a snapshot is built.
const QUEUE: usize = 256;
/// The pseudo-source that ends the thread.
const STOP: usize = usize::MAX;

impl Store {
    /// Begins a store. `options` say what a snapshot needs besides objects.
    pub fn builder(options: BuildOptions) -> StoreBuilder {
        let (sender, receiver) = mpsc::channel(QUEUE);
        StoreBuilder {
            options,
            names: Vec::new(),
            sender,
            receiver,
        }
    }

    /// The worlds, one after the other; a slow reader sees the newest.
    pub fn worlds(&self) -> watch::Receiver<Arc<World>> {
        self.worlds.clone()
    }

    /// The newest world.
    pub fn world(&self) -> Arc<World> {
        self.worlds.borrow().clone()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A full queue is read at once; a closed one means that the thread has ended.
            let mut message = (STOP, SourceUpdate::default());
            while let Err(mpsc::error::TrySendError::Full(again)) = stop.try_send(message) {
                message = again;
                std::thread::yield_now();
            }
        }

        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the store had panicked");
        }
    }
}

impl StoreBuilder {
    /// Adds a source. Of an object that several sources have, the source added first counts.
    pub fn source(&mut self, name: impl Into<String>) -> SourceSender {
        self.names.push(name.into());
        SourceSender {
            source: self.names.len() - 1,
            channel: self.sender.clone(),
        }
    }

    /// Starts the thread. The first world is published when every source has listed what it has.
    pub fn start(self) -> std::io::Result<Store> {
        let Self {
            options,
            names,
            sender,
            mut receiver,
        } = self;

        let mut merger = Merger::new(names, options);
        let (publish, worlds) = watch::channel(Arc::new(merger.world()));
        let run = move || {
            while let Some(update) = receiver.blocking_recv() {
                let mut open = merger.take(update);

                // Whatever has arrived meanwhile goes into the same snapshot.
                while open && let Ok(update) = receiver.try_recv() {
                    open = merger.take(update);
                }
                if !open {
                    return debug!("the store ends");
                }
                if let Some(world) = merger.build() {
                    publish.send_replace(Arc::new(world));
                }
            }
        };

        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(run)?;

        Ok(Store {
            worlds,
            stop: Some(sender),
            thread: Some(thread),
        })
    }
}

#[derive(Debug, Default)]
struct SourceState {
    name: String,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    diagnostics: Vec<Diagnostic>,
    /// What a listing that has begun has named so far.
    listing: Option<BTreeSet<ObjectKey>>,
    is_listed: bool,
}

/// Merges sources; no thread, no channel.
#[derive(Debug)]
struct Merger {
    options: BuildOptions,
    sources: Vec<SourceState>,
    /// Keys to decide about anew.
    touched: BTreeSet<ObjectKey>,
    told: bool,
    tables: Tables,
    snapshot: Arc<Snapshot>,
    built: bool,
    version: u64,
    recent: VecDeque<Arc<ChangeSet>>,
}

impl Merger {
    fn new(names: Vec<String>, options: BuildOptions) -> Self {
        let sources = names
            .into_iter()
            .map(|name| SourceState {
                name,
                ..SourceState::default()
            })
            .collect();

        let Build { snapshot, .. } = Snapshot::build(None, &Tables::default(), &options);
        Self {
            options,
            sources,
            touched: BTreeSet::new(),
            told: false,
            tables: Tables::default(),
            snapshot: Arc::new(snapshot),
            built: false,
            version: 0,
            recent: VecDeque::new(),
        }
    }

    fn world(&self) -> World {
        World {
            version: 0,
            tables: Tables::default(),
            snapshot: self.snapshot.clone(),
            diagnostics: Arc::new(Vec::new()),
            recent: VecDeque::new(),
        }
    }

    /// Takes in an update; false if it was the last one.
    fn take(&mut self, (source, update): (usize, SourceUpdate)) -> bool {
        let Some(state) = self.sources.get_mut(source) else {
            return false;
        };
        for delta in update.deltas {
            match delta {
                Delta::Init => state.listing = Some(BTreeSet::new()),
                Delta::Apply(object) => {
                    let key = object.key();
                    if let Some(listing) = &mut state.listing {
                        listing.insert(key.clone());
                    }
                    self.touched.insert(key.clone());
                    state.objects.insert(key, object);
                }
                Delta::Delete(key) => {
                    state.objects.remove(&key);
                    self.touched.insert(key);
                }
                Delta::InitDone => {
                    if let Some(listing) = state.listing.take() {
                        let gone: Vec<ObjectKey> = state
                            .objects
                            .keys()
                            .filter(|key| !listing.contains(*key))
                            .cloned()
                            .collect();

                        for key in gone {
                            state.objects.remove(&key);
                            self.touched.insert(key);
                        }
                    }

                    state.is_listed = true;
                }
            }
        }

        if let Some(diagnostics) = update.diagnostics {
            self.told |= state.diagnostics != diagnostics;
            state.diagnostics = diagnostics;
        }

        true
    }

    /// The next world, if there is something new and every source has listed what it has.
    fn build(&mut self) -> Option<World> {
        if self.sources.iter().any(|source| !source.is_listed) {
            return None;
        }
        let mut changed = false;
        for key in std::mem::take(&mut self.touched) {
            changed |= match self
                .sources
                .iter()
                .find_map(|source| source.objects.get(&key))
            {
                Some(object) => self.tables.apply(object.clone()),
                None => self.tables.remove(&key),
            };
        }

        let told = std::mem::take(&mut self.told);
        if self.built && !changed && !told {
            return None;
        }
        let previous = self.built.then(|| self.snapshot.clone());
        let Build {
            snapshot,
            mut diagnostics,
            changes,
        } = Snapshot::build(previous.as_deref(), &self.tables, &self.options);

        self.built = true;
        self.snapshot = Arc::new(snapshot);
        self.version += 1;
        self.recent.push_back(Arc::new(changes));
        if self.recent.len() > REMEMBERED_CHANGES {
            self.recent.pop_front();
        }
        for source in &self.sources {
            diagnostics.extend(source.diagnostics.iter().cloned());
        }
        diagnostics.extend(self.shadowed());
        diagnostics.sort();
        diagnostics.dedup();

        Some(World {
            version: self.version,
            tables: self.tables.clone(),
            snapshot: self.snapshot.clone(),
            diagnostics: Arc::new(diagnostics),
            recent: self.recent.clone(),
        })
    }

    /// Objects that several sources have.
    fn shadowed(&self) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        for (index, source) in self.sources.iter().enumerate().skip(1) {
            for (key, object) in &source.objects {
                let earlier = self.sources[..index]
                    .iter()
                    .find_map(|earlier| earlier.objects.get(key).map(|winner| (earlier, winner)));
                let Some((earlier, winner)) = earlier else {
                    continue;
                };
                let place = winner.source.position("metadata.name");
                let place = if place.file.is_empty() {
                    String::new()
                } else {
                    format!(" ({place})")
                };

                findings.push(Diagnostic {
                    code: "MEL0402".to_owned(),
                    severity: Severity::Error,
                    object: key.object_ref(),
                    field: String::new(),
                    position: object.source.position("metadata.name"),
                    message: format!(
                        "this object of {} is also in {}{place}, which counts",
                        source.name, earlier.name
                    ),
                    remedy: "remove or rename one of them".to_owned(),
                });
            }
        }

        findings
    }
}

#[cfg(test)]
mod tests {
    use meltemi_api::parse;

    use super::*;

    fn object(name: &str, port: u16) -> Arc<Object> {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        );
        Arc::new(parse("x.yaml", &text).objects.remove(0))
    }

    fn listing(objects: &[Arc<Object>]) -> SourceUpdate {
        let mut deltas = vec![Delta::Init];
        deltas.extend(objects.iter().cloned().map(Delta::Apply));
        deltas.push(Delta::InitDone);
        SourceUpdate {
            deltas,
            diagnostics: None,
        }
    }

    #[test]
    fn the_first_source_counts_and_the_second_stands_in() {
        let mut merger = Merger::new(
            vec!["files".to_owned(), "cluster".to_owned()],
            BuildOptions::default(),
        );

        let (ours, theirs) = (object("a", 1), object("a", 2));
        assert!(merger.take((0, listing(std::slice::from_ref(&ours)))));
        assert!(
            merger.build().is_none(),
            "the second source has listed nothing yet"
        );

        assert!(merger.take((1, listing(&[theirs.clone(), object("b", 3)]))));
        let first = merger.build().expect("both have listed");
        assert_eq!((first.version, first.tables.len()), (1, 2));
        assert!(Arc::ptr_eq(
            first.tables.get(&ours.key()).expect("a"),
            &ours
        ));

        assert_eq!(
            first
                .diagnostics
                .iter()
                .filter(|d| d.code == "MEL0402")
                .count(),
            1
        );

        assert_eq!(first.changes_after(0), None);

        merger.take((
            0,
            SourceUpdate {
                deltas: vec![Delta::Delete(ours.key())],
                diagnostics: None,
            },
        ));

        let second = merger.build().expect("a change");
        assert!(Arc::ptr_eq(
            second.tables.get(&ours.key()).expect("a"),
            &theirs
        ));

        assert_eq!(
            second
                .diagnostics
                .iter()
                .filter(|d| d.code == "MEL0402")
                .count(),
            0
        );

        // A new listing without b removes it.
        merger.take((1, listing(&[theirs])));
        let third = merger.build().expect("a change");
        assert_eq!(third.tables.len(), 1);
        let changes = third.changes_after(1).expect("remembered");
        let services: Vec<usize> = changes.iter().map(|change| change.services.len()).collect();
        assert_eq!(services, [1, 1], "a is theirs, then b is gone");
        assert_eq!(third.changes_after(3), Some(Vec::new()));
        assert!(merger.build().is_none(), "nothing is new");
    }
}
