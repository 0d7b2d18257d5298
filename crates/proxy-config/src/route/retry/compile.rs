//! Compiling retry policies.

use std::time::Duration;

use meltemi_filters::matcher::HeaderMatch;
use meltemi_filters::{Rejection, Scope};
use meltemi_lb::SubsetMatch;
use meltemi_proto::Any;
use meltemi_proto::envoy::config::route::v3 as proto;
use meltemi_proto::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use meltemi_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use super::{RateLimitedBackoff, RetryOn, RetryPolicy};
use crate::any::type_name;
use crate::convert::{duration_or, limit, not_honoured, number, subset_match};

impl RetryPolicy {
    pub(in crate::route) fn compile(
        message: &proto::RetryPolicy,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::RetryPolicy {
            retry_on,
            num_retries,
            per_try_timeout,
            per_try_idle_timeout,
            retry_priority,
            retry_host_predicate,
            retry_options_predicates,
            host_selection_retry_max_attempts,
            retriable_status_codes,
            retry_back_off,
            rate_limited_retry_back_off,
            retriable_headers,
            retriable_request_headers,
            refresh_cluster_on_retry,
        } = message;

        not_honoured!(scope, retry_options_predicates, refresh_cluster_on_retry,);

        let (on, status_codes) = compile_conditions(retry_on, retriable_status_codes, scope);
        let (backoff_base, backoff_max) = compile_backoff(retry_back_off.as_ref(), scope)?;
        let (avoid_previous_hosts, omitted_hosts) =
            compile_host_predicates(retry_host_predicate, scope)?;

        Ok(Self {
            on,
            num_retries: number(num_retries.as_ref(), 1),
            per_try_timeout: limit("per_try_timeout", per_try_timeout.as_ref(), None, scope)?,
            per_try_idle_timeout: limit(
                "per_try_idle_timeout",
                per_try_idle_timeout.as_ref(),
                None,
                scope,
            )?,
            status_codes,
            response_headers: HeaderMatch::compile_all(
                "retriable_headers",
                retriable_headers,
                scope,
            )?,
            request_headers: HeaderMatch::compile_all(
                "retriable_request_headers",
                retriable_request_headers,
                scope,
            )?,
            backoff_base,
            backoff_max,
            rate_limited_backoff: rate_limited_retry_back_off
                .as_ref()
                .map(|message| RateLimitedBackoff::compile(message, scope))
                .transpose()?,
            avoid_previous_hosts,
            omitted_hosts,
            previous_priorities: compile_priority(retry_priority.as_ref(), scope)?,
            host_selection_attempts: u32::try_from(*host_selection_retry_max_attempts)
                .unwrap_or(0)
                .max(1),
        })
    }
}

/// The conditions, and the statuses that are retried. Numbers among the words of `retry_on` are
/// Istio's spelling of a retriable status.
fn compile_conditions(
    retry_on: &str,
    statuses: &[u32],
    scope: &mut Scope,
) -> (RetryOn, Box<[u16]>) {
    let mut codes: Vec<u16> = statuses
        .iter()
        .filter_map(|code| u16::try_from(*code).ok())
        .collect();

    let mut unknown = Vec::new();
    let mut on = RetryOn::parse(retry_on, |word| unknown.push(word.to_owned()));
    for word in unknown {
        match word.parse().ok().filter(|code| (100..600).contains(code)) {
            Some(code) => {
                codes.push(code);
                on = on.union(RetryOn::RETRIABLE_STATUS_CODES);
            }
            None => scope.warn("retry_on", format!("unknown condition {word:?}")),
        }
    }

    (on, codes.into())
}

/// Whether endpoints that were tried are avoided, and the metadata of those that are avoided as
/// well. As in Envoy the type of the configuration decides, whatever the predicate is called.
fn compile_host_predicates(
    messages: &[proto::retry_policy::RetryHostPredicate],
    scope: &mut Scope,
) -> Result<(bool, Box<[SubsetMatch]>), Rejection> {
    use proto::retry_policy::retry_host_predicate::ConfigType;

    let mut avoids_previous = false;
    let mut omitted = Vec::new();
    for (index, predicate) in messages.iter().enumerate() {
        let config = predicate.config_type.as_ref();
        let config = config.map(|ConfigType::TypedConfig(any)| any);
        match extension(&predicate.name, config) {
            "previous_hosts" | "PreviousHostsPredicate" => avoids_previous = true,
            "omit_canary_hosts" | "OmitCanaryHostsPredicate" => {
                omitted.push(SubsetMatch::new([("canary".into(), "true".into())]));
            }
            "OmitHostMetadataConfig" => {
                let config = config.map(|any| scope.unpack::<OmitHostMetadataConfig>(any));
                let config = config.transpose()?.unwrap_or_default();
                omitted.extend(subset_match(config.metadata_match.as_ref()));
            }
            name => scope.warn(
                &format!("retry_host_predicate[{index}]"),
                format!("{name:?} is not honoured"),
            ),
        }
    }

    Ok((avoids_previous, omitted.into()))
}

/// The last word of an extension's type, or of its name where it has no configuration.
fn extension<'m>(name: &'m str, config: Option<&'m Any>) -> &'m str {
    let full = config.map_or(name, type_name);
    full.rsplit('.').next().unwrap_or_default()
}

/// The number of attempts at a priority, if priorities that failed are left.
fn compile_priority(
    message: Option<&proto::retry_policy::RetryPriority>,
    scope: &mut Scope,
) -> Result<Option<u32>, Rejection> {
    use proto::retry_policy::retry_priority::ConfigType;

    let Some(proto::retry_policy::RetryPriority { name, config_type }) = message else {
        return Ok(None);
    };
    let config = config_type.as_ref().map(|ConfigType::TypedConfig(any)| any);
    let extension = extension(name, config);
    if !matches!(
        extension,
        "previous_priorities" | "PreviousPrioritiesConfig"
    ) {
        scope.warn("retry_priority", format!("{extension:?} is not honoured"));
        return Ok(None);
    }

    let config = config.map(|any| scope.unpack::<PreviousPrioritiesConfig>(any));
    let update_frequency = config
        .transpose()?
        .map_or(1, |config| config.update_frequency);

    Ok(Some(u32::try_from(update_frequency).unwrap_or(1).max(1)))
}

/// The bound of the first back-off, and the bound of all.
fn compile_backoff(
    message: Option<&proto::retry_policy::RetryBackOff>,
    scope: &Scope,
) -> Result<(Duration, Duration), Rejection> {
    let proto::retry_policy::RetryBackOff {
        base_interval,
        max_interval,
    } = message.copied().unwrap_or_default();

    let base = duration_or(
        "retry_back_off.base_interval",
        base_interval.as_ref(),
        Duration::from_millis(25),
        scope,
    )?;
    let max = scope.duration("retry_back_off.max_interval", max_interval.as_ref())?;

    if max.is_some_and(|max| max < base) {
        return scope.refuse("retry_back_off.max_interval is less than base_interval");
    }

    Ok((base, max.unwrap_or(base * 10)))
}

#[cfg(test)]
mod tests {
    use meltemi_proto::pack;
    use proto::retry_policy::{RetryHostPredicate, RetryPriority};

    use super::*;

    #[test]
    fn extensions_are_known_by_type_and_without_a_type_by_name() {
        let typed = |any| {
            use proto::retry_policy::retry_host_predicate::ConfigType;
            Some(ConfigType::TypedConfig(any))
        };
        let metadata = |pairs: &[(&str, &str)]| {
            let value = |text: &str| meltemi_proto::google::protobuf::Value {
                kind: Some(meltemi_proto::google::protobuf::value::Kind::StringValue(
                    text.to_owned(),
                )),
            };
            let fields = pairs.iter().map(|(k, v)| ((*k).to_owned(), value(v)));
            let fields = fields.collect();
            meltemi_proto::envoy::config::core::v3::Metadata {
                filter_metadata: [(
                    "envoy.lb".to_owned(),
                    meltemi_proto::google::protobuf::Struct { fields },
                )]
                .into(),
                ..Default::default()
            }
        };

        let omit = OmitHostMetadataConfig {
            metadata_match: Some(metadata(&[("stage", "canary")])),
        };
        let message = proto::RetryPolicy {
            retry_host_predicate: vec![
                RetryHostPredicate {
                    name: "anything".into(),
                    config_type: typed(pack(&omit)),
                },
                RetryHostPredicate {
                    name: "envoy.retry_host_predicates.previous_hosts".into(),
                    config_type: None,
                },
            ],
            retry_priority: Some(RetryPriority {
                name: "p".into(),
                config_type: Some(
                    proto::retry_policy::retry_priority::ConfigType::TypedConfig(pack(
                        &PreviousPrioritiesConfig {
                            update_frequency: 3,
                        },
                    )),
                ),
            }),
            ..Default::default()
        };

        let policy = RetryPolicy::compile(&message, &mut Scope::new()).expect("compiles");
        assert!(policy.avoid_previous_hosts);
        assert_eq!(policy.previous_priorities, Some(3));
        let stage = SubsetMatch::new([("stage".into(), "canary".into())]);
        assert_eq!(*policy.omitted_hosts, [stage]);
    }
}
