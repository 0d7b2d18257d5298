//! A program that is restarted whenever it ends, with exponential back-off. The owner starts the
//! process; this type says when, and counts the failures.

use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::Child;
use tokio::time::Instant;

/// Delay before the first restart; each further failure doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(30);
/// A program that ran this long before it ended starts again with the first delay.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// What [`SupervisedProgram::next`] waited for.
#[derive(Debug)]
pub(crate) enum ProgramEvent {
    /// The program ended.
    Exited(ExitStatus),
    /// It is time to start the program.
    StartDue,
}

/// A program that runs or waits for its restart.
#[derive(Debug, Default)]
pub(crate) struct SupervisedProgram {
    child: Option<Child>,
    started: Option<Instant>,
    delay: Option<Duration>,
    failures: u32,
    /// When the program starts next; `None` while it runs or is stopped.
    pub(crate) due: Option<Instant>,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<String>,
    /// The user has been told about the current crash loop.
    is_loop_reported: bool,
}

impl SupervisedProgram {
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Process id in the node's PID namespace.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Hands over the running process without planning a restart.
    pub(crate) fn take(&mut self) -> Option<Child> {
        self.due = None;
        self.child.take()
    }

    /// Records that the owner started the program.
    pub(crate) fn started(&mut self, child: Child) {
        self.child = Some(child);
        self.started = Some(Instant::now());
        self.due = None;
    }

    /// Records that the program could not be started, and plans the next attempt.
    pub(crate) fn failed(&mut self, why: String) {
        self.last_exit = Some(why);
        self.schedule();
    }

    /// Waits until the program ends or has to be started. Never returns for a program that is
    /// stopped. Cancellation safe.
    pub(crate) async fn next(&mut self) -> ProgramEvent {
        loop {
            match (&mut self.child, self.due) {
                (Some(child), _) => match child.wait().await {
                    Ok(status) => return ProgramEvent::Exited(status),
                    Err(error) => {
                        tracing::warn!(%error, "cannot wait for a program");
                        self.child = None;
                        self.schedule();
                    }
                },
                (None, Some(due)) => {
                    tokio::time::sleep_until(due).await;
                    return ProgramEvent::StartDue;
                }
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// Records an exit and plans the restart. Returns a description of the exit.
    pub(crate) fn ended(&mut self, status: ExitStatus) -> &str {
        self.child = None;
        if self.started.is_some_and(|at| at.elapsed() >= STABLE_AFTER) {
            self.delay = None;
            self.failures = 0;
            self.is_loop_reported = false;
        }

        self.last_exit = Some(describe(status));
        self.schedule();
        self.last_exit.as_deref().unwrap_or_default()
    }

    fn schedule(&mut self) {
        let delay = self
            .delay
            .map_or(FIRST_DELAY, |delay| (delay * 2).min(MAX_DELAY));
        self.delay = Some(delay);
        self.failures += 1;
        self.restarts += 1;
        self.due = Some(Instant::now() + delay);
    }

    /// Whether the program has failed exactly once since it last ran for long.
    pub(crate) fn has_failed_once(&self) -> bool {
        self.child.is_none() && self.delay == Some(FIRST_DELAY)
    }

    /// Returns a message about a crash loop for the user: at the second failure in a row, and only
    /// once per loop. A single failure may be chance.
    pub(crate) fn take_crash_loop_message(&mut self) -> Option<String> {
        let delay = self.delay.filter(|delay| {
            *delay > FIRST_DELAY && self.child.is_none() && !self.is_loop_reported
        })?;
        self.is_loop_reported = true;

        let why = self.last_exit.as_deref().unwrap_or("it cannot be started");
        Some(format!(
            "fails again and again ({why}); it is started anew after {delay:?}, then after twice that and so on, up to {MAX_DELAY:?}"
        ))
    }

    /// Number of failures in a row, each soon after the start.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Plans a start at once and forgets earlier failures.
    pub(crate) fn start_now(&mut self) {
        self.delay = None;
        self.failures = 0;
        self.due = Some(Instant::now());
    }

    /// Whether the program ended and waits for its restart.
    pub(crate) fn is_backing_off(&self) -> bool {
        self.child.is_none() && self.delay.is_some()
    }
}

/// Describes an exit status for the user. A launcher reports its program's death by signal as exit
/// code 128 + signal, as shells do.
fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code @ 129..=192), _) => format!("killed by signal {}", code - 128),
        (Some(127), _) => "program not found (exit code 127)".to_owned(),
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[tokio::test(start_paused = true)]
    async fn restarts_back_off_up_to_a_limit() {
        let mut program = SupervisedProgram::default();
        let mut delays = Vec::new();
        for _ in 0..9 {
            program.ended(ExitStatus::from_raw(1 << 8));
            delays.push(program.due.unwrap() - Instant::now());
        }

        assert_eq!(delays[..3], [FIRST_DELAY, FIRST_DELAY * 2, FIRST_DELAY * 4]);
        assert_eq!(delays[8], MAX_DELAY);
        assert_eq!(
            (
                program.restarts,
                program.failures(),
                program.last_exit.as_deref()
            ),
            (9, 9, Some("exit code 1"))
        );

        assert!(
            program
                .take_crash_loop_message()
                .is_some_and(|text| text.contains("(exit code 1)") && text.contains("after 30s"))
        );

        program.start_now();
        assert!(matches!(program.next().await, ProgramEvent::StartDue));
        assert_eq!((program.restarts, program.failures()), (9, 0));
        assert_eq!(
            describe(ExitStatus::from_raw(137 << 8)),
            "killed by signal 9"
        );
    }

    #[test]
    fn a_crash_loop_is_reported_once() {
        let mut program = SupervisedProgram::default();
        program.ended(ExitStatus::from_raw(3 << 8));
        assert_eq!(
            (program.take_crash_loop_message(), program.has_failed_once()),
            (None, true),
            "once may be chance"
        );

        program.failed("no such file".into());
        let message = program.take_crash_loop_message().expect("twice is not");
        assert!(
            message.contains("(no such file)") && message.contains("after 500ms"),
            "{message}"
        );

        program.ended(ExitStatus::from_raw(3 << 8));
        assert_eq!(
            program.take_crash_loop_message(),
            None,
            "not for every restart"
        );
    }
}
