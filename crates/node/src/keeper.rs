//! The keeper, a process between the supervisor and the node. It creates the node's namespaces and
//! starts the node in them. When the node ends, the keeper ends; when the supervisor dies, the
//! keeper kills the node and removes the run folder.

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

/// Entry point of the hidden role: reads [`NodeConfig`] from the inherited descriptor `fd` and
/// returns the exit code.
pub(crate) fn run(fd: RawFd) -> anyhow::Result<i32> {
    let config: NodeConfig = memfd::read_json(fd)?;
    let channel = sys::inherited(config.channel).context("channel to the supervisor")?;

    // Leave the terminal's session: Ctrl-C must reach the supervisor only, which stops the node.
    let _ = rustix::process::setsid();

    if let Err(error) = enter_namespaces() {
        let why = kernel::explain(&error);
        let _ = fd_socket::send(
            &channel,
            &dialler::ToSupervisor::Event(Event::Failed(why)),
            &[],
        );
        return Ok(1);
    }

    // Entering a user namespace changes credentials, which clears the parent-death signal: set it
    // now. SIGTERM, unlike SIGKILL, lets the keeper clean up.
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
                    &dialler::ToSupervisor::Event(Event::Failed(kernel::explain(&error))),
                    &[],
                );
                sys::exit_now(1);
            }

            // `run_as_init` forks: process 1 stays as the init of the PID namespace, its child is
            // the node.
            run_as_init()?;
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

/// Waits for the node to end, forwarding signals to it. Returns the node's exit code.
fn keep(config: &NodeConfig, child: Pid) -> i32 {
    let is_orphan = || {
        rustix::process::getppid()
            .is_none_or(|parent| parent.as_raw_nonzero().get() != config.supervisor)
    };

    // The supervisor may have died before the parent-death signal was set.
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
            // The supervisor is dead, so an orderly stop serves nobody.
            _ if is_orphan() => sys::kill(child, libc::SIGKILL),
            signal => sys::kill(child, signal),
        }
    }

    // The node sees its channel close slightly before this process is re-parented: wait up to 1 s
    // for that, or the folder would stay.
    for _ in 0..100 {
        if code != Some(node::SUPERVISOR_GONE) || is_orphan() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }

    // A living supervisor removes the folder itself, or starts another node that uses it.
    if is_orphan() {
        let _ = fs::remove_dir_all(&config.run_dir);
    }

    code.unwrap_or(1)
}
