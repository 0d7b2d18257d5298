//! Access-log formats: Envoy's command operators compiled once, written per entry.
//! Source: Envoy "Access logging", Istio's default formats.

mod operator;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde_json::Value;

pub use operator::FormatError;
use operator::Operator;

/// Istio's default text format (one line with its line feed).
pub const DEFAULT_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Where header operators find their values. Names arrive in lower case; `:method`, `:path`, `:authority` and
/// `:scheme` are asked for like headers.
pub trait FieldSource {
    /// The first value of a header, as bytes from the wire.
    fn field(&self, name: &str) -> Option<&[u8]>;
}

/// No headers at all: what a TCP connection has.
impl FieldSource for () {
    fn field(&self, _: &str) -> Option<&[u8]> {
        None
    }
}

/// What one finished request, or connection, has to tell. Empty text and `None` are printed as `-` (JSON: null).
#[derive(Clone, Copy)]
pub struct AccessEntry<'a> {
    /// Request headers.
    pub request: &'a dyn FieldSource,
    /// Response headers.
    pub response: &'a dyn FieldSource,
    /// Response trailers.
    pub trailers: &'a dyn FieldSource,
    /// When the first byte arrived.
    pub start: SystemTime,
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// To the end of the request, as far as it got.
    pub request_duration: Option<Duration>,
    /// To the first byte of the response, as far as it got.
    pub response_duration: Option<Duration>,
    /// `HTTP/1.1`, `HTTP/2`; `None` for TCP.
    pub protocol: Option<&'a str>,
    /// 0 where there was no response.
    pub response_code: u16,
    /// Envoy's short flags, joined by commas; empty for none.
    pub response_flags: &'a str,
    /// Why the response is what it is, for example `via_upstream`.
    pub response_code_details: &'a str,
    /// Why the connection ended, if the proxy ended it.
    pub connection_termination_details: &'a str,
    /// What the transport to the upstream said when it failed.
    pub upstream_transport_failure_reason: &'a str,
    /// Body bytes from the downstream.
    pub bytes_received: u64,
    /// Body bytes to the downstream.
    pub bytes_sent: u64,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// The cluster's name.
    pub upstream_cluster: &'a str,
    /// Our end of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// How many tries the request took.
    pub upstream_attempts: u32,
    /// Our end of the downstream connection, or the original destination.
    pub downstream_local: Option<SocketAddr>,
    /// The caller's address, after `use_remote_address` and trusted hops.
    pub downstream_remote: Option<SocketAddr>,
    /// The other end of the downstream connection.
    pub downstream_direct_remote: Option<SocketAddr>,
    /// SNI.
    pub requested_server_name: &'a str,
    /// The route's name.
    pub route_name: &'a str,
    /// URI SAN of the caller's certificate.
    pub downstream_peer_uri: &'a str,
    /// URI SAN of our certificate.
    pub downstream_local_uri: &'a str,
    /// For example `TLSv1.3`.
    pub downstream_tls_version: &'a str,
    /// Number of the downstream connection.
    pub connection_id: u64,
    /// The name of the filter chain.
    pub filter_chain_name: &'a str,
    /// Which policy, rule, route, breaker or endpoint decided; Meltemi's own `%CAUSE%`.
    pub cause: &'a str,
}

impl AccessEntry<'_> {
    /// An entry of which nothing is known but its beginning.
    pub fn at(start: SystemTime) -> AccessEntry<'static> {
        AccessEntry {
            request: &(),
            response: &(),
            trailers: &(),
            start,
            duration: Duration::ZERO,
            request_duration: None,
            response_duration: None,
            protocol: None,
            response_code: 0,
            response_flags: "",
            response_code_details: "",
            connection_termination_details: "",
            upstream_transport_failure_reason: "",
            bytes_received: 0,
            bytes_sent: 0,
            upstream_host: None,
            upstream_cluster: "",
            upstream_local: None,
            upstream_attempts: 0,
            downstream_local: None,
            downstream_remote: None,
            downstream_direct_remote: None,
            requested_server_name: "",
            route_name: "",
            downstream_peer_uri: "",
            downstream_local_uri: "",
            downstream_tls_version: "",
            connection_id: 0,
            filter_chain_name: "",
            cause: "",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Literal(Vec<u8>),
    Operator(Operator),
}

/// A compiled format.
#[derive(Debug, Clone, PartialEq)]
pub struct Format {
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    /// Parts one after the other. The format brings its own line feed.
    Text(Vec<Part>),
    /// A JSON object a line.
    Json(Vec<(String, JsonValue)>),
}

#[derive(Debug, Clone, PartialEq)]
enum JsonValue {
    Template(Vec<Part>),
    Object(Vec<(String, JsonValue)>),
    List(Vec<JsonValue>),
    Constant(Value),
}

impl Format {
    /// Compiles a text format.
    pub fn text(format: &str) -> Result<Self, FormatError> {
        Ok(Self { shape: Shape::Text(parse(format)?) })
    }

    /// Compiles a JSON format: an object whose strings are templates. A value that is one operator keeps its type.
    pub fn json(format: &Value) -> Result<Self, FormatError> {
        match format {
            Value::Object(_) => match json_value(format)? {
                JsonValue::Object(fields) => Ok(Self { shape: Shape::Json(fields) }),
                _ => Err(FormatError::NotAnObject),
            },
            _ => Err(FormatError::NotAnObject),
        }
    }

    /// Istio's default text format.
    pub fn istio_text() -> Self {
        Self::text(DEFAULT_TEXT).expect("the default format is checked by a test")
    }

    /// Appends one entry, with its line feed for JSON.
    pub fn write(&self, entry: &AccessEntry<'_>, out: &mut Vec<u8>) {
        match &self.shape {
            Shape::Text(parts) => parts.iter().for_each(|part| match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Operator(operator) => {
                    if !operator.write(entry, out) {
                        out.push(b'-');
                    }
                }
            }),
            Shape::Json(fields) => {
                write_object(fields, entry, out);
                out.push(b'\n');
            }
        }
    }
}

fn json_value(value: &Value) -> Result<JsonValue, FormatError> {
    Ok(match value {
        Value::String(template) => JsonValue::Template(parse(template)?),
        Value::Object(fields) => JsonValue::Object(
            fields
                .iter()
                .map(|(key, value)| Ok((key.clone(), json_value(value)?)))
                .collect::<Result<_, FormatError>>()?,
        ),
        Value::Array(items) => JsonValue::List(items.iter().map(json_value).collect::<Result<_, _>>()?),
        constant => JsonValue::Constant(constant.clone()),
    })
}

fn write_object(fields: &[(String, JsonValue)], entry: &AccessEntry<'_>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (key, value)) in fields.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_json_text(key.as_bytes(), out);
        out.push(b':');
        write_json(value, entry, out);
    }
    out.push(b'}');
}

fn write_json(value: &JsonValue, entry: &AccessEntry<'_>, out: &mut Vec<u8>) {
    match value {
        JsonValue::Object(fields) => write_object(fields, entry, out),
        JsonValue::List(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_json(item, entry, out);
            }
            out.push(b']');
        }
        JsonValue::Constant(constant) => out.extend_from_slice(constant.to_string().as_bytes()),
        JsonValue::Template(parts) => match parts.as_slice() {
            [Part::Operator(operator)] => {
                let mut text = Vec::new();
                match (operator.write_raw(entry, &mut text), operator.is_number()) {
                    (false, _) => out.extend_from_slice(b"null"),
                    (true, true) => out.extend_from_slice(&text),
                    (true, false) => write_json_text(&text, out),
                }
            }
            parts => {
                let mut text = Vec::new();
                for part in parts {
                    match part {
                        Part::Literal(bytes) => text.extend_from_slice(bytes),
                        Part::Operator(operator) => {
                            if !operator.write_raw(entry, &mut text) {
                                text.push(b'-');
                            }
                        }
                    }
                }
                write_json_text(&text, out);
            }
        },
    }
}

fn write_json_text(text: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(text);
    // Strings always serialise.
    if serde_json::to_writer(&mut *out, &text).is_err() {
        out.extend_from_slice(b"null");
    }
}

/// Splits a format at its `%...%` operators; `%%` is a percent sign.
fn parse(format: &str) -> Result<Vec<Part>, FormatError> {
    let mut parts = Vec::new();
    let mut literal = Vec::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        literal.extend_from_slice(&rest.as_bytes()[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push(b'%');
            rest = after;
            continue;
        }
        let end = operator::end(rest).ok_or_else(|| FormatError::Unclosed(rest.to_owned()))?;
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal)));
        }
        parts.push(Part::Operator(Operator::parse(&rest[..end])?));
        rest = &rest[end + 1..];
    }
    literal.extend_from_slice(rest.as_bytes());
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fields(&'static [(&'static str, &'static str)]);
    impl FieldSource for Fields {
        fn field(&self, name: &str) -> Option<&[u8]> {
            self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_bytes())
        }
    }

    fn entry(request: &Fields) -> AccessEntry<'_> {
        AccessEntry {
            request,
            duration: Duration::from_millis(12),
            protocol: Some("HTTP/1.1"),
            response_code: 200,
            response_code_details: "via_upstream",
            bytes_sent: 51,
            upstream_host: Some(([10, 44, 0, 7], 9080).into()),
            upstream_cluster: "outbound|9080||details.default.svc.cluster.local",
            route_name: "default",
            ..AccessEntry::at(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123))
        }
    }

    fn line(format: &Format, entry: &AccessEntry<'_>) -> String {
        let mut out = Vec::new();
        format.write(entry, &mut out);
        String::from_utf8(out).expect("logs are UTF-8 here")
    }

    #[test]
    fn istios_default_text() {
        let request = Fields(&[(":method", "GET"), (":path", "/details/0"), (":authority", "details:9080")]);
        assert_eq!(
            line(&Format::istio_text(), &entry(&request)),
            "[2023-11-14T22:13:20.123Z] \"GET /details/0 HTTP/1.1\" 200 - via_upstream - \"-\" 0 51 12 - \"-\" \"-\" \"-\" \
             \"details:9080\" \"10.44.0.7:9080\" outbound|9080||details.default.svc.cluster.local - - - - default\n"
        );
    }

    #[test]
    fn json_keeps_numbers_and_nulls() {
        let format = serde_json::json!({"code": "%RESPONSE_CODE%", "who": "%REQ(USER-AGENT)%", "both": "%PROTOCOL% %BYTES_SENT%", "n": {"d": "%DURATION%"}});
        let format = Format::json(&format).expect("a good format");
        assert_eq!(
            line(&format, &entry(&Fields(&[]))),
            "{\"code\":200,\"who\":null,\"both\":\"HTTP/1.1 51\",\"n\":{\"d\":12}}\n"
        );
    }

    #[test]
    fn bytes_from_the_wire_cannot_forge_a_line() {
        let request = Fields(&[("user-agent", "a\"\r\n[x]\u{1b}[31m\0")]);
        let format = Format::text("\"%REQ(USER-AGENT)%\"").expect("a good format");
        assert_eq!(line(&format, &entry(&request)), "\"a\\x22\\x0d\\x0a[x]\\x1b[31m\\x00\"");
        let json = Format::json(&serde_json::json!({"ua": "%REQ(USER-AGENT)%"})).expect("a good format");
        assert_eq!(line(&json, &entry(&request)), "{\"ua\":\"a\\\"\\r\\n[x]\\u001b[31m\\u0000\"}\n");
    }

    #[test]
    fn alternatives_lengths_and_times() {
        let request = Fields(&[(":path", "/very/long/path?x=1")]);
        let at = entry(&request);
        let text = |format: &str| line(&Format::text(format).expect("a good format"), &at);
        assert_eq!(text("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):5%"), "/very");
        assert_eq!(text("%REQ_WITHOUT_QUERY(:PATH)%"), "/very/long/path");
        assert_eq!(text("%START_TIME(%Y/%m/%d %H:%M:%S.%3f)% 100%%"), "2023/11/14 22:13:20.123 100%");
        assert_eq!(text("%START_TIME(%s)%"), "1700000000");
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        assert!(matches!(Format::text("%NOPE%"), Err(FormatError::Unknown(name)) if name == "NOPE"));
        assert!(matches!(Format::text("%REQ(X"), Err(FormatError::Unclosed(_))));
        assert!(matches!(Format::json(&serde_json::json!("x")), Err(FormatError::NotAnObject)));
    }
}
