//! A minimal init: a process that forks, forwards signals to its child, reaps orphans, and ends
//! with the child's exit code. It serves as process 1 of a PID namespace and as the parent that
//! waits outside of one.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use crate::sys::{self, Fork};

/// Forks. Only the child returns. The parent becomes the init and never returns.
pub(crate) fn run_as_init() -> io::Result<()> {
    let lifeline = Lifeline::new()?;
    sys::block_signals();
    match sys::fork()? {
        Fork::Child => {
            lifeline.die_with_parent()?;
            sys::reset_signals();
            Ok(())
        }
        Fork::Parent(child) => wait(child),
    }
}

/// Forwards signals to `child`, reaps all children, and exits when `child` ends.
fn wait(child: Pid) -> ! {
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => {
                while let Some((pid, status)) = sys::reap() {
                    if pid == child {
                        // If this is process 1, its exit ends all other processes of the namespace.
                        sys::exit_now(sys::shell_code(status));
                    }
                }
            }
            signal => sys::kill(child, signal),
        }
    }
}

/// Closes the race between a fork and `PR_SET_PDEATHSIG`: a pipe whose write end the parent holds.
/// A child whose parent died before the child set the signal sees the pipe closed.
pub(crate) struct Lifeline {
    read: OwnedFd,
    write: OwnedFd,
}

impl Lifeline {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { read, write })
    }

    /// Call in the child: from now on the kernel kills this process when its parent dies. Exits at
    /// once if the parent is dead already.
    pub(crate) fn die_with_parent(self) -> io::Result<()> {
        drop(self.write);
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let mut fds = [PollFd::new(&self.read, PollFlags::IN)];
        poll(
            &mut fds,
            Some(&rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )?;

        if fds[0].revents().contains(PollFlags::HUP) {
            sys::exit_now(1);
        }

        Ok(())
    }
}
