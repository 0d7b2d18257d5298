//! VirtualService.

use super::rules::*;
use crate::networking::{
    CorsPolicy, Destination, FaultAbort, FaultDelay, HeaderOperations, Headers, HttpFaultInjection, HttpMatchRequest,
    HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, HttpRouteDestination, L4MatchAttributes, RouteDestination,
    TlsMatchAttributes, VirtualService,
};
use crate::schema::{Report, shorten};
use crate::shared::{PortSelector, StringMatch};

pub(super) fn check(spec: &VirtualService, at: &mut Report) {
    let VirtualService { hosts, gateways, http, tls, tcp, export_to } = spec;
    let for_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh");
    let is_delegate = hosts.is_empty();
    if is_delegate {
        check_delegate(spec, at);
    }
    if http.is_empty() && tls.is_empty() && tcp.is_empty() {
        at.error(MISSING, "http, tcp or tls must be provided in virtual service", "add a route");
    }
    let mut seen = Once::new();
    at.each("hosts", hosts, |host, at| {
        if host == "*" && for_mesh {
            at.error(
                CONFLICT,
                "wildcard host * is not allowed for virtual services bound to the mesh gateway",
                "name the hosts, or bind the VirtualService to a Gateway only",
            );
        } else if !is_ip(host) {
            check_wildcard_host(host, at);
        }
        if !host.contains('.') && host != "*" && !for_mesh {
            at.warn(
                DOUBTFUL,
                format!("short name {host:?} with a gateway: clients outside send full names"),
                "write the full name",
            );
        }
    });
    at.field("hosts", |at| {
        for (index, host) in hosts.iter().enumerate() {
            if !seen.insert(host) {
                at.index(index, |at| {
                    at.error(DUPLICATE, format!("duplicate hosts in virtual service: {host}"), "remove one of them")
                });
            }
        }
    });
    at.each("gateways", gateways, |gateway, at| check_gateway_name(gateway, at));
    at.each("http", http, |route, at| check_http_route(route, is_delegate, at));
    at.each("tls", tls, |route, at| {
        if route.r#match.is_empty() {
            at.field("match", |at| {
                at.error(MISSING, "TLS route must have at least one match condition", "add a match with sniHosts")
            });
        }
        at.each("match", &route.r#match, |matcher, at| check_tls_match(matcher, hosts, at));
        check_l4_routes(&route.route, "TLS", at);
    });
    at.each("tcp", tcp, |route, at| {
        at.each("match", &route.r#match, check_tcp_match);
        check_l4_routes(&route.route, "TCP", at);
    });
    check_unreachable(http, at);
    check_export_to(export_to, at);
}

fn check_delegate(spec: &VirtualService, at: &mut Report) {
    let remedy = "add hosts, or keep a delegate: http routes only, and no gateways";
    if spec.http.is_empty() {
        at.field("hosts", |at| at.error(MISSING, "virtual service must have at least one host", "add hosts"));
    }
    if !spec.gateways.is_empty() {
        at.field("gateways", |at| {
            at.error(CONFLICT, "delegate virtual service must have no gateways specified", remedy)
        });
    }
    if !spec.tls.is_empty() {
        at.field("tls", |at| at.error(CONFLICT, "delegate virtual service must have no tls specified", remedy));
    }
    if !spec.tcp.is_empty() {
        at.field("tcp", |at| at.error(CONFLICT, "delegate virtual service must have no tcp specified", remedy));
    }
}

fn check_gateway_name(gateway: &str, at: &mut Report) {
    let name = gateway.split_once('/').map_or(gateway, |(_, name)| name);
    if gateway.matches('/').count() > 1 || host_fault(name).is_some() {
        at.error(
            INVALID,
            format!("{:?} is not a gateway's name", shorten(gateway)),
            "write NAMESPACE/NAME, NAME, or mesh",
        );
    }
}

fn check_http_route(route: &HttpRoute, is_delegate: bool, at: &mut Report) {
    let HttpRoute {
        name: _,
        r#match: matches,
        route: destinations,
        redirect,
        direct_response,
        delegate,
        rewrite,
        timeout,
        retries,
        fault,
        mirror,
        mirrors,
        mirror_percent,
        mirror_percentage,
        cors_policy,
        headers,
    } = route;
    check_action(route, at);
    at.each("match", matches, check_http_match);
    at.some("redirect", redirect, check_redirect);
    at.some("directResponse", direct_response, |direct, at| {
        if !(200..=599).contains(&direct.status) {
            at.field("status", |at| {
                at.error(INVALID, format!("HTTP status {} is not in range 200-599", direct.status), "write a status")
            });
        }
        at.some("body", &direct.body, |body, at| {
            if body.string.is_some() && body.bytes.is_some() {
                at.error(CONFLICT, "only one of string or bytes can be set", "keep one of them");
            }
            let length =
                body.string.as_ref().map_or(0, String::len).max(body.bytes.as_ref().map_or(0, |bytes| bytes.0.len()));
            if length > 1 << 20 {
                at.error(
                    INVALID,
                    format!("response body size {length} exceeds the limit of {} bytes", 1 << 20),
                    "serve it from a workload",
                );
            }
        });
    });
    at.some("delegate", delegate, |delegate, at| {
        if is_delegate {
            at.error(
                CONFLICT,
                "delegate virtual service must have no delegate of its own",
                "name the last one directly",
            );
        }
        if delegate.name.is_empty() {
            at.field("name", |at| {
                at.error(MISSING, "delegate.name must not be empty", "name a VirtualService without hosts")
            });
        }
    });
    at.some("rewrite", rewrite, check_rewrite);
    check_duration("timeout", *timeout, at);
    at.some("retries", retries, check_retries);
    at.some("fault", fault, check_fault);
    at.some("mirror", mirror, check_destination);
    at.each("mirrors", mirrors, |mirror, at| {
        at.field("destination", |at| check_destination(&mirror.destination, at));
        check_percent("percentage", &mirror.percentage, at);
    });
    if mirror.is_some() && !mirrors.is_empty() {
        at.error(CONFLICT, "HTTP route cannot contain both mirror and mirrors", "move mirror into mirrors");
    }
    if mirror_percent.is_some_and(|percent| percent > 100) {
        at.field("mirrorPercent", |at| {
            at.error(INVALID, "mirror_percent must have a max value of 100", "write 0 to 100")
        });
    }
    check_percent("mirrorPercentage", mirror_percentage, at);
    at.some("corsPolicy", cors_policy, check_cors);
    at.some("headers", headers, check_headers);
    check_weights(destinations, at);
}

/// Exactly one of route, redirect, directResponse; or a delegate, whose route is elsewhere.
fn check_action(route: &HttpRoute, at: &mut Report) {
    let remedy = "keep one of route, redirect, directResponse and delegate";
    let actions = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("direct_response", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let chosen: Vec<&str> = actions.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    match chosen.as_slice() {
        [] => {
            at.error(MISSING, "HTTP route, redirect or direct_response is required", "add a route with a destination")
        }
        [_] => {}
        several => at.error(CONFLICT, format!("HTTP route cannot contain both {}", several.join(" and ")), remedy),
    }
    for (name, answered) in
        [("redirect", route.redirect.is_some()), ("direct_response", route.direct_response.is_some())]
    {
        if !answered {
            continue;
        }
        if route.rewrite.is_some() {
            at.field("rewrite", |at| {
                at.error(CONFLICT, format!("HTTP route rule cannot contain both rewrite and {name}"), "remove rewrite")
            });
        }
        if route.fault.is_some() && name == "redirect" {
            at.field("fault", |at| {
                at.error(CONFLICT, "HTTP route cannot contain both fault and redirect", "remove fault")
            });
        }
    }
}

fn check_http_match(matcher: &HttpMatchRequest, at: &mut Report) {
    let HttpMatchRequest {
        name: _,
        uri,
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query_params,
        ignore_uri_case,
        port,
        source_labels,
        source_namespace: _,
        gateways,
        stat_prefix: _,
    } = matcher;
    for (key, part) in [("uri", uri), ("scheme", scheme), ("method", method), ("authority", authority)] {
        at.some(key, part, check_string_match);
        if part.as_ref() == Some(&StringMatch::Present) {
            at.field(key, |at| {
                at.warn(DOUBTFUL, "an empty match matches everything", "add exact, prefix or regex, or remove it")
            });
        }
    }
    if *ignore_uri_case && matches!(uri, Some(StringMatch::Regex(_))) {
        at.field("ignoreUriCase", |at| {
            at.warn(WITHOUT_EFFECT, "ignoreUriCase has no effect on a regex match", "begin the expression with (?i)")
        });
    }
    for (key, matches) in [("headers", headers), ("withoutHeaders", without_headers)] {
        at.field(key, |at| {
            for (name, matcher) in matches {
                at.field(name, |at| {
                    // JWT claims and pseudo-headers are written like headers.
                    let bare = name.strip_prefix(':').unwrap_or(name);
                    if !name.starts_with("@request.auth.claims") && !is_header_name(bare) {
                        at.error(
                            INVALID,
                            format!("header name {:?} is not a valid header name", shorten(name)),
                            "letters, digits, - _ and .",
                        );
                    }
                    check_string_match(matcher, at);
                });
            }
        });
    }
    at.field("queryParams", |at| {
        for (name, matcher) in query_params {
            at.field(name, |at| check_string_match(matcher, at));
        }
    });
    at.field("port", |at| check_optional_port(*port, at));
    check_labels("sourceLabels", &source_labels.0, at);
    at.each("gateways", gateways, |gateway, at| check_gateway_name(gateway, at));
}

fn check_weights(destinations: &[HttpRouteDestination], at: &mut Report) {
    at.each("route", destinations, |route, at| {
        at.field("destination", |at| check_destination(&route.destination, at));
        check_weight(route.weight, at);
        at.some("headers", &route.headers, check_headers);
    });
    let total: i64 = destinations.iter().map(|route| i64::from(route.weight)).sum();
    check_total(destinations.len(), total, at);
}

fn check_weight(weight: i32, at: &mut Report) {
    if weight < 0 {
        at.field("weight", |at| at.error(INVALID, format!("weight {weight} < 0"), "write 0 or more"));
    }
}

fn check_total(count: usize, total: i64, at: &mut Report) {
    if count > 1 && total == 0 {
        at.field("route", |at| {
            at.error(INVALID, "total destination weight = 0", "give at least one destination a weight")
        });
    }
    if total > i64::from(u32::MAX) {
        at.field("route", |at| {
            at.error(INVALID, format!("total destination weight {total} is too large"), "use smaller weights")
        });
    }
}

fn check_l4_routes(routes: &[RouteDestination], what: &str, at: &mut Report) {
    if routes.is_empty() {
        at.field("route", |at| at.error(MISSING, format!("{what} route is required"), "add a destination"));
    }
    at.each("route", routes, |route, at| {
        at.field("destination", |at| check_destination(&route.destination, at));
        check_weight(route.weight, at);
    });
    check_total(routes.len(), routes.iter().map(|route| i64::from(route.weight)).sum(), at);
}

pub(super) fn check_destination(destination: &Destination, at: &mut Report) {
    let Destination { host, subset, port } = destination;
    at.field("host", |at| {
        if host == "*" {
            at.error(INVALID, "invalid destination host *", "name one host");
        } else if !host.is_empty() {
            check_wildcard_host(host, at);
        } else {
            at.error(INVALID, "empty domain name not allowed", "name a host");
        }
    });
    if !subset.is_empty() && !crate::document::is_dns_label(&subset.to_ascii_lowercase()) {
        at.field("subset", |at| {
            at.error(INVALID, format!("subset name is invalid: {:?}", shorten(subset)), "write a DNS label")
        });
    }
    at.some("port", port, |PortSelector { number }, at| at.field("number", |at| check_port(*number, at)));
}

fn check_redirect(redirect: &HttpRedirect, at: &mut Report) {
    let HttpRedirect { uri, prefix_rewrite, authority, port, derive_port, scheme, redirect_code } = redirect;
    if uri.is_empty()
        && prefix_rewrite.is_empty()
        && authority.is_empty()
        && port.is_none()
        && derive_port.is_none()
        && scheme.is_empty()
    {
        at.error(MISSING, "redirect must specify URI, authority, scheme, or port", "say what the new URL is");
    }
    if !uri.is_empty() && !prefix_rewrite.is_empty() {
        at.error(CONFLICT, "redirect cannot contain both uri and prefixRewrite", "keep one of them");
    }
    if port.is_some() && derive_port.is_some() {
        at.error(CONFLICT, "only one of port or derivePort can be set", "keep one of them");
    }
    if let Some(port) = port {
        at.field("port", |at| check_port(*port, at));
    }
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        at.field("scheme", |at| {
            at.error(INVALID, "invalid redirect scheme, must be http or https", "write http or https")
        });
    }
    if !matches!(redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        at.field("redirectCode", |at| {
            at.error(
                INVALID,
                format!("{redirect_code} is not a valid redirect code, must be 301, 302, 303, 307 or 308"),
                "write one of these",
            );
        });
    }
}

fn check_rewrite(rewrite: &HttpRewrite, at: &mut Report) {
    let HttpRewrite { uri, authority, uri_regex_rewrite } = rewrite;
    if uri.is_empty() && authority.is_empty() && uri_regex_rewrite.is_none() {
        at.error(
            MISSING,
            "rewrite must specify at least one of uri, authority, or uriRegexRewrite",
            "add one of them, or remove rewrite",
        );
    }
    if !uri.is_empty() && uri_regex_rewrite.is_some() {
        at.error(CONFLICT, "rewrite may only contain one of uri or uriRegexRewrite", "keep one of them");
    }
    at.some("uriRegexRewrite", uri_regex_rewrite, |rewrite, at| {
        if rewrite.r#match.is_empty() || rewrite.rewrite.is_empty() {
            at.error(MISSING, "UriRegexRewrite must specify both match and rewrite", "add both");
        }
        at.field("match", |at| check_regex(&rewrite.r#match, at));
    });
}

/// Envoy's conditions, HTTP and gRPC. Source: Istio `supportedRetryOnPolicies`.
const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

fn check_retries(retries: &HttpRetry, at: &mut Report) {
    let HttpRetry {
        attempts,
        per_try_timeout,
        retry_on,
        retry_remote_localities,
        retry_ignore_previous_hosts: _,
        backoff,
    } = retries;
    if *attempts < 0 {
        at.field("attempts", |at| at.error(INVALID, "attempts cannot be negative", "write 0 to switch retries off"));
    }
    if *attempts == 0
        && (per_try_timeout.is_some() || !retry_on.is_empty() || retry_remote_localities.is_some() || backoff.is_some())
    {
        at.error(
            CONFLICT,
            "http retry policy configured when attempts are set to 0 (disabled)",
            "write attempts, or remove the other fields",
        );
    }
    check_duration("perTryTimeout", *per_try_timeout, at);
    check_duration("backoff", *backoff, at);
    for policy in retry_on.split(',').map(str::trim).filter(|policy| !policy.is_empty()) {
        let is_status = policy.parse::<u16>().is_ok_and(|status| (100..600).contains(&status));
        if !is_status && !RETRY_ON.contains(&policy) {
            let remedy = crate::schema::closest(policy, RETRY_ON).map_or_else(
                || format!("use status codes or {}", RETRY_ON.join(", ")),
                |word| format!("did you mean {word}?"),
            );
            at.field("retryOn", |at| {
                at.error(INVALID, format!("{:?} is not a valid retryOn policy", shorten(policy)), remedy)
            });
        }
    }
}

fn check_fault(fault: &HttpFaultInjection, at: &mut Report) {
    if fault.abort.is_none() && fault.delay.is_none() {
        at.error(MISSING, "HTTP fault injection must have an abort and/or a delay", "add one of them, or remove fault");
    }
    at.some("delay", &fault.delay, |delay, at| {
        let FaultDelay { fixed_delay, exponential_delay, percent, percentage } = delay;
        if exponential_delay.is_some() {
            at.field("exponentialDelay", |at| {
                at.error(WITHOUT_EFFECT, "exponentialDelay not supported yet", "use fixedDelay")
            });
        } else if fixed_delay.is_none() {
            at.error(MISSING, "HTTP delay must have a fixedDelay", "add fixedDelay");
        }
        check_duration("fixedDelay", *fixed_delay, at);
        if !(0..=100).contains(percent) {
            at.field("percent", |at| {
                at.error(INVALID, format!("percentage {percent} is not in range 0..100"), "write 0 to 100")
            });
        }
        check_percent("percentage", percentage, at);
        if *percent == 0 && percentage.is_none() {
            at.warn(DOUBTFUL, "without percentage, no request is delayed", "add percentage");
        }
    });
    at.some("abort", &fault.abort, |abort, at| {
        let FaultAbort { http_status, grpc_status, http2_error, percentage } = abort;
        if http_status.is_some() && grpc_status.is_some() {
            at.error(CONFLICT, "only one of httpStatus or grpcStatus can be set", "keep one of them");
        }
        if http2_error.is_some() {
            at.field("http2Error", |at| {
                at.error(WITHOUT_EFFECT, "HTTP/2 abort fault injection not supported yet", "use httpStatus")
            });
        } else if http_status.is_none() && grpc_status.is_none() {
            at.error(MISSING, "HTTP abort must have an httpStatus or a grpcStatus", "add one of them");
        }
        if let Some(status) = http_status
            && !(200..=599).contains(status)
        {
            at.field("httpStatus", |at| {
                at.error(INVALID, format!("HTTP status {status} is not in range 200-599"), "write a status")
            });
        }
        if let Some(status) = grpc_status
            && !is_grpc_status(status)
        {
            at.field("grpcStatus", |at| {
                at.error(
                    INVALID,
                    format!("gRPC status {:?} is not supported", shorten(status)),
                    "write a name, for example UNAVAILABLE",
                );
            });
        }
        check_percent("percentage", percentage, at);
    });
}

fn is_grpc_status(status: &str) -> bool {
    const NAMES: &[&str] = &[
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.contains(&status) || status.parse::<u8>().is_ok_and(|code| code <= 16)
}

fn check_cors(cors: &CorsPolicy, at: &mut Report) {
    let CorsPolicy {
        allow_origin,
        allow_origins,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials: _,
        unmatched_preflights: _,
    } = cors;
    if !allow_origin.is_empty() {
        at.field("allowOrigin", |at| at.warn(WITHOUT_EFFECT, "allowOrigin is deprecated", "use allowOrigins"));
    }
    at.each("allowOrigins", allow_origins, check_string_match);
    at.each("allowMethods", allow_methods, |method, at| {
        if method != "*" && (method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')) {
            at.error(
                INVALID,
                format!("{:?} is not a supported HTTP method", shorten(method)),
                "write methods in upper case",
            );
        }
    });
    for (key, names) in [("allowHeaders", allow_headers), ("exposeHeaders", expose_headers)] {
        at.each(key, names, |name, at| {
            if name != "*" && !is_header_name(name) {
                at.error(
                    INVALID,
                    format!("header name {:?} is not a valid header name", shorten(name)),
                    "letters, digits, - _ and .",
                );
            }
        });
    }
    if max_age.is_some_and(|age| age.subsec_nanos() != 0) {
        at.field("maxAge", |at| {
            at.error(INVALID, "max_age duration is accurate only to seconds precision", "write whole seconds")
        });
    }
}

fn check_headers(headers: &Headers, at: &mut Report) {
    for (direction, operations) in [("request", &headers.request), ("response", &headers.response)] {
        at.some(direction, operations, |HeaderOperations { set, add, remove }, at| {
            for (key, pairs) in [("set", set), ("add", add)] {
                at.field(key, |at| {
                    for (name, value) in pairs {
                        at.field(name, |at| {
                            check_header_operation(name, key == "set" && direction == "request", at);
                            if value.contains(['\r', '\n', '\0']) {
                                at.error(INVALID, "a header's value must be one line", "remove the line break");
                            }
                        });
                    }
                });
            }
            at.each("remove", remove, |name, at| check_header_operation(name, false, at));
        });
    }
}

fn check_header_operation(name: &str, host_may_be_set: bool, at: &mut Report) {
    let lower = name.to_ascii_lowercase();
    if lower == "host" || lower == ":authority" {
        if !host_may_be_set {
            at.error(
                INVALID,
                format!("{name} header cannot be added or removed"),
                "use rewrite.authority, or headers.request.set",
            );
        }
    } else if lower.starts_with(':') {
        at.error(
            INVALID,
            format!("header name {:?} must not be a pseudo-header", shorten(name)),
            "use rewrite or redirect",
        );
    } else if !is_header_name(name) {
        at.error(
            INVALID,
            format!("header name {:?} is not a valid header name", shorten(name)),
            "letters, digits, - _ and .",
        );
    }
}

fn check_tls_match(matcher: &TlsMatchAttributes, hosts: &[String], at: &mut Report) {
    let TlsMatchAttributes { sni_hosts, destination_subnets, port, source_labels, source_namespace: _, gateways } =
        matcher;
    if sni_hosts.is_empty() {
        at.field("sniHosts", |at| at.error(MISSING, "TLS match must have at least one SNI host", "add sniHosts"));
    }
    at.each("sniHosts", sni_hosts, |sni, at| {
        check_wildcard_host(sni, at);
        if !hosts.iter().any(|host| covers(host, sni)) {
            let message = format!(
                "SNI host {:?} is not a compatible subset of any of the virtual service hosts: {hosts:?}",
                shorten(sni)
            );
            at.error(CONFLICT, message, "add it to hosts");
        }
    });
    check_l4(destination_subnets, *port, gateways, at);
    check_labels("sourceLabels", &source_labels.0, at);
}

/// Whether every name that `narrow` stands for is one that `wide` stands for.
fn covers(wide: &str, narrow: &str) -> bool {
    let (wide, narrow) = (wide.to_ascii_lowercase(), narrow.to_ascii_lowercase());
    match wide.strip_prefix('*') {
        Some(suffix) => narrow.strip_prefix('*').unwrap_or(&narrow).ends_with(suffix),
        None => wide == narrow,
    }
}

fn check_tcp_match(matcher: &L4MatchAttributes, at: &mut Report) {
    let L4MatchAttributes { destination_subnets, port, source_subnet, source_labels, source_namespace: _, gateways } =
        matcher;
    if !source_subnet.is_empty() {
        at.field("sourceSubnet", |at| {
            at.warn(WITHOUT_EFFECT, "sourceSubnet is not implemented", "use an AuthorizationPolicy")
        });
    }
    check_l4(destination_subnets, *port, gateways, at);
    check_labels("sourceLabels", &source_labels.0, at);
}

fn check_l4(destination_subnets: &[String], port: u32, gateways: &[String], at: &mut Report) {
    at.each("destinationSubnets", destination_subnets, |subnet, at| check_ip_or_cidr(subnet, at));
    at.field("port", |at| check_optional_port(port, at));
    at.each("gateways", gateways, |gateway, at| check_gateway_name(gateway, at));
}

/// A route behind one that matches everything has no effect.
fn check_unreachable(http: &[HttpRoute], at: &mut Report) {
    let Some(catch_all) = http.iter().position(is_catch_all) else { return };
    if catch_all + 1 < http.len() {
        let message = format!("this route is never used: http[{catch_all}] before it matches every request");
        at.field("http", |at| {
            at.index(catch_all + 1, |at| at.warn(DOUBTFUL, message, "move the route without match to the end"))
        });
    }
}

fn is_catch_all(route: &HttpRoute) -> bool {
    let everything = |matcher: &HttpMatchRequest| {
        let blank = HttpMatchRequest {
            uri: matcher.uri.clone(),
            name: matcher.name.clone(),
            stat_prefix: matcher.stat_prefix.clone(),
            ..HttpMatchRequest::default()
        };
        let whole = match &matcher.uri {
            None => true,
            Some(StringMatch::Prefix(prefix)) => prefix == "/",
            Some(StringMatch::Regex(regex)) => regex == ".*",
            Some(_) => false,
        };
        whole && *matcher == blank
    };
    route.r#match.is_empty() || route.r#match.iter().any(everything)
}
