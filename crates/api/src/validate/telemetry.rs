//! Telemetry.

use super::rules::*;
use crate::schema::Report;
use crate::telemetry::{AccessLogging, CustomTag, Metrics, TagOperation, Telemetry, Tracing};

pub(super) fn check(spec: &Telemetry, at: &mut Report) {
    let Telemetry {
        selector,
        target_ref,
        target_refs,
        tracing,
        metrics,
        access_logging,
    } = spec;

    check_targets(selector, target_ref, target_refs, at);
    if tracing.len() > 1 {
        at.field("tracing", |at| {
            at.warn(
                WITHOUT_EFFECT,
                "multiple tracing is not currently supported: the first one counts",
                "keep one",
            )
        });
    }

    if metrics.len() > 1 {
        at.field("metrics", |at| {
            at.warn(
                WITHOUT_EFFECT,
                "multiple metrics is not currently supported: the first one counts",
                "keep one",
            )
        });
    }

    at.each("tracing", tracing, check_tracing);
    at.each("metrics", metrics, check_metrics);
    at.each(
        "accessLogging",
        access_logging,
        |logging: &AccessLogging, at| {
            at.some("filter", &logging.filter, |filter, at| {
                if filter.expression.is_empty() {
                    at.field("expression", |at| {
                        at.error(
                            MISSING,
                            "filter expression must not be empty",
                            "write a CEL expression",
                        )
                    });
                } else if let Some(fault) = unbalanced(&filter.expression) {
                    at.field("expression", |at| {
                        at.error(
                            INVALID,
                            format!("not a CEL expression: {fault}"),
                            "correct the expression",
                        )
                    });
                }
            });
        },
    );
}

fn check_tracing(tracing: &Tracing, at: &mut Report) {
    if tracing.providers.len() > 1 {
        at.field("providers", |at| {
            at.warn(
                WITHOUT_EFFECT,
                "multiple providers is not currently supported: the first one counts",
                "keep one",
            );
        });
    }

    if tracing
        .random_sampling_percentage
        .is_some_and(|percent| !(0.0..=100.0).contains(&percent))
    {
        at.field("randomSamplingPercentage", |at| {
            at.error(INVALID, "must be in range [0..100]", "write 0 to 100")
        });
    }

    at.field("customTags", |at| {
        for (name, tag) in &tracing.custom_tags {
            at.field(name, |at| {
                if name.is_empty() {
                    at.error(INVALID, "tag name may not be empty", "name the tag");
                }
                check_tag(tag, at);
            });
        }
    });
}

fn check_tag(tag: &CustomTag, at: &mut Report) {
    let CustomTag {
        literal,
        environment,
        header,
        formatter,
    } = tag;

    let chosen = usize::from(literal.is_some())
        + usize::from(environment.is_some())
        + usize::from(header.is_some())
        + usize::from(formatter.is_some());

    match chosen {
        0 => at.error(
            MISSING,
            "a custom tag must say where its value comes from",
            "add literal, environment, header or formatter",
        ),
        1 => {}
        _ => at.error(
            CONFLICT,
            "only one of literal, environment, header or formatter can be set",
            "keep one of them",
        ),
    }
}

fn check_metrics(metrics: &Metrics, at: &mut Report) {
    check_duration("reportingInterval", metrics.reporting_interval, at);
    at.each("overrides", &metrics.overrides, |overrides, at| {
        at.some("match", &overrides.r#match, |selector, at| {
            if selector.metric.is_some() && selector.custom_metric.is_some() {
                at.error(
                    CONFLICT,
                    "only one of metric or customMetric can be set",
                    "keep one of them",
                );
            }
        });

        at.field("tagOverrides", |at| {
            for (name, tag) in &overrides.tag_overrides {
                at.field(name, |at| match (tag.operation, &tag.value) {
                    (TagOperation::Remove, Some(_)) => {
                        at.error(
                            CONFLICT,
                            "value must not be set when operation is REMOVE",
                            "remove value",
                        );
                    }
                    (TagOperation::Upsert, None) => at.error(
                        MISSING,
                        "value must be set when operation is UPSERT",
                        "add a CEL expression",
                    ),
                    (TagOperation::Upsert, Some(value)) if value.is_empty() => {
                        at.error(
                            MISSING,
                            "value must be set when operation is UPSERT",
                            "add a CEL expression",
                        );
                    }
                    _ => {}
                });
            }
        });
    });
}

/// A cheap look at an expression: quotes end, brackets match. Whether it means something, its
/// compiler says.
fn unbalanced(expression: &str) -> Option<&'static str> {
    let mut open = Vec::new();
    let mut characters = expression.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' | '\'' => loop {
                match characters.next() {
                    None => return Some("a quote does not end"),
                    Some('\\') => {
                        characters.next();
                    }
                    Some(other) if other == c => break,
                    Some(_) => {}
                }
            },
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.pop() != Some(c) => return Some("brackets do not match"),
            _ => {}
        }
    }

    (!open.is_empty()).then_some("a bracket does not close")
}
