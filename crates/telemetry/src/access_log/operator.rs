//! One command operator: parsed from `NAME(argument):length`, written from an entry.

use std::fmt::Write as _;
use std::time::SystemTime;

use time::OffsetDateTime;

use super::{AccessEntry, FieldSource};

/// Why a format cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` without its partner.
    #[error("the operator that starts at %{0:?} has no closing %")]
    Unclosed(String),
    /// No such operator.
    #[error("%{0}% is not an operator of access logs")]
    Unknown(String),
    /// The operator wants an argument in parentheses.
    #[error("%{0}% needs an argument in parentheses")]
    Argument(String),
    /// The length after the colon is not a number.
    #[error("%{0}%: what follows the colon must be a length in bytes")]
    Length(String),
    /// A JSON format must be an object.
    #[error("a JSON access-log format must be an object")]
    NotAnObject,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operator {
    what: What,
    max: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    StartTime(Option<String>),
    Request(String, Option<String>),
    RequestWithoutQuery(String, Option<String>),
    Response(String, Option<String>),
    Trailer(String, Option<String>),
    Protocol,
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    ConnectionTermination,
    UpstreamFailure,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    ResponseDuration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamLocal,
    Attempts,
    DownstreamLocal(AddressPart),
    DownstreamRemote(AddressPart),
    DownstreamDirect(AddressPart),
    ServerName,
    RouteName,
    PeerUri,
    LocalUri,
    TlsVersion,
    ConnectionId,
    FilterChain,
    Cause,
    GrpcStatus,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum AddressPart {
    Whole,
    Ip,
    Port,
}

/// Where the operator that `rest` starts with ends: a `%` outside parentheses.
pub(super) fn end(rest: &str) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in rest.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '%' if depth == 0 => return Some(i),
            _ => {}
        }
    }
    None
}

impl Operator {
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        let (head, argument, tail) = match text.split_once('(') {
            None => match text.split_once(':') {
                None => (text, None, ""),
                Some((head, _)) => (head, None, &text[head.len()..]),
            },
            Some((head, rest)) => {
                let (argument, tail) = rest.rsplit_once(')').ok_or_else(|| FormatError::Unclosed(text.to_owned()))?;
                (head, Some(argument), tail)
            }
        };
        let max = match tail.strip_prefix(':') {
            None => usize::MAX,
            Some(length) => length.parse().map_err(|_| FormatError::Length(text.to_owned()))?,
        };
        let names = || {
            let argument = argument.ok_or_else(|| FormatError::Argument(head.to_owned()))?;
            let (first, second) = match argument.split_once('?') {
                None => (argument, None),
                Some((first, second)) => (first, Some(second)),
            };
            Ok((first.to_ascii_lowercase(), second.map(str::to_ascii_lowercase)))
        };
        let what = match head {
            "START_TIME" => What::StartTime(argument.filter(|a| !a.is_empty()).map(str::to_owned)),
            "REQ" => names().map(|(first, second)| What::Request(first, second))?,
            "REQ_WITHOUT_QUERY" => names().map(|(first, second)| What::RequestWithoutQuery(first, second))?,
            "RESP" => names().map(|(first, second)| What::Response(first, second))?,
            "TRAILER" => names().map(|(first, second)| What::Trailer(first, second))?,
            "PROTOCOL" => What::Protocol,
            "RESPONSE_CODE" => What::ResponseCode,
            "RESPONSE_FLAGS" => What::ResponseFlags,
            "RESPONSE_CODE_DETAILS" => What::ResponseCodeDetails,
            "CONNECTION_TERMINATION_DETAILS" => What::ConnectionTermination,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => What::UpstreamFailure,
            "BYTES_RECEIVED" => What::BytesReceived,
            "BYTES_SENT" => What::BytesSent,
            "DURATION" => What::Duration,
            "REQUEST_DURATION" => What::RequestDuration,
            "RESPONSE_DURATION" => What::ResponseDuration,
            "UPSTREAM_HOST" => What::UpstreamHost,
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => What::UpstreamCluster,
            "UPSTREAM_LOCAL_ADDRESS" => What::UpstreamLocal,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => What::Attempts,
            "DOWNSTREAM_LOCAL_ADDRESS" => What::DownstreamLocal(AddressPart::Whole),
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => What::DownstreamLocal(AddressPart::Ip),
            "DOWNSTREAM_LOCAL_PORT" => What::DownstreamLocal(AddressPart::Port),
            "DOWNSTREAM_REMOTE_ADDRESS" => What::DownstreamRemote(AddressPart::Whole),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => What::DownstreamRemote(AddressPart::Ip),
            "DOWNSTREAM_REMOTE_PORT" => What::DownstreamRemote(AddressPart::Port),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => What::DownstreamDirect(AddressPart::Whole),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => What::DownstreamDirect(AddressPart::Ip),
            "REQUESTED_SERVER_NAME" => What::ServerName,
            "ROUTE_NAME" => What::RouteName,
            "DOWNSTREAM_PEER_URI_SAN" => What::PeerUri,
            "DOWNSTREAM_LOCAL_URI_SAN" => What::LocalUri,
            "DOWNSTREAM_TLS_VERSION" => What::TlsVersion,
            "CONNECTION_ID" => What::ConnectionId,
            "FILTER_CHAIN_NAME" => What::FilterChain,
            "CAUSE" => What::Cause,
            "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => What::GrpcStatus,
            other => return Err(FormatError::Unknown(other.to_owned())),
        };
        Ok(Self { what, max })
    }

    /// Whether JSON prints the value as a number.
    pub(super) fn is_number(&self) -> bool {
        matches!(
            self.what,
            What::ResponseCode
                | What::BytesReceived
                | What::BytesSent
                | What::Duration
                | What::RequestDuration
                | What::ResponseDuration
                | What::Attempts
                | What::ConnectionId
                | What::DownstreamLocal(AddressPart::Port)
                | What::DownstreamRemote(AddressPart::Port)
        )
    }

    /// For text: what came over the wire is escaped, so that it can neither end the line nor the quotes. False if there
    /// is no value.
    pub(super) fn write(&self, entry: &AccessEntry<'_>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        if !self.write_raw(entry, out) {
            return false;
        }
        if out[start..].iter().any(|b| is_dangerous(*b)) {
            let raw = out.split_off(start);
            for byte in raw {
                if is_dangerous(byte) {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                } else {
                    out.push(byte);
                }
            }
        }
        true
    }

    /// The value as it is, cut to the operator's length. False if there is none.
    pub(super) fn write_raw(&self, entry: &AccessEntry<'_>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let written = self.write_whole(entry, out);
        if written && out.len() - start > self.max {
            out.truncate(start + self.max);
        }
        written
    }

    fn write_whole(&self, entry: &AccessEntry<'_>, out: &mut Vec<u8>) -> bool {
        match &self.what {
            What::StartTime(None) => {
                write_iso(entry.start, out);
                true
            }
            What::StartTime(Some(pattern)) => {
                write_pattern(entry.start, pattern, out);
                true
            }
            What::Request(first, second) => bytes(header(entry.request, first, second.as_deref()), out),
            What::RequestWithoutQuery(first, second) => {
                let value = header(entry.request, first, second.as_deref());
                bytes(value.map(|v| v.split(|b| *b == b'?').next().unwrap_or(v)), out)
            }
            What::Response(first, second) => bytes(header(entry.response, first, second.as_deref()), out),
            What::Trailer(first, second) => bytes(header(entry.trailers, first, second.as_deref()), out),
            What::Protocol => text(entry.protocol.unwrap_or_default(), out),
            What::ResponseCode => number(u64::from(entry.response_code), out),
            What::ResponseFlags => text(entry.response_flags, out),
            What::ResponseCodeDetails => text(entry.response_code_details, out),
            What::ConnectionTermination => text(entry.connection_termination_details, out),
            What::UpstreamFailure => text(entry.upstream_transport_failure_reason, out),
            What::BytesReceived => number(entry.bytes_received, out),
            What::BytesSent => number(entry.bytes_sent, out),
            What::Duration => number(entry.duration.as_millis() as u64, out),
            What::RequestDuration => entry.request_duration.is_some_and(|d| number(d.as_millis() as u64, out)),
            What::ResponseDuration => entry.response_duration.is_some_and(|d| number(d.as_millis() as u64, out)),
            What::UpstreamHost => display(entry.upstream_host, AddressPart::Whole, out),
            What::UpstreamCluster => text(entry.upstream_cluster, out),
            What::UpstreamLocal => display(entry.upstream_local, AddressPart::Whole, out),
            What::Attempts => number(u64::from(entry.upstream_attempts), out),
            What::DownstreamLocal(part) => display(entry.downstream_local, *part, out),
            What::DownstreamRemote(part) => display(entry.downstream_remote, *part, out),
            What::DownstreamDirect(part) => display(entry.downstream_direct_remote, *part, out),
            What::ServerName => text(entry.requested_server_name, out),
            What::RouteName => text(entry.route_name, out),
            What::PeerUri => text(entry.downstream_peer_uri, out),
            What::LocalUri => text(entry.downstream_local_uri, out),
            What::TlsVersion => text(entry.downstream_tls_version, out),
            What::ConnectionId => number(entry.connection_id, out),
            What::FilterChain => text(entry.filter_chain_name, out),
            What::Cause => text(entry.cause, out),
            What::GrpcStatus => {
                let status = entry.trailers.field("grpc-status").or_else(|| entry.response.field("grpc-status"));
                bytes(status, out)
            }
        }
    }
}

fn is_dangerous(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == 0x7f
}

fn header<'a>(source: &'a dyn FieldSource, first: &str, second: Option<&str>) -> Option<&'a [u8]> {
    source.field(first).or_else(|| second.and_then(|name| source.field(name)))
}

fn bytes(value: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
    let Some(value) = value else { return false };
    out.extend_from_slice(value);
    true
}

fn text(value: &str, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(value.as_bytes());
    !value.is_empty()
}

fn number(value: u64, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    true
}

fn display(address: Option<std::net::SocketAddr>, part: AddressPart, out: &mut Vec<u8>) -> bool {
    use std::io::Write as _;
    let Some(address) = address else { return false };
    // Writing to a Vec cannot fail.
    let _ = match part {
        AddressPart::Whole => write!(out, "{address}"),
        AddressPart::Ip => write!(out, "{}", address.ip()),
        AddressPart::Port => write!(out, "{}", address.port()),
    };
    true
}

/// `2023-11-14T22:13:20.123Z`, by hand: it is on every line.
fn write_iso(at: SystemTime, out: &mut Vec<u8>) {
    let at = OffsetDateTime::from(at);
    let digits = |out: &mut Vec<u8>, value: u32, width: u32| {
        for place in (0..width).rev() {
            out.push(b'0' + (value / 10u32.pow(place) % 10) as u8);
        }
    };
    digits(out, at.year().unsigned_abs(), 4);
    out.push(b'-');
    digits(out, u32::from(u8::from(at.month())), 2);
    out.push(b'-');
    digits(out, u32::from(at.day()), 2);
    out.push(b'T');
    digits(out, u32::from(at.hour()), 2);
    out.push(b':');
    digits(out, u32::from(at.minute()), 2);
    out.push(b':');
    digits(out, u32::from(at.second()), 2);
    out.push(b'.');
    digits(out, u32::from(at.millisecond()), 3);
    out.push(b'Z');
}

/// strftime's `%Y %m %d %H %M %S %s %T %F %z %Z %b` and Envoy's `%f`, `%3f`, `%6f`, `%9f`; anything else is copied.
fn write_pattern(at: SystemTime, pattern: &str, out: &mut Vec<u8>) {
    let utc = OffsetDateTime::from(at);
    let mut text = String::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let width = chars.peek().and_then(|c| c.to_digit(10));
        if width.is_some() {
            chars.next();
        }
        let _ = match chars.next() {
            Some('Y') => write!(text, "{:04}", utc.year()),
            Some('m') => write!(text, "{:02}", u8::from(utc.month())),
            Some('d') => write!(text, "{:02}", utc.day()),
            Some('H') => write!(text, "{:02}", utc.hour()),
            Some('M') => write!(text, "{:02}", utc.minute()),
            Some('S') => write!(text, "{:02}", utc.second()),
            Some('s') => write!(text, "{}", utc.unix_timestamp()),
            Some('F') => write!(text, "{:04}-{:02}-{:02}", utc.year(), u8::from(utc.month()), utc.day()),
            Some('T') => write!(text, "{:02}:{:02}:{:02}", utc.hour(), utc.minute(), utc.second()),
            Some('b') => write!(text, "{}", &utc.month().to_string()[..3]),
            Some('z') => write!(text, "+0000"),
            Some('Z') => write!(text, "UTC"),
            Some('f') => {
                let nanos = format!("{:09}", utc.nanosecond());
                write!(text, "{}", &nanos[..width.map_or(9, |w| w.clamp(1, 9) as usize)])
            }
            Some(other) => write!(text, "%{other}"),
            None => write!(text, "%"),
        };
    }
    out.extend_from_slice(text.as_bytes());
}
