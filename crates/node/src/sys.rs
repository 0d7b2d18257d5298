//! System calls without a safe wrapper: fork, signals, and inherited file descriptors.
#![expect(
    unsafe_code,
    reason = "calls into the kernel that no safe wrapper offers"
)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::process::Command;

use rustix::process::Pid;

/// The side of a fork on which the caller continues.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old process, with the id of the new one.
    Parent(Pid),
}

/// Forks a process that has one thread.
pub(crate) fn fork() -> io::Result<Fork> {
    debug_assert_eq!(thread_count(), 1, "forking a process with threads");

    // SAFETY: the launcher's processes have one thread, so no lock is held by a thread that the
    // child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(
            Pid::from_raw(pid).expect("fork answers a positive id"),
        )),
    }
}

fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Lets the program that `command` starts inherit `fds` under the same numbers.
///
/// Close-on-exec is cleared in the child only, so that no other child that starts meanwhile
/// inherits them. The caller must keep the descriptors open until the command was spawned.
pub(crate) fn inherit(command: &mut Command, fds: Vec<RawFd>) {
    use std::os::unix::process::CommandExt as _;

    // SAFETY: fcntl on numbers that were copied before the fork is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(*fd), rustix::io::FdFlags::empty())?;
            }
            Ok(())
        });
    }
}

/// Keeps `fd` open when this process executes another program.
pub(crate) fn keep_across_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: used for one call; a number that is not open answers EBADF.
    Ok(rustix::io::fcntl_setfd(
        unsafe { BorrowedFd::borrow_raw(fd) },
        rustix::io::FdFlags::empty(),
    )?)
}

/// Takes ownership of a descriptor that the parent process passed, and sets close-on-exec.
pub(crate) fn inherited(fd: RawFd) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: used for one call; a number that is not open answers EBADF.
    rustix::io::fcntl_setfd(
        unsafe { BorrowedFd::borrow_raw(fd) },
        rustix::io::FdFlags::CLOEXEC,
    )?;
    // SAFETY: the number is open (checked above), was handed to this process by the one that
    // started it, and is taken once.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// Blocks every signal, for a process that reads them with [`next_signal`].
pub(crate) fn block_signals() {
    // SAFETY: the set is initialised by sigfillset; changing the mask of the calling thread has no
    // other condition.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Restores the default signal state: nothing blocked, nothing ignored.
pub(crate) fn reset_signals() {
    // SAFETY: as above; SIG_DFL is valid for every signal, and refused ones (KILL, STOP) are left
    // alone.
    unsafe {
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Whether this process was started with a signal ignored (`nohup`), or ignores it since.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: a null action changes nothing; the old one is written to a valid place.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut old) == 0
            && old.sa_sigaction == libc::SIG_IGN
    }
}

/// Waits for a blocked signal and returns its number.
pub(crate) fn next_signal() -> i32 {
    loop {
        // SAFETY: the set is initialised; a null info is allowed.
        let signal = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            libc::sigwaitinfo(&raw const set, std::ptr::null_mut())
        };
        if signal > 0 {
            return signal;
        }
    }
}

/// Sends a signal by number. Errors are ignored: the process may have ended.
pub(crate) fn kill(pid: Pid, signal: i32) {
    // SAFETY: no memory is involved; an id that is gone answers ESRCH.
    unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
}

/// Reaps one child that has ended and returns its id and raw wait status; `None` when none has
/// ended.
pub(crate) fn reap() -> Option<(Pid, i32)> {
    let mut status = 0;
    // SAFETY: status is a valid place for the answer.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    // 0: none has ended; -1: there is none.
    (pid > 0)
        .then(|| Pid::from_raw(pid))
        .flatten()
        .map(|pid| (pid, status))
}

/// The exit code that a shell reports for a raw wait status: 128 + signal if a signal killed the
/// process.
pub(crate) fn shell_code(status: i32) -> i32 {
    if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    }
}

/// Ends the process at once, without destructors or `atexit` handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// The index of an interface of the calling thread's network namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: a zero-terminated name that lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Moves the calling thread into a new network namespace.
pub(crate) fn new_network_namespace() -> io::Result<()> {
    unshare(rustix::thread::UnshareFlags::NEWNET)
}

/// Moves the calling thread into new namespaces of the given kinds.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: only namespaces are unshared, never the table of file descriptors, so nobody's
    // descriptor changes its meaning.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}
