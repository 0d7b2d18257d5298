//! Access logs: which streams are logged, in which format, and where the lines go.

pub(crate) mod compile;

use meltemi_filters::format::{Facts, Shape, Template};
use meltemi_filters::matcher::{Fraction, HeaderMatch, MetadataMatch};
use meltemi_filters::metadata::Metadata;
use meltemi_filters::{RequestHead, ResponseFlags};

/// An access log. Source: Envoy `config.accesslog.v3.AccessLog`.
#[derive(Debug)]
pub struct AccessLog {
    /// Where its lines go.
    pub sink: LogSink,
    /// The format of a line.
    pub format: LogFormat,
    /// Which streams are logged; `None`: all of them.
    pub filter: Option<LogFilter>,
}

/// Where the lines of an access log go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogSink {
    /// Standard output (also the file `/dev/stdout`).
    Stdout,
    /// Standard error (also the file `/dev/stderr`).
    Stderr,
    File(Box<str>),
}

/// The format of a line.
#[derive(Debug)]
pub enum LogFormat {
    /// Text. No newline is added: a template brings its own.
    Text(Template),
    /// A JSON object with templates for values, and a newline.
    Json(JsonFormat),
}

/// A JSON value with templates in its leaves; fields in order of their names.
#[derive(Debug)]
pub enum JsonFormat {
    /// An object: names and values.
    Object(Vec<(Box<str>, JsonFormat)>),
    /// An array of values.
    Array(Vec<JsonFormat>),
    /// A template. One that is a single operator with a numeric value prints as a number.
    Text(Template),
    /// A constant other than text.
    Constant(serde_json::Value),
}

/// Envoy's default format for text.
pub const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Which streams are logged.
#[derive(Debug)]
pub enum LogFilter {
    /// By HTTP status.
    Status(Comparison),
    /// By duration in milliseconds.
    Duration(Comparison),
    /// A random share of all streams.
    Share(Fraction),
    /// Streams that all of these admit.
    All(Vec<LogFilter>),
    /// Streams that at least one of these admits.
    Any(Vec<LogFilter>),
    /// By a request header.
    Header(HeaderMatch),
    /// Streams with one of these flags; with any flag if empty.
    Flags(ResponseFlags),
    /// By gRPC status.
    Grpc {
        /// The status codes that are logged.
        statuses: Vec<u32>,
        /// All others are logged, not these.
        exclude: bool,
    },
    /// By dynamic metadata.
    Metadata {
        /// The condition on the metadata.
        matcher: Box<MetadataMatch>,
        /// Streams without the key are logged.
        or_missing: bool,
    },
    /// Every stream but health checks; this proxy serves none, so it admits all.
    NotHealthCheck,
}

/// A comparison of a number with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// How the number is compared.
    pub op: ComparisonOp,
    /// The constant.
    pub value: u32,
}

/// How a number is compared with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComparisonOp {
    /// Equal.
    Eq,
    /// At least.
    Ge,
    /// At most.
    Le,
    /// Different.
    Ne,
}

impl LogFormat {
    /// Appends one line.
    pub fn render(&self, facts: &dyn Facts, out: &mut Vec<u8>) {
        match self {
            Self::Text(template) => template.render_line(facts, out),
            Self::Json(format) => {
                format.render(facts, out);
                out.push(b'\n');
            }
        }
    }
}

impl JsonFormat {
    fn render(&self, facts: &dyn Facts, out: &mut Vec<u8>) {
        match self {
            Self::Object(fields) => {
                out.push(b'{');
                for (at, (key, value)) in fields.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    quoted(key, out);
                    out.push(b':');
                    value.render(facts, out);
                }

                out.push(b'}');
            }
            Self::Array(items) => {
                out.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    item.render(facts, out);
                }
                out.push(b']');
            }
            Self::Constant(value) => out.extend_from_slice(value.to_string().as_bytes()),
            Self::Text(template) => {
                let mut rendered = Vec::new();
                match template.render_typed(facts, &mut rendered) {
                    Shape::Nothing => out.extend_from_slice(b"null"),
                    Shape::Json => out.extend_from_slice(&rendered),
                    Shape::Text => quoted(&String::from_utf8_lossy(&rendered), out),
                }
            }
        }
    }
}

fn quoted(text: &str, out: &mut Vec<u8>) {
    // Text always serialises, and writing to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

impl Comparison {
    fn holds(self, value: u64) -> bool {
        let wanted = u64::from(self.value);
        match self.op {
            ComparisonOp::Eq => value == wanted,
            ComparisonOp::Ge => value >= wanted,
            ComparisonOp::Le => value <= wanted,
            ComparisonOp::Ne => value != wanted,
        }
    }
}

/// The facts about a stream or connection that has ended, by which filters decide.
#[derive(Debug, Clone, Copy)]
pub struct LogRecord<'a> {
    /// The head of the request; `None` for TCP.
    pub request: Option<&'a RequestHead>,
    /// The status of the response; 0 if none was sent.
    pub status: u16,
    /// How long it lasted, in whole milliseconds.
    pub duration_ms: u64,
    pub flags: ResponseFlags,
    /// The gRPC status, if the response has one.
    pub grpc_status: Option<u32>,
    /// Dynamic metadata.
    pub metadata: &'a Metadata,
    /// A random number, the same for all logs of this stream.
    pub random: u64,
}

impl AccessLog {
    /// Whether this log has a line for the stream.
    pub fn wants(&self, record: &LogRecord<'_>) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.wants(record))
    }
}

impl LogFilter {
    fn wants(&self, record: &LogRecord<'_>) -> bool {
        match self {
            Self::Status(comparison) => comparison.holds(u64::from(record.status)),
            Self::Duration(comparison) => comparison.holds(record.duration_ms),
            Self::Share(fraction) => fraction.hits(record.random),
            Self::All(filters) => filters.iter().all(|filter| filter.wants(record)),
            Self::Any(filters) => filters.iter().any(|filter| filter.wants(record)),
            Self::Header(matcher) => record
                .request
                .is_some_and(|request| matcher.is_match(request)),
            Self::Flags(flags) if flags.is_empty() => !record.flags.is_empty(),
            Self::Flags(flags) => record.flags.intersects(*flags),
            Self::Grpc { statuses, exclude } => {
                record
                    .grpc_status
                    .is_some_and(|status| statuses.contains(&status))
                    != *exclude
            }
            Self::Metadata {
                matcher,
                or_missing,
            } => match matcher.finds(record.metadata) {
                true => matcher.is_match(record.metadata),
                false => *or_missing,
            },
            Self::NotHealthCheck => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use meltemi_filters::format::{Fact, Head, MetadataOf};
    use meltemi_filters::metadata::Value;

    use super::*;

    struct Example(Value);
    impl Facts for Example {
        fn header(&self, head: Head, name: &str) -> Option<Cow<'_, [u8]>> {
            (head == Head::Request && name == "user-agent")
                .then_some(Cow::Borrowed(b"a\"\r\n[x]\x1b[31m\0\xff"))
        }
        fn fact(&self, fact: Fact, out: &mut Vec<u8>) -> bool {
            let text = match fact {
                Fact::ResponseCode => "200",
                Fact::Protocol => "HTTP/1.1",
                Fact::BytesSent => "51",
                Fact::Duration => "12",
                _ => return false,
            };
            out.extend_from_slice(text.as_bytes());
            true
        }
        fn metadata(&self, _: MetadataOf, _: &str, _: &[Box<str>]) -> Option<Cow<'_, Value>> {
            Some(Cow::Borrowed(&self.0))
        }
    }

    fn line(format: serde_json::Value) -> String {
        fn compile(value: serde_json::Value) -> JsonFormat {
            match value {
                serde_json::Value::String(text) => {
                    JsonFormat::Text(Template::parse(&text).expect("a good format"))
                }
                serde_json::Value::Object(fields) => JsonFormat::Object(
                    fields
                        .into_iter()
                        .map(|(name, value)| (name.into(), compile(value)))
                        .collect(),
                ),
                serde_json::Value::Array(items) => {
                    JsonFormat::Array(items.into_iter().map(compile).collect())
                }
                constant => JsonFormat::Constant(constant),
            }
        }

        let mut out = Vec::new();
        LogFormat::Json(compile(format)).render(
            &Example(Value::List(vec![Value::Number(1.0), Value::Bool(true)])),
            &mut out,
        );

        String::from_utf8(out).expect("JSON")
    }

    #[test]
    fn json_keeps_numbers_and_nulls() {
        let format = serde_json::json!({
            "code": "%RESPONSE_CODE%", "who": "%REQ(X)%", "both": "%PROTOCOL% %BYTES_SENT%", "n": {"d": "%DURATION%"},
            "list": ["%RESPONSE_CODE%", true], "meta": "%DYNAMIC_METADATA(a:b)%"
        });
        let wanted = r#"{"code":200,"who":null,"both":"HTTP/1.1 51","n":{"d":12},"list":[200,true],"meta":[1,true]}"#;
        assert_eq!(line(format), format!("{wanted}\n"));
    }

    #[test]
    fn bytes_from_the_wire_stay_inside_their_json_string() {
        let wanted = "{\"ua\":\"a\\\"\\r\\n[x]\\u001b[31m\\u0000\u{fffd}\",\"cut\":\"a\\\"\"}\n";
        assert_eq!(
            line(serde_json::json!({"ua": "%REQ(USER-AGENT)%", "cut": "%REQ(USER-AGENT):2%"})),
            wanted
        );
    }
}
