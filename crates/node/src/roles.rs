//! The hidden roles of the binary, which start the node's own processes: keeper, node and launcher.

use std::ffi::OsString;
use std::os::fd::RawFd;

use anyhow::Context as _;

use crate::keeper;
use crate::launch::{self, LAUNCH_FAILED, LAUNCH_ROLE, NODE_ROLE, TITLE};

/// Runs the hidden role that `arguments` (program name first) ask for and returns its exit code;
/// `None` for every other command line.
///
/// Call this before any thread exists. If the program name carries a title, the process's short
/// name (`comm`) is set from it in either case.
pub fn dispatch(arguments: &[OsString]) -> Option<i32> {
    let word = |index: usize| arguments.get(index)?.to_str();
    let name = word(0).unwrap_or_default();
    if let Some(title) = name.strip_prefix(TITLE) {
        // The process was started through /proc/self/exe, so its short name would be "exe". The
        // kernel cuts the name at 15 characters.
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
