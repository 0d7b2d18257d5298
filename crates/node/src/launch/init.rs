//! A tiny init: the first process of a PID namespace, and the waiting parent in front of one.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use crate::sys::{self, Fork};

/// Forks. The child returns; the parent forwards signals to it, reaps, and ends with its exit code.
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

/// Forwards signals to `child` until it ends.
fn wait(child: Pid) -> ! {
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => {
                while let Some((pid, status)) = sys::reap() {
                    if pid == child {
                        // A first process that ends takes its namespace with it.
                        sys::exit_now(sys::shell_code(status));
                    }
                }
            }
            signal => sys::kill(child, signal),
        }
    }
}

/// Lets a child notice that its parent ended before it could ask to be killed with it.
pub(crate) struct Lifeline {
    read: OwnedFd,
    write: OwnedFd,
}

impl Lifeline {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { read, write })
    }

    /// In the child: from here on the parent's death is its own.
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
