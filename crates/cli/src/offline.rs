//! `apply --dry-run=client`: checks the objects of files without a running mesh.

use meltemi_admin_api::{Action, Applied, ApplyResponse};
use meltemi_types::Severity;

/// Reads and validates each object by itself. References to other objects are not followed, since
/// these may be in the mesh alone.
pub(crate) fn check(text: &str, namespace: &str) -> ApplyResponse {
    let parsed = meltemi_api::parse_in("applied", text, namespace);
    let mut diagnostics = parsed.diagnostics;

    let mut objects = Vec::new();
    for object in &parsed.objects {
        let findings = meltemi_api::validate(object);
        let is_refused = findings
            .iter()
            .any(|finding| finding.severity == Severity::Error);
        diagnostics.extend(findings);

        objects.push(Applied {
            object: object.key().object_ref(),
            action: if is_refused {
                Action::Refused
            } else {
                Action::Valid
            },
            file: String::new(),
            in_users_file: false,
        });
    }

    ApplyResponse {
        ok: !diagnostics
            .iter()
            .any(|finding| finding.severity == Severity::Error),
        dry_run: true,
        objects,
        diagnostics,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: good}
spec: {host: reviews}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bad}
spec: {hosts: [reviews], http: [{timeout: soon, route: [{destination: {host: reviews}}]}]}
";

    #[test]
    fn objects_are_checked_without_a_mesh() {
        let response = check(TEXT, "shop");
        assert!(!response.ok && response.dry_run);

        let valid: Vec<_> = response
            .objects
            .iter()
            .filter(|one| one.action == Action::Valid)
            .map(|one| (&*one.object.namespace, &*one.object.name))
            .collect();
        assert_eq!(valid, [("shop", "good")]);
        assert!(
            response
                .diagnostics
                .iter()
                .any(|finding| finding.position.line == 9 && finding.field.contains("timeout")),
            "{:?}",
            response.diagnostics
        );

        assert!(check(TEXT.split("---").next().unwrap(), "shop").ok);
    }
}
