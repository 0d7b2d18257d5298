//! Conditions on a request as Envoy's route matches.

use meltemi_model::{HttpMatch, StringMatch};

use crate::envoy::matcher::{exact, header, header_present, matches, prefix, regex};
use crate::envoy::route::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};
use crate::envoy::types::matcher::v3::StringMatcher;
use crate::envoy::value::boolv;

pub(super) fn match_message(input: Option<&HttpMatch>) -> RouteMatch {
    let Some(input) = input else {
        return super::any_path();
    };

    // `source` was decided when the table was planned, names go into the route's.
    let HttpMatch {
        name: _,
        uri,
        ignore_uri_case,
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query_params,
        source: _,
        stat_prefix: _,
    } = input;

    let mut held: Vec<HeaderMatcher> = headers
        .iter()
        .map(|(name, condition)| header_condition(name, condition))
        .collect();

    for (name, condition) in without_headers {
        let mut matcher = header_condition(name, condition);
        matcher.invert_match = true;
        // A header that is not there does not carry the value either.
        matcher.treat_missing_header_as_empty = *condition != StringMatch::Present;
        held.push(matcher);
    }

    for (name, condition) in [
        (":method", method),
        (":authority", authority),
        (":scheme", scheme),
    ] {
        held.extend(
            condition
                .as_ref()
                .map(|condition| header_condition(name, condition)),
        );
    }

    RouteMatch {
        path_specifier: Some(match uri {
            None | Some(StringMatch::Present) => PathSpecifier::Prefix("/".to_owned()),
            Some(StringMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
            Some(StringMatch::Prefix(path)) => PathSpecifier::Prefix(path.clone()),
            Some(StringMatch::Regex(pattern)) => PathSpecifier::SafeRegex(regex(pattern)),
        }),
        case_sensitive: boolv(!ignore_uri_case),
        headers: held,
        query_parameters: query_params
            .iter()
            .map(|(name, condition)| query_condition(name, condition))
            .collect(),
        ..Default::default()
    }
}

/// A plain string condition; presence is any value at all.
pub(super) fn string_condition(input: &StringMatch) -> StringMatcher {
    match input {
        StringMatch::Present => matches(".*"),
        StringMatch::Exact(text) => exact(text),
        StringMatch::Prefix(text) => prefix(text),
        StringMatch::Regex(pattern) => matches(pattern),
    }
}

fn header_condition(name: &str, condition: &StringMatch) -> HeaderMatcher {
    match condition {
        StringMatch::Present => header_present(name),
        other => header(name, string_condition(other)),
    }
}

fn query_condition(name: &str, condition: &StringMatch) -> QueryParameterMatcher {
    QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(match condition {
            StringMatch::Present => QueryParameterMatchSpecifier::PresentMatch(true),
            other => QueryParameterMatchSpecifier::StringMatch(string_condition(other)),
        }),
    }
}
