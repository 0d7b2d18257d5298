//! Tells whoever watches `meltemi up` what is wrong with the configuration, once each, until it is
//! mended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meltemi_store::World;
use meltemi_types::{Diagnostic, Severity};
use tokio::sync::watch;

use crate::dialler::Dialler;
use crate::events::Event;

/// While objects come and go, references lead nowhere for a moment: a warning is told once nothing
/// has changed for this long.
const QUIET: Duration = Duration::from_secs(1);

/// Follows the worlds for ever.
pub(crate) async fn tell(mut worlds: watch::Receiver<Arc<World>>, dialler: Arc<Dialler>) {
    let mut told = BTreeSet::new();
    loop {
        let world = worlds.borrow_and_update().clone();
        for news in news(&world.diagnostics, &mut told, Severity::Error) {
            dialler.tell(Event::Finding(news)).await;
        }
        match tokio::time::timeout(QUIET, worlds.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => return,
            Err(_) => {}
        }

        for news in news(&world.diagnostics, &mut told, Severity::Warning) {
            dialler.tell(Event::Finding(news)).await;
        }
        if worlds.changed().await.is_err() {
            return;
        }
    }
}

/// Findings of a severity that have not been told, or that had gone meanwhile.
fn news(findings: &[Diagnostic], told: &mut BTreeSet<String>, severity: Severity) -> Vec<String> {
    let all: BTreeSet<String> = findings.iter().map(ToString::to_string).collect();
    told.retain(|finding| all.contains(finding));
    let wanted = findings
        .iter()
        .filter(|finding| finding.severity == severity);
    wanted
        .map(ToString::to_string)
        .filter(|finding| told.insert(finding.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_once_until_it_goes_away() {
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
        let mut told = BTreeSet::new();
        assert_eq!(news(&both, &mut told, Severity::Error).len(), 1);
        assert_eq!(
            news(&both, &mut told, Severity::Error),
            Vec::<String>::new()
        );

        assert_eq!(news(&both, &mut told, Severity::Warning).len(), 1);
        assert_eq!(
            news(&both[1..], &mut told, Severity::Error),
            Vec::<String>::new()
        );

        assert_eq!(news(&both, &mut told, Severity::Error).len(), 1);
    }
}
