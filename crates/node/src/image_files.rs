//! Reads image maps from files and reads them again when the files change. A broken file keeps its
//! last good map.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::dialler::Dialler;
use crate::events::Event;
use crate::images::ImageMap;

/// How often the files are checked for changes.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Returns the maps of `files` followed by `fixed`, updated whenever a file changes. A broken file
/// is reported once as a warning and keeps its last good map.
pub(crate) fn follow(
    files: Vec<PathBuf>,
    fixed: Vec<ImageMap>,
    dialler: Arc<Dialler>,
) -> watch::Receiver<Arc<Vec<ImageMap>>> {
    let mut followed = FollowedFiles::default();

    // `up` has loaded every file once already and failed on errors: nothing to report here.
    let _ = followed.reload_changed(&files);
    let (maps, receiver) = watch::channel(Arc::new(followed.maps(&fixed)));
    tokio::spawn(async move {
        let mut reported: Vec<String> = Vec::new();
        while !(files.is_empty() || maps.is_closed()) {
            tokio::time::sleep(POLL_INTERVAL).await;
            let problems = followed.reload_changed(&files);
            for problem in problems
                .iter()
                .filter(|problem| !reported.contains(*problem))
            {
                dialler
                    .show(Event::Warning(format!(
                        "{problem}; the last good version of this map stays"
                    )))
                    .await;
            }

            for mended in reported
                .iter()
                .filter(|problem| !problems.contains(*problem))
            {
                dialler.show(Event::Mended(mended.clone())).await;
            }
            reported = problems;
            let new = followed.maps(&fixed);
            maps.send_if_modified(|old| {
                let is_changed = **old != new;
                *old = Arc::new(new);
                is_changed
            });
        }

        // Without files nothing ever changes. Keep the sender alive, since its drop would look like
        // an error to the receiver.
        maps.closed().await;
    });

    receiver
}

/// The files as they were last read.
#[derive(Debug, Default)]
struct FollowedFiles {
    /// Paths in the order in which their maps are searched.
    order: Vec<PathBuf>,
    files: BTreeMap<PathBuf, FollowedFile>,
}

#[derive(Debug, Default)]
struct FollowedFile {
    stamp: Option<[i64; 5]>,
    /// The last map that could be read.
    map: ImageMap,
    /// Why the current content cannot be read.
    problem: Option<String>,
}

impl FollowedFiles {
    /// Reads the files that have changed; returns the problems of all files.
    fn reload_changed(&mut self, files: &[PathBuf]) -> Vec<String> {
        self.order = files.to_vec();
        for file in files {
            let stamp = std::fs::metadata(file)
                .ok()
                .map(|metadata| stamp(&metadata));
            let followed = self.files.entry(file.clone()).or_default();
            if stamp.is_some() && followed.stamp == stamp {
                continue;
            }
            followed.stamp = stamp;
            match ImageMap::load(file) {
                Ok(map) => (followed.map, followed.problem) = (map, None),
                Err(error) => followed.problem = Some(format!("{error:#}")),
            }
        }

        files
            .iter()
            .filter_map(|file| self.files[file].problem.clone())
            .collect()
    }

    fn maps(&self, fixed: &[ImageMap]) -> Vec<ImageMap> {
        self.order
            .iter()
            .map(|file| self.files[file].map.clone())
            .chain(fixed.iter().cloned())
            .collect()
    }
}

/// A value that changes when the file's content changes or another file takes its place.
fn stamp(metadata: &Metadata) -> [i64; 5] {
    let inode = metadata.ino().cast_signed();
    [
        inode,
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime_nsec(),
        metadata.size().cast_signed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_keeps_its_last_good_map() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("images.yaml");
        let fixed = vec![ImageMap::parse("t", "images: [{image: b, command: [fixed]}]").unwrap()];
        let mut followed = FollowedFiles::default();
        let mut write = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let problems = followed.reload_changed(std::slice::from_ref(&file));
            let found = |image: &str| {
                let maps = followed.maps(&fixed);
                maps.iter()
                    .find_map(|map| map.find(image))
                    .map(|entry| entry.command[0].clone())
            };
            (problems.len(), found("a"), found("b"))
        };

        let word = |text: &str| Some(text.to_owned());
        assert_eq!(
            write("images: [{image: a, command: [one]}]"),
            (0, word("one"), word("fixed"))
        );

        assert_eq!(
            write("images: [{image: a, com"),
            (1, word("one"), word("fixed"))
        );

        assert_eq!(
            write("images: [{image: b, command: [another]}]"),
            (0, None, word("another"))
        );
    }
}
