//! Shows in the output of `meltemi up` what becomes of the configuration: diagnostics, each once,
//! diagnostics that went away, and objects that were created, changed or deleted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meltemi_api::{Kind, Object, ObjectKey};
use meltemi_model::Tables;
use meltemi_store::World;
use meltemi_types::{Diagnostic, Severity};
use tokio::sync::watch;

use crate::dialler::Dialler;
use crate::events::{Event, ObjectChange};

/// Warnings are shown once the configuration has been unchanged for this long: while files are
/// being written, references to missing objects are normal.
const QUIET: Duration = Duration::from_secs(1);

/// Changed objects that are named one by one; a larger change is counted.
const NAMED_CHANGES: usize = 10;

/// The code of the note that an object's last good version stays in force beside its fault.
const LAST_GOOD: &str = "MEL0403";

/// The folders that tell whose an object is.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    /// What the node writes itself; its objects are not reported.
    pub(crate) own: PathBuf,
    /// What `meltemi apply` keeps.
    pub(crate) applied: PathBuf,
}

/// Follows the configuration until its source ends.
pub(crate) async fn report(
    mut worlds: watch::Receiver<Arc<World>>,
    dialler: Arc<Dialler>,
    folders: Folders,
) {
    let mut findings = Reported::default();
    let mut tables = worlds.borrow().tables.clone();
    loop {
        let world = worlds.borrow_and_update().clone();
        for event in changes(&tables, &world.tables, &folders) {
            dialler.show(event).await;
        }
        tables.clone_from(&world.tables);
        for event in findings.events(&world.diagnostics, Severity::Error) {
            dialler.show(event).await;
        }

        match tokio::time::timeout(QUIET, worlds.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => return,
            Err(_) => {}
        }

        for event in findings.events(&world.diagnostics, Severity::Warning) {
            dialler.show(event).await;
        }
        if worlds.changed().await.is_err() {
            return;
        }
    }
}

/// The diagnostics that the user has seen, by their text.
#[derive(Debug, Default)]
struct Reported(BTreeMap<String, Diagnostic>);

impl Reported {
    /// Events of the diagnostics of one severity that are new, and of all that went away.
    fn events(&mut self, findings: &[Diagnostic], severity: Severity) -> Vec<Event> {
        let all: BTreeMap<String, &Diagnostic> = findings
            .iter()
            .map(|finding| (finding.to_string(), finding))
            .collect();

        let mut gone = Vec::new();
        self.0.retain(|text, finding| {
            let is_there = all.contains_key(text);
            if !is_there {
                gone.push(finding.clone());
            }
            is_there
        });
        // A fault whose line moved, or of which another part is wrong now, is not mended.
        let is_mended = |gone: &&Diagnostic| {
            let same = |now: &&Diagnostic| now.code == gone.code && now.object == gone.object;
            gone.code != LAST_GOOD && !findings.iter().any(|now| same(&now))
        };
        let mended = gone.iter().filter(is_mended).map(mended);
        let mut events: Vec<Event> = mended.collect();

        for (text, finding) in all {
            if finding.severity == severity && !self.0.contains_key(&text) {
                events.push(Event::Finding(text.clone()));
                self.0.insert(text, finding.clone());
            }
        }
        events
    }
}

/// The event of a diagnostic that went away, whose remedy is no longer needed.
fn mended(finding: &Diagnostic) -> Event {
    let short = Diagnostic {
        remedy: String::new(),
        ..finding.clone()
    };
    Event::Mended(short.to_string())
}

/// Events of the objects that differ between two states of the configuration.
fn changes(before: &Tables, now: &Tables, folders: &Folders) -> Vec<Event> {
    let is_below =
        |object: &Object, folder: &Path| Path::new(&*object.source.file).starts_with(folder);
    let is_users = |object: &Object| object.kind != Kind::Pod && !is_below(object, &folders.own);
    let by_key = |tables: &Tables| -> BTreeMap<ObjectKey, Arc<Object>> {
        let users = tables.iter().filter(|object| is_users(object));
        users
            .map(|object| (object.key(), Arc::clone(object)))
            .collect()
    };

    let (before, now) = (by_key(before), by_key(now));
    let mut events = Vec::new();
    let mut push = |object: &Object, change| {
        let at = object.source.position("metadata.name");
        let place = match is_below(object, &folders.applied) {
            true => "applied".to_owned(),
            false => format!("{}:{}", at.file, at.line),
        };
        events.push(Event::Object {
            object: object.object_ref().to_string(),
            place,
            change,
        });
    };
    for (key, object) in &now {
        match before.get(key) {
            None => push(object, ObjectChange::Created),
            Some(held) if Arc::ptr_eq(held, object) || **held == **object => {}
            Some(_) => push(object, ObjectChange::Changed),
        }
    }
    for (key, object) in &before {
        if !now.contains_key(key) {
            push(object, ObjectChange::Deleted);
        }
    }

    match events.len() {
        0..=NAMED_CHANGES => events,
        count => vec![Event::Objects(count)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, line: u32) -> Diagnostic {
        Diagnostic {
            code: "MEL0101".to_owned(),
            severity,
            object: meltemi_types::ObjectRef::new("Service", "shop", line.to_string()),
            field: String::new(),
            position: meltemi_types::Position {
                file: "a.yaml".into(),
                line,
                ..Default::default()
            },
            message: "not YAML".to_owned(),
            remedy: "correct it".to_owned(),
        }
    }

    #[test]
    fn a_finding_is_reported_once_and_again_after_it_was_mended() {
        let both = [finding(Severity::Error, 1), finding(Severity::Warning, 2)];
        let mut reported = Reported::default();

        let error = Event::Finding(both[0].to_string());
        assert_eq!(
            reported.events(&both, Severity::Error),
            std::slice::from_ref(&error)
        );
        assert_eq!(reported.events(&both, Severity::Error), []);
        assert_eq!(
            reported.events(&both, Severity::Warning),
            [Event::Finding(both[1].to_string())]
        );

        let mended = "a.yaml:1: error[MEL0101]: Service/1.shop: not YAML";
        assert_eq!(
            reported.events(&both[1..], Severity::Error),
            [Event::Mended(mended.to_owned())]
        );
        assert_eq!(reported.events(&both, Severity::Error), [error]);
    }

    #[test]
    fn a_finding_that_moved_is_not_mended() {
        let mut reported = Reported::default();
        let old = finding(Severity::Error, 1);
        reported.events(std::slice::from_ref(&old), Severity::Error);
        let mut moved = old;
        moved.position.line = 7;
        let events = reported.events(std::slice::from_ref(&moved), Severity::Error);
        assert_eq!(events, [Event::Finding(moved.to_string())]);
    }

    #[test]
    fn changes_of_the_users_objects_are_reported() {
        let tables = |text: &str| -> Tables {
            let (objects, _) = meltemi_api::parse_documents("/shop/a.yaml", text);
            objects.into_iter().map(Arc::new).collect()
        };
        let account = |name: &str, label: &str| {
            format!(
                "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, labels: {{is: {label}}}}}\n---\n"
            )
        };
        let folders = |own: &str, applied: &str| Folders {
            own: own.into(),
            applied: applied.into(),
        };
        let others = folders("/run/mesh", "/state");
        let before = tables(&(account("a", "x") + &account("b", "x") + &account("c", "x")));

        // The second moves to another line, which is no change.
        let now = tables(&(account("b", "x") + &account("c", "z") + &account("d", "x")));
        let said: Vec<(String, ObjectChange)> = changes(&before, &now, &others)
            .into_iter()
            .map(|event| match event {
                Event::Object { object, change, .. } => (object, change),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = [
            ("ServiceAccount/c.default", ObjectChange::Changed),
            ("ServiceAccount/d.default", ObjectChange::Created),
            ("ServiceAccount/a.default", ObjectChange::Deleted),
        ];
        assert_eq!(
            said,
            expected.map(|(name, change)| (name.to_owned(), change))
        );

        assert_eq!(changes(&before, &now, &folders("/shop", "/state")), []);
        let places = |folders: &Folders| match changes(&Tables::default(), &now, folders).remove(0)
        {
            Event::Object { place, .. } => place,
            other => panic!("{other:?}"),
        };
        assert_eq!(places(&others), "/shop/a.yaml:3");
        assert_eq!(places(&folders("/run", "/shop")), "applied");

        let many: String = (0..11).map(|n| account(&format!("n{n}"), "x")).collect();
        assert_eq!(
            changes(&Tables::default(), &tables(&many), &others),
            [Event::Objects(11)]
        );
    }
}
