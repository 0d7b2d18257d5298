//! Extension providers: what CUSTOM policies ask, and file logs. Source: Istio
//! `ValidateExtensionProviderEnvoyExtAuthzHTTP` and `buildExtAuthzHTTP`.
//!
//! Every finding about an authorizer is a warning, as in Istio: the rest of MeshConfig holds, and a
//! CUSTOM policy of a faulty provider denies what its rules select.

use meltemi_types::log_format_fault;
use serde_json::Value;

use super::rules::*;
use crate::mesh::{ExtAuthzBody, ExtAuthzGrpc, ExtAuthzHttp, ExtensionProvider, FileAccessLog};
use crate::schema::{Finding, Report, UnknownFields, shorten};

/// The statuses that Envoy can answer with. Source: `envoy.type.v3.StatusCode`.
const STATUSES: &[u16] = &[
    100, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 307, 308,
    400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 421,
    422, 423, 424, 426, 428, 429, 431, 500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511,
];

impl ExtensionProvider {
    /// The faults that keep policies from asking this provider, with paths that begin at the
    /// provider. Empty for a provider of another kind.
    pub fn authorizer_faults(&self) -> Vec<Finding> {
        let mut report = Report::new("", UnknownFields::Warn);
        check_faults(self, &mut report);
        report.into_findings()
    }
}

/// Checks one item of `extensionProviders`.
pub(crate) fn check_provider(provider: &ExtensionProvider, at: &mut Report) {
    check_faults(provider, at);
    at.some(
        "envoyFileAccessLog",
        &provider.envoy_file_access_log,
        check_file_log,
    );

    at.some(
        "envoyExtAuthzHttp",
        &provider.envoy_ext_authz_http,
        |http, at| {
            let is_hidden = !http.include_headers_in_check.is_empty()
                && !http.include_request_headers_in_check.is_empty();
            if is_hidden {
                at.field("includeHeadersInCheck", |at| {
                    at.warn(
                        WITHOUT_EFFECT,
                        "includeRequestHeadersInCheck is set, and replaces this field",
                        "move the names to includeRequestHeadersInCheck",
                    );
                });
            }
        },
    );
}

fn check_faults(provider: &ExtensionProvider, at: &mut Report) {
    if provider.envoy_ext_authz_http.is_some() && provider.envoy_ext_authz_grpc.is_some() {
        at.warn(
            CONFLICT,
            "only one of envoyExtAuthzHttp and envoyExtAuthzGrpc can be set",
            "remove one of them",
        );
    }

    at.some(
        "envoyExtAuthzHttp",
        &provider.envoy_ext_authz_http,
        check_http,
    );
    at.some(
        "envoyExtAuthzGrpc",
        &provider.envoy_ext_authz_grpc,
        check_grpc,
    );
}

/// A format that proxies refuse would keep every listener with this log as it is.
fn check_file_log(log: &FileAccessLog, at: &mut Report) {
    let remedy = "see Envoy's list of %OPERATORS%";
    let Some(format) = &log.log_format else {
        return;
    };
    at.field("logFormat", |at| {
        if let Some(fault) = format.text.as_deref().and_then(log_format_fault) {
            at.field("text", |at| at.error(INVALID, fault, remedy));
        }
        if let Some(fault) = format.labels.as_ref().and_then(label_fault) {
            at.field("labels", |at| at.error(INVALID, fault, remedy));
        }
    });
}

/// The first fault among the texts of a JSON format.
fn label_fault(labels: &Value) -> Option<String> {
    match labels {
        Value::String(text) => log_format_fault(text),
        Value::Object(fields) => fields.values().find_map(label_fault),
        Value::Array(items) => items.iter().find_map(label_fault),
        _ => None,
    }
}

fn check_http(http: &ExtAuthzHttp, at: &mut Report) {
    // Destructured, so that whoever adds a field decides whether it has rules.
    let ExtAuthzHttp {
        service,
        port,
        timeout: _,
        path_prefix,
        fail_open: _,
        status_on_error,
        clear_route_cache: _,
        include_headers_in_check,
        include_request_headers_in_check,
        include_additional_headers_in_check,
        include_request_body_in_check,
        headers_to_upstream_on_allow,
        headers_to_downstream_on_deny,
        headers_to_downstream_on_allow,
    } = http;

    check_service(service, *port, at);
    check_status(status_on_error, at);
    at.some(
        "includeRequestBodyInCheck",
        include_request_body_in_check,
        check_body,
    );

    if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
        at.field("pathPrefix", |at| {
            let message = format!(
                "pathPrefix should begin with `/` but found {:?}",
                shorten(path_prefix)
            );
            at.warn(INVALID, message, "write a path such as /check");
        });
    }

    for (key, names) in [
        ("includeHeadersInCheck", include_headers_in_check),
        (
            "includeRequestHeadersInCheck",
            include_request_headers_in_check,
        ),
        ("headersToUpstreamOnAllow", headers_to_upstream_on_allow),
        ("headersToDownstreamOnDeny", headers_to_downstream_on_deny),
        ("headersToDownstreamOnAllow", headers_to_downstream_on_allow),
    ] {
        at.each(key, names, |name, at| check_header_pattern(name, at));
    }

    at.field("includeAdditionalHeadersInCheck", |at| {
        for (name, value) in include_additional_headers_in_check {
            at.field(name, |at| check_header(name, value, at));
        }
    });
}

fn check_grpc(grpc: &ExtAuthzGrpc, at: &mut Report) {
    let ExtAuthzGrpc {
        service,
        port,
        timeout: _,
        fail_open: _,
        status_on_error,
        clear_route_cache: _,
        include_request_body_in_check,
    } = grpc;

    check_service(service, *port, at);
    check_status(status_on_error, at);
    at.some(
        "includeRequestBodyInCheck",
        include_request_body_in_check,
        check_body,
    );
}

fn check_service(service: &str, port: u32, at: &mut Report) {
    let fault = match service.split('/').collect::<Vec<_>>().as_slice() {
        [""] => Some("service must not be empty".to_owned()),
        [host] | [_, host] if !host.is_empty() => None,
        _ => Some(format!(
            "service value {:?} not in format [<namespace>/]<service>",
            shorten(service)
        )),
    };

    if let Some(fault) = fault {
        at.field("service", |at| {
            at.warn(INVALID, fault, "write HOST, or NAMESPACE/HOST");
        });
    }

    if !(1..=65535).contains(&port) {
        at.field("port", |at| {
            let message = format!("port must be in the range [1, 65535], found: {port}");
            at.warn(INVALID, message, "write a port of the service");
        });
    }
}

fn check_status(status: &str, at: &mut Report) {
    let is_known = status
        .parse()
        .is_ok_and(|status: u16| STATUSES.contains(&status));

    if !status.is_empty() && !is_known {
        at.field("statusOnError", |at| {
            let message = format!("unsupported statusOnError value {:?}", shorten(status));
            at.warn(
                INVALID,
                message,
                "write an HTTP status such as \"403\" or \"503\"",
            );
        });
    }
}

fn check_body(body: &ExtAuthzBody, at: &mut Report) {
    // Envoy refuses the whole listener for `max_request_bytes: 0`.
    if body.max_request_bytes == 0 {
        at.field("maxRequestBytes", |at| {
            at.warn(
                INVALID,
                "maxRequestBytes must be greater than 0",
                "write the most bytes of a body that a check carries, such as 8192",
            );
        });
    }
}

fn check_header_pattern(name: &str, at: &mut Report) {
    if name == "*" {
        at.warn(
            INVALID,
            "a single wildcard (\"*\") is not supported, change it to either prefix or suffix match",
            "write names, x-* or *-id",
        );
    }
}

fn check_header(name: &str, value: &str, at: &mut Report) {
    // Envoy refuses the whole listener for such a header.
    if !is_header_name(name) {
        let message = format!("{:?} is not a header name", shorten(name));
        at.warn(INVALID, message, "write a name such as x-mesh");
    } else if value
        .bytes()
        .any(|byte| matches!(byte, b'\0' | b'\r' | b'\n'))
    {
        at.warn(
            INVALID,
            "a header value must be one line",
            "remove the line break",
        );
    }
}
