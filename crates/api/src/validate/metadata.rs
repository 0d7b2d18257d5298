//! Annotations that Istio checks, whatever the kind.

use meltemi_types::parse_go_bool;

use super::rules::{CONFLICT, INVALID};
use crate::object::{Object, Spec};
use crate::schema::{Report, UnknownFields, shorten};
use crate::security::AuthorizationAction;

const DRY_RUN: &str = "istio.io/dry-run";

pub(super) fn check(object: &Object) -> Report {
    let mut report = Report::new("metadata", UnknownFields::Refuse);
    if let Some(value) = object.meta.annotations.get(DRY_RUN)
        && object.kind.is_mesh()
    {
        report.field("annotations", |at| {
            at.field(DRY_RUN, |at| check_dry_run(&object.spec, value, at));
        });
    }

    report
}

/// Only ALLOW and DENY can be tried out. An annotation that is misread would enforce the trial.
fn check_dry_run(spec: &Spec, value: &str, at: &mut Report) {
    let Spec::AuthorizationPolicy(policy) = spec else {
        return at.error(
            CONFLICT,
            format!("unsupported annotation {DRY_RUN}: only an AuthorizationPolicy has a dry run"),
            "remove the annotation",
        );
    };

    if !matches!(
        policy.action,
        AuthorizationAction::Allow | AuthorizationAction::Deny
    ) {
        let message = format!(
            "the annotation {DRY_RUN} supports action ALLOW and DENY only, not {}",
            policy.action.as_str()
        );
        return at.error(CONFLICT, message, "remove the annotation");
    }

    if parse_go_bool(value).is_none() {
        at.error(
            INVALID,
            format!("{:?} is not a boolean", shorten(value)),
            "write \"true\" or \"false\"",
        );
    }
}
