//! Files that are there completely or not at all, also after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// So many files are flushed to the disk one by one; more of them by one flush of their file system,
/// since the disk takes as long for one file as for many.
const FLUSHED_ONE_BY_ONE: usize = 8;

/// New content that waits beside its file under a name that begins with a dot, so that no source
/// reads it. Dropping it without [`commit`] leaves the file as it was.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
    temporary: PathBuf,
}

impl Staged {
    fn directory(&self) -> &Path {
        directory_of(&self.path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // There is nothing left to remove after a commit.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes new content beside a file. A new file is readable by its owner only, since objects may
/// hold keys; an existing one keeps its mode.
pub(crate) fn stage(path: &Path, content: &[u8]) -> io::Result<Staged> {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = format!(".meltemi-{}-{number}.tmp", std::process::id());
    let staged = Staged {
        path: path.to_owned(),
        temporary: directory_of(path).join(name),
    };

    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged.temporary)?;
    if let Ok(existing) = fs::metadata(path) {
        file.set_permissions(Permissions::from_mode(
            existing.permissions().mode() & 0o7777,
        ))?;
    }
    file.write_all(content)?;

    Ok(staged)
}

/// Replaces the files of all staged contents, in their order; there is one answer for each.
pub(crate) fn commit(staged: Vec<Staged>) -> Vec<io::Result<()>> {
    let directories: BTreeSet<PathBuf> = staged
        .iter()
        .map(|staged| staged.directory().to_owned())
        .collect();

    // Contents reach the disk before their names do.
    let flushed: BTreeMap<&Path, io::Result<()>> = match staged.len() > FLUSHED_ONE_BY_ONE {
        true => directories
            .iter()
            .map(|directory| (&**directory, flush_file_system(directory)))
            .collect(),
        false => BTreeMap::new(),
    };
    let replaced = staged
        .iter()
        .map(|staged| {
            match flushed.get(staged.directory()) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(io::Error::new(error.kind(), error.to_string())),
                None => File::open(&staged.temporary)?.sync_all()?,
            }
            fs::rename(&staged.temporary, &staged.path)
        })
        .collect();

    directories
        .iter()
        .for_each(|directory| sync_directory(directory));

    replaced
}

/// Replaces a file's content.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    commit(vec![stage(path, content)?]).pop().unwrap_or(Ok(()))
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn flush_file_system(directory: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(directory)?)?)
}

/// Removes what a process that was killed while it wrote has left behind; nobody else may be
/// writing there.
pub(crate) fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name
            .to_str()
            .is_some_and(|name| name.starts_with(".meltemi-") && name.ends_with(".tmp"))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes a file; that it is gone already is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => {
            if let Some(directory) = path.parent() {
                sync_directory(directory);
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory that only its owner may look into.
pub(crate) fn make_private_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// What was done is in force; a failure here makes it less durable, not undone.
fn sync_directory(directory: &Path) {
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        // Some file systems do not sync directories; the rename is as durable there as it gets.
        if error.kind() != io::ErrorKind::InvalidInput {
            warn!(directory = %directory.display(), %error, "a change may not survive a power cut");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_swept_and_files_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at(".meltemi-4711-0.tmp"), "half").expect("written");
        write(&at("a.yaml"), b"whole").expect("written");
        sweep(directory.path());
        let left: Vec<_> = fs::read_dir(directory.path())
            .expect("there")
            .flatten()
            .map(|e| e.file_name())
            .collect();

        assert_eq!(left, ["a.yaml"]);
    }

    #[test]
    fn a_failed_write_leaves_the_file_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a.yaml");
        write(&file, b"before").expect("written");

        // A directory in the way of the rename, the last step: everything before it is undone.
        let taken = directory.path().join("taken");
        fs::create_dir_all(taken.join("full")).expect("made");
        write(&taken, b"after").expect_err("a directory is there");
        assert_eq!(fs::read(&file).expect("there"), b"before");
        assert_eq!(
            fs::read_dir(directory.path()).expect("there").count(),
            2,
            "no temporary file is left"
        );
    }

    #[test]
    fn many_files_are_replaced_together_and_one_failure_is_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |n: usize| directory.path().join(format!("{n}.yaml"));
        fs::create_dir_all(at(3).join("full")).expect("made");

        let staged: Vec<_> = (0..FLUSHED_ONE_BY_ONE + 5)
            .map(|n| stage(&at(n), n.to_string().as_bytes()).expect("written"))
            .collect();
        assert!(!at(0).exists(), "nothing is there before the commit");

        let results = commit(staged);
        for (n, result) in results.iter().enumerate() {
            assert_eq!(result.is_ok(), n != 3, "{n}: {result:?}");
            if n != 3 {
                assert_eq!(fs::read_to_string(at(n)).expect("there"), n.to_string());
            }
        }
        assert_eq!(
            fs::read_dir(directory.path()).expect("there").count(),
            results.len(),
            "no temporary file is left"
        );
    }
}
