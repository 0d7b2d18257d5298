//! The contents of the directories, and the changes since the last scan.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use meltemi_types::{Diagnostic, ObjectRef, Position, Severity};

use super::Directory;
use super::watch::Writers;

/// A file by directory and path: the order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileKey {
    /// Index of its directory.
    pub directory: usize,
    /// As the user named the directory, and the way below it.
    pub path: PathBuf,
}

/// What became of a file.
#[derive(Debug)]
pub(crate) struct FileChange {
    pub file: FileKey,
    pub content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// New or changed.
    Text(String),
    /// It is there, and cannot be read.
    Unreadable(Box<Diagnostic>),
    /// It is gone.
    Gone,
}

/// Larger files are not configuration.
const MAX_FILE_BYTES: u64 = 32 << 20;
const MAX_FILES: usize = 20_000;
const MAX_DEPTH: usize = 16;
/// The folder of Node.js packages: thousands of JSON files, none of them configuration.
const PACKAGES: &str = "node_modules";
/// A file that was written shortly before it was read may be written again without its time
/// changing.
const RACY: Duration = Duration::from_secs(1);

/// What tells two states of a file apart without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug)]
struct Seen {
    stamp: Option<Stamp>,
    racy: bool,
    hash: Option<u64>,
}

/// The state of the last scan.
#[derive(Debug)]
pub(crate) struct Scanner {
    directories: Vec<Directory>,
    seen: BTreeMap<FileKey, Seen>,
    findings: Vec<Diagnostic>,
    findings_changed: bool,
    /// Where links lead, as of the last scan.
    links: BTreeSet<PathBuf>,
}

impl Scanner {
    pub fn new(directories: Vec<Directory>) -> Self {
        Self {
            directories,
            seen: BTreeMap::new(),
            findings: Vec::new(),
            findings_changed: false,
            links: BTreeSet::new(),
        }
    }

    /// Findings about directories, as of the last scan.
    pub fn findings(&self) -> &[Diagnostic] {
        &self.findings
    }

    /// Whether the last scan found something else than the one before.
    pub fn findings_changed(&self) -> bool {
        self.findings_changed
    }

    /// Where links among files and directories lead, as of the last scan.
    pub fn links(&self) -> &BTreeSet<PathBuf> {
        &self.links
    }

    /// Looks, and answers what changed, in order of precedence. Files that somebody is writing are
    /// as they were.
    pub fn scan(&mut self, writers: &Writers) -> Vec<FileChange> {
        let mut findings = Vec::new();
        let mut present = BTreeSet::new();
        let mut unknown = BTreeSet::new();
        let mut links = BTreeSet::new();

        for (index, directory) in self.directories.iter().enumerate() {
            let mut walk = Walk {
                directory: index,
                present: &mut present,
                findings: &mut findings,
                links: &mut links,
                visited: BTreeSet::new(),
                complete: true,
            };

            walk.walk(&directory.path, 0);
            if !walk.complete {
                unknown.insert(index);
            }
        }

        self.links = links;
        let mut changes = Vec::new();
        for file in present
            .iter()
            .filter(|file| !writers.has(&file.path, !self.links.is_empty()))
            .collect::<Vec<_>>()
        {
            if let Some(content) = self.look(file) {
                changes.push(FileChange {
                    file: file.clone(),
                    content,
                });
            }
        }

        // Files of a directory that could not be listed are not gone: they may still be there.
        let gone: Vec<FileKey> = self
            .seen
            .keys()
            .filter(|file| !present.contains(*file) && !unknown.contains(&file.directory))
            .cloned()
            .collect();

        for file in gone {
            self.seen.remove(&file);
            changes.push(FileChange {
                file,
                content: Content::Gone,
            });
        }

        self.findings_changed = findings != self.findings;
        self.findings = findings;

        changes
    }

    /// A file's content, if it changed.
    fn look(&mut self, file: &FileKey) -> Option<Content> {
        let stamp = fs::metadata(&file.path)
            .ok()
            .map(|metadata| Stamp::of(&metadata));
        let before = self.seen.get(file);
        if stamp.is_some() && before.is_some_and(|seen| seen.stamp == stamp && !seen.racy) {
            return None;
        }
        let now = SystemTime::now();

        match read(&file.path) {
            Ok(text) => {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                let hash = Some(hasher.finish());
                let same = before.is_some_and(|seen| seen.hash == hash);
                let racy = stamp.as_ref().is_none_or(|stamp| stamp.is_recent(now));
                self.seen.insert(file.clone(), Seen { stamp, racy, hash });
                (!same).then_some(Content::Text(text))
            }
            Err(message) => {
                self.seen.insert(
                    file.clone(),
                    Seen {
                        stamp,
                        racy: true,
                        hash: None,
                    },
                );

                Some(Content::Unreadable(Box::new(finding(
                    &file.path,
                    Severity::Error,
                    message,
                    "make the file readable; until then the last good versions of its objects stay in force",
                ))))
            }
        }
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_recent(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let changed = self.modified.0.max(self.changed.0);
        i64::try_from(now.saturating_sub(RACY).as_secs()).is_ok_and(|limit| changed >= limit)
    }
}

/// The files of a directory, in order.
pub(crate) fn list(directory: &Path) -> Vec<PathBuf> {
    let (mut present, mut findings, mut links) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    let mut walk = Walk {
        directory: 0,
        present: &mut present,
        findings: &mut findings,
        links: &mut links,
        visited: BTreeSet::new(),
        complete: true,
    };

    walk.walk(directory, 0);

    present.into_iter().map(|file| file.path).collect()
}

fn read(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");

    // Before it is opened: a named pipe without a writer would make us wait for ever.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }

    String::from_utf8(bytes).map_err(|error| {
        format!(
            "is not UTF-8, from byte {} on",
            error.utf8_error().valid_up_to()
        )
    })
}

fn finding(path: &Path, severity: Severity, message: String, remedy: &str) -> Diagnostic {
    Diagnostic {
        code: "MEL0401".to_owned(),
        severity,
        object: ObjectRef::default(),
        field: String::new(),
        position: Position {
            file: path.display().to_string(),
            ..Position::default()
        },
        message,
        remedy: remedy.to_owned(),
    }
}

struct Walk<'a> {
    directory: usize,
    present: &'a mut BTreeSet<FileKey>,
    findings: &'a mut Vec<Diagnostic>,
    links: &'a mut BTreeSet<PathBuf>,
    visited: BTreeSet<(u64, u64)>,
    /// Whether everything could be listed.
    complete: bool,
}

impl Walk<'_> {
    fn walk(&mut self, path: &Path, depth: usize) {
        match fs::metadata(path) {
            // A symbolic link may lead back up.
            // A user may name a single file.
            Ok(metadata) if depth == 0 && metadata.is_file() => {
                self.present.insert(FileKey {
                    directory: self.directory,
                    path: path.to_owned(),
                });
                return;
            }
            Ok(metadata) if !self.visited.insert((metadata.dev(), metadata.ino())) => return,
            Ok(_) => {}
            Err(error) => return self.fail(path, &error),
        }

        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return self.fail(path, &error),
        };

        for entry in entries {
            let Ok(entry) = entry else { continue };

            // A dot hides: editors' files, and the ..data of mounted ConfigMaps, which the visible
            // names link to.
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") || name == PACKAGES {
                continue;
            }
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                // A link to nothing stands for itself.
                self.links
                    .insert(fs::canonicalize(&path).unwrap_or_else(|_| path.clone()));
            }

            // Follows links. Reading reports a link that leads nowhere.
            let is_directory = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            if is_directory {
                if depth < MAX_DEPTH {
                    self.walk(&path, depth + 1);
                } else {
                    self.findings.push(finding(
                        &path,
                        Severity::Warning,
                        format!("lies deeper than {MAX_DEPTH} directories and is not read"),
                        "move it up",
                    ));
                }
            } else if path.extension().is_some_and(|extension| {
                extension == "yaml" || extension == "yml" || extension == "json"
            }) {
                if self.present.len() >= MAX_FILES {
                    self.complete = false;
                    return self.findings.push(finding(
                        &path,
                        Severity::Error,
                        format!("there are more than {MAX_FILES} files; the rest is not read"),
                        "put several objects into one file",
                    ));
                }

                self.present.insert(FileKey {
                    directory: self.directory,
                    path,
                });
            }
        }
    }

    fn fail(&mut self, path: &Path, error: &std::io::Error) {
        if error.kind() == std::io::ErrorKind::NotFound {
            self.findings.push(finding(
                path,
                Severity::Warning,
                "does not exist".to_owned(),
                "create it; it is looked for every second",
            ));
        } else {
            self.complete = false;
            self.findings.push(finding(
                path,
                Severity::Error,
                format!("the directory cannot be listed: {error}"),
                "make it readable; until then its objects stay as they are",
            ));
        }
    }
}
