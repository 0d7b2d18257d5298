//! Starting programs through the launcher.

use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::process::Child;

use crate::launch::{LAUNCH_ROLE, LaunchSpec, TITLE};
use crate::log::Log;
use crate::{memfd, sys};

/// Where a program's input comes from and its output goes.
pub(crate) enum Output {
    /// Into a log; no input.
    Log(Arc<Log>),
    /// The caller's own three descriptors.
    Given([std::os::fd::OwnedFd; 3]),
}

/// Starts a program; it dies with the returned handle, and with the node.
///
/// The descriptors that `spec` names must stay open until this returns. Must be called on the
/// node's main thread: children are killed when the thread that started them ends.
pub(crate) fn spawn(spec: &LaunchSpec, title: &str, output: Output) -> anyhow::Result<Child> {
    let told = memfd::json(spec)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(format!("{TITLE} {title}"))
        .arg(LAUNCH_ROLE)
        .arg(told.as_raw_fd().to_string());

    let mut fds: Vec<RawFd> = vec![told.as_raw_fd()];
    fds.extend(spec.netns);
    fds.extend(spec.join);
    fds.extend(&spec.keep);
    sys::inherit(&mut command, fds);
    let log = match output {
        Output::Log(log) => {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            Some(log)
        }
        Output::Given([input, out, err]) => {
            command.stdin(input).stdout(out).stderr(err);
            None
        }
    };

    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()?;
    if let Some(log) = log {
        if let Some(out) = child.stdout.take() {
            tokio::spawn(Arc::clone(&log).copy(out));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(log.copy(err));
        }
    }

    Ok(child)
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn signal(child: &Child, signal: i32) {
    if let Some(pid) = child
        .id()
        .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
    {
        sys::kill(pid, signal);
    }
}

/// Asks a child to stop, then makes it.
pub(crate) async fn stop(mut child: Child, grace: std::time::Duration) {
    signal(&child, libc::SIGTERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
