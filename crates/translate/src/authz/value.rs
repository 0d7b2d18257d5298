//! Single values of a policy as matchers.

use meltemi_types::Cidr;

use crate::envoy::core::CidrRange;
use crate::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use crate::envoy::matcher::{
    exact, header, header_present, ignoring_case, matches, prefix, quote, suffix, wildcard,
};
use crate::envoy::rbac::Principal;
use crate::envoy::rbac::permission::Rule;
use crate::envoy::rbac::principal::{Authenticated, Identifier, Set};
use crate::envoy::types::matcher::v3 as matcher;
use crate::envoy::value::{extension, u32v};

const JWT: &str = "envoy.filters.http.jwt_authn";

pub(super) fn block(text: &str) -> Option<CidrRange> {
    let network: Cidr = text.parse().ok()?;
    // Istio sends the address as it is written, host bits included.
    let address = text.split_once('/').map_or(text, |(address, _)| address);

    Some(CidrRange {
        address_prefix: address.to_owned(),
        prefix_len: u32v(network.prefix().into()),
    })
}

pub(super) fn port(text: &str) -> Option<Rule> {
    text.parse::<u16>()
        .ok()
        .map(|port| Rule::DestinationPort(u32::from(port)))
}

pub(super) fn host(text: &str) -> Rule {
    if text == "*" {
        return Rule::Header(header_present(":authority"));
    }
    Rule::Header(header(":authority", ignoring_case(wildcard(text))))
}

fn header_matcher(name: &str, text: &str) -> crate::envoy::route::HeaderMatcher {
    if text == "*" {
        header_present(name)
    } else {
        header(name, wildcard(text))
    }
}

pub(super) fn header_rule(name: &str, text: &str) -> Rule {
    Rule::Header(header_matcher(name, text))
}

pub(super) fn header_identifier(name: &str, text: &str) -> Identifier {
    Identifier::Header(header_matcher(name, text))
}

pub(super) fn path(text: &str) -> Rule {
    if text.contains("{*}") || text.contains("{**}") {
        let path_template = text.replace("{**}", "**").replace("{*}", "*");
        return Rule::UriTemplate(extension(
            "uri-template",
            &UriTemplateMatchConfig { path_template },
        ));
    }

    Rule::UrlPath(matcher::PathMatcher {
        rule: Some(matcher::path_matcher::Rule::Path(wildcard(text))),
    })
}

pub(super) fn server_name(text: &str) -> Rule {
    Rule::RequestedServerName(wildcard(text))
}

fn authenticated(name: matcher::StringMatcher) -> Identifier {
    Identifier::Authenticated(Authenticated {
        principal_name: Some(name),
    })
}

pub(super) fn peer(text: &str) -> Identifier {
    authenticated(match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text == "*" => matches(".+"),
        (Some(rest), _) => matches(&format!("spiffe://.*{}", quote(rest))),
        (_, Some(rest)) => prefix(&format!("spiffe://{rest}")),
        _ => exact(&format!("spiffe://{text}")),
    })
}

/// A wildcard value inside a larger pattern.
fn pattern(text: &str, any: &str) -> String {
    text.split('*').map(quote).collect::<Vec<_>>().join(any)
}

pub(super) fn namespace(text: &str) -> Identifier {
    authenticated(matches(&format!(".*/ns/{}/.*", pattern(text, ".*"))))
}

pub(super) fn service_account(text: &str) -> Identifier {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    authenticated(matches(&format!(
        "spiffe://.+/ns/{}/(.+/|)sa/{}(/.+)?",
        quote(namespace),
        quote(name)
    )))
}

pub(super) fn trust_domain(text: &str) -> Identifier {
    if text.contains('*') {
        return authenticated(matches(&format!("spiffe://{}/.*", pattern(text, "[^/]*"))));
    }
    authenticated(prefix(&format!("spiffe://{text}/")))
}

/// A principal under each trust domain, if it names one that the mesh goes by. Source: Istio
/// `trustdomain.Bundle`.
pub(super) fn under_aliases(text: &str, domains: &[String]) -> Vec<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let [domain, "ns", _, "sa", _] = parts.as_slice() else {
        return vec![text.to_owned()];
    };
    let names = |known: &str| match domain.strip_prefix('*') {
        Some(ending) => known.ends_with(ending),
        None => known == *domain,
    };

    if *domain == "*" || !domains.iter().any(|known| names(known)) {
        return vec![text.to_owned()];
    }
    let rest = &text[domain.len()..];

    domains
        .iter()
        .map(|known| {
            if names(known) {
                text.to_owned()
            } else {
                format!("{known}{rest}")
            }
        })
        .collect()
}

fn segment(key: &str) -> matcher::metadata_matcher::PathSegment {
    use matcher::metadata_matcher::path_segment::Segment;
    matcher::metadata_matcher::PathSegment {
        segment: Some(Segment::Key(key.to_owned())),
    }
}

fn string_value(text: matcher::StringMatcher) -> matcher::ValueMatcher {
    matcher::ValueMatcher {
        match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(text)),
    }
}

fn any_value(values: &[String]) -> matcher::ValueMatcher {
    use matcher::value_matcher::MatchPattern;

    let value_matchers: Vec<_> = values
        .iter()
        .map(|value| string_value(wildcard(value)))
        .collect();

    match value_matchers.as_slice() {
        [one] => one.clone(),
        _ => matcher::ValueMatcher {
            match_pattern: Some(MatchPattern::OrMatch(matcher::OrMatcher { value_matchers })),
        },
    }
}

fn payload(path: &[&str], value: matcher::ValueMatcher) -> matcher::MetadataMatcher {
    matcher::MetadataMatcher {
        filter: JWT.to_owned(),
        path: std::iter::once("payload")
            .chain(path.iter().copied())
            .map(segment)
            .collect(),
        value: Some(value),
        invert: false,
    }
}

// Metadata as a principal is superseded by `sourced_metadata`; Istio sends it, and both proxies
// know it.
#[expect(deprecated, reason = "Envoys of every version read the older field")]
fn payload_identifier(path: &[&str], value: matcher::ValueMatcher) -> Identifier {
    Identifier::Metadata(payload(path, value))
}

/// A claim that is a string, or a list of which one element fits.
pub(super) fn claim(path: &[&str], values: &[String]) -> Identifier {
    use matcher::list_matcher::MatchPattern as ListPattern;
    use matcher::value_matcher::MatchPattern;

    let list = matcher::ListMatcher {
        match_pattern: Some(ListPattern::OneOf(Box::new(any_value(values)))),
    };
    let value_matchers = vec![
        matcher::ValueMatcher {
            match_pattern: Some(MatchPattern::ListMatch(Box::new(list))),
        },
        any_value(values),
    ];

    payload_identifier(
        path,
        matcher::ValueMatcher {
            match_pattern: Some(MatchPattern::OrMatch(matcher::OrMatcher { value_matchers })),
        },
    )
}

/// `issuer/subject` with a wildcard at either end.
pub(super) fn request_principal(text: &str) -> Identifier {
    let any = || matches(".+");
    let (issuer, subject) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text == "*" => (any(), any()),
        (Some(rest), _) => match rest.rsplit_once('/') {
            Some((issuer, subject)) => (suffix(issuer), exact(subject)),
            None => (any(), suffix(rest)),
        },
        (_, Some(rest)) => match rest.rsplit_once('/') {
            Some((issuer, "")) => (exact(issuer), any()),
            Some((issuer, subject)) => (exact(issuer), prefix(subject)),
            None => (prefix(rest), any()),
        },
        _ => {
            let (issuer, subject) = text.rsplit_once('/').unwrap_or((text, ""));
            (exact(issuer), exact(subject))
        }
    };

    let ids = [("iss", issuer), ("sub", subject)].map(|(name, text)| Principal {
        identifier: Some(payload_identifier(&[name], string_value(text))),
    });

    Identifier::AndIds(Set { ids: ids.to_vec() })
}

/// The `X` of `name[X]`.
pub(super) fn bracketed<'a>(key: &'a str, name: &str) -> Option<&'a str> {
    key.strip_prefix(name)?
        .strip_prefix('[')?
        .strip_suffix(']')
        .filter(|inner| !inner.is_empty())
}

/// The `a`, `b` of `name[a][b]`.
pub(super) fn nested<'a>(key: &'a str, name: &str) -> Option<Vec<&'a str>> {
    bracketed(key, name).map(|inner| inner.split("][").collect())
}

/// `experimental.envoy.filters.a.b[c]`: metadata of a filter.
// See `payload_identifier`.
#[expect(deprecated, reason = "Envoys of every version read the older field")]
pub(super) fn experimental(key: &str) -> Option<impl Fn(&[String]) -> Rule + use<>> {
    let (filter, path) = key.strip_prefix("experimental.")?.split_once('[')?;
    let path: Vec<_> = path.strip_suffix(']')?.split("][").map(segment).collect();
    let filter = filter.to_owned();

    Some(move |values: &[String]| {
        Rule::Metadata(matcher::MetadataMatcher {
            filter: filter.clone(),
            path: path.clone(),
            value: Some(any_value(values)),
            invert: false,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_are_known_under_every_alias() {
        let domains = ["td1".to_owned(), "foobar".to_owned()];
        let under = |text: &str| under_aliases(text, &domains);
        assert_eq!(
            under("td1/ns/a/sa/b"),
            ["td1/ns/a/sa/b", "foobar/ns/a/sa/b"]
        );

        assert_eq!(under("*bar/ns/a/sa/b"), ["td1/ns/a/sa/b", "*bar/ns/a/sa/b"]);
        assert_eq!(under("*/ns/a/sa/b"), ["*/ns/a/sa/b"]);
        assert_eq!(under("else/ns/a/sa/b"), ["else/ns/a/sa/b"]);
        assert_eq!(under("*"), ["*"]);
    }

    #[test]
    fn patterns_are_quoted() {
        let Identifier::Authenticated(Authenticated {
            principal_name: Some(name),
        }) = namespace("a.b*")
        else {
            panic!("not a name");
        };
        assert_eq!(name, matches(r".*/ns/a\.b.*/.*"));
    }
}
