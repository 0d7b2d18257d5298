//! Files that are there completely or not at all, also after a power cut.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Replaces a file's content. A new file is readable by its owner only, since objects may hold
/// keys; an existing one keeps its mode. The name beside it that is used meanwhile begins with a
/// dot, so that no source reads it.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));

    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".meltemi-{}-{number}.tmp", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;

        if let Ok(existing) = fs::metadata(path) {
            file.set_permissions(Permissions::from_mode(
                existing.permissions().mode() & 0o7777,
            ))?;
        }

        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();

    if written.is_err() {
        // Whatever went wrong (a full disk, mostly), the half-written file is of no use to anyone.
        let _ = fs::remove_file(&temporary);
        return written;
    }

    sync_directory(directory);

    Ok(())
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
}
