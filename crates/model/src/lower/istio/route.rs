//! The rules of a VirtualService: matches, actions and what goes with them.

use std::collections::BTreeMap;

use meltemi_api::networking::{self as api};
use meltemi_api::{Percent as ApiPercent, StringMatch as ApiMatch};
use meltemi_types::{CidrError, Selector};

use super::gateway_ref::gateway_ref;
use super::unfit::rule_fault;
use crate::lower::{Findings, port};
use crate::{
    AbortStatus, Cidr, Cors, Destination, DirectResponse, Fault, FaultAbort, FaultDelay,
    HeaderChanges, HeaderOps, Hostname, HttpAction, HttpMatch, HttpRoute, L4Match, L4Route, Mirror,
    NamespacedName, Percent, Redirect, RedirectPath, RedirectPort, Retries, RetryPolicy, Rewrite,
    RewritePath, SourceMatch, StringMatch, WeightedDestination,
};

/// What short names in a VirtualService stand for.
pub(crate) struct RouteNames<'a> {
    pub namespace: &'a str,
    pub domain: &'a str,
    pub source: &'a NamespacedName,
}

impl RouteNames<'_> {
    fn destination(&self, written: &api::Destination) -> Destination {
        Destination {
            host: Hostname::resolve(&written.host, self.namespace, self.domain),
            subset: written.subset.clone(),
            port: written
                .port
                .as_ref()
                .and_then(|selector| port(selector.number)),
        }
    }

    fn source_match(
        &self,
        number: u32,
        labels: &Selector,
        namespace: &str,
        gateways: &[String],
    ) -> SourceMatch {
        SourceMatch {
            port: port(number),
            labels: labels.clone(),
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            gateways: gateways
                .iter()
                .map(|name| gateway_ref(name, self.namespace))
                .collect(),
        }
    }
}

/// Lowers one HTTP rule; `None`, with a diagnostic, if the rule has no action.
pub(crate) fn lower_http_route(
    names: &RouteNames<'_>,
    route: &api::HttpRoute,
    field: &str,
    findings: &mut Findings<'_>,
) -> Option<HttpRoute> {
    if let Some((part, fault)) = rule_fault(route) {
        findings.error(
            "MEL0314",
            &format!("{field}.{part}"),
            format!("proxies refuse this rule ({fault}); it is left out, and nothing else"),
            "correct the field",
        );
        return None;
    }

    let action = match (&route.redirect, &route.direct_response) {
        (Some(redirect), _) => HttpAction::Redirect(lower_redirect(redirect)),
        (None, Some(direct)) => HttpAction::DirectResponse(lower_direct_response(direct)),
        (None, None) => {
            let destinations = http_destinations(names, &route.route);
            if destinations.is_empty() && route.delegate.is_none() {
                findings.error(
                    "MEL0305",
                    field,
                    "the rule leads nowhere and is left out",
                    "write route, redirect, directResponse or delegate",
                );
                return None;
            }

            HttpAction::Forward(destinations)
        }
    };

    Some(HttpRoute {
        name: route.name.clone(),
        matches: route
            .r#match
            .iter()
            .map(|written| lower_match(names, written))
            .collect(),
        action,
        rewrite: route.rewrite.as_ref().map(lower_rewrite),
        timeout: route
            .timeout
            .map(|timeout| timeout.0)
            .filter(|timeout| !timeout.is_zero()),
        retries: lower_retries(route.retries.as_ref()),
        fault: route
            .fault
            .as_ref()
            .map(lower_fault)
            .filter(|fault| fault.delay.is_some() || fault.abort.is_some()),
        mirrors: written(names, route).mirrors.effective(),
        cors: route.cors_policy.as_ref().map(lower_cors),
        headers: lower_headers(route.headers.as_ref()),
        source: names.source.clone(),
    })
}

fn http_destinations(
    names: &RouteNames<'_>,
    routes: &[api::HttpRouteDestination],
) -> Vec<WeightedDestination> {
    let is_single = routes.len() == 1;
    routes
        .iter()
        .map(|route| WeightedDestination {
            destination: names.destination(&route.destination),
            weight: weight(route.weight, is_single),
            headers: lower_headers(route.headers.as_ref()),
        })
        .collect()
}

/// A single destination takes all, whatever its weight says.
fn weight(written: i32, is_single: bool) -> u32 {
    match u32::try_from(written) {
        Ok(0) | Err(_) if is_single => 100,
        Ok(weight) => weight,
        Err(_) => 0,
    }
}

fn lower_match(names: &RouteNames<'_>, written: &api::HttpMatchRequest) -> HttpMatch {
    let all = |matches: &BTreeMap<String, ApiMatch>, fold_case: bool| {
        matches
            .iter()
            .map(|(name, value)| {
                (
                    if fold_case {
                        name.to_ascii_lowercase()
                    } else {
                        name.clone()
                    },
                    string_match(value),
                )
            })
            .collect()
    };

    // Headers are case-insensitive, but `@request.auth.claims.Sub` names a claim, which is not. `*`
    // is no expression but "is there". Source: Istio `isCatchAllHeaderMatch`.
    let headers = |matches: &BTreeMap<String, ApiMatch>| {
        let (claims, plain): (BTreeMap<_, _>, BTreeMap<_, _>) = matches
            .clone()
            .into_iter()
            .partition(|(name, _)| name.starts_with('@'));
        let mut folded: BTreeMap<String, StringMatch> = all(&plain, true);
        folded.extend(all(&claims, false) as BTreeMap<String, StringMatch>);
        for condition in folded.values_mut() {
            if *condition == StringMatch::Regex("*".to_owned()) {
                *condition = StringMatch::Present;
            }
        }
        folded
    };

    HttpMatch {
        name: written.name.clone(),
        uri: written.uri.as_ref().and_then(present_is_any),
        ignore_uri_case: written.ignore_uri_case,
        scheme: written.scheme.as_ref().and_then(present_is_any),
        method: written.method.as_ref().and_then(present_is_any),
        authority: written.authority.as_ref().and_then(present_is_any),
        headers: headers(&written.headers),
        without_headers: headers(&written.without_headers),
        query_params: all(&written.query_params, false),
        source: names.source_match(
            written.port,
            &written.source_labels,
            &written.source_namespace,
            &written.gateways,
        ),
        stat_prefix: written.stat_prefix.clone(),
    }
}

fn string_match(written: &ApiMatch) -> StringMatch {
    match written {
        ApiMatch::Present => StringMatch::Present,
        ApiMatch::Exact(text) => StringMatch::Exact(text.clone()),
        ApiMatch::Prefix(text) => StringMatch::Prefix(text.clone()),
        ApiMatch::Regex(text) => StringMatch::Regex(text.clone()),
    }
}

/// Path, scheme, method and authority are always present.
fn present_is_any(written: &ApiMatch) -> Option<StringMatch> {
    Some(string_match(written)).filter(|matcher| *matcher != StringMatch::Present)
}

fn lower_redirect(written: &api::HttpRedirect) -> Redirect {
    Redirect {
        path: match (written.uri.as_str(), written.prefix_rewrite.as_str()) {
            ("", "") => RedirectPath::Keep,
            ("", prefix) => RedirectPath::Prefix(prefix.to_owned()),
            (uri, _) => RedirectPath::Full(uri.to_owned()),
        },
        authority: filled(&written.authority),
        port: match (written.port.and_then(port), written.derive_port) {
            (Some(number), _) => RedirectPort::Number(number),
            (None, Some(api::RedirectPortSelection::FromRequestPort)) => RedirectPort::RequestPort,
            (None, Some(api::RedirectPortSelection::FromProtocolDefault)) => {
                RedirectPort::SchemeDefault
            }
            (None, None) => RedirectPort::Keep,
        },
        scheme: filled(&written.scheme),
        code: u16::try_from(written.redirect_code)
            .ok()
            .filter(|code| *code != 0)
            .unwrap_or(301),
    }
}

fn lower_direct_response(written: &api::HttpDirectResponse) -> DirectResponse {
    let body = written
        .body
        .as_ref()
        .map(|body| match (&body.string, &body.bytes) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(bytes)) => bytes.0.clone(),
            (None, None) => Vec::new(),
        });

    DirectResponse {
        status: u16::try_from(written.status).unwrap_or(500),
        body: body.unwrap_or_default(),
    }
}

fn lower_rewrite(written: &api::HttpRewrite) -> Rewrite {
    Rewrite {
        path: match &written.uri_regex_rewrite {
            Some(regex) => RewritePath::Regex {
                pattern: regex.r#match.clone(),
                substitution: regex.rewrite.clone(),
            },
            None if written.uri.is_empty() => RewritePath::Keep,
            None => RewritePath::Prefix(written.uri.clone()),
        },
        authority: filled(&written.authority),
    }
}

pub(crate) fn lower_retries(written: Option<&api::HttpRetry>) -> Retries {
    let Some(written) = written else {
        return Retries::Default;
    };
    let Ok(attempts) = u32::try_from(written.attempts) else {
        return Retries::Off;
    };
    if attempts == 0 {
        return Retries::Off;
    }
    let tokens = || {
        written
            .retry_on
            .split(',')
            .map(str::trim)
            .filter(|token| !token.is_empty())
    };

    let status_codes: Vec<u16> = tokens().filter_map(|token| token.parse().ok()).collect();
    let words: Vec<&str> = tokens()
        .filter(|token| token.parse::<u16>().is_err())
        .collect();

    Retries::Explicit(RetryPolicy {
        attempts,
        per_try_timeout: written
            .per_try_timeout
            .map(|timeout| timeout.0)
            .filter(|timeout| !timeout.is_zero()),
        retry_on: words.join(","),
        status_codes,
        remote_localities: written.retry_remote_localities,
        ignore_previous_hosts: written.retry_ignore_previous_hosts,
        backoff: written.backoff.map(|backoff| backoff.0),
    })
}

fn lower_fault(written: &api::HttpFaultInjection) -> Fault {
    let delay = written.delay.as_ref().and_then(|delay| {
        let fixed = delay.fixed_delay?.0;
        // The deprecated integer counts only where the percentage is not written.
        let percent = match (&delay.percentage, delay.percent) {
            (Some(percentage), _) => Percent::from_percent(percentage.value),
            // Zero, if nothing is written: no request is delayed.
            (None, percent) => Percent::from_percent(f64::from(percent)),
        };
        Some(FaultDelay { fixed, percent })
    });

    let abort = written.abort.as_ref().and_then(|abort| {
        let status = match (abort.http_status, &abort.grpc_status) {
            (Some(status), _) => AbortStatus::Http(u16::try_from(status).ok()?),
            (None, Some(status)) => AbortStatus::Grpc(status.parse().ok()?),
            (None, None) => return None,
        };

        // Absent is none here, other than for a mirror.
        let percent = Percent::from_percent(
            abort
                .percentage
                .as_ref()
                .map_or(0.0, |percentage| percentage.value),
        );

        Some(FaultAbort { status, percent })
    });

    Fault { delay, abort }
}

/// A share; everything if none is written.
fn share(written: Option<&ApiPercent>) -> Percent {
    written.map_or(Percent::ALL, |percent| Percent::from_percent(percent.value))
}

/// The fields of a rule that a delegate leaves to its root only where they are absent: what is
/// written with its default value is not absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Written {
    pub timeout: bool,
    pub fault: bool,
    pub headers: bool,
    pub mirrors: WrittenMirrors,
}

/// The fields that say together where copies go.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct WrittenMirrors {
    mirror: Option<Destination>,
    percentage: Option<Percent>,
    /// The deprecated integer.
    percent: Option<Percent>,
    list: Vec<Mirror>,
}

impl WrittenMirrors {
    /// These fields, and of those that are absent the root's.
    pub fn or(&self, root: &Self) -> Self {
        Self {
            mirror: self.mirror.clone().or_else(|| root.mirror.clone()),
            percentage: self.percentage.or(root.percentage),
            percent: self.percent.or(root.percent),
            list: match self.list.is_empty() {
                true => root.list.clone(),
                false => self.list.clone(),
            },
        }
    }

    /// The mirrors that get copies. Source: Istio `translateRoute`.
    pub fn effective(&self) -> Vec<Mirror> {
        let single = || {
            self.mirror.iter().map(|destination| Mirror {
                destination: destination.clone(),
                percent: self.percentage.or(self.percent).unwrap_or(Percent::ALL),
            })
        };
        let all: Vec<Mirror> = match self.list.is_empty() {
            true => single().collect(),
            false => self.list.clone(),
        };
        all.into_iter()
            .filter(|mirror| mirror.percent.0 > 0)
            .collect()
    }
}

/// Which fields a rule writes.
pub(crate) fn written(names: &RouteNames<'_>, route: &api::HttpRoute) -> Written {
    let percent = |value: f64| Percent::from_percent(value);
    Written {
        timeout: route.timeout.is_some(),
        fault: route.fault.is_some(),
        headers: route.headers.is_some(),
        mirrors: WrittenMirrors {
            mirror: route
                .mirror
                .as_ref()
                .map(|mirror| names.destination(mirror)),
            percentage: route
                .mirror_percentage
                .as_ref()
                .map(|percentage| percent(percentage.value)),
            percent: route.mirror_percent.map(|value| percent(f64::from(value))),
            list: route
                .mirrors
                .iter()
                .map(|mirror| Mirror {
                    destination: names.destination(&mirror.destination),
                    percent: share(mirror.percentage.as_ref()),
                })
                .collect(),
        },
    }
}

fn lower_cors(written: &api::CorsPolicy) -> Cors {
    // The deprecated list is of exact origins.
    let older = written
        .allow_origin
        .iter()
        .map(|origin| StringMatch::Exact(origin.clone()));

    let written_origins: Vec<StringMatch> = if written.allow_origins.is_empty() {
        older.collect()
    } else {
        written.allow_origins.iter().map(string_match).collect()
    };

    // What takes the origin `*` takes all. Source: Envoy's filter `cors`.
    let all = StringMatch::Exact("*".to_owned());
    let of = |origin| {
        if origin == all {
            StringMatch::Regex(".*".to_owned())
        } else {
            origin
        }
    };

    let allow_origins = written_origins.into_iter().map(of).collect();

    Cors {
        allow_origins,
        allow_methods: written.allow_methods.clone(),
        allow_headers: written.allow_headers.clone(),
        expose_headers: written.expose_headers.clone(),
        max_age: written.max_age.map(|age| age.0),
        allow_credentials: written.allow_credentials,
        forward_unmatched_preflights: match written.unmatched_preflights {
            api::UnmatchedPreflights::Unspecified => None,
            api::UnmatchedPreflights::Forward => Some(true),
            api::UnmatchedPreflights::Ignore => Some(false),
        },
    }
}

fn lower_headers(written: Option<&api::Headers>) -> HeaderOps {
    let changes = |written: Option<&api::HeaderOperations>| {
        let Some(api::HeaderOperations { set, add, remove }) = written else {
            return HeaderChanges::default();
        };
        let fold = |map: &BTreeMap<String, String>| {
            map.iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect()
        };

        HeaderChanges {
            set: fold(set),
            add: fold(add),
            remove: remove
                .iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
        }
    };

    match written {
        Some(headers) => HeaderOps {
            request: changes(headers.request.as_ref()),
            response: changes(headers.response.as_ref()),
        },
        None => HeaderOps::default(),
    }
}

/// A rule by SNI; `None` if it leads nowhere.
pub(crate) fn lower_tls_route(
    names: &RouteNames<'_>,
    route: &api::TlsRoute,
    field: &str,
    findings: &mut Findings<'_>,
) -> Option<L4Route> {
    let mut matches = Vec::new();
    for (index, written) in route.r#match.iter().enumerate() {
        let Some(destination_subnets) = subnets(
            &written.destination_subnets,
            &format!("{field}.match[{index}]"),
            findings,
        ) else {
            continue;
        };

        matches.push(L4Match {
            sni_hosts: written
                .sni_hosts
                .iter()
                .map(|host| Hostname::new(host))
                .collect(),
            destination_subnets,
            source: names.source_match(
                written.port,
                &written.source_labels,
                &written.source_namespace,
                &written.gateways,
            ),
        });
    }

    // Without any match that holds the rule would match everything.
    (!matches.is_empty())
        .then(|| l4_route(names, matches, &route.route, field, findings))
        .flatten()
}

/// A rule for opaque TCP; `None` if it leads nowhere.
pub(crate) fn lower_tcp_route(
    names: &RouteNames<'_>,
    route: &api::TcpRoute,
    field: &str,
    findings: &mut Findings<'_>,
) -> Option<L4Route> {
    let mut matches = Vec::new();
    for (index, written) in route.r#match.iter().enumerate() {
        let Some(destination_subnets) = subnets(
            &written.destination_subnets,
            &format!("{field}.match[{index}]"),
            findings,
        ) else {
            continue;
        };

        matches.push(L4Match {
            sni_hosts: Vec::new(),
            destination_subnets,
            source: names.source_match(
                written.port,
                &written.source_labels,
                &written.source_namespace,
                &written.gateways,
            ),
        });
    }

    if matches.is_empty() && !route.r#match.is_empty() {
        return None;
    }

    l4_route(names, matches, &route.route, field, findings)
}

fn l4_route(
    names: &RouteNames<'_>,
    matches: Vec<L4Match>,
    routes: &[api::RouteDestination],
    field: &str,
    findings: &mut Findings<'_>,
) -> Option<L4Route> {
    if routes.is_empty() {
        findings.error(
            "MEL0305",
            field,
            "the rule leads nowhere and is left out",
            "write route",
        );
        return None;
    }

    let is_single = routes.len() == 1;
    let destinations = routes.iter().map(|route| WeightedDestination {
        destination: names.destination(&route.destination),
        weight: weight(route.weight, is_single),
        headers: HeaderOps::default(),
    });

    Some(L4Route {
        matches,
        destinations: destinations.collect(),
    })
}

/// All of them, or `None`: a match with one subnet fewer, or without any, would hold for more than
/// was asked.
fn subnets(written: &[String], field: &str, findings: &mut Findings<'_>) -> Option<Vec<Cidr>> {
    let parsed: Result<Vec<Cidr>, CidrError> = written.iter().map(|text| text.parse()).collect();
    match parsed {
        Ok(subnets) => Some(subnets),
        Err(error) => {
            findings.error(
                "MEL0302",
                &format!("{field}.destinationSubnets"),
                format!("{error}; the match is left out"),
                "write networks such as 10.1.0.0/16",
            );
            None
        }
    }
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
