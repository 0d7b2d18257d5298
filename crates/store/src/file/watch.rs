//! What the kernel says of changes: whom to ask it about, and which files somebody is writing right
//! now.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use meltemi_types::{Diagnostic, ObjectRef, Position, Severity};
use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tracing::{debug, warn};

use super::{Directory, UNWATCHED_RESCAN};

/// A file that was written to is read once its writer has closed it, or has written nothing for
/// this long: `helm template > FILE` empties the file seconds before it fills it.
const WRITER_PATIENCE: Duration = Duration::from_secs(5);

/// What the thread of a source is woken for.
#[derive(Debug)]
pub(crate) enum Wake {
    /// Something is otherwise.
    Changed,
    /// A process has begun to write this file, or goes on writing.
    Written(PathBuf),
    /// No process writes this file any more.
    Closed(PathBuf),
    /// This name leads to something else now, or to nothing.
    Gone(PathBuf),
    /// The source ends.
    Stop,
}

/// The kernel's watches.
pub(crate) struct Watch {
    watcher: Option<RecommendedWatcher>,
    /// The directories, in order; those that are not watched have no identity.
    watched: Vec<Option<Identity>>,
    /// Whether the way to one of them passes through a link; nobody tells when that leads
    /// elsewhere.
    is_linked: bool,
    /// Files and directories outside, to which links lead.
    outside: BTreeMap<PathBuf, Identity>,
    /// Some link leads nowhere; the kernel does not report when its target appears.
    dangling: bool,
}

/// Device and inode: what a path led to when it was watched, and what the kernel watches whatever
/// its name.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether a path's own name, or one on the way to it, is a link.
fn passes_a_link(path: &Path) -> bool {
    let Ok(path) = std::path::absolute(path) else {
        return false;
    };
    path.ancestors()
        .any(|above| fs::symlink_metadata(above).is_ok_and(|metadata| metadata.is_symlink()))
}

impl Watch {
    /// Nothing is watched yet; `events` hears what happens.
    pub fn new(directories: usize, events: mpsc::Sender<Wake>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            for wake in event.map_or_else(|_| vec![Wake::Changed], wakes) {
                let _ = events.send(wake);
            }
        });

        let watcher = watcher
            .inspect_err(|error| warn!(%error, "directories are not watched but looked at"))
            .ok();
        Self {
            watcher,
            watched: vec![None; directories],
            is_linked: false,
            outside: BTreeMap::new(),
            dangling: false,
        }
    }

    /// Whether the kernel reports every change.
    pub fn is_complete(&self) -> bool {
        !self.dangling && self.watched.iter().all(Option::is_some)
    }

    /// Whether the kernel reports every change but one: that a link on the way to a directory leads
    /// elsewhere.
    pub fn is_linked(&self) -> bool {
        self.is_linked
    }

    /// Whether the way to a directory leads to another one than what is watched.
    pub fn is_elsewhere(&self, directories: &[Directory]) -> bool {
        let mut both = directories.iter().zip(&self.watched);
        both.any(|(directory, watched)| watched.is_some() && identity(&directory.path) != *watched)
    }

    /// Takes in that a path leads elsewhere. When what it led to is freed, which may be after a
    /// successor was watched by the same name, the watcher drops that name's watch: whatever the
    /// name leads to is watched anew.
    pub fn note(&mut self, wake: &Wake, directories: &[Directory]) {
        let (Wake::Gone(path), Some(watcher)) = (wake, &mut self.watcher) else {
            return;
        };
        let mut is_watched = self.outside.remove(path).is_some();
        for (directory, watched) in directories.iter().zip(&mut self.watched) {
            is_watched |= directory.path == *path && watched.take().is_some();
        }

        if is_watched {
            let _ = watcher.unwatch(path);
        }
    }

    /// Watches the directories that are not watched yet.
    pub fn directories(&mut self, directories: &[Directory]) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        self.is_linked = directories
            .iter()
            .any(|directory| passes_a_link(&directory.path));
        for (directory, watched) in directories.iter().zip(&mut self.watched) {
            let path = &directory.path;
            let now = identity(path).filter(|_| path.is_dir() || path.is_file());
            if now.is_some() && *watched == now {
                continue;
            }
            if watched.take().is_some()
                && let Some(watcher) = &mut self.watcher
            {
                // The directory was removed or renamed; whatever takes its name is another one.
                let _ = watcher.unwatch(path);
            }

            // That it is missing, the scan tells.
            let Some(now) = now else { continue };
            let result = match &mut self.watcher {
                Some(watcher) => watcher
                    .watch(path, RecursiveMode::Recursive)
                    .map_err(|error| error.to_string()),
                None => Err("the kernel's file watch is not available".to_owned()),
            };

            *watched = result.is_ok().then_some(now);
            if let Err(error) = result {
                findings.push(unwatched(path, &error));
            }
        }

        findings
    }

    /// Watches what links lead to, beside what the directories hold themselves. True if something
    /// is watched that was not.
    pub fn links(&mut self, targets: &BTreeSet<PathBuf>, directories: &[Directory]) -> bool {
        self.dangling = targets.iter().any(|target| identity(target).is_none());
        let Some(watcher) = self
            .watcher
            .as_mut()
            .filter(|_| !(targets.is_empty() && self.outside.is_empty()))
        else {
            return false;
        };

        let roots: Vec<PathBuf> = directories
            .iter()
            .filter_map(|one| fs::canonicalize(&one.path).ok())
            .collect();

        // One inode has one watch: what lies below a watched directory must not be named a second
        // time.
        let is_covered = |path: &Path| {
            let above = path
                .ancestors()
                .skip(1)
                .any(|above| targets.contains(above) && above.is_dir());
            above || roots.iter().any(|root| path.starts_with(root))
        };

        let mut wanted = BTreeMap::new();
        for target in targets.iter().filter(|target| !is_covered(target)) {
            if let Some(identity) = identity(target) {
                wanted.insert(target.clone(), identity);
            }
        }

        self.outside.retain(|path, identity| {
            let stays = wanted.get(path) == Some(identity);
            if !stays {
                let _ = watcher.unwatch(path);
            }
            stays
        });

        let mut is_more = false;
        for (path, identity) in wanted {
            if self.outside.contains_key(&path) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::Recursive) {
                Ok(()) => {
                    self.outside.insert(path, identity);
                    is_more = true;
                }
                Err(error) => {
                    debug!(path = %path.display(), %error, "a link's target is not watched but looked at")
                }
            }
        }

        is_more
    }
}

fn unwatched(path: &Path, error: &str) -> Diagnostic {
    Diagnostic {
        code: "MEL0404".to_owned(),
        severity: Severity::Warning,
        object: ObjectRef::default(),
        field: String::new(),
        position: Position {
            file: path.display().to_string(),
            ..Position::default()
        },
        message: format!(
            "changes are found within {} s only, since the directory cannot be watched: {error}",
            UNWATCHED_RESCAN.as_secs()
        ),
        remedy: "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances".to_owned(),
    }
}

/// What an event means. Our own reading opens files; only what changes them counts.
fn wakes(event: notify::Event) -> Vec<Wake> {
    if event.need_rescan() || event.paths.is_empty() {
        return vec![Wake::Changed];
    }
    let each = |wake: fn(PathBuf) -> Wake| event.paths.iter().cloned().map(wake).collect();
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => each(Wake::Closed),
        EventKind::Access(_) => Vec::new(),
        EventKind::Modify(ModifyKind::Data(_)) => each(Wake::Written),
        // A created file is about to be written. A link is complete at once.
        EventKind::Create(CreateKind::File) => each(|path| {
            let is_written = fs::symlink_metadata(&path)
                .is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1);
            if is_written {
                Wake::Written(path)
            } else {
                Wake::Changed
            }
        }),
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => each(Wake::Gone),
        _ => vec![Wake::Changed],
    }
}

/// Files that are being written. The caller supplies the time.
#[derive(Debug, Default)]
pub(crate) struct Writers(BTreeMap<PathBuf, Instant>);

impl Writers {
    /// Takes in why the thread was woken; false if it should end.
    pub fn note(&mut self, wake: Wake, now: Instant) -> bool {
        match wake {
            Wake::Stop => return false,
            Wake::Changed => {}
            Wake::Written(path) => _ = self.0.insert(path, now),
            Wake::Closed(path) | Wake::Gone(path) => _ = self.0.remove(&path),
        }
        true
    }

    /// Forgets writers that have been silent for too long; answers how long the next one may still
    /// be.
    pub fn expire(&mut self, now: Instant) -> Option<Duration> {
        self.0
            .retain(|_, last| now.saturating_duration_since(*last) < WRITER_PATIENCE);
        self.0
            .values()
            .map(|last| WRITER_PATIENCE - now.saturating_duration_since(*last))
            .min()
    }

    /// Whether a file is being written; `links` says that it may be reached by other names.
    pub fn has(&self, path: &Path, links: bool) -> bool {
        !self.0.is_empty()
            && (self.0.contains_key(path)
                || links && fs::canonicalize(path).is_ok_and(|target| self.0.contains_key(&target)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_waited_for_until_it_closes_or_falls_silent() {
        let (mut writers, path, start) = (
            Writers::default(),
            PathBuf::from("/x/a.yaml"),
            Instant::now(),
        );

        assert!(writers.note(Wake::Written(path.clone()), start));
        assert!(writers.has(&path, false) && !writers.has(Path::new("/x/b.yaml"), true));
        assert_eq!(
            writers.expire(start + Duration::from_secs(1)),
            Some(Duration::from_secs(4))
        );

        // It goes on.
        writers.note(Wake::Written(path.clone()), start + Duration::from_secs(4));
        assert_eq!(
            writers.expire(start + Duration::from_secs(8)),
            Some(Duration::from_secs(1))
        );

        assert!(writers.has(&path, false));
        writers.note(Wake::Closed(path.clone()), start);
        assert!(!writers.has(&path, false));
        writers.note(Wake::Written(path.clone()), start);
        assert_eq!(writers.expire(start + WRITER_PATIENCE), None);
        assert!(!writers.has(&path, false) && !writers.note(Wake::Stop, start));
    }
}
