//! Image maps in files, followed as the files change.

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

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The maps of `files`, which count before `fixed`, now and whenever one of the files changes. What
/// is broken in a file is told, and the last good map stays.
pub(crate) fn follow(
    files: Vec<PathBuf>,
    fixed: Vec<ImageMap>,
    dialler: Arc<Dialler>,
) -> watch::Receiver<Arc<Vec<ImageMap>>> {
    let mut known = Known::default();
    let _ = known.look(&files);
    let (maps, followed) = watch::channel(Arc::new(known.maps(&fixed)));
    tokio::spawn(async move {
        let mut told = Vec::new();
        while !(files.is_empty() || maps.is_closed()) {
            tokio::time::sleep(LOOK).await;
            let problems = known.look(&files);
            for problem in problems.iter().filter(|problem| !told.contains(*problem)) {
                dialler
                    .tell(Event::Warning(format!(
                        "{problem}; the last good version of this map stays"
                    )))
                    .await;
            }

            told = problems;
            let now = known.maps(&fixed);
            maps.send_if_modified(|held| {
                let is_new = **held != now;
                *held = Arc::new(now);
                is_new
            });
        }

        // Without a file there is nothing to look at, and the maps stay as long as somebody reads
        // them.
        maps.closed().await;
    });

    followed
}

/// Files as they were last seen, each with its last good map and what is wrong with it now.
#[derive(Debug, Default)]
struct Known {
    /// In the order in which they count.
    order: Vec<PathBuf>,
    files: BTreeMap<PathBuf, KnownFile>,
}

#[derive(Debug, Default)]
struct KnownFile {
    stamp: Option<[i64; 5]>,
    map: ImageMap,
    problem: Option<String>,
}

impl Known {
    /// Reads what has changed; answers what is wrong.
    fn look(&mut self, files: &[PathBuf]) -> Vec<String> {
        self.order = files.to_vec();
        for file in files {
            let stamp = std::fs::metadata(file)
                .ok()
                .map(|metadata| stamp(&metadata));
            let known = self.files.entry(file.clone()).or_default();
            if stamp.is_some() && known.stamp == stamp {
                continue;
            }
            known.stamp = stamp;
            match ImageMap::load(file) {
                Ok(map) => (known.map, known.problem) = (map, None),
                Err(error) => known.problem = Some(format!("{error:#}")),
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

/// What tells two states of a file apart.
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
        let mut known = Known::default();
        let mut write = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let problems = known.look(std::slice::from_ref(&file));
            let found = |image: &str| {
                let maps = known.maps(&fixed);
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
