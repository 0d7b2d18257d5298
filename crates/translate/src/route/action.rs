//! What a VirtualService's rule does, as Envoy's route actions and per-route filter configuration.

use std::collections::HashMap;
use std::time::Duration;

use meltemi_model::{
    AbortStatus, Cors, DirectResponse, Fault, HeaderChanges, HeaderOps, HttpAction, HttpRoute,
    Percent, Redirect, RedirectPath, RedirectPort, Retries, RetryPolicy, Rewrite, RewritePath,
    WeightedDestination,
};
use meltemi_proto::{Any, pack};

use super::matching::{match_message, string_condition};
use super::{HashPolicy, RuleInput};
use crate::envoy::extensions::filters::common::fault::v3 as common_fault;
use crate::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use crate::envoy::extensions::filters::http::fault::v3 as fault;
use crate::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use crate::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use crate::envoy::matcher::substitute;
use crate::envoy::value::{boolv, duration, fraction, runtime_fraction, u32v};
use crate::envoy::{core, route};

/// Istio's default conditions for a retry.
const RETRY_ON: &str =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
pub(crate) const FAULT_FILTER: &str = "envoy.filters.http.fault";
pub(crate) const CORS_FILTER: &str = "envoy.filters.http.cors";

pub(super) fn rule_message(input: &RuleInput) -> route::Route {
    let RuleInput {
        rule,
        matched,
        clusters,
        mirrors,
        hash,
        port,
        is_tls,
        operation,
        has_fault,
        has_cors,
    } = input;

    let condition = matched.and_then(|index| rule.matches.get(index));
    let HttpRoute {
        name,
        matches: _,
        action,
        rewrite,
        timeout,
        retries,
        fault: faults,
        mirrors: mirror_rules,
        cors,
        headers,
        source,
    } = &**rule;

    let mut message = route::Route {
        name: match condition
            .map(|condition| condition.name.as_str())
            .filter(|name| !name.is_empty())
        {
            Some(of_match) => format!("{name}.{of_match}"),
            None => name.clone(),
        },
        r#match: Some(match_message(condition)),
        metadata: super::origin_metadata("virtual-service", &source.namespace, &source.name),
        stat_prefix: condition
            .map(|condition| condition.stat_prefix.clone())
            .unwrap_or_default(),
        ..Default::default()
    };

    message.action = Some(match action {
        HttpAction::Forward(destinations) => {
            message.decorator = super::decorator(operation);
            let mut action = forward_action(destinations, clusters, &mut message);
            apply_timeout(&mut action, *timeout);

            // Shares over several clusters keep no affinity that a retry could break. Source:
            // Istio.
            action.retry_policy = retry_policy(retries, !hash.is_empty() && clusters.len() == 1);
            action.hash_policy = hash.iter().map(hash_policy).collect();
            action.request_mirror_policies = mirror_rules
                .iter()
                .zip(mirrors)
                .map(|(rule, cluster)| mirror_policy(cluster, rule.percent))
                .collect();

            // rewrite.authority before headers.request.set of the route, before that of the
            // destination.
            if let Some(host) = authority_change(&headers.request) {
                action.host_rewrite_specifier =
                    Some(route::route_action::HostRewriteSpecifier::HostRewriteLiteral(host));
            }

            if let Some(rewrite) = rewrite {
                apply_rewrite(&mut action, rewrite);
            }
            if clusters.is_empty() || total_weight(destinations) == 0 {
                // Nothing takes traffic: an answer that says so, rather than a table that Envoy
                // refuses.
                route::route::Action::DirectResponse(route::DirectResponseAction {
                    status: 503,
                    ..Default::default()
                })
            } else {
                route::route::Action::Route(action)
            }
        }
        HttpAction::Redirect(redirect) => {
            route::route::Action::Redirect(redirect_action(redirect, *port, *is_tls))
        }
        HttpAction::DirectResponse(answer) => {
            route::route::Action::DirectResponse(direct_response(answer))
        }
    });

    add_header_changes(&mut message, headers);
    let mut filters: HashMap<String, Any> = HashMap::new();
    if let Some(faults) = faults.as_ref().filter(|_| *has_fault) {
        filters.insert(FAULT_FILTER.to_owned(), pack(&fault_message(faults)));
    }
    if let Some(cors) = cors.as_ref().filter(|_| *has_cors) {
        filters.insert(CORS_FILTER.to_owned(), pack(&cors_message(cors)));
    }
    message.typed_per_filter_config = filters;

    message
}

fn total_weight(destinations: &[WeightedDestination]) -> u64 {
    destinations
        .iter()
        .map(|destination| u64::from(destination.weight))
        .sum()
}

fn forward_action(
    destinations: &[WeightedDestination],
    clusters: &[String],
    message: &mut route::Route,
) -> route::RouteAction {
    use route::route_action::{ClusterSpecifier, HostRewriteSpecifier};
    use route::weighted_cluster::{ClusterWeight, cluster_weight};

    let taking: Vec<_> = destinations
        .iter()
        .zip(clusters)
        .filter(|(destination, _)| destination.weight > 0)
        .collect();

    if let [(destination, cluster)] = taking.as_slice() {
        add_header_changes(message, &destination.headers);
        let mut action = super::forward(cluster);
        action.host_rewrite_specifier = authority_change(&destination.headers.request)
            .map(HostRewriteSpecifier::HostRewriteLiteral);
        return action;
    }

    let weights = taking.into_iter().map(|(destination, cluster)| {
        let changes = header_messages(&destination.headers);
        ClusterWeight {
            name: cluster.clone(),
            weight: u32v(destination.weight),
            request_headers_to_add: changes.request_add,
            request_headers_to_remove: changes.request_remove,
            response_headers_to_add: changes.response_add,
            response_headers_to_remove: changes.response_remove,
            host_rewrite_specifier: authority_change(&destination.headers.request)
                .map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
            ..Default::default()
        }
    });

    let mut action = super::forward("");
    action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
        clusters: weights.collect(),
        ..Default::default()
    }));

    action
}

#[expect(deprecated, reason = "Envoys of every version read the older field")]
fn apply_timeout(action: &mut route::RouteAction, timeout: Option<Duration>) {
    if let Some(timeout) = timeout {
        action.timeout = duration(timeout);
        action.max_grpc_timeout = duration(timeout);
    }
}

fn apply_rewrite(action: &mut route::RouteAction, rewrite: &Rewrite) {
    let Rewrite { path, authority } = rewrite;
    match path {
        RewritePath::Keep => {}
        RewritePath::Prefix(text) => action.prefix_rewrite = text.clone(),
        RewritePath::Regex {
            pattern,
            substitution,
        } => {
            action.regex_rewrite = Some(substitute(pattern, substitution));
        }
    }

    if let Some(authority) = authority {
        action.host_rewrite_specifier =
            Some(route::route_action::HostRewriteSpecifier::HostRewriteLiteral(authority.clone()));
    }
}

/// Two retries at other endpoints, where nothing reached the application.
pub(super) fn default_retries() -> route::RetryPolicy {
    route::RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: u32v(2),
        host_selection_retry_max_attempts: 5,
        retry_host_predicate: vec![previous_hosts()],
        ..Default::default()
    }
}

/// The default retries of a VirtualService's route. With a consistent hash, another host would
/// break the affinity: such a route has no predicate. Source: Istio `retry.ConvertPolicy`.
fn default_retries_of_rule(is_hashed: bool) -> route::RetryPolicy {
    let mut policy = default_retries();
    if is_hashed {
        policy.retry_host_predicate.clear();
    }
    policy
}

fn previous_hosts() -> route::retry_policy::RetryHostPredicate {
    route::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(
            route::retry_policy::retry_host_predicate::ConfigType::TypedConfig(pack(
                &PreviousHostsPredicate {},
            )),
        ),
    }
}

fn retry_policy(retries: &Retries, is_hashed: bool) -> Option<route::RetryPolicy> {
    let policy = match retries {
        Retries::Default => return Some(default_retries_of_rule(is_hashed)),
        Retries::Off => return None,
        Retries::Explicit(policy) => policy,
    };

    let RetryPolicy {
        attempts,
        per_try_timeout,
        retry_on,
        status_codes,
        remote_localities,
        ignore_previous_hosts,
        backoff,
    } = policy;

    let mut message = default_retries_of_rule(is_hashed);
    message.num_retries = u32v(*attempts);
    message.per_try_timeout = per_try_timeout.and_then(duration);
    message.retriable_status_codes = status_codes.iter().map(|code| u32::from(*code)).collect();
    if !retry_on.is_empty() || !status_codes.is_empty() {
        message.retry_on.clone_from(retry_on);
        let named = "retriable-status-codes";
        if !status_codes.is_empty()
            && !retry_on
                .split(',')
                .any(|condition| condition.trim() == named)
        {
            if !message.retry_on.is_empty() {
                message.retry_on.push(',');
            }
            message.retry_on.push_str(named);
        }
    }

    match ignore_previous_hosts {
        Some(false) => message.retry_host_predicate.clear(),
        Some(true) => message.retry_host_predicate = vec![previous_hosts()],
        None => {}
    }

    if *remote_localities == Some(true) {
        message.retry_priority = Some(route::retry_policy::RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(
                route::retry_policy::retry_priority::ConfigType::TypedConfig(pack(
                    &PreviousPrioritiesConfig {
                        update_frequency: 2,
                    },
                )),
            ),
        });
    }

    message.retry_back_off = backoff.map(|base| route::retry_policy::RetryBackOff {
        base_interval: duration(base),
        max_interval: None,
    });

    Some(message)
}

fn mirror_policy(cluster: &str, percent: Percent) -> route::route_action::RequestMirrorPolicy {
    route::route_action::RequestMirrorPolicy {
        cluster: cluster.to_owned(),
        runtime_fraction: Some(runtime_fraction(percent.0)),
        trace_sampled: boolv(false),
        ..Default::default()
    }
}

pub(super) fn hash_policy(input: &HashPolicy) -> route::route_action::HashPolicy {
    use route::route_action::hash_policy as h;

    let specifier = match input {
        HashPolicy::Header(name) => h::PolicySpecifier::Header(h::Header {
            header_name: name.clone(),
            regex_rewrite: None,
        }),
        HashPolicy::Cookie {
            name,
            path,
            ttl,
            attributes,
        } => h::PolicySpecifier::Cookie(h::Cookie {
            name: name.clone(),
            path: path.clone(),
            ttl: ttl.and_then(duration),
            attributes: attributes
                .iter()
                .map(|(name, value)| h::CookieAttribute {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
        }),
        HashPolicy::SourceIp => {
            h::PolicySpecifier::ConnectionProperties(h::ConnectionProperties { source_ip: true })
        }
        HashPolicy::Query(name) => {
            h::PolicySpecifier::QueryParameter(h::QueryParameter { name: name.clone() })
        }
    };

    route::route_action::HashPolicy {
        terminal: false,
        policy_specifier: Some(specifier),
    }
}

fn redirect_action(input: &Redirect, listener_port: u16, is_tls: bool) -> route::RedirectAction {
    use route::redirect_action::{
        PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
    };

    let Redirect {
        path,
        authority,
        port,
        scheme,
        code,
    } = input;

    let port = match port {
        // Envoy drops a default port when the scheme changes.
        RedirectPort::Keep | RedirectPort::SchemeDefault => 0,
        RedirectPort::Number(number) => *number,
        RedirectPort::RequestPort => listener_port,
    };

    // A scheme's own port is not written. Source: Istio `ApplyRedirect`.
    let own_scheme = if is_tls { "https" } else { "http" };
    let is_default = matches!(
        (scheme.as_deref().unwrap_or(own_scheme), port),
        ("http", 80) | ("https", 443)
    );

    route::RedirectAction {
        host_redirect: authority.clone().unwrap_or_default(),
        port_redirect: if is_default { 0 } else { u32::from(port) },
        response_code: match code {
            302 => RedirectResponseCode::Found,
            303 => RedirectResponseCode::SeeOther,
            307 => RedirectResponseCode::TemporaryRedirect,
            308 => RedirectResponseCode::PermanentRedirect,
            _ => RedirectResponseCode::MovedPermanently,
        } as i32,
        path_rewrite_specifier: match path {
            RedirectPath::Keep => None,
            RedirectPath::Full(path) => Some(PathRewriteSpecifier::PathRedirect(path.clone())),
            RedirectPath::Prefix(prefix) => {
                Some(PathRewriteSpecifier::PrefixRewrite(prefix.clone()))
            }
        },
        scheme_rewrite_specifier: scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        strip_query: false,
    }
}

fn direct_response(input: &DirectResponse) -> route::DirectResponseAction {
    use core::data_source::Specifier;

    let DirectResponse { status, body } = input;
    let specifier = match String::from_utf8(body.clone()) {
        Ok(text) => Specifier::InlineString(text),
        Err(bytes) => Specifier::InlineBytes(bytes.into_bytes()),
    };

    route::DirectResponseAction {
        status: u32::from(*status),
        body: (!body.is_empty()).then(|| core::DataSource {
            specifier: Some(specifier),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn fault_message(input: &Fault) -> fault::HttpFault {
    let Fault { delay, abort } = input;
    fault::HttpFault {
        delay: delay.as_ref().map(|delay| common_fault::FaultDelay {
            percentage: Some(fraction(delay.percent.0)),
            fault_delay_secifier: duration(delay.fixed)
                .map(common_fault::fault_delay::FaultDelaySecifier::FixedDelay),
        }),
        abort: abort.as_ref().map(|abort| fault::FaultAbort {
            percentage: Some(fraction(abort.percent.0)),
            error_type: Some(match abort.status {
                AbortStatus::Http(status) => {
                    fault::fault_abort::ErrorType::HttpStatus(u32::from(status))
                }
                AbortStatus::Grpc(status) => {
                    fault::fault_abort::ErrorType::GrpcStatus(status.number())
                }
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn cors_message(input: &Cors) -> CorsPolicy {
    let Cors {
        allow_origins,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        forward_unmatched_preflights,
    } = input;

    CorsPolicy {
        allow_origin_string_match: allow_origins.iter().map(string_condition).collect(),
        allow_methods: allow_methods.join(","),
        allow_headers: allow_headers.join(","),
        expose_headers: expose_headers.join(","),
        max_age: max_age
            .map(|age| age.as_secs().to_string())
            .unwrap_or_default(),
        allow_credentials: allow_credentials.and_then(boolv),
        forward_not_matching_preflights: boolv(forward_unmatched_preflights.unwrap_or(true)),
        filter_enabled: Some(runtime_fraction(1_000_000)),
        ..Default::default()
    }
}

#[derive(Default)]
struct HeaderMessages {
    request_add: Vec<core::HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<core::HeaderValueOption>,
    response_remove: Vec<String>,
}

fn header_messages(input: &HeaderOps) -> HeaderMessages {
    HeaderMessages {
        request_add: additions(&input.request),
        request_remove: input.request.remove.clone(),
        response_add: additions(&input.response),
        response_remove: input.response.remove.clone(),
    }
}

fn add_header_changes(message: &mut route::Route, input: &HeaderOps) {
    let changes = header_messages(input);
    message.request_headers_to_add.extend(changes.request_add);
    message
        .request_headers_to_remove
        .extend(changes.request_remove);
    message.response_headers_to_add.extend(changes.response_add);
    message
        .response_headers_to_remove
        .extend(changes.response_remove);
}

fn additions(changes: &HeaderChanges) -> Vec<core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction;

    let set = changes
        .set
        .iter()
        .map(|pair| (pair, HeaderAppendAction::OverwriteIfExistsOrAdd));

    let add = changes
        .add
        .iter()
        .map(|pair| (pair, HeaderAppendAction::AppendIfExistsOrAdd));

    // The authority is rewritten by the action: Envoy refuses it among headers to add.
    set.chain(add)
        .filter(|((name, _), _)| !is_authority(name))
        .map(|((name, value), action)| core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: name.clone(),
                value: value.clone(),
                raw_value: Vec::new(),
            }),
            append_action: action as i32,
            ..Default::default()
        })
        .collect()
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name == ":authority"
}

fn authority_change(changes: &HeaderChanges) -> Option<String> {
    changes
        .set
        .iter()
        .chain(&changes.add)
        .find(|(name, _)| is_authority(name))
        .map(|(_, value)| value.clone())
}
