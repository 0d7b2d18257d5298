//! `meltemi exec`: runs a program in an application's namespaces or in the router.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::process::Child;

use super::requests::{Refusal, choose_replica, refused};
use super::state::Node;
use crate::api::{ROUTER_TARGET, Target};
use crate::child::{self, ProgramIo};
use crate::launch::LaunchSpec;
use crate::programs::app_spec;

/// Starts a program in a workload or in the router, with the client's standard input, output and
/// error.
pub(super) fn spawn(
    node: &Node,
    target: &Target,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    fds: [OwnedFd; 3],
) -> Result<Child, Refusal> {
    if argv.is_empty() {
        return refused("no program to run");
    }
    let spawn = |spec: &LaunchSpec, title: String| {
        child::spawn(spec, &title, ProgramIo::Client(fds))
            .or_else(|error| refused(format!("{error:#}")))
    };

    if target.name == ROUTER_TARGET {
        let all = node
            .context
            .base_env
            .clone()
            .into_iter()
            .chain(env)
            .collect();

        let open_files = node.context.config.open_files;
        return spawn(
            &LaunchSpec {
                argv,
                env: all,
                umask: Some(node.context.config.umask),
                open_files,
                ..LaunchSpec::default()
            },
            "exec in the router".into(),
        );
    }

    let key = choose_replica(node, target)?;
    let state = node.state();
    let Some(handle) = state.handles.get(&key) else {
        return refused("it has just ended");
    };
    let Some(sandbox) = handle.sandbox.get() else {
        return refused(format!("{key} could not be set up"));
    };

    // Launch the program as if it were the application: same environment, mounts and identity.
    let mut workload = (*handle.spec).clone();
    let program = workload.app.get_or_insert_default();
    program.argv = argv;
    program.env.extend(env);
    let Some(mut spec) = app_spec(&node.context, &workload, sandbox) else {
        return refused("no program to run");
    };

    // If the application runs, join its namespaces. Otherwise `spec` creates equal ones.
    let application = handle
        .status
        .borrow()
        .app
        .as_ref()
        .and_then(|app| app.pid)
        .and_then(first_process);

    if let Some(process) = &application {
        spec.join = Some(process.as_raw_fd());
        spec.isolate = None;
        spec.files = Vec::new();
        spec.hide = Vec::new();
        spec.cwd = spec.cwd.or_else(|| Some("/".into()));
    }

    spawn(&spec, format!("exec {}", key.pod))
}

/// Opens process 1 of the namespaces that a launcher created: the launcher's only child.
fn first_process(launcher: u32) -> Option<OwnedFd> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the process's name in parentheses, which may contain parentheses
        // itself: split at the last one.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };

    let pids = std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());

    let child = pids
        .into_iter()
        .find(|pid| parent(*pid) == Some(launcher))?;
    let fd = pidfd_open(Pid::from_raw(child.cast_signed())?, PidfdFlags::empty()).ok()?;

    // The id may have been reused before it was opened: check the parent again.
    (parent(child) == Some(launcher)).then_some(())?;

    Some(fd)
}
