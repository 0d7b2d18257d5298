//! The headers, path and host that a route, its virtual host, its table and its weighted cluster
//! change on the way up and down.

use meltemi_filters::head::{Known, RequestHead};
use meltemi_proxy_config::route::RouteDecision;

use super::plan::Plan;
use crate::exchange::state::Exchange;
use crate::log_facts::{LogFacts, NO_LOG_TYPE};

/// A request that carries this is answered 204, not 504, when its time is up.
pub const TIMEOUT_ALT_RESPONSE: &str = "x-envoy-upstream-rq-timeout-alt-response";

/// Request headers, path: once, before the first attempt.
pub fn rewrite(exchange: &Exchange<'_>, plan: &Plan<'_>, head: &mut RequestHead, suppress: bool) {
    let decision = plan.decision;
    let mut original = None;
    for ops in decision.request_headers() {
        // Templates may name fields that the operations before have changed.
        let before = head.clone();
        let facts = LogFacts {
            request: Some(&before),
            ..header_facts(exchange)
        };
        ops.apply(head, &facts);
    }

    {
        let mut scratch = exchange.worker.scratch.borrow_mut();
        scratch.clear();
        if decision.route.rewrite_path(head, &mut scratch)
            && let Ok(path) = std::str::from_utf8(&scratch)
        {
            original = Some(head.path().to_owned());
            head.set_path(path);
        }
    }

    if let (Some(original), false) = (original, suppress) {
        head.fields_mut()
            .set("x-envoy-original-path", original.as_bytes());
    }
}

/// Removes the headers by which a request steers the router itself. The upstream is not to repeat
/// them to the next proxy. Source: Envoy `RetryStateImpl::create` and `Filter::decodeHeaders`.
pub fn remove_asking(head: &mut RequestHead) {
    const KNOWN: [Known; 4] = [
        Known::XEnvoyRetryOn,
        Known::XEnvoyRetryGrpcOn,
        Known::XEnvoyMaxRetries,
        Known::XEnvoyRetriableStatusCodes,
    ];
    const OTHERS: [&str; 4] = [
        TIMEOUT_ALT_RESPONSE,
        "x-envoy-hedge-on-per-try-timeout",
        "x-envoy-retriable-header-names",
        "x-envoy-upstream-alt-stat-name",
    ];

    let fields = head.fields_mut();
    for known in KNOWN {
        fields.remove_known(known);
    }

    let asks = |name: &str| name.starts_with("x-envoy-") && OTHERS.contains(&name);
    if fields.iter().any(|(name, _)| asks(name)) {
        fields.retain(|name, _| !asks(name));
    }
}

/// Rewrites the host as the route says; `endpoint` is the endpoint's own name.
pub fn rewrite_host(
    plan: &Plan<'_>,
    head: &mut RequestHead,
    endpoint: Option<&str>,
    suppress: bool,
) {
    let action = plan.forward.action;
    if action.host_rewrite.is_none()
        && plan
            .forward
            .weighted
            .is_none_or(|weighted| weighted.host_rewrite.is_none())
    {
        return;
    }

    let mut new = Vec::new();

    if action.rewrite_host(plan.forward.weighted, head, endpoint, &mut new)
        && let Ok(new) = std::str::from_utf8(&new)
        && new != head.authority()
    {
        let old = head.authority().to_owned();
        if !suppress {
            head.fields_mut()
                .set("x-envoy-original-host", old.as_bytes());
        }

        if action.append_x_forwarded_host {
            head.fields_mut()
                .append_joined("x-forwarded-host", b",", old.as_bytes());
        }

        head.set_authority(new);
    }
}

/// What templates of headers can ask for.
pub fn header_facts<'a>(exchange: &'a Exchange<'_>) -> LogFacts<'a> {
    LogFacts {
        worker: Some(exchange.worker),
        log_type: Some(NO_LOG_TYPE),
        ..LogFacts::new(&exchange.info, exchange.conn, exchange.view)
    }
}

/// Response headers of route, virtual host, table and weighted cluster.
pub fn apply_response_headers(
    exchange: &mut Exchange<'_>,
    decision: &RouteDecision<'_>,
    request: &RequestHead,
) {
    let mut all = decision.response_headers().peekable();
    if all.peek().is_none() {
        return;
    }
    exchange.info.status = exchange.response.status;
    let mut response = std::mem::take(&mut exchange.response);
    for ops in all {
        let before = response.clone();
        let facts = LogFacts {
            request: Some(request),
            response: Some(&before),
            ..header_facts(exchange)
        };
        ops.apply(&mut response, &facts);
    }

    exchange.response = response;
}
