//! Rules that several kinds share: names, addresses, ports, selectors, expressions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use meltemi_re2::Pattern;
use meltemi_types::{Cidr, is_dns_label};

use crate::duration::Duration;
use crate::schema::{Report, shorten};
use crate::shared::{Percent, StringMatch, TargetReference, WorkloadSelector};

/// A value breaks a rule of its field.
pub(super) const INVALID: &str = "MEL0201";
/// Fields contradict each other.
pub(super) const CONFLICT: &str = "MEL0202";
/// Something that the rule needs is missing.
pub(super) const MISSING: &str = "MEL0203";
/// Something is there twice.
pub(super) const DUPLICATE: &str = "MEL0204";
/// Valid, and most likely not meant.
pub(super) const DOUBTFUL: &str = "MEL0205";
/// Deprecated or never implemented.
pub(super) const WITHOUT_EFFECT: &str = "MEL0206";

/// The longest expression in bytes. Source: Istio `validateStringRegexp`.
const MAX_REGEX: usize = 1024;

/// RFC 1123 label, upper case too (Istio's `labels.IsDNS1123Label` takes both).
fn is_host_label(text: &str) -> bool {
    is_dns_label(&text.to_ascii_lowercase())
}

/// A host name, fully qualified or not; `None` if it is one, else why not.
pub(super) fn host_fault(host: &str) -> Option<String> {
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() {
        return Some("empty domain name not allowed".to_owned());
    }
    if name.len() > 255 {
        return Some(format!(
            "domain name {:?} too long (max 255)",
            shorten(host)
        ));
    }

    // `10.0.0` would be read as an address. Source: Istio `ValidateDNS1123Labels`.
    if let Some((_, top)) = host.rsplit_once('.')
        && !top.is_empty()
        && top.bytes().all(|b| b.is_ascii_digit())
    {
        return Some(format!(
            "domain name {:?} invalid (top level domain {top:?} cannot be all-numeric)",
            shorten(host)
        ));
    }

    name.split('.')
        .find(|label| !is_host_label(label))
        .map(|label| {
            format!(
                "domain name {:?} invalid (label {:?} invalid)",
                shorten(host),
                shorten(label)
            )
        })
}

/// A host name whose first label may be, or begin with, `*`.
pub(super) fn wildcard_host_fault(host: &str) -> Option<String> {
    if host == "*" {
        return None;
    }
    match host.strip_prefix('*') {
        Some(rest) => {
            let rest = rest.strip_prefix(['.', '-']).unwrap_or(rest);
            host_fault(rest).map(|_| {
                format!(
                    "wildcard domain {:?} invalid: only the first label can be or begin with *",
                    shorten(host)
                )
            })
        }
        None => host_fault(host),
    }
}

pub(super) fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

pub(super) fn check_host(host: &str, at: &mut Report) {
    if let Some(fault) = host_fault(host) {
        at.error(
            INVALID,
            fault,
            "write a DNS name, for example reviews or reviews.default.svc.cluster.local",
        );
    }
}

pub(super) fn check_wildcard_host(host: &str, at: &mut Report) {
    if let Some(fault) = wildcard_host_fault(host) {
        at.error(
            INVALID,
            fault,
            "write a DNS name, or one that begins with *.",
        );
    }
}

/// A host as Gateways and Sidecars take it: a full name, `*`, or `*.` before one.
pub(super) fn check_full_host(host: &str, at: &mut Report) {
    if host != "*" && !host.contains('.') {
        return at.error(
            INVALID,
            "short names (non FQDN) are not allowed",
            "write the full name, for example reviews.default.svc.cluster.local",
        );
    }
    if host.len() > 1 && host.starts_with('*') && !host.starts_with("*.") {
        return at.error(
            INVALID,
            format!("partial wildcard {:?} not allowed", shorten(host)),
            "write a name that begins with *.",
        );
    }
    check_wildcard_host(host, at);
}

pub(super) fn check_port(port: u32, at: &mut Report) {
    if !(1..=65535).contains(&port) {
        at.error(
            INVALID,
            "port must be between 1-65535",
            "write a port number",
        );
    }
}

/// As [`check_port`], where 0 means that none is written.
pub(super) fn check_optional_port(port: u32, at: &mut Report) {
    if port != 0 {
        check_port(port, at);
    }
}

pub(super) fn check_ip_or_cidr(text: &str, at: &mut Report) {
    if text.parse::<Cidr>().is_err() {
        at.error(
            INVALID,
            format!(
                "{:?} is not a valid IP address or CIDR range",
                shorten(text)
            ),
            "write for example 10.0.0.1 or 10.0.0.0/8",
        );
    }
}

/// The longest duration in seconds that Envoy takes (`DurationUtil`).
const MAX_SECONDS: u64 = 9_223_372_035;

/// Durations as proxies measure them: whole milliseconds, 1 at least.
pub(super) fn check_duration(key: &str, duration: Option<Duration>, at: &mut Report) {
    let Some(duration) = duration else { return };
    let (message, remedy) = if duration.as_micros() < 1000 {
        (
            "must be a valid duration greater than 1ms",
            "write 1ms or more, or remove the field",
        )
    } else if !duration.as_nanos().is_multiple_of(1_000_000) {
        (
            "only durations to ms precision are supported",
            "write whole milliseconds",
        )
    } else if duration.as_secs() > MAX_SECONDS {
        ("longer than 292 years", "write a shorter duration")
    } else {
        return;
    };

    at.field(key, |at| at.error(INVALID, message, remedy));
}

/// As [`check_duration`], where zero switches the limit off.
pub(super) fn check_duration_or_off(key: &str, duration: Option<Duration>, at: &mut Report) {
    check_duration(key, duration.filter(|duration| !duration.is_zero()), at);
}

pub(super) fn check_percent(key: &str, percent: &Option<Percent>, at: &mut Report) {
    if let Some(percent) = percent
        && !(0.0..=100.0).contains(&percent.value)
    {
        at.field(key, |at| {
            at.field("value", |at| {
                at.error(
                    INVALID,
                    format!("percentage {} is not in range 0..100", percent.value),
                    "write 0 to 100",
                )
            });
        });
    }
}

/// An expression as Envoy and our proxy read it. `None` if it has a fault, which is told.
pub(super) fn check_regex(text: &str, at: &mut Report) -> Option<Pattern> {
    if text.len() > MAX_REGEX {
        let message = format!("regex is too large, max length allowed is {MAX_REGEX}");
        at.error(
            INVALID,
            message,
            "use a prefix match, or several shorter matches",
        );
        return None;
    }

    // Compiling finds what is too large for the proxies.
    let parsed = Pattern::parse(text).and_then(|pattern| pattern.full().map(|_| pattern));
    match parsed {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            let message = format!(
                "{:?}: {error}; Istio uses RE2 style regex-based match",
                shorten(text)
            );
            at.error(
                INVALID,
                message,
                "see https://github.com/google/re2/wiki/Syntax",
            );
            None
        }
    }
}

/// A string match. An exact one may be empty: `queryParams: {debug: {exact: ""}}` is a flag without
/// value. Source: Istio `validateStringMatch`.
pub(super) fn check_string_match(matcher: &StringMatch, at: &mut Report) {
    let (key, text) = match matcher {
        StringMatch::Present => return,
        StringMatch::Exact(text) => ("exact", text),
        StringMatch::Prefix(text) => ("prefix", text),
        StringMatch::Regex(text) => ("regex", text),
    };

    at.field(key, |at| {
        if text.is_empty() && key != "exact" {
            at.error(
                INVALID,
                format!("{key} string match should not be empty"),
                "write a text, or remove the match",
            );
        } else if key == "regex" {
            let _ = check_regex(text, at);
        }
    });
}

/// Who says `exportTo`, which decides what it may say.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Exported {
    /// Also `~`, no one.
    ServiceEntry,
    /// A DestinationRule for single workloads, which are of its own namespace.
    ForWorkloads,
    Other,
}

/// `exportTo` of an object in `namespace`: `.`, `*` or namespaces. Source: Istio
/// `validateExportTo`.
pub(super) fn check_export_to(
    export_to: &[String],
    namespace: &str,
    of: Exported,
    at: &mut Report,
) {
    at.field("exportTo", |at| {
        let mut seen = BTreeSet::new();
        for (index, target) in export_to.iter().enumerate() {
            let is_none = target == "~";
            let meant = if target == "." { namespace } else { target };
            at.index(index, |at| {
                if is_none && of != Exported::ServiceEntry {
                    at.error(
                        INVALID,
                        "exportTo ~ (none) is only for ServiceEntries",
                        "write . for this namespace alone",
                    );
                } else if !is_none && meant != "*" && !is_dns_label(meant) {
                    at.error(
                        INVALID,
                        format!("{:?} is not a namespace", shorten(target)),
                        "write a namespace, . for this one, or * for all",
                    );
                } else if !seen.insert(meant) {
                    at.error(
                        DUPLICATE,
                        format!("duplicate entries in exportTo: {target}"),
                        "remove one of them",
                    );
                }
            });
        }

        if export_to.len() > 1 && (seen.contains("*") || seen.contains("~")) {
            at.error(
                CONFLICT,
                "* and ~ can only stand alone in exportTo",
                "keep either the wildcard or the namespaces",
            );
        } else if of == Exported::ForWorkloads && seen.iter().any(|target| *target != namespace) {
            at.error(
                CONFLICT,
                "destination rule with workload selector cannot have exportTo beyond current namespace",
                "write . or remove exportTo",
            );
        }
    });
}

pub(super) fn check_selector(key: &str, selector: &Option<WorkloadSelector>, at: &mut Report) {
    if let Some(selector) = selector {
        at.field(key, |at| {
            at.field("matchLabels", |at| {
                for (label, value) in &selector.match_labels.0 {
                    at.field(label, |at| check_selector_pair(label, value, at));
                }
            });
        });
    }
}

fn check_selector_pair(label: &str, value: &str, at: &mut Report) {
    let remedy = "a selector compares whole labels: write the label as the pods have it";
    if label.is_empty() {
        at.error(INVALID, "key must not be empty", remedy);
    }
    if label.contains('*') {
        at.error(INVALID, "wildcard not allowed in label key match", remedy);
    }
    if value.contains('*') {
        at.error(INVALID, "wildcard not allowed in label value match", remedy);
    }

    if value.len() > 63 {
        at.error(INVALID, "may not be more than 63 bytes", remedy);
    }
}

/// The older selector, `workloadSelector.labels`.
pub(super) fn check_label_selector(labels: &BTreeMap<String, String>, at: &mut Report) {
    at.field("workloadSelector", |at| {
        at.field("labels", |at| {
            for (label, value) in labels {
                at.field(label, |at| {
                    if label.contains('*') || value.contains('*') {
                        at.error(
                            INVALID,
                            "wildcard is not supported in selector",
                            "write the label as the pods have it",
                        );
                    }

                    if label.is_empty() {
                        at.error(
                            INVALID,
                            "empty key is not supported in selector",
                            "write the label as the pods have it",
                        );
                    }
                });
            }
        });
    });
}

/// Labels of a workload: keys and values as Kubernetes takes them.
pub(super) fn check_labels(key: &str, labels: &BTreeMap<String, String>, at: &mut Report) {
    at.field(key, |at| {
        for (label, value) in labels {
            at.field(label, |at| {
                let name = label
                    .rsplit_once('/')
                    .map_or(label.as_str(), |(_, name)| name);
                if !is_label_part(name) || name.is_empty() {
                    at.error(
                        INVALID,
                        format!("invalid tag key: {:?}", shorten(label)),
                        "letters, digits, - _ and ., at most 63 of them",
                    );
                }

                if !is_label_part(value) {
                    at.error(
                        INVALID,
                        format!("invalid tag value: {:?}", shorten(value)),
                        "letters, digits, - _ and ., at most 63 of them",
                    );
                }
            });
        }
    });
}

fn is_label_part(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
}

/// A policy is for workloads or for targets.
pub(super) fn check_targets(
    selector: &Option<WorkloadSelector>,
    target_ref: &Option<TargetReference>,
    target_refs: &[TargetReference],
    at: &mut Report,
) {
    let chosen = usize::from(selector.is_some())
        + usize::from(target_ref.is_some())
        + usize::from(!target_refs.is_empty());
    if chosen > 1 {
        at.error(
            CONFLICT,
            "only one of targetRefs or selector can be set",
            "keep one of selector, targetRef and targetRefs",
        );
    }

    check_selector("selector", selector, at);
    at.some("targetRef", target_ref, check_target);
    at.each("targetRefs", target_refs, check_target);

    if target_refs.len() > 16 {
        at.field("targetRefs", |at| {
            at.error(
                INVALID,
                "must have at most 16 items",
                "write several policies",
            )
        });
    }
}

fn check_target(target: &TargetReference, at: &mut Report) {
    let TargetReference {
        group,
        kind,
        name,
        namespace,
    } = target;

    let is_group = group.is_empty() || group.split('.').all(is_dns_label);
    if !is_group {
        at.field("group", |at| {
            let message = format!(
                "{} in body should match '^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'",
                at.path()
            );
            at.error(
                INVALID,
                message,
                "write an API group, for example gateway.networking.k8s.io, or leave it empty for core",
            );
        });
    }

    let is_kind = kind.as_bytes().first().is_none_or(u8::is_ascii_alphabetic)
        && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !kind.ends_with('-')
        && kind.len() <= 63;

    if !is_kind {
        at.field("kind", |at| {
            let message = format!(
                "{} in body should match '^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$'",
                at.path()
            );
            at.error(
                INVALID,
                message,
                "write Gateway, GatewayClass, Service or ServiceEntry",
            );
        });
    } else if is_group && !kind.is_empty() {
        let known = matches!(
            (group.as_str(), kind.as_str()),
            ("", "Service")
                | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
                | ("networking.istio.io", "ServiceEntry")
        );

        if !known {
            at.error(
                INVALID,
                format!("targetRef must be to one of Service, ServiceEntry, Gateway or GatewayClass, but was {}/{kind}", shorten(group)),
                "use Gateway, GatewayClass, Service or ServiceEntry",
            );
        }
    }

    if name.is_empty() {
        at.field("name", |at| {
            at.error(
                MISSING,
                "targetRef name must be set",
                "write the target's name",
            )
        });
    }

    if name.len() > 253 {
        at.field("name", |at| {
            at.error(
                INVALID,
                "may not be more than 253 bytes",
                "write the target's name",
            )
        });
    }

    if !namespace.is_empty() {
        at.field("namespace", |at| {
            at.error(
                INVALID,
                "cross namespace referencing is not currently supported",
                "write the policy in the target's namespace",
            );
        });
    }
}

/// The longest path of a Unix socket in bytes (`sockaddr_un`, with its end).
const MAX_UNIX_PATH: usize = 107;

/// The path of a Unix socket, behind `unix://`; `@name` is an abstract one.
pub(super) fn check_unix_path(path: &str, at: &mut Report) {
    let remedy = "write unix:///path or unix://@name";
    if !path.starts_with(['/', '@']) {
        at.error(
            INVALID,
            "UDS must be an absolute path or abstract socket",
            remedy,
        );
    }
    if path.starts_with('/') && path.ends_with('/') {
        at.error(INVALID, "UDS may not be a dir", "write the socket's path");
    }
    if path.len() > MAX_UNIX_PATH || path.contains('\0') {
        at.error(
            INVALID,
            format!("a socket's path has at most {MAX_UNIX_PATH} bytes, and no NUL"),
            remedy,
        );
    }
}

/// A text that a proxy writes into a head, by the rule `fault_of`.
pub(super) fn check_head_text(
    key: &str,
    text: &str,
    fault_of: fn(&str) -> Option<String>,
    at: &mut Report,
) {
    if let Some(fault) = fault_of(text) {
        at.field(key, |at| {
            at.error(
                INVALID,
                fault,
                "remove line breaks, control characters and blanks",
            );
        });
    }
}

/// The longest header name that is taken; Envoy takes as much (`HeaderValue.key`).
const MAX_HEADER_NAME: usize = 16_384;

/// A header name: a token of RFC 9110 §5.6.2.
pub(super) fn is_header_name(name: &str) -> bool {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.len() <= MAX_HEADER_NAME && name.bytes().all(is_token)
}

/// Something may be there once.
pub(super) struct Once<'a>(BTreeSet<&'a str>);

impl<'a> Once<'a> {
    pub fn new() -> Self {
        Self(BTreeSet::new())
    }

    /// Whether `item` is there for the first time.
    pub fn insert(&mut self, item: &'a str) -> bool {
        self.0.insert(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_addresses() {
        for good in [
            "reviews",
            "reviews.default.svc.cluster.local",
            "Example.com",
            "a.b.",
            "x-1",
        ] {
            assert_eq!(host_fault(good), None, "{good}");
        }

        for bad in [
            "",
            ".",
            "a..b",
            "-a",
            "a-",
            "a_b",
            "a b",
            "*.a",
            "1.2.3.4",
            &"a".repeat(64),
            &"a.".repeat(200),
        ] {
            assert!(host_fault(bad).is_some(), "{bad}");
        }

        for good in ["*", "*.com", "*x", "*-x.com", "a.com"] {
            assert_eq!(wildcard_host_fault(good), None, "{good}");
        }
        for bad in ["**", "a.*.com", "*.", "*..com", "a*"] {
            assert!(wildcard_host_fault(bad).is_some(), "{bad}");
        }
    }
}
