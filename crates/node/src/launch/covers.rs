//! Keeps a program out of the mesh's own folders, where keys, tokens and sockets lie.
//!
//! Applications run as the user who started the mesh, so file permissions do not protect these
//! folders. Each application therefore gets a mount namespace in which the folders are covered, and
//! in which the folders above them cannot be renamed: a program that moved one of those would leave
//! the cover of the next program without a place, and the mesh without its sockets.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_bind_recursive};
use serde::{Deserialize, Serialize};

/// A folder that is known by its inode as well: another folder of that name is not taken for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Folder {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Folder {
    /// The folder at a path without symbolic links. The returned file keeps the inode's number from
    /// being given to another folder, for as long as it is open.
    pub(crate) fn hold(path: &Path) -> std::io::Result<(Self, fs::File)> {
        let file = fs::File::open(path)?;
        let found = file.metadata()?;
        let folder = Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        };

        Ok((folder, file))
    }

    /// The folder under one of its names; `None` if something else has that name.
    fn at(&self, path: &Path) -> Option<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let found = rustix::fs::fstat(&folder).ok()?;
        (found.st_dev == self.device && found.st_ino == self.inode).then_some(folder)
    }
}

/// Pins the names of all folders: every folder above them becomes a mount point of this mount
/// namespace, and the kernel renames and removes no mount point (EBUSY).
pub(crate) fn pin(folders: &[Folder]) -> anyhow::Result<()> {
    // A path sorts before those below it, so that the outer mounts are made first.
    let above: BTreeSet<&Path> = folders
        .iter()
        .flat_map(|folder| folder.path.ancestors().skip(1))
        .filter(|path| path.parent().is_some())
        .collect();

    for path in above {
        mount_bind_recursive(path, path).with_context(|| format!("pinning {}", path.display()))?;
    }

    Ok(())
}

/// Mounts an empty read-only folder over each folder, under every name that it has here. Fails if
/// one of them is not where it was: the program would find it under its new name.
pub(crate) fn cover(folders: &[Folder]) -> anyhow::Result<()> {
    for folder in folders {
        let Some(place) = folder.at(&folder.path) else {
            bail!(
                "{} is not the folder that the mesh was started with: it was moved, removed or \
                 replaced, and the workload could read it. Move it back, or start the mesh anew",
                folder.path.display()
            );
        };
        cover_one(&place).with_context(|| format!("covering {}", folder.path.display()))?;

        // The same file system may be mounted elsewhere, too.
        let mounts = fs::read("/proc/self/mountinfo").context("reading the mounts")?;
        for name in other_names(&folder.path, &mounts) {
            if let Some(place) = folder.at(&name) {
                cover_one(&place).with_context(|| format!("covering {}", name.display()))?;
            }
        }
    }

    Ok(())
}

fn cover_one(place: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // The opened folder, whatever happens to its name meanwhile.
    let opened = format!("/proc/self/fd/{}", place.as_raw_fd());
    mount("tmpfs", opened, "tmpfs", flags, Some(c"size=4k,mode=555"))
}

/// A mount: the device of its file system, the folder of it that is mounted, and where.
struct Mount {
    device: Vec<u8>,
    root: PathBuf,
    at: PathBuf,
}

/// The names that a path has by other mounts of its file system. `mounts` is the text of
/// `/proc/self/mountinfo` (proc(5)).
fn other_names(path: &Path, mounts: &[u8]) -> Vec<PathBuf> {
    let mounts: Vec<Mount> = mounts
        .split(|byte| *byte == b'\n')
        .filter_map(Mount::parse)
        .collect();

    // Later mounts lie over earlier ones at the same place; `max_by_key` takes the last.
    let own = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.components().count());
    let Some(own) = own else {
        return Vec::new();
    };
    let Ok(below) = path.strip_prefix(&own.at) else {
        return Vec::new();
    };
    let within = own.root.join(below);

    mounts
        .iter()
        .filter(|mount| mount.device == own.device)
        .filter_map(|mount| Some(mount.at.join(within.strip_prefix(&mount.root).ok()?)))
        .filter(|name| name != path)
        .collect()
}

impl Mount {
    /// A line of the file: `36 35 98:0 /folder /mounted/here rw - ext4 /dev/x rw`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let device = fields.next()?.to_vec();
        let mut path = || Some(PathBuf::from(OsStr::from_bytes(&unescape(fields.next()?))));

        Some(Self {
            device,
            root: path()?,
            at: path()?,
        })
    }
}

/// The kernel writes blanks, line feeds and backslashes as three octal digits after a backslash.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(octal) if byte == b'\\' => {
                plain.push(octal);
                rest = &after[3..];
            }
            _ => {
                plain.push(byte);
                rest = after;
            }
        }
    }

    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_a_name_by_each_mount_of_its_file_system() {
        let mounts = b"20 1 8:1 / / rw - ext4 /dev/a rw\n\
            21 20 8:2 / /home rw - ext4 /dev/b rw\n\
            22 20 8:2 / /mnt/my\\040disk rw - ext4 /dev/b rw\n\
            23 20 8:2 /u/.local /srv/local rw - ext4 /dev/b rw\n\
            24 20 8:2 /other /srv/other rw - ext4 /dev/b rw\n\
            25 20 0:30 / /tmp rw - tmpfs tmpfs rw\n";

        assert_eq!(
            other_names(Path::new("/home/u/.local/state"), mounts),
            [
                Path::new("/mnt/my disk/u/.local/state"),
                Path::new("/srv/local/state")
            ]
        );
        assert!(other_names(Path::new("/tmp/run"), mounts).is_empty());
    }

    #[test]
    fn a_folder_is_known_by_its_inode_and_not_by_its_name() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let (path, moved) = (home.path().join("state"), home.path().join("moved"));
        fs::create_dir(&path).expect("created");
        let (folder, _held) = Folder::hold(&path).expect("opened");
        assert!(folder.at(&path).is_some());

        fs::rename(&path, &moved).expect("renamed");
        fs::create_dir(&path).expect("a decoy");
        assert!(folder.at(&path).is_none() && folder.at(&moved).is_some());

        fs::remove_dir(&path).expect("removed");
        std::os::unix::fs::symlink(&moved, &path).expect("a link");
        assert!(folder.at(&path).is_none(), "a link is another file");
    }
}
