//! One program that is kept running: exits are observed, restarts back off.

use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::Child;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);
/// Who ran this long failed for a new reason.
const FORGET: Duration = Duration::from_secs(30);

/// What happens next with a program.
#[derive(Debug)]
pub(crate) enum PartEvent {
    /// It ended.
    Exited(ExitStatus),
    /// It is time to start it.
    Due,
}

/// A program, running or about to run again.
#[derive(Debug, Default)]
pub(crate) struct Part {
    child: Option<Child>,
    started: Option<Instant>,
    delay: Option<Duration>,
    failures: u32,
    /// When it is to start, if it does not run.
    pub(crate) due: Option<Instant>,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<String>,
    /// That it fails again and again has been told.
    told: bool,
}

impl Part {
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Process id in the node's PID namespace.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Takes the running program out, without a restart.
    pub(crate) fn take(&mut self) -> Option<Child> {
        self.due = None;
        self.child.take()
    }

    /// It runs.
    pub(crate) fn started(&mut self, child: Child) {
        self.child = Some(child);
        self.started = Some(Instant::now());
        self.due = None;
    }

    /// It could not be started.
    pub(crate) fn failed(&mut self, why: String) {
        self.last_exit = Some(why);
        self.schedule();
    }

    /// Waits for the program to end, or for the time to start it. Pending for ever when neither is
    /// to come. Cancellation safe.
    pub(crate) async fn next(&mut self) -> PartEvent {
        loop {
            match (&mut self.child, self.due) {
                (Some(child), _) => match child.wait().await {
                    Ok(status) => return PartEvent::Exited(status),
                    Err(error) => {
                        tracing::warn!(%error, "cannot wait for a program");
                        self.child = None;
                        self.schedule();
                    }
                },
                (None, Some(due)) => {
                    tokio::time::sleep_until(due).await;
                    return PartEvent::Due;
                }
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// Notes an exit and plans the restart.
    pub(crate) fn ended(&mut self, status: ExitStatus) -> &str {
        self.child = None;
        if self.started.is_some_and(|at| at.elapsed() >= FORGET) {
            self.delay = None;
            self.failures = 0;
            self.told = false;
        }
        self.last_exit = Some(describe(status));
        self.schedule();
        self.last_exit.as_deref().unwrap_or_default()
    }

    fn schedule(&mut self) {
        let delay = self.delay.map_or(FIRST, |delay| (delay * 2).min(LONGEST));
        self.delay = Some(delay);
        self.failures += 1;
        self.restarts += 1;
        self.due = Some(Instant::now() + delay);
    }

    /// Whether it has just failed for the first time in a row.
    pub(crate) fn failed_once(&self) -> bool {
        self.child.is_none() && self.delay == Some(FIRST)
    }

    /// How it failed and what is done about it; once, when it has failed for the second time in a
    /// row.
    pub(crate) fn complaint(&mut self) -> Option<String> {
        let delay = self
            .delay
            .filter(|delay| *delay > FIRST && self.child.is_none() && !self.told)?;
        self.told = true;
        let why = self.last_exit.as_deref().unwrap_or("it cannot be started");
        Some(format!(
            "fails again and again ({why}); it is started anew after {delay:?}, then after twice that and so on, up to {LONGEST:?}"
        ))
    }

    /// How often in a row it has ended soon after its start.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts again at once, whatever happened before.
    pub(crate) fn start_now(&mut self) {
        self.delay = None;
        self.failures = 0;
        self.due = Some(Instant::now());
    }

    /// Whether it fails again and again.
    pub(crate) fn is_crashing(&self) -> bool {
        self.child.is_none() && self.delay.is_some()
    }
}

/// As people say it; launchers report a signal's end as a shell does.
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
        let mut part = Part::default();
        let mut delays = Vec::new();
        for _ in 0..9 {
            part.ended(ExitStatus::from_raw(1 << 8));
            delays.push(part.due.unwrap() - Instant::now());
        }

        assert_eq!(delays[..3], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(delays[8], LONGEST);
        assert_eq!(
            (part.restarts, part.failures(), part.last_exit.as_deref()),
            (9, 9, Some("exit code 1"))
        );

        assert!(
            part.complaint()
                .is_some_and(|text| text.contains("(exit code 1)") && text.contains("after 30s"))
        );

        part.start_now();
        assert!(matches!(part.next().await, PartEvent::Due));
        assert_eq!((part.restarts, part.failures()), (9, 0));
        assert_eq!(
            describe(ExitStatus::from_raw(137 << 8)),
            "killed by signal 9"
        );
    }

    #[test]
    fn a_loop_is_told_once() {
        let mut part = Part::default();
        part.ended(ExitStatus::from_raw(3 << 8));
        assert_eq!(
            (part.complaint(), part.failed_once()),
            (None, true),
            "once may be chance"
        );

        part.failed("no such file".into());
        let told = part.complaint().expect("twice is not");
        assert!(
            told.contains("(no such file)") && told.contains("after 500ms"),
            "{told}"
        );

        part.ended(ExitStatus::from_raw(3 << 8));
        assert_eq!(part.complaint(), None, "not for every restart");
    }
}
