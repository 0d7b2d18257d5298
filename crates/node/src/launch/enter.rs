//! The launcher process: enters or creates namespaces, mounts files, then executes the program.

use std::ffi::CString;
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use rustix::fs::Mode;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces,
};

use super::spec::{Identity, LaunchSpec};
use super::{LAUNCH_FAILED, covers, init, mounts, users};
use crate::{limits, memfd, sys};

/// Entry point of the hidden role: reads a [`LaunchSpec`] from the inherited descriptor `fd` and
/// executes its program. Returns only on failure, with the exit code.
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
        // Entering a PID namespace affects children only, so the program must be a child.
        init::run_as_init()?;
    } else if !spec.files.is_empty() || !spec.hide.is_empty() || spec.isolate.is_some() {
        sys::unshare(UnshareFlags::NEWNS).context("a mount namespace of its own")?;
        mounts::detach()?;
        covers::pin(&spec.hide)?;
        for (source, target) in &spec.files {
            mounts::cover(source, target)?;
        }
        covers::cover(&spec.hide)?;
    }

    if spec.ends_together {
        sys::unshare(UnshareFlags::NEWPID).context("a PID namespace of its own")?;
        // Continues in the child: process 1 of the new namespace. When it ends, the kernel kills
        // every other process in it.
        init::run_as_init()?;
    }

    if let Some(identity) = &spec.isolate {
        isolate(identity)?;
    }

    execute(&spec)
}

/// Moves into new user, PID, mount, IPC and host-name namespaces.
///
/// Mounts made before this are locked for the program, since they belong to the outer user
/// namespace: the program cannot unmount what covers the mesh's folders and pins their names.
fn isolate(identity: &Identity) -> anyhow::Result<()> {
    let flags =
        UnshareFlags::NEWPID | UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    users::enter(flags, identity.uid, identity.gid)
        .context("user and PID namespaces of its own")?;

    // Entering a user namespace changes credentials, which clears the parent-death signal.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let _ = rustix::system::sethostname(identity.hostname.as_bytes());
    // Continues in the child: process 1 of the new PID namespace.
    init::run_as_init()?;

    if let Err(e) = mounts::proc() {
        // The kernel forbids a new /proc where parts of the old one are covered, as in containers.
        // The program then sees the processes of the outer namespace.
        tracing::warn!(error = %e, "no process table of its own");
    }

    // Process 1 stays as init, which reaps orphans; the program is its child.
    init::run_as_init()?;

    Ok(())
}

/// Executes the program in place of this process. Returns only on failure, with the exit code that
/// a shell uses.
fn execute(spec: &LaunchSpec) -> anyhow::Result<i32> {
    let (program, arguments) = spec.argv.split_first().context("no program to launch")?;
    for fd in &spec.keep {
        sys::keep_across_exec(*fd).context("descriptor to pass on")?;
    }
    if let Some(mask) = spec.umask {
        rustix::process::umask(Mode::from_raw_mode(mask));
    }
    if let Some(soft) = spec.open_files {
        limits::set_open_files(soft).context("limit of open files")?;
    }

    let is_this_binary = program.is_empty();
    let mut command = Command::new(if is_this_binary {
        "/proc/self/exe"
    } else {
        program
    });
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
    if !is_this_binary {
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

    // Shells use 127 for a program that is not found and 126 for one that cannot be executed.
    Ok(if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        LAUNCH_FAILED
    })
}
