//! What a process does before it becomes a sidecar, an application or the node: enter and make
//! namespaces.
//!
//! A process with threads cannot enter a user or mount namespace, so these steps are hidden roles
//! of the one binary, run before any runtime.

mod enter;
mod init;
mod mounts;
mod spec;
mod users;

pub(crate) use enter::run;
pub(crate) use init::{Lifeline, run_as_init};
pub(crate) use mounts::{detach as detach_mounts, proc as mount_proc};
pub(crate) use spec::{Identity, LaunchSpec};
pub(crate) use users::enter as enter_user_namespace;

/// The role of the node's own processes.
pub(crate) const NODE_ROLE: &str = "__node";
/// The role that prepares a process and then becomes it.
pub(crate) const LAUNCH_ROLE: &str = "__launch";

/// Every process of a mesh begins its command line with this.
pub(crate) const TITLE: &str = "meltemi:";

/// Exit code of a process that could not become what it should: as a shell's "cannot execute".
pub(crate) const LAUNCH_FAILED: i32 = 126;
