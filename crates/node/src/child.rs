//! Starts programs through the launcher (`crate::launch`) and stops them.

use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::process::Child;

use crate::launch::{LAUNCH_ROLE, LaunchSpec, TITLE};
use crate::log::Log;
use crate::{memfd, sys};

/// Standard input, output and error of a started program.
pub(crate) enum ProgramIo {
    /// Output and errors go to a log; input is empty.
    Log(Arc<Log>),
    /// Input, output and error descriptors of the client that asked.
    Client([std::os::fd::OwnedFd; 3]),
}

/// Starts a program. The program is killed when the returned handle is dropped or the node ends.
///
/// The descriptors named in `spec` must stay open until this returns. Call this on the node's main
/// thread: the kernel kills children when the thread that started them ends (`PR_SET_PDEATHSIG`).
pub(crate) fn spawn(spec: &LaunchSpec, title: &str, io: ProgramIo) -> anyhow::Result<Child> {
    let spec_file = memfd::json(spec)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(format!("{TITLE} {title}"))
        .arg(LAUNCH_ROLE)
        .arg(spec_file.as_raw_fd().to_string());

    let mut fds: Vec<RawFd> = vec![spec_file.as_raw_fd()];
    fds.extend(spec.netns);
    fds.extend(spec.join);
    fds.extend(&spec.keep);
    sys::inherit(&mut command, fds);

    let log = match io {
        ProgramIo::Log(log) => {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            Some(log)
        }
        ProgramIo::Client([input, out, err]) => {
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

/// Sends a signal to a child; does nothing once the child was reaped.
pub(crate) fn signal(child: &Child, signal: i32) {
    if let Some(pid) = child
        .id()
        .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
    {
        sys::kill(pid, signal);
    }
}

/// Sends SIGTERM, waits up to `grace`, then sends SIGKILL.
pub(crate) async fn stop(mut child: Child, grace: std::time::Duration) {
    signal(&child, libc::SIGTERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
