//! The hidden roles of the binary: which of the node's own processes this one is to be.

use std::ffi::OsString;
use std::os::fd::RawFd;

use anyhow::Context as _;

use crate::keeper;
use crate::launch::{self, LAUNCH_FAILED, LAUNCH_ROLE, NODE_ROLE, TITLE};

/// Runs a hidden role; the exit code when `arguments` (with the program's name first) asks for one.
///
/// Must be called before threads exist. For every other command line it only makes the process's
/// short name tell whose process it is, and returns `None`.
pub fn dispatch(arguments: &[OsString]) -> Option<i32> {
    let word = |index: usize| arguments.get(index)?.to_str();
    let name = word(0).unwrap_or_default();
    if let Some(title) = name.strip_prefix(TITLE) {
        // Started through /proc/self/exe: the kernel would call it "exe". Cut at 15 characters by
        // the kernel.
        let short = title.trim_start().replace(' ', ":");
        let _ = rustix::thread::set_name(&std::ffi::CString::new(short).unwrap_or_default());
    }

    let role = word(1)?;
    let run: fn(RawFd) -> anyhow::Result<i32> = match role {
        NODE_ROLE => keeper::run,
        LAUNCH_ROLE => launch::run,
        _ => return None,
    };

    let outcome = word(2)
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
