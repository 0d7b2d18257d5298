//! The specification of a launch. The node writes it to a memory file, and the launcher reads it.

use std::os::fd::RawFd;
use std::path::PathBuf;

use super::covers::Folder;
use serde::{Deserialize, Serialize};

/// A program, and the namespaces, mounts and limits that it gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaunchSpec {
    /// Program and arguments. An empty program name means this binary.
    pub(crate) argv: Vec<String>,
    /// Name that `ps` shows; `None` shows `argv[0]`.
    pub(crate) title: Option<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory; `None` keeps the node's.
    pub(crate) cwd: Option<PathBuf>,
    /// Descriptor of the network namespace to enter.
    pub(crate) netns: Option<RawFd>,
    /// Bind mounts, as (source, target). A target that does not exist is skipped.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// Folders that the program must not reach. Where one of them is not where it was, the program
    /// is not started.
    pub(crate) hide: Vec<Folder>,
    /// Run in new user and PID namespaces, so that the program can neither see nor signal the proxy
    /// beside it.
    pub(crate) isolate: Option<Identity>,
    /// PID file descriptor of a process whose namespaces are entered; no new ones are created.
    pub(crate) join: Option<RawFd>,
    /// Run in a PID namespace, so that all descendants die with the program, even if it is killed.
    pub(crate) ends_together: bool,
    /// Permissions that new files of the program lack; `None` keeps the node's, which lets nobody
    /// but the user in.
    pub(crate) umask: Option<u32>,
    /// Soft limit of open files; `None` keeps the node's.
    pub(crate) open_files: Option<u64>,
    /// Descriptors that the program inherits under the same numbers.
    pub(crate) keep: Vec<RawFd>,
}

/// The user, group and host name that an isolated program sees as its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) hostname: String,
}
