//! Envoy's `%...%` format strings: access logs, header values, filter state. Parsed once, rendered into a buffer.
//!
//! What an operator stands for is asked of [`Facts`]; what a caller does not know prints as nothing (headers) or `-`
//! (logs). Source: Envoy "Access logging: command operators".

use std::borrow::Cow;

use crate::metadata::Value;

/// A parsed format string.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(Box<str>),
    Operator(Operator, Option<usize>),
}

/// One operator with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Operator {
    /// `%REQ(name?alternative)%` and its kin; names lower case.
    Header(Head, Box<str>, Option<Box<str>>),
    /// `%REQ_WITHOUT_QUERY(name?alternative)%` and `%PATH(NQ)%`: a request header up to its query.
    WithoutQuery(Box<str>, Option<Box<str>>),
    /// An operator without parameters.
    Fact(Fact),
    /// `%START_TIME(format)%` and its kin; an empty format is ISO 8601 with milliseconds.
    Time(Moment, Box<str>),
    /// `%DYNAMIC_METADATA(filter:key:...)%` and its kin.
    Metadata(MetadataOf, Box<str>, Box<[Box<str>]>),
    /// `%FILTER_STATE(key:kind)%`.
    FilterState(Box<str>),
    /// `%COMMON_DURATION(from:to:precision)%`.
    CommonDuration(Box<str>, Box<str>, Box<str>),
    /// `%ENVIRONMENT(name)%`: for the caller to look up, since nothing here reads the environment.
    Environment(Box<str>),
}

/// A head of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Head {
    Request,
    Response,
    Trailer,
}

/// A moment of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Moment {
    Start,
    EmitLog,
    DownstreamPeerCertStart,
    DownstreamPeerCertEnd,
    UpstreamPeerCertStart,
    UpstreamPeerCertEnd,
}

/// Whose metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MetadataOf {
    Dynamic,
    Route,
    VirtualHost,
    Cluster,
    UpstreamHost,
    Listener,
    ListenerFilterChain,
}

macro_rules! facts {
    ($($name:ident = $word:literal $(, $number:ident)?;)*) => {
        /// An operator without parameters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Fact { $($name,)* }

        impl Fact {
            /// The operator as it is written between the percent signs.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// Whether it is a number where types matter (JSON).
            pub fn is_number(self) -> bool {
                match self { $(Self::$name => facts!(@number $($number)?),)* }
            }

            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$name),)* _ => None }
            }
        }
    };
    (@number) => { false };
    (@number $number:ident) => { true };
}

facts! {
    Protocol = "PROTOCOL";
    UpstreamProtocol = "UPSTREAM_PROTOCOL";
    ResponseCode = "RESPONSE_CODE", number;
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS";
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS";
    ResponseFlags = "RESPONSE_FLAGS";
    ResponseFlagsLong = "RESPONSE_FLAGS_LONG";
    BytesReceived = "BYTES_RECEIVED", number;
    BytesSent = "BYTES_SENT", number;
    UpstreamWireBytesSent = "UPSTREAM_WIRE_BYTES_SENT", number;
    UpstreamWireBytesReceived = "UPSTREAM_WIRE_BYTES_RECEIVED", number;
    DownstreamWireBytesSent = "DOWNSTREAM_WIRE_BYTES_SENT", number;
    DownstreamWireBytesReceived = "DOWNSTREAM_WIRE_BYTES_RECEIVED", number;
    UpstreamHeaderBytesSent = "UPSTREAM_HEADER_BYTES_SENT", number;
    UpstreamHeaderBytesReceived = "UPSTREAM_HEADER_BYTES_RECEIVED", number;
    DownstreamHeaderBytesSent = "DOWNSTREAM_HEADER_BYTES_SENT", number;
    DownstreamHeaderBytesReceived = "DOWNSTREAM_HEADER_BYTES_RECEIVED", number;
    Duration = "DURATION", number;
    RequestDuration = "REQUEST_DURATION", number;
    RequestTxDuration = "REQUEST_TX_DURATION", number;
    ResponseDuration = "RESPONSE_DURATION", number;
    ResponseTxDuration = "RESPONSE_TX_DURATION", number;
    DownstreamHandshakeDuration = "DOWNSTREAM_HANDSHAKE_DURATION", number;
    RoundtripDuration = "ROUNDTRIP_DURATION", number;
    UpstreamHost = "UPSTREAM_HOST";
    UpstreamHostName = "UPSTREAM_HOST_NAME";
    UpstreamHostNameWithoutPort = "UPSTREAM_HOST_NAME_WITHOUT_PORT";
    UpstreamHostsAttempted = "UPSTREAM_HOSTS_ATTEMPTED";
    UpstreamConnectionId = "UPSTREAM_CONNECTION_ID", number;
    UpstreamCluster = "UPSTREAM_CLUSTER";
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW";
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS";
    UpstreamLocalAddressWithoutPort = "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    UpstreamLocalPort = "UPSTREAM_LOCAL_PORT", number;
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS";
    UpstreamRemoteAddressWithoutPort = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT", number;
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON";
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT", number;
    UpstreamTlsCipher = "UPSTREAM_TLS_CIPHER";
    UpstreamTlsVersion = "UPSTREAM_TLS_VERSION";
    UpstreamPeerSubject = "UPSTREAM_PEER_SUBJECT";
    UpstreamPeerUriSan = "UPSTREAM_PEER_URI_SAN";
    UpstreamPeerDnsSan = "UPSTREAM_PEER_DNS_SAN";
    UpstreamLocalUriSan = "UPSTREAM_LOCAL_URI_SAN";
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS";
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT", number;
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS";
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT";
    DownstreamDirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT", number;
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS";
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT", number;
    DownstreamTransportFailureReason = "DOWNSTREAM_TRANSPORT_FAILURE_REASON";
    DownstreamTlsCipher = "DOWNSTREAM_TLS_CIPHER";
    DownstreamTlsVersion = "DOWNSTREAM_TLS_VERSION";
    DownstreamPeerSubject = "DOWNSTREAM_PEER_SUBJECT";
    DownstreamPeerIssuer = "DOWNSTREAM_PEER_ISSUER";
    DownstreamPeerUriSan = "DOWNSTREAM_PEER_URI_SAN";
    DownstreamPeerDnsSan = "DOWNSTREAM_PEER_DNS_SAN";
    DownstreamPeerFingerprint256 = "DOWNSTREAM_PEER_FINGERPRINT_256";
    DownstreamPeerCert = "DOWNSTREAM_PEER_CERT";
    DownstreamLocalUriSan = "DOWNSTREAM_LOCAL_URI_SAN";
    RequestedServerName = "REQUESTED_SERVER_NAME";
    ConnectionId = "CONNECTION_ID", number;
    StreamId = "STREAM_ID";
    RouteName = "ROUTE_NAME";
    VirtualHostName = "VIRTUAL_CLUSTER_NAME";
    FilterChainName = "FILTER_CHAIN_NAME";
    Hostname = "HOSTNAME";
    GrpcStatus = "GRPC_STATUS";
    GrpcStatusNumber = "GRPC_STATUS_NUMBER", number;
    LocalReplyBody = "LOCAL_REPLY_BODY";
    Cause = "CAUSE";
    UniqueId = "UNIQUE_ID";
    TraceId = "TRACE_ID";
    SpanId = "SPAN_ID";
    AccessLogType = "ACCESS_LOG_TYPE";
}

/// What a renderer knows of an exchange. Everything is optional.
pub trait Facts {
    /// A header's first line.
    fn header(&self, _head: Head, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    /// Writes a fact; `false`: unknown.
    fn fact(&self, _fact: Fact, _out: &mut Vec<u8>) -> bool {
        false
    }
    /// Writes a moment in a `strftime` format (with `%3f` and `%s`); `false`: unknown.
    fn time(&self, _moment: Moment, _format: &str, _out: &mut Vec<u8>) -> bool {
        false
    }
    /// Metadata at a path.
    fn metadata(&self, _of: MetadataOf, _filter: &str, _path: &[Box<str>]) -> Option<&Value> {
        None
    }
    /// Filter state as text.
    fn filter_state(&self, _key: &str) -> Option<Cow<'_, str>> {
        None
    }
    /// Writes the time between two points in a unit (`ms`, `us`, `ns`); `false`: unknown.
    fn duration_between(&self, _from: &str, _to: &str, _precision: &str, _out: &mut Vec<u8>) -> bool {
        false
    }
    /// An environment variable.
    fn environment(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }
}

/// Nothing is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFacts;

impl Facts for NoFacts {}

/// Longest format string.
const MAX_FORMAT: usize = 64 * 1024;

impl Template {
    /// Parses a format string. `%%` is a percent sign.
    pub fn parse(format: &str) -> Result<Self, String> {
        if format.len() > MAX_FORMAT {
            return Err("format string is too long".to_owned());
        }
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(tail) = rest.strip_prefix('%') {
                text.push('%');
                rest = tail;
                continue;
            }
            let (operator, length, tail) = parse_operator(rest)?;
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text).into()));
            }
            parts.push(Part::Operator(operator, length));
            rest = tail;
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        Ok(Self { parts })
    }

    /// Plain text.
    pub fn literal(text: &str) -> Self {
        match text.is_empty() {
            true => Self::default(),
            false => Self { parts: vec![Part::Text(text.into())] },
        }
    }

    /// The text, if there is no operator in it.
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Renders; what is unknown becomes `unknown` (`-` in logs, nothing in headers).
    pub fn render(&self, facts: &dyn Facts, unknown: &str, out: &mut Vec<u8>) {
        self.render_each(facts, unknown, out, |_, _| {});
    }

    /// Renders for a log of lines. Whatever an operator stands for may hold bytes from the wire, and those must forge
    /// neither a line nor a quote: they are escaped.
    pub fn render_line(&self, facts: &dyn Facts, out: &mut Vec<u8>) {
        self.render_each(facts, "-", out, escape_from);
    }

    /// Renders for a writer that escapes by itself and knows types, as JSON does.
    pub fn render_typed(&self, facts: &dyn Facts, out: &mut Vec<u8>) -> Shape {
        let [Part::Operator(operator, length)] = self.parts.as_slice() else {
            self.render(facts, "-", out);
            return Shape::Text;
        };
        let start = out.len();
        if let Operator::Metadata(of, filter, path) = operator {
            return match facts.metadata(*of, filter, path) {
                None | Some(Value::Null) => Shape::Nothing,
                Some(Value::String(text)) => {
                    out.extend_from_slice(text.as_bytes());
                    cut(out, start, *length);
                    Shape::Text
                }
                Some(value) => {
                    write_value(value, out);
                    Shape::Json
                }
            };
        }
        if !operator.render(facts, out) {
            out.truncate(start);
            return Shape::Nothing;
        }
        if matches!(operator, Operator::Fact(fact) if fact.is_number()) {
            return Shape::Json;
        }
        cut(out, start, *length);
        Shape::Text
    }

    fn render_each(&self, facts: &dyn Facts, unknown: &str, out: &mut Vec<u8>, finish: fn(&mut Vec<u8>, usize)) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Operator(operator, length) => {
                    let start = out.len();
                    if !operator.render(facts, out) {
                        out.truncate(start);
                        out.extend_from_slice(unknown.as_bytes());
                    }
                    // Cut first: a cut must not go through an escape.
                    cut(out, start, *length);
                    finish(out, start);
                }
            }
        }
    }
}

/// What [`Template::render_typed`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Nothing is known.
    Nothing,
    /// A number, or JSON as it stands.
    Json,
    /// Text that is not escaped.
    Text,
}

fn cut(out: &mut Vec<u8>, start: usize, length: Option<usize>) {
    if let Some(length) = length {
        out.truncate(start.saturating_add(length).min(out.len()));
    }
}

/// Quotes, backslashes and everything that is not printable ASCII become `\xNN`.
fn escape_from(out: &mut Vec<u8>, start: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    let Some(first) = out[start..].iter().position(|byte| !plain(*byte)) else { return };
    for byte in out.split_off(start + first) {
        if plain(byte) {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

impl Operator {
    /// Writes the value; `false`: unknown.
    pub fn render(&self, facts: &dyn Facts, out: &mut Vec<u8>) -> bool {
        let bytes = |value: Option<Cow<'_, [u8]>>, out: &mut Vec<u8>| match value {
            Some(value) => {
                out.extend_from_slice(&value);
                true
            }
            None => false,
        };
        match self {
            Self::Header(head, name, alternative) => {
                let value = facts.header(*head, name);
                let value = value.or_else(|| alternative.as_ref().and_then(|name| facts.header(*head, name)));
                bytes(value, out)
            }
            Self::WithoutQuery(name, alternative) => {
                let value = facts.header(Head::Request, name);
                let value = value.or_else(|| facts.header(Head::Request, alternative.as_ref()?));
                let Some(value) = value else { return false };
                let end = memchr::memchr2(b'?', b'#', &value).unwrap_or(value.len());
                out.extend_from_slice(&value[..end]);
                true
            }
            Self::Fact(fact) => facts.fact(*fact, out),
            Self::Time(moment, format) => facts.time(*moment, format, out),
            Self::Metadata(of, filter, path) => match facts.metadata(*of, filter, path) {
                None | Some(Value::Null) => false,
                Some(value) => {
                    write_value(value, out);
                    true
                }
            },
            Self::FilterState(key) => match facts.filter_state(key) {
                Some(text) => bytes(Some(Cow::Owned(text.into_owned().into_bytes())), out),
                None => false,
            },
            Self::CommonDuration(from, to, precision) => facts.duration_between(from, to, precision, out),
            Self::Environment(name) => match facts.environment(name) {
                Some(text) => {
                    out.extend_from_slice(text.as_bytes());
                    true
                }
                None => false,
            },
        }
    }
}

/// Text as it is, everything else as JSON.
pub fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::String(text) => out.extend_from_slice(text.as_bytes()),
        value => out.extend_from_slice(json_of(value).to_string().as_bytes()),
    }
}

/// A value as JSON.
pub fn json_of(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        // Whole numbers without a fraction, as Envoy prints them.
        Value::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => (*number as i64).into(),
        Value::Number(number) => (*number).into(),
        Value::String(text) => (&**text).into(),
        Value::List(list) => list.iter().map(json_of).collect::<Vec<_>>().into(),
        Value::Struct(fields) => {
            serde_json::Value::Object(fields.iter().map(|(key, value)| (key.to_string(), json_of(value))).collect())
        }
    }
}

/// What stands after a percent sign: the operator, a length limit, and what follows the closing percent sign.
fn parse_operator(rest: &str) -> Result<(Operator, Option<usize>, &str), String> {
    let word_end =
        rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).unwrap_or(rest.len());
    let (word, mut tail) = rest.split_at(word_end);
    let mut parameter = None;
    if let Some(inner) = tail.strip_prefix('(') {
        let end = inner.find(')').ok_or_else(|| format!("%{word}(: the parenthesis is not closed"))?;
        parameter = Some(&inner[..end]);
        tail = &inner[end + 1..];
    }
    let mut length = None;
    if let Some(inner) = tail.strip_prefix(':') {
        let end = inner.find('%').ok_or_else(|| format!("%{word}: the operator is not closed"))?;
        length = Some(inner[..end].parse().map_err(|_| format!("%{word}: {:?} is not a length", &inner[..end]))?);
        tail = &inner[end..];
    }
    let tail = tail.strip_prefix('%').ok_or_else(|| format!("%{word}: the operator is not closed"))?;
    Ok((operator(word, parameter)?, length, tail))
}

fn operator(word: &str, parameter: Option<&str>) -> Result<Operator, String> {
    let needed = || parameter.ok_or_else(|| format!("%{word}% needs a parameter in parentheses"));
    let names = || {
        let name = needed()?.to_ascii_lowercase();
        Ok::<_, String>(match name.split_once('?') {
            Some((name, alternative)) => (name.into(), Some(alternative.into())),
            None => (name.into(), None),
        })
    };
    let header = |head| names().map(|(name, alternative)| Operator::Header(head, name, alternative));
    let metadata = |of| {
        let mut segments = needed()?.split(':').map(Box::from);
        let filter = segments.next().unwrap_or_default();
        Ok::<_, String>(Operator::Metadata(of, filter, segments.collect()))
    };
    let time = |moment| Ok::<_, String>(Operator::Time(moment, parameter.unwrap_or_default().into()));
    match word {
        "REQ" => header(Head::Request),
        "RESP" => header(Head::Response),
        "TRAILER" => header(Head::Trailer),
        "DYNAMIC_METADATA" => metadata(MetadataOf::Dynamic),
        "CLUSTER_METADATA" => metadata(MetadataOf::Cluster),
        "UPSTREAM_METADATA" => metadata(MetadataOf::UpstreamHost),
        "METADATA" => match needed()?.split_once(':') {
            Some((of, _)) => {
                let of_whom = match of {
                    "DYNAMIC" => MetadataOf::Dynamic,
                    "ROUTE" => MetadataOf::Route,
                    "VIRTUAL_HOST" => MetadataOf::VirtualHost,
                    "CLUSTER" => MetadataOf::Cluster,
                    "UPSTREAM_HOST" => MetadataOf::UpstreamHost,
                    "LISTENER" => MetadataOf::Listener,
                    "LISTENER_FILTER_CHAIN" => MetadataOf::ListenerFilterChain,
                    other => return Err(format!("%METADATA({other}:...)%: unknown kind")),
                };
                match metadata(of_whom)? {
                    Operator::Metadata(of, _, path) => {
                        let mut path = path.into_vec().into_iter();
                        let filter = path.next().unwrap_or_default();
                        Ok(Operator::Metadata(of, filter, path.collect()))
                    }
                    other => Ok(other),
                }
            }
            None => Err("%METADATA% needs a kind and a filter".to_owned()),
        },
        "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => {
            let key = needed()?;
            Ok(Operator::FilterState(key.split(':').next().unwrap_or_default().into()))
        }
        "START_TIME" => time(Moment::Start),
        "EMIT_TIME" => time(Moment::EmitLog),
        "DOWNSTREAM_PEER_CERT_V_START" => time(Moment::DownstreamPeerCertStart),
        "DOWNSTREAM_PEER_CERT_V_END" => time(Moment::DownstreamPeerCertEnd),
        "UPSTREAM_PEER_CERT_V_START" => time(Moment::UpstreamPeerCertStart),
        "UPSTREAM_PEER_CERT_V_END" => time(Moment::UpstreamPeerCertEnd),
        "COMMON_DURATION" => {
            let mut parts = needed()?.splitn(3, ':');
            let mut next = || parts.next().map(Box::from).ok_or("%COMMON_DURATION% needs from:to:precision".to_owned());
            Ok(Operator::CommonDuration(next()?, next()?, next().unwrap_or_else(|_| "ms".into())))
        }
        "ENVIRONMENT" => Ok(Operator::Environment(needed()?.into())),
        "REQ_WITHOUT_QUERY" => names().map(|(name, alternative)| Operator::WithoutQuery(name, alternative)),
        "PATH" => path(parameter.unwrap_or_default()),
        "GRPC_STATUS" => Ok(Operator::Fact(match parameter {
            Some("NUMBER") => Fact::GrpcStatusNumber,
            _ => Fact::GrpcStatus,
        })),
        word => Fact::from_word(word)
            .map(Operator::Fact)
            .ok_or_else(|| format!("unknown operator %{}%", word.chars().take(64).collect::<String>())),
    }
}

/// `%PATH(X:Y)%`: X is WQ (with the query) or NQ, Y which path: ORIG, PATH, or the one and else the other.
fn path(parameter: &str) -> Result<Operator, String> {
    let (query, which) = parameter.split_once(':').unwrap_or((parameter, ""));
    let (name, alternative): (Box<str>, Option<Box<str>>) = match which {
        "" | "ORIG_OR_PATH" => ("x-envoy-original-path".into(), Some(":path".into())),
        "ORIG" => ("x-envoy-original-path".into(), None),
        "PATH" => (":path".into(), None),
        other => return Err(format!("%PATH(...:{other})%: ORIG, PATH and ORIG_OR_PATH are known")),
    };
    match query {
        "" | "WQ" => Ok(Operator::Header(Head::Request, name, alternative)),
        "NQ" => Ok(Operator::WithoutQuery(name, alternative)),
        other => Err(format!("%PATH({other})%: WQ and NQ are known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Istio's default text format (one line with its line feed).
    const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

    /// Request headers, and facts of one request.
    struct Example(&'static [(&'static str, &'static str)]);

    const REQUEST: Example = Example(&[
        (":method", "GET"),
        (":path", "/very/long/path?x=1"),
        (":authority", "details:9080"),
        ("user-agent", "curl/8.0"),
    ]);

    impl Facts for Example {
        fn header(&self, head: Head, name: &str) -> Option<Cow<'_, [u8]>> {
            let found = self.0.iter().find(|(n, _)| *n == name).filter(|_| head == Head::Request)?;
            Some(Cow::Borrowed(found.1.as_bytes()))
        }
        fn fact(&self, fact: Fact, out: &mut Vec<u8>) -> bool {
            let text = match fact {
                Fact::Protocol => "HTTP/1.1",
                Fact::ResponseCode => "200",
                Fact::ResponseCodeDetails => "via_upstream",
                Fact::BytesReceived => "0",
                Fact::BytesSent => "51",
                Fact::Duration => "12",
                Fact::UpstreamHost => "10.44.0.7:9080",
                Fact::UpstreamClusterRaw => "outbound|9080||details.default.svc.cluster.local",
                Fact::RouteName => "default",
                Fact::RequestedServerName => "a\"b\\c",
                Fact::Cause => "policy p",
                _ => return false,
            };
            out.extend_from_slice(text.as_bytes());
            !matches!(fact, Fact::RequestedServerName) || self.0.is_empty()
        }
        fn time(&self, moment: Moment, format: &str, out: &mut Vec<u8>) -> bool {
            out.extend_from_slice(if format.is_empty() { b"2023-11-14T22:13:20.123Z" } else { format.as_bytes() });
            moment == Moment::Start
        }
    }

    fn line_of(format: &str, facts: &Example) -> String {
        let mut out = Vec::new();
        Template::parse(format).expect(format).render_line(facts, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    fn render(format: &str) -> String {
        line_of(format, &REQUEST)
    }

    fn typed(format: &str, facts: &Example) -> (Shape, String) {
        let mut out = Vec::new();
        let shape = Template::parse(format).expect(format).render_typed(facts, &mut out);
        (shape, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn operators_are_rendered() {
        assert_eq!(render("100%% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"), "100% /very/long/path?x=1");
        assert_eq!(render("%REQ(User-Agent):4% %RESPONSE_CODE% %RESP(X)%"), "curl 200 -");
        assert_eq!(render("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):5%"), "/very");
        assert_eq!(render("%CAUSE%"), "policy p");
        assert_eq!(render("%START_TIME(%Y/%m/%d %H:%M:%S.%3f)% x"), "%Y/%m/%d %H:%M:%S.%3f x");
    }

    #[test]
    fn queries_are_left_out_where_that_is_asked_for() {
        assert_eq!(render("%REQ_WITHOUT_QUERY(:PATH)%"), "/very/long/path");
        assert_eq!(render("%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH):5%"), "/very");
        assert_eq!(render("%PATH(NQ)% %PATH% %PATH(WQ:ORIG)%"), "/very/long/path /very/long/path?x=1 -");
        let rewritten = Example(&[(":path", "/new?y"), ("x-envoy-original-path", "/old?x")]);
        assert_eq!(
            line_of("%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)% %PATH(NQ:PATH)%", &rewritten),
            "/old /new"
        );
    }

    #[test]
    fn istios_default_line() {
        assert_eq!(
            render(ISTIO),
            "[2023-11-14T22:13:20.123Z] \"GET /very/long/path?x=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 51 12 - \"-\" \"curl/8.0\" \"-\" \
             \"details:9080\" \"10.44.0.7:9080\" outbound|9080||details.default.svc.cluster.local - - - - default\n"
        );
    }

    #[test]
    fn bytes_from_the_wire_cannot_forge_a_line() {
        let hostile = Example(&[("user-agent", "a\"\r\n[x]\u{1b}[31m\0\u{7f}\\\u{9b}")]);
        assert_eq!(
            line_of("\"%REQ(USER-AGENT)%\"\n", &hostile),
            "\"a\\x22\\x0d\\x0a[x]\\x1b[31m\\x00\\x7f\\x5c\\xc2\\x9b\"\n"
        );
        assert_eq!(line_of("%REQ(USER-AGENT):3%", &hostile), "a\\x22\\x0d", "a cut does not go through an escape");
        // Not headers alone: a server name, a subject and a cause are the peer's words as well.
        assert_eq!(line_of("%REQUESTED_SERVER_NAME%", &Example(&[])), "a\\x22b\\x5cc");
        assert_eq!(
            typed("%REQ(USER-AGENT)%", &hostile).1.as_bytes(),
            hostile.0[0].1.as_bytes(),
            "JSON escapes by itself"
        );
    }

    #[test]
    fn types_are_kept_where_there_are_types() {
        assert_eq!(typed("%RESPONSE_CODE%", &REQUEST), (Shape::Json, "200".to_owned()));
        assert_eq!(typed("%REQ(X)%", &REQUEST), (Shape::Nothing, String::new()));
        assert_eq!(typed("%REQ(USER-AGENT):4%", &REQUEST), (Shape::Text, "curl".to_owned()));
        assert_eq!(typed("%PROTOCOL% %BYTES_SENT% %REQ(X)%", &REQUEST), (Shape::Text, "HTTP/1.1 51 -".to_owned()));
    }

    #[test]
    fn broken_formats_are_refused() {
        for format in ["%", "%REQ%", "%REQ(x%", "%NOPE%", "%REQ(x):a%", "%METADATA(X:y)%", "%DURATION", "%METADATA(Y)%"]
        {
            assert!(Template::parse(format).is_err(), "{format}");
        }
        assert!(Template::parse("%NOPE%").expect_err("unknown").contains("%NOPE%"));
        assert!(Template::parse("%PATH(XQ)%").is_err() && Template::parse("%PATH(NQ:X)%").is_err());
    }

    proptest! {
        #[test]
        fn no_format_is_a_panic(format in "[%A-Z(:)?a-z0-9é_]{0,60}") {
            if let Ok(template) = Template::parse(&format) {
                template.render(&NoFacts, "-", &mut Vec::new());
            }
        }
    }
}
