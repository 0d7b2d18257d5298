//! The keeper: between the supervisor and the node. It makes the node's namespaces, and when either
//! of the two ends it ends the other; after the supervisor it removes what is left.

use std::fs;
use std::os::fd::RawFd;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

use crate::config::NodeConfig;
use crate::events::Event;
use crate::launch::{Lifeline, detach_mounts, enter_user_namespace, mount_proc, run_as_init};
use crate::sys::{self, Fork};
use crate::{dialler, fd_socket, kernel, memfd, node};

/// The hidden role: reads its configuration from `fd`.
pub(crate) fn run(fd: RawFd) -> anyhow::Result<i32> {
    let config: NodeConfig = memfd::read_json(fd)?;
    let channel = sys::inherited(config.channel).context("channel to the supervisor")?;

    // Ctrl-C at the terminal is the supervisor's to hear.
    let _ = rustix::process::setsid();

    if let Err(error) = enter_namespaces() {
        let why = kernel::explain(&error);
        let _ = fd_socket::send(
            &channel,
            &dialler::ToSupervisor::Tell(Event::Failed(why)),
            &[],
        );
        return Ok(1);
    }

    // After the change of credentials, which would clear it. A signal that can be handled: the
    // keeper cleans up.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let lifeline = Lifeline::new()?;
    sys::block_signals();

    match sys::fork()? {
        Fork::Parent(child) => {
            drop(channel);
            Ok(keep(&config, child))
        }
        Fork::Child => {
            lifeline.die_with_parent()?;
            sys::reset_signals();
            if let Err(e) = mount_proc() {
                let error =
                    anyhow::Error::from(e).context("mounting /proc in the node's namespaces");
                let _ = fd_socket::send(
                    &channel,
                    &dialler::ToSupervisor::Tell(Event::Failed(kernel::explain(&error))),
                    &[],
                );
                sys::exit_now(1);
            }

            run_as_init()?; // process 1 stays init; here: the node
            Ok(node::run(config, channel))
        }
    }
}

fn enter_namespaces() -> anyhow::Result<()> {
    enter_user_namespace(UnshareFlags::empty(), 0, 0).context("creating a user namespace")?;
    sys::unshare(UnshareFlags::NEWNET).context("creating a network namespace")?;
    sys::unshare(UnshareFlags::NEWNS).context("creating a mount namespace")?;
    sys::unshare(UnshareFlags::NEWPID).context("creating a PID namespace")?;
    detach_mounts()
}

fn keep(config: &NodeConfig, child: Pid) -> i32 {
    let is_orphan = || {
        rustix::process::getppid()
            .is_none_or(|parent| parent.as_raw_nonzero().get() != config.supervisor)
    };

    let mut code = None;
    if is_orphan() {
        sys::kill(child, libc::SIGKILL);
    }
    while code.is_none() {
        match sys::next_signal() {
            libc::SIGCHLD => {
                while let Some((pid, status)) = sys::reap() {
                    if pid == child {
                        code = Some(sys::shell_code(status));
                    }
                }
            }
            // Nobody is left to wait for an orderly end.
            _ if is_orphan() => sys::kill(child, libc::SIGKILL),
            signal => sys::kill(child, signal),
        }
    }

    // The node hears of the supervisor's death a moment before this process gets another parent.
    for _ in 0..100 {
        if code != Some(node::SUPERVISOR_GONE) || is_orphan() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }

    // A supervisor that lives removes the folder itself, or starts another node over it.
    if is_orphan() {
        let _ = fs::remove_dir_all(&config.run_dir);
    }

    code.unwrap_or(1)
}
