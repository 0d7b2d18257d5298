//! The launcher: enters and creates namespaces, then executes a sidecar, an application or the
//! node.
//!
//! A process with threads cannot enter a user or mount namespace. The launcher is therefore a
//! hidden role of the binary that runs before any tokio runtime exists.

mod covers;
mod enter;
mod init;
mod mounts;
mod spec;
mod users;

pub(crate) use covers::Folder;
pub(crate) use enter::run;
pub(crate) use init::{Lifeline, run_as_init};
pub(crate) use mounts::{detach as detach_mounts, proc as mount_proc};
pub(crate) use spec::{Identity, LaunchSpec};
pub(crate) use users::enter as enter_user_namespace;

/// Command-line word that starts the keeper and the node.
pub(crate) const NODE_ROLE: &str = "__node";
/// Command-line word that starts the launcher.
pub(crate) const LAUNCH_ROLE: &str = "__launch";

/// First word of the command line of every process of a mesh, as `ps` shows it.
pub(crate) const TITLE: &str = "meltemi:";

/// Exit code of a launcher that failed; shells use 126 for "cannot execute".
pub(crate) const LAUNCH_FAILED: i32 = 126;
