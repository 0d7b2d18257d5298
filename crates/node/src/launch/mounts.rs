//! Mounts within a process's own mount namespace.

use std::io;
use std::path::Path;

use anyhow::Context as _;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

/// Makes all mounts propagate one way: later mounts of the machine appear here, mounts made here
/// stay here (`MS_SLAVE`).
pub(crate) fn detach() -> anyhow::Result<()> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).context("making mounts private")
}

/// Bind-mounts `source` over `target`. Returns false if `target` does not exist.
pub(crate) fn cover(source: &Path, target: &Path) -> anyhow::Result<bool> {
    match mount_bind(source, target) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) if source.exists() => Ok(false),
        Err(e) => Err(e)
            .with_context(|| format!("mounting {} over {}", source.display(), target.display())),
    }
}

/// Mounts `/proc` of the current PID namespace.
pub(crate) fn proc() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("proc", "/proc", "proc", flags, None)?)
}
