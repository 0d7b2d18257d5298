//! What a route does to requests.

use meltemi_types::{GrpcCode, header_value_fault, plain_value_fault, target_fault};

use super::super::rules::*;
use crate::networking::{
    CorsPolicy, FaultAbort, FaultDelay, HeaderOperations, Headers, HttpFaultInjection,
    HttpMatchRequest, HttpRedirect, HttpRetry, HttpRewrite,
};
use crate::schema::{Report, shorten};
use crate::shared::StringMatch;

pub(super) fn check_redirect(
    redirect: &HttpRedirect,
    matches: &[HttpMatchRequest],
    at: &mut Report,
) {
    let HttpRedirect {
        uri,
        prefix_rewrite,
        authority,
        port,
        derive_port,
        scheme,
        redirect_code,
    } = redirect;

    if uri.is_empty()
        && prefix_rewrite.is_empty()
        && authority.is_empty()
        && port.is_none()
        && derive_port.is_none()
        && scheme.is_empty()
    {
        at.error(
            MISSING,
            "redirect must specify URI, authority, scheme, or port",
            "say what the new URL is",
        );
    }

    if !uri.is_empty() && !prefix_rewrite.is_empty() {
        at.error(
            CONFLICT,
            "redirect cannot contain both uri and prefixRewrite",
            "keep one of them",
        );
    }

    let by_prefix =
        |matcher: &HttpMatchRequest| matches!(matcher.uri, None | Some(StringMatch::Prefix(_)));
    if !prefix_rewrite.is_empty() && !matches.iter().all(by_prefix) {
        at.field("prefixRewrite", |at| {
            at.error(
                CONFLICT,
                "redirect prefix_rewrite requires all URI matches to use prefix match type",
                "match by prefix, or use uri",
            )
        });
    }

    if port.is_some() && derive_port.is_some() {
        at.error(
            CONFLICT,
            "only one of port or derivePort can be set",
            "keep one of them",
        );
    }

    for (key, text) in [
        ("uri", uri),
        ("prefixRewrite", prefix_rewrite),
        ("authority", authority),
    ] {
        check_head_text(key, text, plain_value_fault, at);
    }

    if let Some(port) = port {
        at.field("port", |at| check_port(*port, at));
    }
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        at.field("scheme", |at| {
            at.error(
                INVALID,
                "invalid redirect scheme, must be http or https",
                "write http or https",
            )
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

pub(super) fn check_rewrite(rewrite: &HttpRewrite, at: &mut Report) {
    let HttpRewrite {
        uri,
        authority,
        uri_regex_rewrite,
    } = rewrite;

    if uri.is_empty() && authority.is_empty() && uri_regex_rewrite.is_none() {
        at.error(
            MISSING,
            "rewrite must specify at least one of uri, authority, or uriRegexRewrite",
            "add one of them, or remove rewrite",
        );
    }

    if !uri.is_empty() && uri_regex_rewrite.is_some() {
        at.error(
            CONFLICT,
            "rewrite may only contain one of uri or uriRegexRewrite",
            "keep one of them",
        );
    }

    check_head_text("uri", uri, target_fault, at);
    check_head_text("authority", authority, target_fault, at);
    at.some("uriRegexRewrite", uri_regex_rewrite, |rewrite, at| {
        if rewrite.r#match.is_empty() || rewrite.rewrite.is_empty() {
            at.error(
                MISSING,
                "UriRegexRewrite must specify both match and rewrite",
                "add both",
            );
        }
        check_head_text("rewrite", &rewrite.rewrite, target_fault, at);
        let pattern = at.field("match", |at| check_regex(&rewrite.r#match, at));
        if let Some(pattern) = pattern {
            check_substitution(&rewrite.rewrite, pattern.groups(), at);
        }
    });
}

/// `\1` to `\9` name groups of the pattern, `\0` the whole match, `\\` a backslash.
fn check_substitution(text: &str, groups: usize, at: &mut Report) {
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            continue;
        }
        let fault = match rest.next() {
            Some(b'\\') => None,
            Some(digit @ b'0'..=b'9') if usize::from(digit - b'0') <= groups => None,
            Some(digit @ b'0'..=b'9') => Some(format!(
                "\\{} names a group that the expression does not have",
                char::from(digit)
            )),
            _ => Some("a backslash is followed by a digit or a backslash".to_owned()),
        };
        if let Some(fault) = fault {
            return at.field("rewrite", |at| {
                at.error(INVALID, fault, "count the groups of match from 1");
            });
        }
    }
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

/// The statuses that Go's `http.StatusText` has a name for.
const STATUSES: &[std::ops::RangeInclusive<u16>] = &[
    100..=103,
    200..=208,
    226..=226,
    300..=305,
    307..=308,
    400..=418,
    421..=426,
    428..=429,
    431..=431,
    451..=451,
    500..=508,
    510..=511,
];

pub(crate) fn check_retries(retries: &HttpRetry, at: &mut Report) {
    let HttpRetry {
        attempts,
        per_try_timeout,
        retry_on,
        retry_remote_localities,
        retry_ignore_previous_hosts: _,
        backoff,
    } = retries;

    if *attempts < 0 {
        at.field("attempts", |at| {
            at.error(
                INVALID,
                "attempts cannot be negative",
                "write 0 to switch retries off",
            )
        });
    }

    if *attempts == 0
        && (per_try_timeout.is_some() || !retry_on.is_empty() || retry_remote_localities.is_some())
    {
        at.error(
            CONFLICT,
            "http retry policy configured when attempts are set to 0 (disabled)",
            "write attempts, or remove the other fields",
        );
    }

    check_duration("perTryTimeout", *per_try_timeout, at);
    check_duration("backoff", *backoff, at);

    if retry_on.is_empty() {
        return;
    }

    // Blanks are part of a word: proxies do not cut them off.
    for policy in retry_on.split(',') {
        let is_status = policy
            .parse::<u16>()
            .is_ok_and(|status| STATUSES.iter().any(|range| range.contains(&status)));
        if !is_status && !RETRY_ON.contains(&policy) {
            let remedy = crate::schema::closest(policy, RETRY_ON).map_or_else(
                || format!("use status codes or {}", RETRY_ON.join(", ")),
                |word| format!("did you mean {word}?"),
            );

            at.field("retryOn", |at| {
                at.error(
                    INVALID,
                    format!("{:?} is not a valid retryOn policy", shorten(policy)),
                    remedy,
                )
            });
        }
    }
}

pub(super) fn check_fault(fault: &HttpFaultInjection, at: &mut Report) {
    if fault.abort.is_none() && fault.delay.is_none() {
        at.error(
            MISSING,
            "HTTP fault injection must have an abort and/or a delay",
            "add one of them, or remove fault",
        );
    }

    at.some("delay", &fault.delay, |delay, at| {
        let FaultDelay {
            fixed_delay,
            exponential_delay,
            percent,
            percentage,
        } = delay;

        if exponential_delay.is_some() {
            at.field("exponentialDelay", |at| {
                at.error(
                    WITHOUT_EFFECT,
                    "exponentialDelay not supported yet",
                    "use fixedDelay",
                )
            });
        } else if fixed_delay.is_none() {
            at.warn(DOUBTFUL, "without fixedDelay, nothing is delayed", "add it");
        }

        check_duration("fixedDelay", *fixed_delay, at);
        if !(0..=100).contains(percent) {
            at.field("percent", |at| {
                at.error(
                    INVALID,
                    format!("percentage {percent} is not in range 0..100"),
                    "write 0 to 100",
                )
            });
        }

        check_percent("percentage", percentage, at);
        if *percent == 0 && percentage.is_none() {
            at.warn(
                DOUBTFUL,
                "without percentage, no request is delayed",
                "add percentage",
            );
        }
    });

    at.some("abort", &fault.abort, |abort, at| {
        let FaultAbort {
            http_status,
            grpc_status,
            http2_error,
            percentage,
        } = abort;

        if http_status.is_some() && grpc_status.is_some() {
            at.error(
                CONFLICT,
                "only one of httpStatus or grpcStatus can be set",
                "keep one of them",
            );
        }

        if http2_error.is_some() {
            at.field("http2Error", |at| {
                at.error(
                    WITHOUT_EFFECT,
                    "HTTP/2 abort fault injection not supported yet",
                    "use httpStatus",
                )
            });
        } else if http_status.is_none() && grpc_status.is_none() {
            at.warn(
                DOUBTFUL,
                "abort configured, but error type not set: nothing is aborted",
                "add httpStatus or grpcStatus",
            );
        }

        if let Some(status) = http_status
            && !(200..=599).contains(status)
        {
            at.field("httpStatus", |at| {
                at.error(
                    INVALID,
                    format!("HTTP status {status} is not in range 200-599"),
                    "write a status",
                )
            });
        }

        if let Some(status) = grpc_status
            && status.parse::<GrpcCode>().is_err()
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

/// Source: Istio `supportedCORSMethods`.
const CORS_METHODS: &[&str] = &[
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*",
];

pub(super) fn check_cors(cors: &CorsPolicy, at: &mut Report) {
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
        at.field("allowOrigin", |at| {
            at.warn(
                WITHOUT_EFFECT,
                "allowOrigin is deprecated",
                "use allowOrigins",
            )
        });
    }

    at.each("allowOrigins", allow_origins, |origin, at| {
        if origin.text().is_none_or(str::is_empty) {
            at.error(
                INVALID,
                "an empty match is not a valid match type for CORS allow origins",
                "write exact, prefix or regex",
            );
        } else {
            check_string_match(origin, at);
        }
    });
    at.each("allowMethods", allow_methods, |method, at| {
        if !CORS_METHODS.contains(&method.as_str()) {
            at.error(
                INVALID,
                format!("{:?} is not a supported HTTP method", shorten(method)),
                format!("use {}", CORS_METHODS.join(", ")),
            );
        }
    });

    for (key, names) in [
        ("allowHeaders", allow_headers),
        ("exposeHeaders", expose_headers),
    ] {
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

    check_duration("maxAge", *max_age, at);
    if max_age.is_some_and(|age| age.subsec_nanos() != 0) {
        at.field("maxAge", |at| {
            at.error(
                INVALID,
                "max_age duration is accurate only to seconds precision",
                "write whole seconds",
            )
        });
    }
}

pub(super) fn check_headers(headers: &Headers, at: &mut Report) {
    for (direction, operations) in [
        ("request", &headers.request),
        ("response", &headers.response),
    ] {
        at.some(
            direction,
            operations,
            |HeaderOperations { set, add, remove }, at| {
                for (key, pairs) in [("set", set), ("add", add)] {
                    at.field(key, |at| {
                        for (name, value) in pairs {
                            at.field(name, |at| {
                                check_header_operation(name, direction == "request", at);

                                if let Some(fault) = header_value_fault(value) {
                                    at.error(
                                        INVALID,
                                        format!("invalid header value: {fault}"),
                                        "write one line; see Envoy's list of %OPERATORS%",
                                    );
                                }
                            });
                        }
                    });
                }

                at.each("remove", remove, |name, at| {
                    check_header_operation(name, false, at)
                });
            },
        );
    }
}

fn check_header_operation(name: &str, host_may_be_set: bool, at: &mut Report) {
    let lower = name.to_ascii_lowercase();
    if lower == "host" || lower == ":authority" {
        if !host_may_be_set {
            at.error(
                INVALID,
                format!("{name} header cannot be removed, or changed in a response"),
                "use rewrite.authority, or headers.request.set",
            );
        }
    } else if lower.starts_with(':') {
        at.error(
            INVALID,
            format!(
                "header name {:?} must not be a pseudo-header",
                shorten(name)
            ),
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
