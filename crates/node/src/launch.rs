//! What a process does before it becomes a sidecar, an application or the node: enter and make namespaces.
//!
//! A process with threads cannot enter a user or mount namespace, so these steps are hidden roles of the one binary, run
//! before any runtime: [`dispatch`] is the first thing that `main` calls.

mod enter;
mod init;
mod mounts;
mod spec;

pub use spec::{Identity, LaunchSpec};

use std::os::fd::RawFd;

use anyhow::{Context as _, bail};

pub(crate) use enter::map_user;
pub(crate) use init::{Lifeline, run_as_init};
pub(crate) use mounts::{detach as detach_mounts, proc as mount_proc};

/// The role of the node's own processes.
pub(crate) const NODE_ROLE: &str = "__node";
/// The role that prepares a process and then becomes it.
pub(crate) const LAUNCH_ROLE: &str = "__launch";

/// Runs a hidden role; the exit code when `arguments` (with the program's name first) asks for one.
///
/// Must be called before threads exist. For every other command line it only makes the process's short name tell whose
/// process it is, and returns `None`.
pub fn dispatch(arguments: &[String]) -> Option<i32> {
    let name = arguments.first().map_or("", String::as_str);
    if let Some(title) = name.strip_prefix(TITLE) {
        // Started through /proc/self/exe: the kernel would call it "exe". Cut at 15 characters by the kernel.
        let short = title.trim_start().replace(' ', ":");
        let _ = rustix::thread::set_name(&std::ffi::CString::new(short).unwrap_or_default());
    }
    let role = arguments.get(1).map(String::as_str)?;
    let run: fn(RawFd) -> anyhow::Result<i32> = match role {
        NODE_ROLE => crate::keeper::run,
        LAUNCH_ROLE => enter::run,
        _ => return None,
    };
    let outcome = arguments
        .get(2)
        .and_then(|fd| fd.parse().ok())
        .context("a hidden role takes the number of a file descriptor")
        .and_then(run);
    Some(match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meltemi: {error:#}");
            LAUNCH_FAILED
        }
    })
}

/// Every process of a mesh begins its command line with this.
pub(crate) const TITLE: &str = "meltemi:";

/// Exit code of a process that could not become what it should: as a shell's "cannot execute".
pub(crate) const LAUNCH_FAILED: i32 = 126;

/// Reads an inherited descriptor to its end as JSON.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(fd: RawFd) -> anyhow::Result<T> {
    use std::io::{Read as _, Seek as _};
    let mut file = std::fs::File::from(crate::sys::inherited(fd).context("inherited descriptor")?);
    file.rewind()?;
    let mut text = Vec::new();
    if file.read_to_end(&mut text)? == 0 {
        bail!("the inherited descriptor is empty");
    }
    Ok(serde_json::from_slice(&text)?)
}
