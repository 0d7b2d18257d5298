//! What requests and connections a route takes.

use std::collections::BTreeMap;

use meltemi_types::is_dns_label;

use super::super::rules::*;
use crate::networking::{HttpMatchRequest, HttpRoute, L4MatchAttributes, TlsMatchAttributes};
use crate::schema::{Report, shorten};
use crate::shared::StringMatch;

const PSEUDO_HEADERS: &[&str] = &[":method", ":scheme", ":authority", ":path", ":status"];

/// In bytes. Source: Envoy `QueryParameterMatcher.name`.
const MAX_PARAMETER_NAME: usize = 1024;

pub(super) fn check_http_match(matcher: &HttpMatchRequest, at: &mut Report) {
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
        source_namespace,
        gateways,
        stat_prefix: _,
    } = matcher;

    if !source_namespace.is_empty() && !is_dns_label(&source_namespace.to_ascii_lowercase()) {
        at.field("sourceNamespace", |at| {
            at.error(
                INVALID,
                format!(
                    "sourceNamespace match {:?} is invalid",
                    shorten(source_namespace)
                ),
                "write a namespace",
            )
        });
    }

    for (key, part) in [
        ("uri", uri),
        ("scheme", scheme),
        ("method", method),
        ("authority", authority),
    ] {
        // An empty prefix of a path is every path. Source: Istio
        // `validateHTTPRouteMatchRequest`.
        let is_any_path = key == "uri" && *part == Some(StringMatch::Prefix(String::new()));
        if !is_any_path {
            at.some(key, part, check_string_match);
        }
        if part.as_ref() == Some(&StringMatch::Present) {
            at.field(key, |at| {
                at.warn(
                    DOUBTFUL,
                    "an empty match matches everything",
                    "add exact, prefix or regex, or remove it",
                )
            });
        }
    }

    if *ignore_uri_case && matches!(uri, Some(StringMatch::Regex(_))) {
        at.field("ignoreUriCase", |at| {
            at.warn(
                WITHOUT_EFFECT,
                "ignoreUriCase has no effect on a regex match",
                "begin the expression with (?i)",
            )
        });
    }

    check_header_matches("headers", headers, at);
    check_header_matches("withoutHeaders", without_headers, at);
    check_parameters(query_params, at);
    at.field("port", |at| check_optional_port(*port, at));
    check_labels("sourceLabels", &source_labels.0, at);
    at.each("gateways", gateways, |gateway, at| {
        check_gateway_name(gateway, at)
    });
}

pub(super) fn check_tls_match(matcher: &TlsMatchAttributes, hosts: &[String], at: &mut Report) {
    let TlsMatchAttributes {
        sni_hosts,
        destination_subnets,
        port,
        source_labels,
        source_namespace: _,
        gateways,
    } = matcher;

    if sni_hosts.is_empty() {
        at.field("sniHosts", |at| {
            at.error(
                MISSING,
                "TLS match must have at least one SNI host",
                "add sniHosts",
            )
        });
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
        Some(suffix) => narrow
            .strip_prefix('*')
            .unwrap_or(&narrow)
            .ends_with(suffix),
        None => wide == narrow,
    }
}

pub(super) fn check_tcp_match(matcher: &L4MatchAttributes, at: &mut Report) {
    let L4MatchAttributes {
        destination_subnets,
        port,
        source_subnet,
        source_labels,
        source_namespace: _,
        gateways,
    } = matcher;

    if !source_subnet.is_empty() {
        at.field("sourceSubnet", |at| {
            at.warn(
                WITHOUT_EFFECT,
                "sourceSubnet is not implemented",
                "use an AuthorizationPolicy",
            )
        });
    }

    check_l4(destination_subnets, *port, gateways, at);
    check_labels("sourceLabels", &source_labels.0, at);
}

fn check_l4(destination_subnets: &[String], port: u32, gateways: &[String], at: &mut Report) {
    at.each("destinationSubnets", destination_subnets, |subnet, at| {
        check_ip_or_cidr(subnet, at)
    });
    at.field("port", |at| check_optional_port(port, at));
    at.each("gateways", gateways, |gateway, at| {
        check_gateway_name(gateway, at)
    });
}

/// A route behind one that matches everything has no effect.
pub(super) fn check_unreachable(http: &[HttpRoute], at: &mut Report) {
    let Some(catch_all) = http.iter().position(is_catch_all) else {
        return;
    };
    if catch_all + 1 < http.len() {
        let message =
            format!("this route is never used: http[{catch_all}] before it matches every request");
        at.field("http", |at| {
            at.index(catch_all + 1, |at| {
                at.warn(DOUBTFUL, message, "move the route without match to the end")
            })
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

/// `NAMESPACE/NAME`, `NAME` or `mesh`.
pub(super) fn check_gateway_name(gateway: &str, at: &mut Report) {
    let is_label = |text: &str| is_dns_label(&text.to_ascii_lowercase());
    let is_name = match gateway.split_once('/') {
        Some((namespace, name)) => is_label(namespace) && is_label(name),
        None => host_fault(gateway).is_none(),
    };
    if !is_name {
        at.error(
            INVALID,
            format!("{:?} is not a gateway's name", shorten(gateway)),
            "write NAMESPACE/NAME, NAME, or mesh",
        );
    }
}

fn check_header_matches(key: &str, matches: &BTreeMap<String, StringMatch>, at: &mut Report) {
    at.field(key, |at| {
        for (name, matcher) in matches {
            at.field(name, |at| {
                // JWT claims and pseudo-headers are written like headers.
                let is_known = name.starts_with("@request.auth.claims")
                    || PSEUDO_HEADERS.contains(&name.as_str())
                    || is_header_name(name);
                if !is_known {
                    at.error(
                        INVALID,
                        format!("header name {:?} is not a valid header name", shorten(name)),
                        "letters, digits, - _ and .",
                    );
                }

                // `*` is no expression here, but "is there".
                let is_there = StringMatch::Regex("*".to_owned());
                if key == "headers" || *matcher != is_there {
                    check_string_match(matcher, at);
                }
            });
        }
    });
}

fn check_parameters(query_params: &BTreeMap<String, StringMatch>, at: &mut Report) {
    at.field("queryParams", |at| {
        for (name, matcher) in query_params {
            at.field(name, |at| {
                if name.is_empty() || name.len() > MAX_PARAMETER_NAME {
                    at.error(
                        INVALID,
                        format!("a parameter's name has 1 to {MAX_PARAMETER_NAME} bytes"),
                        "write the parameter's name",
                    );
                }
                check_string_match(matcher, at);
            });
        }
    });
}
