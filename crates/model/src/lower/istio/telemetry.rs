//! Telemetry to the model: its access logging.

use meltemi_api::telemetry::{self as api};
use meltemi_api::{Object, Spec};

use crate::lower::{Findings, origin};
use crate::{AccessLoggingRule, Telemetry, WorkloadMode};

pub(crate) fn lower_telemetry(object: &Object, findings: &mut Findings<'_>) -> Telemetry {
    let empty = api::Telemetry::default();
    let spec = if let Spec::Telemetry(spec) = &object.spec {
        spec.as_ref()
    } else {
        &empty
    };

    for (is_set, name) in [
        (!spec.tracing.is_empty(), "tracing"),
        (!spec.metrics.is_empty(), "metrics"),
    ] {
        if is_set {
            findings.warn(
                "MEL0307",
                &format!("spec.{name}"),
                format!("{name} is not supported yet and has no effect"),
                "only accessLogging is read so far",
            );
        }
    }

    for (index, rule) in spec.access_logging.iter().enumerate() {
        if rule
            .filter
            .as_ref()
            .is_some_and(|filter| !filter.expression.is_empty())
        {
            findings.warn(
                "MEL0307",
                &format!("spec.accessLogging[{index}].filter"),
                "only sidecars that are Envoy obey the filter; the others log every request"
                    .to_owned(),
                "choose by selector and match.mode",
            );
        }
    }

    let access_logging = spec.access_logging.iter().map(|rule| AccessLoggingRule {
        mode: match rule.r#match.as_ref().map(|matcher| matcher.mode) {
            None | Some(api::WorkloadMode::ClientAndServer) => None,
            Some(api::WorkloadMode::Client) => Some(WorkloadMode::Client),
            Some(api::WorkloadMode::Server) => Some(WorkloadMode::Server),
        },
        providers: rule
            .providers
            .iter()
            .map(|provider| provider.name.clone())
            .collect(),
        disabled: rule.disabled,
        filter: rule
            .filter
            .as_ref()
            .map(|filter| filter.expression.clone())
            .filter(|expression| !expression.is_empty()),
    });

    Telemetry {
        origin: origin(object),
        selector: spec
            .selector
            .as_ref()
            .map(|selector| selector.match_labels.clone())
            .filter(|labels| !labels.is_empty()),
        // What is attached to a Gateway or Service of the Gateway API is for no proxy that is
        // served.
        is_attached: spec.target_ref.is_some() || !spec.target_refs.is_empty(),
        access_logging: access_logging.collect(),
    }
}
