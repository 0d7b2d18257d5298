//! Heads between the `http` crate's form and ours.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};
use meltemi_filters::head::{Fields, HttpVersion, Known, RequestHead, ResponseHead};

use crate::http1::codec::{is_authority, is_method};

/// Why a head cannot cross, with the status that says so to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{details}")]
pub struct BadHead {
    /// Of the answer.
    pub status: u16,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: &'static str,
}

const fn bad(details: &'static str) -> BadHead {
    BadHead {
        status: 400,
        details,
    }
}

/// `%RESPONSE_CODE_DETAILS%` of a message with such a field.
pub const BLANK_ENDS: &str = "http2.field_value_with_blank_ends";

/// Whether a value begins or ends with a blank. RFC 9113 §8.2.1: such a message is malformed. A
/// policy would compare the blank, and a server of HTTP/1.1 would never see it.
pub fn has_blank_ends(value: &HeaderValue) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last())
}

fn add_fields(
    headers: &HeaderMap,
    limit: usize,
    fields: &mut Fields,
    request: bool,
) -> Result<(), BadHead> {
    // Crumbs of cookies become one field.
    let crumbs = |headers: &HeaderMap| headers.get_all(http::header::COOKIE).iter().count();
    if headers.len() > limit && headers.len() - crumbs(headers) >= limit {
        return Err(BadHead {
            status: 431,
            details: "http2.too_many_headers",
        });
    }

    // RFC 9110 §8.6: one length; HTTP/1.1, where it may go next, refuses two as well.
    let lengths = headers.get_all(http::header::CONTENT_LENGTH);
    if lengths.iter().nth(1).is_some() {
        return Err(bad("http2.duplicate_content_length"));
    }

    let mut cookies: Vec<u8> = Vec::new();
    for (name, value) in headers {
        if has_blank_ends(value) {
            return Err(bad(BLANK_ENDS));
        }
        match *name {
            // RFC 9113 §8.2.3: crumbs are one field for everyone behind us.
            http::header::COOKIE if request => {
                if !cookies.is_empty() {
                    cookies.extend_from_slice(b"; ");
                }
                cookies.extend_from_slice(value.as_bytes());
            }
            http::header::HOST | http::header::EXPECT if request => {}
            _ => fields.append(name.as_str(), value.as_bytes()),
        }
    }

    if !cookies.is_empty() {
        fields.append("cookie", &cookies);
    }

    Ok(())
}

/// Whether a client waits for a 100 before it sends its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    None,
    Continue,
}

/// RFC 9110 §10.1.1. The field is for us: nobody behind us shall answer it a second time.
fn expectation(headers: &HeaderMap) -> Result<Expectation, BadHead> {
    let mut expectation = Expectation::None;
    for value in headers.get_all(http::header::EXPECT) {
        if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(BadHead {
                status: 417,
                details: "http2.unknown_expectation",
            });
        }
        expectation = Expectation::Continue;
    }

    Ok(expectation)
}

/// A request as it came over HTTP/2, of so many fields at most. RFC 9113 §8.3.1.
pub fn request_from(
    parts: &http::request::Parts,
    limit: usize,
    head: &mut RequestHead,
) -> Result<Expectation, BadHead> {
    head.clear();
    head.version = HttpVersion::Http2;
    add_fields(&parts.headers, limit, head.fields_mut(), true)?;
    let expectation = expectation(&parts.headers)?;
    if !is_method(parts.method.as_str()) {
        return Err(bad("http2.invalid_method"));
    }
    head.set_method(parts.method.as_str());
    if let Some(scheme) = parts.uri.scheme_str() {
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(bad("http2.invalid_scheme"));
        }
        head.set_scheme(scheme);
    }

    let named = parts.uri.authority().map(Authority::as_str);
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let host = hosts.next();

    if hosts.next().is_some() {
        return Err(bad("http2.duplicate_host"));
    }
    let host = match host {
        Some(host) => Some(host.to_str().map_err(|_| bad("http2.invalid_host"))?),
        None => None,
    };

    let authority = match (named, host) {
        (Some(named), Some(host)) if !named.eq_ignore_ascii_case(host) => {
            return Err(bad("http2.authority_and_host_differ"));
        }
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) => return Err(bad("missing_host_header")),
    };

    if authority.is_empty() || !is_authority(authority) {
        return Err(bad("http2.invalid_host"));
    }
    head.set_authority(authority);
    match parts.uri.path_and_query() {
        Some(path) => {
            if !path.as_str().bytes().all(|b| b > 0x20 && b < 0x7f) {
                return Err(bad("http2.invalid_path"));
            }
            head.set_path(path.as_str());
        }
        None if parts.method == Method::CONNECT => head.set_path(""),
        None => return Err(bad("http2.missing_path")),
    }

    Ok(expectation)
}

fn header_map(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter() {
        // RFC 9113 §8.2.2: fields of the connection do not exist here.
        match Known::of(name.as_bytes()) {
            Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade => continue,
            Known::Te if value != b"trailers" => continue,
            _ => {}
        }

        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value),
        ) {
            map.append(name, value);
        }
    }

    map
}

/// A request for an HTTP/2 upstream.
pub fn request_to(head: &RequestHead) -> Result<Request<()>, BadHead> {
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() =
        Method::from_bytes(head.method().as_bytes()).map_err(|_| bad("http2.invalid_method"))?;
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(
        head.authority()
            .parse()
            .map_err(|_| bad("http2.invalid_host"))?,
    );

    if !head.path().is_empty() {
        parts.scheme = Some(if head.scheme() == "https" {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        });

        parts.path_and_query = Some(
            head.path()
                .parse::<PathAndQuery>()
                .map_err(|_| bad("http2.invalid_path"))?,
        );
    }

    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| bad("http2.invalid_path"))?;
    *request.headers_mut() = header_map(head.fields());

    Ok(request)
}

/// A response as it came over HTTP/2, of so many fields at most.
pub fn response_from(
    parts: &http::response::Parts,
    limit: usize,
    head: &mut ResponseHead,
) -> Result<(), BadHead> {
    head.clear();
    head.version = HttpVersion::Http2;
    head.status = parts.status.as_u16();
    add_fields(&parts.headers, limit, head.fields_mut(), false)
}

/// A response for an HTTP/2 downstream.
pub fn response_to(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = header_map(head.fields());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: http::request::Builder) -> http::request::Parts {
        request.body(()).expect("well formed").into_parts().0
    }

    #[test]
    fn a_request_crosses_and_comes_back() {
        let request = Request::builder()
            .method("POST")
            .uri("http://reviews:9080/a?b")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("x", "y");

        let mut head = RequestHead::new();
        request_from(&parts(request), 100, &mut head).expect("accepted");
        assert_eq!((head.authority(), head.path()), ("reviews:9080", "/a?b"));
        assert_eq!(head.get_str("cookie"), Some("a=1; b=2"));
        let back = request_to(&head).expect("crosses");
        assert_eq!(back.uri().to_string(), "http://reviews:9080/a?b");
    }

    #[test]
    fn two_hosts_are_refused() {
        let request = Request::builder().uri("http://a/").header("host", "b");
        assert!(request_from(&parts(request), 100, &mut RequestHead::new()).is_err());
        let request = Request::builder().uri("/").header("host", "b");
        let mut head = RequestHead::new();
        request_from(&parts(request), 100, &mut head).expect("accepted");
        assert_eq!(head.authority(), "b");
    }

    #[test]
    fn fields_that_http1_would_read_otherwise_are_refused() {
        let refusal = |name: &str, values: &[&str]| {
            let mut request = Request::builder().uri("http://a/");
            let mut response = Response::builder();
            for value in values {
                request = request.header(name, *value);
                response = response.header(name, *value);
            }
            let response = response.body(()).expect("well formed").into_parts().0;
            let request = request_from(&parts(request), 100, &mut RequestHead::new());
            let answer = response_from(&response, 100, &mut ResponseHead::default());
            assert_eq!(request.err(), answer.err(), "{name}: {values:?}");
            request.err().map(|refusal| refusal.details)
        };

        for value in [" admin", "admin ", "\tadmin", "admin\t", " "] {
            assert_eq!(refusal("x-role", &[value]), Some(BLANK_ENDS), "{value:?}");
        }
        assert_eq!(refusal("x-role", &["the admin", ""]), None);
        let duplicate = Some("http2.duplicate_content_length");
        assert_eq!(refusal("content-length", &["0", "0"]), duplicate);
        assert_eq!(refusal("content-length", &["0"]), None);
    }

    #[test]
    fn connection_fields_do_not_cross() {
        let mut head = ResponseHead::of(200);
        head.append("connection", b"close");
        head.append("transfer-encoding", b"chunked");
        head.append("x", b"y");
        assert_eq!(response_to(&head).headers().len(), 1);
    }
}
