//! Shows the diagnostics of the configuration in the output of `meltemi up`. Each is shown once;
//! one that was fixed and comes back is shown again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meltemi_store::World;
use meltemi_types::{Diagnostic, Severity};
use tokio::sync::watch;

use crate::dialler::Dialler;
use crate::events::Event;

/// Warnings are shown once the configuration has been unchanged for this long: while files are
/// being written, references to missing objects are normal.
const QUIET: Duration = Duration::from_secs(1);

/// Follows the configuration until its source ends.
pub(crate) async fn report_findings(
    mut worlds: watch::Receiver<Arc<World>>,
    dialler: Arc<Dialler>,
) {
    let mut reported = BTreeSet::new();
    loop {
        let world = worlds.borrow_and_update().clone();
        for finding in unreported(&world.diagnostics, &mut reported, Severity::Error) {
            dialler.show(Event::Finding(finding)).await;
        }

        match tokio::time::timeout(QUIET, worlds.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => return,
            Err(_) => {}
        }

        for finding in unreported(&world.diagnostics, &mut reported, Severity::Warning) {
            dialler.show(Event::Finding(finding)).await;
        }
        if worlds.changed().await.is_err() {
            return;
        }
    }
}

/// Returns the findings of one severity that are not in `reported`, and adds them to it. Findings
/// that no longer exist are removed from `reported` first.
fn unreported(
    findings: &[Diagnostic],
    reported: &mut BTreeSet<String>,
    severity: Severity,
) -> Vec<String> {
    let all: BTreeSet<String> = findings.iter().map(ToString::to_string).collect();
    reported.retain(|finding| all.contains(finding));

    let wanted = findings
        .iter()
        .filter(|finding| finding.severity == severity);
    wanted
        .map(ToString::to_string)
        .filter(|finding| reported.insert(finding.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_reported_once_until_it_goes_away() {
        let finding = |severity, line| Diagnostic {
            code: "MEL0101".to_owned(),
            severity,
            object: meltemi_types::ObjectRef::default(),
            field: String::new(),
            position: meltemi_types::Position {
                file: "a.yaml".into(),
                line,
                ..Default::default()
            },
            message: "not YAML".to_owned(),
            remedy: String::new(),
        };

        let both = [finding(Severity::Error, 1), finding(Severity::Warning, 2)];
        let mut reported = BTreeSet::new();
        assert_eq!(unreported(&both, &mut reported, Severity::Error).len(), 1);
        assert_eq!(
            unreported(&both, &mut reported, Severity::Error),
            Vec::<String>::new()
        );

        assert_eq!(unreported(&both, &mut reported, Severity::Warning).len(), 1);
        assert_eq!(
            unreported(&both[1..], &mut reported, Severity::Error),
            Vec::<String>::new()
        );

        assert_eq!(unreported(&both, &mut reported, Severity::Error).len(), 1);
    }
}
