//! Rules that a proxy would refuse, and with them the whole table that they are in.
//!
//! Validation refuses such objects where they are applied. What comes past it, from an API server or
//! from an older release, is left out here: the one rule, and nobody else's.

use meltemi_api::StringMatch;
use meltemi_api::networking::{
    HeaderOperations, Headers, HttpMatchRequest, HttpRoute, HttpRouteDestination,
};
use meltemi_re2::Pattern;
use meltemi_types::{header_value_fault, plain_value_fault, target_fault};

/// The field of the rule that a proxy would refuse, and why; `None` if there is none.
pub(super) fn rule_fault(route: &HttpRoute) -> Option<(&'static str, String)> {
    let matches = route.r#match.iter().find_map(match_fault);
    let headers = || {
        let of_destinations = route.route.iter().filter_map(destination_headers);
        of_destinations
            .chain(&route.headers)
            .find_map(headers_fault)
    };

    matches
        .map(|fault| ("match", fault))
        .or_else(|| headers().map(|fault| ("headers", fault)))
        .or_else(|| rewrite_fault(route).map(|fault| ("rewrite", fault)))
        .or_else(|| redirect_fault(route).map(|fault| ("redirect", fault)))
        .or_else(|| origin_fault(route).map(|fault| ("corsPolicy", fault)))
}

fn destination_headers(destination: &HttpRouteDestination) -> Option<&Headers> {
    destination.headers.as_ref()
}

fn regex_fault(matcher: &StringMatch) -> Option<String> {
    let StringMatch::Regex(pattern) = matcher else {
        return None;
    };
    // `*` is "is there" where a header is matched.
    if pattern == "*" {
        return None;
    }
    Pattern::parse(pattern).err().map(|error| error.to_string())
}

fn match_fault(matcher: &HttpMatchRequest) -> Option<String> {
    let HttpMatchRequest {
        uri,
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query_params,
        ..
    } = matcher;

    let parts = [uri, scheme, method, authority];
    let maps = [headers, without_headers, query_params];
    let strings = parts.into_iter().flatten();
    let mut all = strings.chain(maps.into_iter().flat_map(|map| map.values()));

    if maps.iter().any(|map| map.contains_key("")) {
        return Some("a name is empty".to_owned());
    }
    all.find_map(regex_fault)
}

fn headers_fault(headers: &Headers) -> Option<String> {
    let directions = [&headers.request, &headers.response];
    directions.into_iter().flatten().find_map(|operations| {
        let HeaderOperations {
            set,
            add,
            remove: _,
        } = operations;
        set.values()
            .chain(add.values())
            .find_map(|value| header_value_fault(value))
    })
}

fn rewrite_fault(route: &HttpRoute) -> Option<String> {
    let rewrite = route.rewrite.as_ref()?;
    let texts = [&rewrite.uri, &rewrite.authority];
    let by_regex = rewrite.uri_regex_rewrite.as_ref();

    texts
        .into_iter()
        .find_map(|text| target_fault(text))
        .or_else(|| by_regex.and_then(|by| target_fault(&by.rewrite)))
        .or_else(|| {
            let pattern = Pattern::parse(&by_regex?.r#match);
            pattern.err().map(|error| error.to_string())
        })
}

fn redirect_fault(route: &HttpRoute) -> Option<String> {
    let redirect = route.redirect.as_ref()?;
    [&redirect.uri, &redirect.prefix_rewrite, &redirect.authority]
        .into_iter()
        .find_map(|text| plain_value_fault(text))
}

fn origin_fault(route: &HttpRoute) -> Option<String> {
    let cors = route.cors_policy.as_ref()?;
    cors.allow_origins.iter().find_map(regex_fault)
}
