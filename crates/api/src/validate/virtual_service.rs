//! VirtualService: its hosts, gateways, routes and destinations.

mod actions;
mod matches;

use std::collections::BTreeMap;

use meltemi_types::is_dns_label;

pub(crate) use self::actions::check_retries;
use self::actions::{check_cors, check_fault, check_headers, check_redirect, check_rewrite};
use self::matches::{
    check_gateway_name, check_http_match, check_tcp_match, check_tls_match, check_unreachable,
};
use super::rules::*;
use crate::networking::{
    Delegate, Destination, HttpDirectResponse, HttpRoute, HttpRouteDestination, RouteDestination,
    VirtualService,
};
use crate::schema::{Report, shorten};
use crate::shared::PortSelector;

pub(super) fn check(spec: &VirtualService, namespace: &str, at: &mut Report) {
    let VirtualService {
        hosts,
        gateways,
        http,
        tls,
        tcp,
        export_to,
    } = spec;

    let for_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh");
    let is_delegate = hosts.is_empty();
    if is_delegate {
        check_delegate(spec, at);
    }
    if http.is_empty() && tls.is_empty() && tcp.is_empty() {
        at.error(
            MISSING,
            "http, tcp or tls must be provided in virtual service",
            "add a route",
        );
    }

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

    check_overlaps(hosts, at);
    at.each("gateways", gateways, |gateway, at| {
        check_gateway_name(gateway, at)
    });
    at.each("http", http, |route, at| {
        check_http_route(route, is_delegate, at);
        if gateways.iter().all(|gateway| gateway == "mesh") {
            check_no_claims(route, at);
        }
    });
    at.each("tls", tls, |route, at| {
        if route.r#match.is_empty() {
            at.field("match", |at| {
                at.error(
                    MISSING,
                    "TLS route must have at least one match condition",
                    "add a match with sniHosts",
                )
            });
        }

        at.each("match", &route.r#match, |matcher, at| {
            check_tls_match(matcher, hosts, at)
        });
        check_l4_routes(&route.route, "TLS", at);
    });

    at.each("tcp", tcp, |route, at| {
        at.each("match", &route.r#match, check_tcp_match);
        check_l4_routes(&route.route, "TCP", at);
    });

    check_unreachable(http, at);
    check_export_to(export_to, namespace, Exported::Other, at);
}

/// No host may be among those of another: each would claim the same requests.
fn check_overlaps(hosts: &[String], at: &mut Report) {
    let lower: Vec<String> = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
    let mut first = BTreeMap::new();
    at.field("hosts", |at| {
        for (index, host) in lower.iter().enumerate() {
            if let Some(held) = first.insert(host.as_str(), index) {
                tell_overlap(index, &hosts[held], &hosts[index], at);
            }
        }

        // The hosts that hold this one: a wildcard before each of its ends.
        for (index, host) in lower.iter().enumerate() {
            let rest = host.strip_prefix('*');
            let name = rest.unwrap_or(host);
            let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            let wider = ends
                .skip(usize::from(rest.is_some()))
                .find_map(|end| first.get(format!("*{}", &name[end..]).as_str()));
            if let Some(wider) = wider.filter(|wider| lower[**wider] != *host) {
                tell_overlap(index, &hosts[*wider], &hosts[index], at);
            }
        }
    });
}

fn tell_overlap(index: usize, one: &str, other: &str, at: &mut Report) {
    at.index(index, |at| {
        at.error(
            DUPLICATE,
            format!("duplicate hosts in virtual service: {one} & {other}"),
            "remove one of them",
        )
    });
}

/// Claims of tokens route at gateways alone.
fn check_no_claims(route: &HttpRoute, at: &mut Report) {
    at.each("match", &route.r#match, |matcher, at| {
        for (key, headers) in [
            ("headers", &matcher.headers),
            ("withoutHeaders", &matcher.without_headers),
        ] {
            for name in headers.keys().filter(|name| is_claim(name)) {
                at.field(key, |at| {
                    at.field(name, |at| {
                        at.error(
                            CONFLICT,
                            "JWT claim based routing is only supported for gateway",
                            "bind the VirtualService to a Gateway",
                        );
                    });
                });
            }
        }
    });
}

fn is_claim(name: &str) -> bool {
    name.starts_with("@request.auth.claims")
}

fn check_delegate(spec: &VirtualService, at: &mut Report) {
    let remedy = "add hosts, or keep a delegate: http routes only, and no gateways";
    if spec.http.is_empty() {
        at.field("hosts", |at| {
            at.error(
                MISSING,
                "virtual service must have at least one host",
                "add hosts",
            )
        });
    }

    if !spec.gateways.is_empty() {
        at.field("gateways", |at| {
            at.error(
                CONFLICT,
                "delegate virtual service must have no gateways specified",
                remedy,
            )
        });
    }

    if !spec.tls.is_empty() {
        at.field("tls", |at| {
            at.error(
                CONFLICT,
                "delegate virtual service must have no tls specified",
                remedy,
            )
        });
    }

    if !spec.tcp.is_empty() {
        at.field("tcp", |at| {
            at.error(
                CONFLICT,
                "delegate virtual service must have no tcp specified",
                remedy,
            )
        });
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
    check_authority_once(route, at);
    at.each("match", matches, check_http_match);
    at.some("redirect", redirect, |redirect, at| {
        check_redirect(redirect, matches, at)
    });
    at.some("directResponse", direct_response, check_direct_response);
    at.some("delegate", delegate, |delegate, at| {
        check_reference(delegate, is_delegate, at)
    });
    at.some("rewrite", rewrite, check_rewrite);
    check_duration("timeout", *timeout, at);
    at.some("retries", retries, check_retries);
    at.some("fault", fault, check_fault);
    at.some("mirror", mirror, check_destination);
    at.each("mirrors", mirrors, |mirror, at| {
        at.field("destination", |at| {
            check_destination(&mirror.destination, at)
        });
        check_percent("percentage", &mirror.percentage, at);
    });

    if mirror.is_some() && !mirrors.is_empty() {
        at.error(
            CONFLICT,
            "HTTP route cannot contain both mirror and mirrors",
            "move mirror into mirrors",
        );
    }

    if mirror_percent.is_some_and(|percent| percent > 100) {
        at.field("mirrorPercent", |at| {
            at.error(
                INVALID,
                "mirror_percent must have a max value of 100",
                "write 0 to 100",
            )
        });
    }

    check_percent("mirrorPercentage", mirror_percentage, at);
    at.some("corsPolicy", cors_policy, check_cors);
    at.some("headers", headers, check_headers);
    check_weights(destinations, at);
}

/// A reply without a destination. Source: Istio `validateHTTPDirectResponse`.
fn check_direct_response(direct: &HttpDirectResponse, at: &mut Report) {
    if !(200..=599).contains(&direct.status) {
        at.field("status", |at| {
            at.error(
                INVALID,
                format!("HTTP status {} is not in range 200-599", direct.status),
                "write a status",
            )
        });
    }

    at.some("body", &direct.body, |body, at| {
        if body.string.is_some() && body.bytes.is_some() {
            at.error(
                CONFLICT,
                "only one of string or bytes can be set",
                "keep one of them",
            );
        }

        let length = body
            .string
            .as_ref()
            .map_or(0, String::len)
            .max(body.bytes.as_ref().map_or(0, |bytes| bytes.0.len()));

        if length > 1 << 20 {
            at.error(
                INVALID,
                format!(
                    "response body size {length} exceeds the limit of {} bytes",
                    1 << 20
                ),
                "serve it from a workload",
            );
        }
    });
}

fn check_reference(delegate: &Delegate, is_delegate: bool, at: &mut Report) {
    if is_delegate {
        at.error(
            CONFLICT,
            "delegate virtual service must have no delegate of its own",
            "name the last one directly",
        );
    }

    if delegate.name.is_empty() {
        at.field("name", |at| {
            at.error(
                MISSING,
                "delegate.name must not be empty",
                "name a VirtualService without hosts",
            )
        });
    }
}

/// Exactly one of route, redirect, directResponse; or a delegate, whose route is elsewhere. Source:
/// Istio `validateHTTPRouteConflict`.
fn check_action(route: &HttpRoute, at: &mut Report) {
    let remedy = "keep one of route, redirect, directResponse and delegate";
    let actions = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        // A delegate's routes may get an answer of the root's own.
        (
            "direct_response",
            route.direct_response.is_some() && route.delegate.is_none(),
        ),
        ("delegate", route.delegate.is_some()),
    ];

    let chosen: Vec<&str> = actions
        .iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| *name)
        .collect();

    match chosen.as_slice() {
        [] => at.error(
            MISSING,
            "HTTP route, redirect or direct_response is required",
            "add a route with a destination",
        ),
        [_] => {}
        several => at.error(
            CONFLICT,
            format!("HTTP route cannot contain both {}", several.join(" and ")),
            remedy,
        ),
    }

    for (name, answered) in [
        ("redirect", route.redirect.is_some()),
        ("direct_response", route.direct_response.is_some()),
    ] {
        if !answered {
            continue;
        }
        for (key, is_set) in [
            ("rewrite", route.rewrite.is_some()),
            ("fault", route.fault.is_some()),
        ] {
            if is_set {
                at.field(key, |at| {
                    at.error(
                        CONFLICT,
                        format!("HTTP route rule cannot contain both {key} and {name}"),
                        format!("remove {key}"),
                    )
                });
            }
        }
    }
}

/// The authority is rewritten in one place.
fn check_authority_once(route: &HttpRoute, at: &mut Report) {
    let by_rewrite = route
        .rewrite
        .as_ref()
        .is_some_and(|rewrite| !rewrite.authority.is_empty());
    let is_authority = |name: &&String| {
        name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
    };

    let request = route.headers.as_ref().and_then(|of| of.request.as_ref());
    let by_headers = request.map_or(0, |operations| {
        let names = operations.set.keys().chain(operations.add.keys());
        names.filter(is_authority).count()
    });

    if usize::from(by_rewrite) + by_headers > 1 {
        at.error(
            CONFLICT,
            "authority header cannot be set multiple times",
            "keep one of rewrite.authority and headers.request",
        );
    }
}

fn check_weights(destinations: &[HttpRouteDestination], at: &mut Report) {
    at.each("route", destinations, |route, at| {
        at.field("destination", |at| {
            check_destination(&route.destination, at)
        });
        check_weight(route.weight, at);
        at.some("headers", &route.headers, check_headers);
    });

    let total: i64 = destinations
        .iter()
        .map(|route| i64::from(route.weight))
        .sum();

    check_total(destinations.len(), total, at);
}

fn check_weight(weight: i32, at: &mut Report) {
    if weight < 0 {
        at.field("weight", |at| {
            at.error(INVALID, format!("weight {weight} < 0"), "write 0 or more")
        });
    }
}

fn check_total(count: usize, total: i64, at: &mut Report) {
    if count > 1 && total == 0 {
        at.field("route", |at| {
            at.error(
                INVALID,
                "total destination weight = 0",
                "give at least one destination a weight",
            )
        });
    }

    if total > i64::from(u32::MAX) {
        at.field("route", |at| {
            at.error(
                INVALID,
                format!("total destination weight {total} is too large"),
                "use smaller weights",
            )
        });
    }
}

fn check_l4_routes(routes: &[RouteDestination], what: &str, at: &mut Report) {
    if routes.is_empty() {
        at.field("route", |at| {
            at.error(
                MISSING,
                format!("{what} route is required"),
                "add a destination",
            )
        });
    }

    at.each("route", routes, |route, at| {
        at.field("destination", |at| {
            check_destination(&route.destination, at)
        });
        check_weight(route.weight, at);
    });

    check_total(
        routes.len(),
        routes.iter().map(|route| i64::from(route.weight)).sum(),
        at,
    );
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

    if !subset.is_empty() && !is_dns_label(&subset.to_ascii_lowercase()) {
        at.field("subset", |at| {
            at.error(
                INVALID,
                format!("subset name is invalid: {:?}", shorten(subset)),
                "write a DNS label",
            )
        });
    }

    at.some("port", port, |PortSelector { number }, at| {
        at.field("number", |at| check_port(*number, at))
    });
}
