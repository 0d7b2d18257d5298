//! User namespaces and their id maps.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use anyhow::Context as _;
use rustix::process::{Pid, WaitOptions, getegid, geteuid, getppid, waitpid};
use rustix::thread::UnshareFlags;

use crate::sys::{self, Fork};

/// Moves this process into a new user namespace and into the other new namespaces of `further`.
/// Inside, the process has the ids `uid` and `gid`.
///
/// If root stays root, all ids are mapped where the kernel permits it, since a program of root may
/// switch to another user. Any other user can map only their own id (`user_namespaces(7)`).
pub(crate) fn enter(further: UnshareFlags, uid: u32, gid: u32) -> anyhow::Result<()> {
    let own = (geteuid().as_raw(), getegid().as_raw());
    let outside = if own == (0, 0) && own == (uid, gid) {
        Outside::start().ok()
    } else {
        None
    };

    sys::unshare(UnshareFlags::NEWUSER | further)?;
    if outside.is_some_and(Outside::map_everybody) {
        return Ok(());
    }
    fs::write("/proc/self/setgroups", "deny").context("writing setgroups of the user namespace")?;
    fs::write("/proc/self/uid_map", format!("{uid} {} 1", own.0))
        .context("writing the user map")?;
    fs::write("/proc/self/gid_map", format!("{gid} {} 1", own.1))
        .context("writing the group map")?;

    Ok(())
}

/// A helper process that stays in the old user namespace. The kernel accepts a map of more than one
/// id only from there.
struct Outside {
    process: Pid,
    go: OwnedFd,
}

impl Outside {
    fn start() -> anyhow::Result<Self> {
        let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        match sys::fork()? {
            Fork::Parent(process) => Ok(Self { process, go }),
            Fork::Child => {
                drop(go);
                let is_told = fs::File::from(wait).read_exact(&mut [0]).is_ok();
                sys::exit_now(i32::from(!is_told || map_same_ids(getppid()).is_err()));
            }
        }
    }

    /// Maps all ids of the old namespace; returns whether that succeeded.
    fn map_everybody(self) -> bool {
        let told = fs::File::from(self.go).write_all(&[0]);
        let status = waitpid(Some(self.process), WaitOptions::empty());
        told.is_ok()
            && status
                .is_ok_and(|ended| ended.is_some_and(|(_, status)| status.exit_status() == Some(0)))
    }
}

/// Maps every id of this process's user namespace to the same number in the namespace of `process`.
fn map_same_ids(process: Option<Pid>) -> anyhow::Result<()> {
    let process = process.context("the process has ended")?.as_raw_nonzero();
    // Groups first: if they cannot be mapped, the user map is still unwritten and the caller can
    // map a single id.
    for map in ["gid_map", "uid_map"] {
        let ours = fs::read_to_string(format!("/proc/self/{map}"))?;
        fs::write(format!("/proc/{process}/{map}"), same_numbers(&ours))?;
    }
    Ok(())
}

/// Turns a namespace's map (inner, outer, count per line) into a map for a child namespace with the
/// same numbers.
fn same_numbers(map: &str) -> String {
    let lines = map.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (inner, _, count) = (words.next()?, words.next()?, words.next()?);
        Some(format!("{inner} {inner} {count}\n"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_namespace_below_has_the_same_numbers() {
        let map = "         0     100000      65536\n     65536       1000          1\n";
        assert_eq!(super::same_numbers(map), "0 0 65536\n65536 65536 1\n");
    }
}
