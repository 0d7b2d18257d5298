//! Turns the events of a running mesh into lines for the user.

use std::net::SocketAddr;
use std::time::Duration;

use meltemi_cli::age_since;
use meltemi_node::{AppliedObject, Event, ObjectChange, WorkloadChange};

/// Names of applied objects in the line of the start; the rest is counted.
const SHOWN_OBJECTS: usize = 5;

/// A line for standard output, or for standard error.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Say(String),
    Complain(String),
}

/// What the printer remembers: a node that is started again sends its events again.
#[derive(Debug)]
pub(super) struct Printer {
    /// The words of a command line that address this mesh.
    meltemi: String,
    /// Gateway port and address of the machine.
    published: Vec<(u16, SocketAddr)>,
    told_applied: bool,
    /// Workloads that became ready during the start.
    ready_workloads: usize,
    was_ready: bool,
}

impl Printer {
    pub(super) fn new(meltemi: String) -> Self {
        Self {
            meltemi,
            published: Vec::new(),
            told_applied: false,
            ready_workloads: 0,
            was_ready: false,
        }
    }

    /// Whether everything has been ready before.
    pub(super) fn was_ready(&self) -> bool {
        self.was_ready
    }

    /// Gateway port and address of the machine of each published port.
    pub(super) fn published(&self) -> &[(u16, SocketAddr)] {
        &self.published
    }

    /// The line of an event, `elapsed` after the start.
    pub(super) fn line(&mut self, event: Event, elapsed: Duration) -> Option<Line> {
        match event {
            Event::Published { gateway, port } => {
                let address = (port.port, port.address);
                if self.published.contains(&address) {
                    return None;
                }
                self.published.push(address);
                Some(Line::Say(format!("{gateway} {port}")))
            }
            Event::Applied(objects) => {
                if std::mem::replace(&mut self.told_applied, true) || objects.is_empty() {
                    return None;
                }
                Some(Line::Say(applied(&objects, &self.meltemi)))
            }
            Event::AllReady if std::mem::replace(&mut self.was_ready, true) => {
                Some(Line::Say("ready again".to_owned()))
            }
            Event::AllReady => Some(Line::Say(self.ready(elapsed))),
            Event::WorkloadReady { .. } if !self.was_ready => {
                self.ready_workloads += 1;
                None
            }
            Event::WorkloadReady { namespace, name } => {
                Some(Line::Say(format!("workload {namespace}/{name} is ready")))
            }
            Event::Workload {
                namespace,
                name,
                change,
            } => {
                let what = match change {
                    WorkloadChange::Started => "started",
                    WorkloadChange::Changed => "changed and was started anew",
                    WorkloadChange::Ended => "ended",
                };
                Some(Line::Say(format!("workload {namespace}/{name} {what}")))
            }
            // The objects of the start are no news.
            Event::Object { .. } | Event::Objects(_) if !self.was_ready => None,
            Event::Object {
                object,
                place,
                change,
            } => Some(Line::Say(match change {
                ObjectChange::Created => format!("created {object} ({place})"),
                ObjectChange::Changed => format!("changed {object} ({place})"),
                ObjectChange::Deleted => format!("deleted {object} ({place})"),
            })),
            Event::Objects(count) => Some(Line::Say(format!("{count} objects changed"))),
            Event::Mended(text) => Some(Line::Say(format!("mended: {text}"))),
            Event::Stopping(count) => Some(Line::Say(format!("stopping {} ...", workloads(count)))),
            Event::Finding(text) => Some(Line::Complain(text)),
            Event::Warning(text) => Some(Line::Complain(format!("warning: {text}"))),
            // `up` returns this as its error.
            Event::Failed(_) => None,
            Event::NodeUp | Event::ControlUp => None,
        }
    }

    fn ready(&self, elapsed: Duration) -> String {
        let what = match self.ready_workloads {
            0 => "no workload yet".to_owned(),
            count => workloads(count),
        };
        format!(
            "ready after {:.1} s: {what} (`{} status` shows what runs)",
            elapsed.as_secs_f64(),
            self.meltemi
        )
    }
}

fn workloads(count: usize) -> String {
    match count {
        1 => "1 workload".to_owned(),
        count => format!("{count} workloads"),
    }
}

/// What rules from before, and how to be rid of it.
fn applied(objects: &[AppliedObject], meltemi: &str) -> String {
    let name = |object: &AppliedObject| {
        let age = object.created.as_deref().and_then(age_since);
        let age = age.map_or_else(String::new, |age| format!(" ({age} ago)"));
        format!("{}{age}", object.name)
    };
    let mut names: Vec<String> = objects.iter().take(SHOWN_OBJECTS).map(name).collect();
    if let Some(more) = objects.len().checked_sub(SHOWN_OBJECTS + 1) {
        names.push(format!("{} more", more + 1));
    }

    let (what, verb, them) = match objects.len() {
        1 => ("1 object".to_owned(), "is", "it"),
        count => (format!("{count} objects"), "are", "them"),
    };
    format!(
        "{what} applied earlier {verb} in force: {}. `{meltemi} delete --all` removes {them}; --fresh starts without {them}.",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(events: Vec<Event>) -> Vec<Line> {
        let mut printer = Printer::new("meltemi".to_owned());
        let elapsed = Duration::from_millis(810);
        let lines = events.into_iter();
        lines
            .filter_map(|event| printer.line(event, elapsed))
            .collect()
    }

    fn said(events: Vec<Event>) -> Vec<String> {
        let text = |line| match line {
            Line::Say(text) => text,
            Line::Complain(text) => panic!("{text}"),
        };
        lines(events).into_iter().map(text).collect()
    }

    fn object(name: &str, created: Option<&str>) -> AppliedObject {
        AppliedObject {
            name: name.to_owned(),
            created: created.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn what_is_in_force_from_before_is_told_once() {
        let one = Event::Applied(vec![object(
            "VirtualService/a.default",
            Some("2999-01-01T00:00:00Z"),
        )]);
        assert_eq!(
            said(vec![one.clone(), Event::AllReady, one, Event::AllReady]),
            [
                "1 object applied earlier is in force: VirtualService/a.default (0s ago). \
                 `meltemi delete --all` removes it; --fresh starts without it.",
                "ready after 0.8 s: no workload yet (`meltemi status` shows what runs)",
                "ready again",
            ]
        );

        assert_eq!(said(vec![Event::Applied(Vec::new())]), Vec::<String>::new());
        let many: Vec<AppliedObject> = (0..7).map(|n| object(&n.to_string(), None)).collect();
        let line = said(vec![Event::Applied(many)]).remove(0);
        assert!(
            line.starts_with("7 objects applied earlier are in force: 0, 1, 2, 3, 4, 2 more."),
            "{line}"
        );
        let six: Vec<AppliedObject> = (0..6).map(|n| object(&n.to_string(), None)).collect();
        let line = said(vec![Event::Applied(six)]).remove(0);
        assert!(line.contains("4, 1 more."), "{line}");
    }

    #[test]
    fn what_happens_after_the_start_is_told_line_by_line() {
        let named = |name: &str| ("shop".to_owned(), name.to_owned());
        let ready = |name: &str| {
            let (namespace, name) = named(name);
            Event::WorkloadReady { namespace, name }
        };
        let workload = |name: &str, change| {
            let (namespace, name) = named(name);
            Event::Workload {
                namespace,
                name,
                change,
            }
        };
        let object = |change| Event::Object {
            object: "Service/web.shop".to_owned(),
            place: "/shop/web.yaml:4".to_owned(),
            change,
        };

        assert_eq!(
            said(vec![
                object(ObjectChange::Created),
                ready("web-0"),
                Event::AllReady,
                object(ObjectChange::Changed),
                workload("db-0", WorkloadChange::Started),
                ready("db-0"),
                workload("db-0", WorkloadChange::Changed),
                workload("db-0", WorkloadChange::Ended),
                Event::Objects(312),
                Event::Mended("a.yaml:1: error[MEL0101]: not YAML".to_owned()),
                Event::Stopping(2),
            ]),
            [
                "ready after 0.8 s: 1 workload (`meltemi status` shows what runs)",
                "changed Service/web.shop (/shop/web.yaml:4)",
                "workload shop/db-0 started",
                "workload shop/db-0 is ready",
                "workload shop/db-0 changed and was started anew",
                "workload shop/db-0 ended",
                "312 objects changed",
                "mended: a.yaml:1: error[MEL0101]: not YAML",
                "stopping 2 workloads ...",
            ]
        );
    }

    #[test]
    fn faults_go_to_standard_error() {
        assert_eq!(
            lines(vec![
                Event::Warning("w".to_owned()),
                Event::Finding("f".to_owned())
            ]),
            [
                Line::Complain("warning: w".to_owned()),
                Line::Complain("f".to_owned())
            ]
        );
    }
}
