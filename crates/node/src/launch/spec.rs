//! What to launch: written by the node into a memory file, read by the launcher.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A program and the surroundings that it is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaunchSpec {
    /// Program and arguments. Empty program name: this very binary.
    pub(crate) argv: Vec<String>,
    /// What `ps` shows as the program's name, if not `argv[0]`.
    pub(crate) title: Option<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory, if not the node's.
    pub(crate) cwd: Option<PathBuf>,
    /// Network namespace to enter.
    pub(crate) netns: Option<RawFd>,
    /// Files shown under another path: (source, target). A target that does not exist is left out.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// Directories shown empty and read-only.
    pub(crate) hide: Vec<PathBuf>,
    /// A user and PID namespace of its own, for programs that must not touch what stands beside
    /// them.
    pub(crate) isolate: Option<Identity>,
    /// A process whose namespaces are entered (PID file descriptor), instead of new ones.
    pub(crate) join: Option<RawFd>,
    /// Whatever the program starts ends when it does, however that comes about.
    pub(crate) ends_together: bool,
    /// Soft limit of open files, if not the node's.
    pub(crate) open_files: Option<u64>,
    /// Descriptors that the program inherits.
    pub(crate) keep: Vec<RawFd>,
}

/// Who an isolated program is to itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// User id that it sees as its own.
    pub(crate) uid: u32,
    /// Group id that it sees as its own.
    pub(crate) gid: u32,
    /// Host name that it sees.
    pub(crate) hostname: String,
}
