//! Delegates: rules of another VirtualService, under the conditions and with the defaults of the
//! rule that hands over.
//!
//! Source: Istio `pilot/pkg/model/virtualservice.go`, `mergeVirtualServicesIfNeeded` and
//! `mergeHTTPRoutes`.

use std::collections::BTreeMap;

use meltemi_types::{Diagnostic, Severity};

use super::virtual_service::{Delegation, HttpRule, LoweredVirtualService};
use crate::lower::{Entry, Lowered, finding};
use crate::{HttpAction, HttpMatch, HttpRoute, Retries, StringMatch, VirtualService};

/// The VirtualService with every delegation replaced by the delegate's rules.
pub(crate) fn merge_delegates(
    root: &Entry<LoweredVirtualService>,
    all: &Lowered<LoweredVirtualService>,
    diagnostics: &mut Vec<Diagnostic>,
) -> VirtualService {
    let mut merged = root.value.base.clone();
    let own_namespace = merged.origin.object.namespace.clone();
    for rule in &root.value.http {
        let Some(Delegation { to, field }) = &rule.delegate else {
            merged.http.push(rule.route.clone());
            continue;
        };

        let mut tell = |code: &str, message: String, remedy: &str| {
            diagnostics.push(finding(
                &root.object,
                Severity::Warning,
                code,
                field,
                message,
                remedy,
            ));
        };

        let Some(delegate) = all.entries.get(to) else {
            tell(
                "IST0101",
                format!("Referenced delegate not found: {to:?}", to = to.to_string()),
                "create the VirtualService, or correct the name",
            );
            continue;
        };

        if !delegate.value.is_delegate() {
            tell(
                "MEL0306",
                format!("{to} has hosts of its own, so it cannot be a delegate"),
                "remove its hosts",
            );
            continue;
        }

        if !delegate.value.base.export_to.includes(&own_namespace) {
            tell(
                "MEL0306",
                format!("{to} is not exported to namespace {own_namespace}"),
                "add the namespace to its exportTo",
            );
            continue;
        }

        for inner in &delegate.value.http {
            // One level only, as in Istio.
            if inner.delegate.is_some() {
                tell(
                    "MEL0306",
                    format!("{to} delegates itself, which has no effect"),
                    "delegate from the root directly",
                );
                continue;
            }

            match merge_route(rule, inner) {
                Some(route) => merged.http.push(route),
                None => {
                    tell(
                        "MEL0306",
                        format!(
                            "a rule of {to} matches nothing that this rule matches, and is left out"
                        ),
                        "make its match narrower than the root's",
                    );
                }
            }
        }
    }

    merged
}

/// The inner rule, with its absent fields taken from the outer rule; `None` if no match of it fits
/// into the outer's. Source: Istio `mergeHTTPRoute`.
fn merge_route(outer: &HttpRule, inner: &HttpRule) -> Option<HttpRoute> {
    let (has, mirrors) = (
        &inner.written,
        inner.written.mirrors.or(&outer.written.mirrors),
    );
    let (outer, inner) = (&outer.route, &inner.route);
    let matches = merge_matches(&outer.matches, &inner.matches)?;
    let (outer, inner) = (outer.clone(), inner.clone());

    Some(HttpRoute {
        name: join(&outer.name, &inner.name),
        matches,
        // An answer of the root's own comes before the delegate's destinations.
        action: match (outer.action, inner.action) {
            (HttpAction::DirectResponse(answer), HttpAction::Forward(_)) => {
                HttpAction::DirectResponse(answer)
            }
            (_, action) => action,
        },
        rewrite: inner.rewrite.or(outer.rewrite),
        timeout: match has.timeout {
            true => inner.timeout,
            false => outer.timeout,
        },
        retries: if inner.retries == Retries::Default {
            outer.retries
        } else {
            inner.retries
        },
        fault: match has.fault {
            true => inner.fault,
            false => outer.fault,
        },
        mirrors: mirrors.effective(),
        cors: inner.cors.or(outer.cors),
        headers: match has.headers {
            true => inner.headers,
            false => outer.headers,
        },
        source: inner.source,
    })
}

fn join(outer: &str, inner: &str) -> String {
    match (outer, inner) {
        ("", name) | (name, "") => name.to_owned(),
        (outer, inner) => format!("{outer}-{inner}"),
    }
}

/// Every inner match must fit into some outer match; else the whole rule is refused.
fn merge_matches(outer: &[HttpMatch], inner: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if outer.is_empty() {
        return Some(inner.to_vec());
    }
    if inner.is_empty() {
        return Some(outer.to_vec());
    }
    let mut merged = Vec::new();
    for inner in inner {
        let before = merged.len();
        merged.extend(
            outer
                .iter()
                .filter(|outer| fits(outer, inner))
                .map(|outer| merge_match(outer, inner)),
        );

        if merged.len() == before {
            return None;
        }
    }

    Some(merged)
}

fn merge_match(outer: &HttpMatch, inner: &HttpMatch) -> HttpMatch {
    let both = |outer: &BTreeMap<String, StringMatch>, inner: &BTreeMap<String, StringMatch>| {
        let mut all = outer.clone();
        all.extend(inner.clone());
        all
    };

    let mut source = inner.source.clone();
    source.port = source.port.or(outer.source.port);
    source.namespace = source.namespace.or_else(|| outer.source.namespace.clone());
    source.labels.0.extend(outer.source.labels.0.clone());
    if source.gateways.is_empty() {
        source.gateways.clone_from(&outer.source.gateways);
    }

    HttpMatch {
        name: join(&outer.name, &inner.name),
        uri: inner.uri.clone().or_else(|| outer.uri.clone()),
        ignore_uri_case: inner.ignore_uri_case,
        scheme: inner.scheme.clone().or_else(|| outer.scheme.clone()),
        method: inner.method.clone().or_else(|| outer.method.clone()),
        authority: inner.authority.clone().or_else(|| outer.authority.clone()),
        headers: both(&outer.headers, &inner.headers),
        without_headers: both(&outer.without_headers, &inner.without_headers),
        query_params: both(&outer.query_params, &inner.query_params),
        source,
        stat_prefix: if inner.stat_prefix.is_empty() {
            outer.stat_prefix.clone()
        } else {
            inner.stat_prefix.clone()
        },
    }
}

/// Whether nothing that the inner match asks for contradicts the outer.
fn fits(outer: &HttpMatch, inner: &HttpMatch) -> bool {
    let strings = [
        (&outer.uri, &inner.uri),
        (&outer.scheme, &inner.scheme),
        (&outer.method, &inner.method),
        (&outer.authority, &inner.authority),
    ];

    let strings_fit = strings
        .iter()
        .all(|(outer, inner)| string_fits(outer.as_ref(), inner.as_ref()));
    let maps = [
        (&outer.headers, &inner.headers),
        (&outer.without_headers, &inner.without_headers),
        (&outer.query_params, &inner.query_params),
    ];

    let maps_fit = maps.iter().all(|(outer, inner)| {
        inner
            .iter()
            .all(|(name, inner)| string_fits(outer.get(name), Some(inner)))
    });

    let (from, to) = (&outer.source, &inner.source);

    strings_fit
        && maps_fit
        && outer.ignore_uri_case == inner.ignore_uri_case
        && same_if_both(from.port.as_ref(), to.port.as_ref())
        && same_if_both(from.namespace.as_ref(), to.namespace.as_ref())
        && to
            .labels
            .0
            .iter()
            .all(|(key, value)| same_if_both(from.labels.0.get(key), Some(value)))
        && (from.gateways.is_empty()
            || to
                .gateways
                .iter()
                .all(|gateway| from.gateways.contains(gateway)))
}

fn same_if_both<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
    a.is_none() || b.is_none() || a == b
}

/// A regex fits nothing but the absence of the other: whether one language lies in another is not
/// decided.
fn string_fits(outer: Option<&StringMatch>, inner: Option<&StringMatch>) -> bool {
    let (Some(outer), Some(inner)) = (outer, inner) else {
        return true;
    };
    match (outer, inner) {
        (StringMatch::Present, _) => true,
        (StringMatch::Exact(outer), StringMatch::Exact(inner)) => outer == inner,
        (StringMatch::Prefix(outer), StringMatch::Exact(inner) | StringMatch::Prefix(inner)) => {
            inner.starts_with(outer.as_str())
        }
        (StringMatch::Exact(_) | StringMatch::Prefix(_) | StringMatch::Regex(_), _) => false,
    }
}
