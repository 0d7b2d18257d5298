//! Directories of YAML as a source: watched, settled, diffed.
//!
//! One thread: it sleeps until the kernel reports a change (or the time for a look of its own has
//! come), waits until the writing has settled, scans, and sends what differs. A file that is still
//! open for writing stays what it was. All decisions are in `set`, which knows no clock and no
//! disk.

mod last_good;
mod scan;
mod set;
mod watch;

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meltemi_types::Diagnostic;
use tracing::{debug, info, warn};

use crate::delta::{Delta, SourceSender, SourceUpdate};
use crate::turn::Turn;
use last_good::LastGood;
use scan::Scanner;
use set::FileSet;
use watch::{Wake, Watch, Writers};

/// A directory to read, or a single file.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// Whether the last good versions of its objects are kept across a restart. Off for what a
    /// program writes anew at each start.
    pub remembers: bool,
    /// Whether its objects give way without a word to those of earlier directories. Pods never do:
    /// they say what runs.
    pub yields: bool,
}

impl Directory {
    /// A directory that users write.
    pub fn of_users(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            remembers: true,
            yields: false,
        }
    }

    /// A directory that programs write: what a user has of the same name replaces it.
    pub fn of_programs(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            remembers: false,
            yields: true,
        }
    }
}

/// How to read directories.
#[derive(Debug, Clone)]
pub struct FileSourceOptions {
    /// In order of precedence: of an object that is written twice, the first one counts.
    pub directories: Vec<Directory>,
    /// Where last good versions are kept; `None` keeps them in memory only.
    pub state: Option<PathBuf>,
    /// Taken for each scan; see [`AppliedStore::turn`](crate::AppliedStore::turn).
    pub turn: Turn,
    /// How long nothing must happen before a scan; 10 ms.
    pub settle: Duration,
    /// When to look without being told; 30 s.
    pub rescan: Duration,
}

impl FileSourceOptions {
    /// The usual times.
    pub fn new(directories: Vec<Directory>, state: Option<PathBuf>) -> Self {
        Self {
            directories,
            state,
            turn: Turn::default(),
            settle: Duration::from_millis(10),
            rescan: Duration::from_secs(30),
        }
    }
}

/// The files of a directory that a source reads, in its order.
pub(crate) fn readable_files(directory: &std::path::Path) -> Vec<PathBuf> {
    scan::list(directory)
}

/// A running source. Dropping it ends its thread.
#[derive(Debug)]
pub struct FileSource {
    wake: mpsc::Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

/// Someone who never stops writing does not keep the mesh from seeing it.
const MAX_SETTLE: Duration = Duration::from_millis(100);
/// While a directory cannot be watched, or is reached through a link, or the state cannot be
/// written, it is looked at this often.
const UNWATCHED_RESCAN: Duration = Duration::from_secs(1);

impl FileSource {
    /// Starts the thread; its first update is a complete listing.
    pub fn start(options: FileSourceOptions, sender: SourceSender) -> std::io::Result<Self> {
        let (wake, woken) = mpsc::channel();
        let events = wake.clone();
        let run = move || Runner::new(options, events).run(&woken, &sender);
        let thread = std::thread::Builder::new()
            .name("file-source".to_owned())
            .spawn(run)?;

        Ok(Self {
            wake,
            thread: Some(thread),
        })
    }

    /// Looks now, without waiting for the kernel's word.
    pub fn rescan(&self) {
        let _ = self.wake.send(Wake::Changed);
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the file source had panicked");
        }
    }
}

struct Runner {
    options: FileSourceOptions,
    scanner: Scanner,
    set: FileSet,
    last_good: LastGood,
    watch: Watch,
    writers: Writers,
    sent: Option<Vec<Diagnostic>>,
}

impl Runner {
    fn new(options: FileSourceOptions, events: mpsc::Sender<Wake>) -> Self {
        let last_good = LastGood::open(options.state.clone());
        Self {
            scanner: Scanner::new(options.directories.clone()),
            set: FileSet::default(),
            watch: Watch::new(options.directories.len(), events),
            writers: Writers::default(),
            options,
            last_good,
            sent: None,
        }
    }

    fn run(&mut self, woken: &mpsc::Receiver<Wake>, sender: &SourceSender) {
        loop {
            // Watch first: what changes during the scan wakes the next one.
            let watch_findings = self.watch.directories(&self.options.directories);
            let next_writer = self.writers.expire(Instant::now());
            if !self.scan(watch_findings, sender) {
                return debug!("the store has ended");
            }

            // What was written to a link's target before it was watched is found by looking once
            // more.
            if self
                .watch
                .links(self.scanner.links(), &self.options.directories)
            {
                continue;
            }

            // Nothing reports that a disk has room again.
            let is_quiet = self.watch.is_complete() && !self.last_good.has_work();
            let patience = if is_quiet {
                self.options.rescan
            } else {
                UNWATCHED_RESCAN.min(self.options.rescan)
            };

            let patience = next_writer.map_or(patience, |next| patience.min(next));
            match self.wait(woken, patience) {
                Ok(wake) => {
                    if !self.note(wake) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }

            let first = Instant::now();
            loop {
                match woken.recv_timeout(self.options.settle) {
                    Ok(wake) => {
                        if !self.note(wake) {
                            return;
                        }
                        if first.elapsed() >= MAX_SETTLE {
                            break;
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// Waits to be woken, or until a link on the way to a directory leads elsewhere: that costs a
    /// look each second, no scan.
    fn wait(
        &self,
        woken: &mpsc::Receiver<Wake>,
        patience: Duration,
    ) -> Result<Wake, RecvTimeoutError> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let slice = if self.watch.is_linked() {
                left.min(UNWATCHED_RESCAN)
            } else {
                left
            };

            match woken.recv_timeout(slice) {
                Err(RecvTimeoutError::Timeout)
                    if slice < left && !self.watch.is_elsewhere(&self.options.directories) => {}
                other => return other,
            }
        }
    }

    /// Takes in why the thread was woken; false if it should end.
    fn note(&mut self, wake: Wake) -> bool {
        self.watch.note(&wake, &self.options.directories);
        self.writers.note(wake, Instant::now())
    }

    /// Scans and sends; false if the receiver is gone.
    fn scan(&mut self, mut findings: Vec<Diagnostic>, sender: &SourceSender) -> bool {
        let first = self.sent.is_none();
        let changes = {
            let _turn = self.options.turn.take();
            self.scanner.scan(&self.writers)
        };
        if !first
            && changes.is_empty()
            && findings.is_empty()
            && !self.last_good.has_work()
            && !self.scanner.findings_changed()
        {
            return true;
        }

        for change in changes {
            let remembers = self
                .options
                .directories
                .get(change.file.directory)
                .is_some_and(|directory| directory.remembers);

            self.set.change(
                change,
                if remembers {
                    Some(&mut self.last_good)
                } else {
                    None
                },
            );
        }

        let deltas = self.set.deltas(first);
        findings.extend(self.scanner.findings().iter().cloned());
        findings.extend(self.set.findings(&self.options.directories));
        let alive = self.tell(deltas, findings.clone(), sender);

        // After sending: a proxy does not wait for our disk. What the disk says is told at once,
        // and so is its recovery.
        self.last_good.write();

        alive && self.tell(Vec::new(), findings, sender)
    }

    /// Sends the changes; false if the receiver is gone.
    fn tell(
        &mut self,
        deltas: Vec<Delta>,
        mut findings: Vec<Diagnostic>,
        sender: &SourceSender,
    ) -> bool {
        findings.extend(self.last_good.findings().iter().cloned());
        findings.sort();
        findings.dedup();
        let changed = self.sent.as_ref() != Some(&findings);
        if !changed && deltas.is_empty() {
            return true;
        }
        info!(
            changes = deltas.len(),
            findings = findings.len(),
            "files read"
        );

        let diagnostics = changed.then(|| findings.clone());
        self.sent = Some(findings);

        sender.send_blocking(SourceUpdate {
            deltas,
            diagnostics,
        })
    }
}
