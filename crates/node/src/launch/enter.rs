//! The launcher: surroundings first, then the program.

use std::ffi::CString;
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces,
};

use super::spec::{Identity, LaunchSpec};
use super::{LAUNCH_FAILED, init, mounts, users};
use crate::{limits, memfd, sys};

/// Reads the specification and becomes the program; returns only on failure.
pub(crate) fn run(fd: RawFd) -> anyhow::Result<i32> {
    let spec: LaunchSpec = memfd::read_json(fd)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if let Some(netns) = spec.netns {
        let netns = sys::inherited(netns).context("network namespace")?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering the network namespace")?;
    }

    if let Some(process) = spec.join {
        let process = sys::inherited(process).context("process to join")?;
        let all = ThreadNameSpaceType::USER
            | ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        move_into_thread_name_spaces(process.as_fd(), all)
            .context("entering the workload's namespaces")?;
        // Only children are in the PID namespace.
        init::run_as_init()?;
    } else if !spec.files.is_empty() || !spec.hide.is_empty() || spec.isolate.is_some() {
        sys::unshare(UnshareFlags::NEWNS).context("a mount namespace of its own")?;
        mounts::detach()?;
        for (source, target) in &spec.files {
            mounts::cover(source, target)?;
        }
        for target in &spec.hide {
            mounts::hide(target)?;
        }
    }

    if spec.ends_together {
        sys::unshare(UnshareFlags::NEWPID).context("a PID namespace of its own")?;
        init::run_as_init()?; // the waiting parent in front; here: process 1, which takes the others with it
    }

    if let Some(identity) = &spec.isolate {
        isolate(identity)?;
    }

    execute(&spec)
}

/// New user, PID, mount and host-name namespaces below the current ones.
///
/// What was mounted before is locked for the program: it cannot take a cover away.
fn isolate(identity: &Identity) -> anyhow::Result<()> {
    let flags =
        UnshareFlags::NEWPID | UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    users::enter(flags, identity.uid, identity.gid)
        .context("user and PID namespaces of its own")?;

    // Entering a user namespace changes credentials, which clears the request to die with the
    // parent.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let _ = rustix::system::sethostname(identity.hostname.as_bytes());
    init::run_as_init()?; // the waiting parent in front; here: process 1
    if let Err(e) = mounts::proc() {
        // A machine that covers parts of /proc forbids a fresh one: the program then sees the outer
        // table's files.
        tracing::warn!(error = %e, "no process table of its own");
    }

    init::run_as_init()?; // process 1 stays init; here: the program

    Ok(())
}

fn execute(spec: &LaunchSpec) -> anyhow::Result<i32> {
    let (program, arguments) = spec.argv.split_first().context("no program to launch")?;
    for fd in &spec.keep {
        sys::keep_across_exec(*fd).context("descriptor to pass on")?;
    }
    if let Some(soft) = spec.open_files {
        limits::set_open_files(soft).context("limit of open files")?;
    }
    let own = program.is_empty();
    let mut command = Command::new(if own { "/proc/self/exe" } else { program });
    command
        .args(arguments)
        .env_clear()
        .envs(spec.env.iter().map(|(k, v)| (k, v)));

    if let Some(title) = &spec.title {
        command.arg0(title);
    }
    if let Some(cwd) = &spec.cwd {
        command.current_dir(cwd);
    }
    if !own {
        let short = program.rsplit('/').next().unwrap_or(program);
        let _ = rustix::thread::set_name(&CString::new(short).unwrap_or_default());
    }

    let error = command.exec();
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => "; is it installed and on the PATH?",
        std::io::ErrorKind::PermissionDenied => "; is it executable?",
        _ => "",
    };

    eprintln!("meltemi: cannot start {program}: {error}{hint}");

    // As a shell: 127 not found, 126 not executable.
    Ok(if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        LAUNCH_FAILED
    })
}
