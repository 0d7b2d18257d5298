//! Where the tokens of a provider stand in a request.

use meltemi_proto::envoy::extensions::filters::http::jwt_authn::v3 as proto;
use percent_encoding::percent_decode_str;

use crate::head::RequestHead;
use crate::matcher::cookie;

/// The places of a provider's tokens, and the headers that its claims are written to.
#[derive(Debug)]
pub(super) struct Places {
    headers: Vec<(Box<str>, Box<[u8]>)>,
    parameters: Vec<Box<str>>,
    cookies: Vec<Box<str>>,
    written: Vec<Box<str>>,
}

impl Places {
    /// Reads the places of Envoy's message. Its other fields concern good tokens: no token is one
    /// without a check.
    pub(super) fn of(message: &proto::JwtProvider) -> Self {
        let written = message
            .claim_to_headers
            .iter()
            .map(|claim| &claim.header_name);
        let mut places = Self {
            headers: message
                .from_headers
                .iter()
                .map(|header| (lower(&header.name), header.value_prefix.as_bytes().into()))
                .collect(),
            parameters: boxed(&message.from_params),
            cookies: boxed(&message.from_cookies),
            written: written
                .chain([&message.forward_payload_header])
                .filter(|name| !name.is_empty())
                .map(|name| lower(name))
                .collect(),
        };

        // Envoy `Extractor`: the places of RFC 6750 where no place is configured.
        let Self {
            headers,
            parameters,
            cookies,
            written: _,
        } = &mut places;
        if headers.is_empty() && parameters.is_empty() && cookies.is_empty() {
            headers.push(("authorization".into(), (*b"Bearer ").into()));
            parameters.push("access_token".into());
        }

        places
    }

    /// Whether the request has a token at one of the places, an empty one included. The prefix may
    /// stand anywhere in a header's value, as in Envoy.
    pub(super) fn hold_token(&self, head: &RequestHead) -> bool {
        let contains = |value: &[u8], prefix: &[u8]| memchr::memmem::find(value, prefix).is_some();

        self.headers.iter().any(|(name, prefix)| {
            head.get_all(name)
                .any(|value| !value.is_empty() && contains(value, prefix))
        }) || self
            .parameters
            .iter()
            .any(|name| head.query().is_some_and(|query| has_parameter(query, name)))
            || self
                .cookies
                .iter()
                .any(|name| cookie(head, name).is_some_and(|value| !value.is_empty()))
    }

    /// Headers that only the proxy may write.
    pub(super) fn written_headers(&self) -> impl Iterator<Item = &str> {
        self.written.iter().map(|name| &**name)
    }
}

/// Whether a query names the parameter, percent-encoded or not.
fn has_parameter(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| {
        let key = pair.split_once('=').map_or(pair, |(key, _)| key);
        percent_decode_str(key).eq(name.bytes())
    })
}

fn lower(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

fn boxed(names: &[String]) -> Vec<Box<str>> {
    names.iter().map(|name| name.as_str().into()).collect()
}
