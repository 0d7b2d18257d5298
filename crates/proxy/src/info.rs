//! What becomes known of a request or connection on its way, for logs, metrics and the cause of its end.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use meltemi_filters::format::{Fact, Facts, Head, MetadataOf, Moment};
use meltemi_filters::grpc::MessageCount;
use meltemi_filters::head::{HttpVersion, RequestHead, ResponseHead};
use meltemi_filters::http::StreamState;
use meltemi_filters::metadata::Value;
use meltemi_filters::peer_metadata::PeerInfo;
use meltemi_filters::{Cause, LocalReply, ResponseFlag};

use crate::counts::ClusterCounts;
use crate::digits;
use crate::downstream::{ChainView, Downstream};

/// gRPC messages of one exchange, both ways; over all its attempts, since what is sent again came once.
#[derive(Debug, Default)]
pub struct Messages {
    /// Of the client.
    pub requests: Cell<MessageCount>,
    /// Of the server.
    pub responses: Cell<MessageCount>,
}

/// The record of one request or TCP connection.
#[derive(Debug)]
pub struct StreamInfo {
    /// When it began, for durations.
    pub start: Instant,
    /// When it began, for people.
    pub start_time: SystemTime,
    /// `None` for TCP.
    pub protocol: Option<HttpVersion>,
    /// The client, where it is another than the peer of the connection: from `x-forwarded-for`.
    pub remote: Option<SocketAddr>,
    /// The status that was sent; 0 before.
    pub status: u16,
    /// `grpc-status`, from head or trailers.
    pub grpc_status: Option<u32>,
    /// What filters share: flags, metadata, peers.
    pub state: StreamState,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination: Cow<'static, str>,
    /// What caused a local reply or refusal.
    pub cause: Option<Cause>,
    /// Body bytes from the downstream.
    pub received: Cell<u64>,
    /// Body bytes to the downstream.
    pub sent: Cell<u64>,
    /// The route's name.
    pub route: Option<Arc<str>>,
    /// The virtual host's name.
    pub host: Option<Arc<str>>,
    /// The cluster.
    pub cluster: Option<Arc<str>>,
    /// The endpoint.
    pub upstream: Option<SocketAddr>,
    /// Our end of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Who the endpoint proved to be.
    pub upstream_principal: Option<Arc<str>>,
    /// Why a transport failed.
    pub transport_failure: String,
    /// Attempts so far.
    pub attempts: u32,
    /// When the whole request had arrived.
    pub request_end: Cell<Option<Instant>>,
    /// When the response head had arrived.
    pub response_start: Option<Instant>,
    /// One random number for all decisions on it.
    pub random: u64,
    /// What the endpoint's metadata says of its workload.
    pub workload: Option<Arc<PeerInfo>>,
    /// A cookie that consistent hashing wants set.
    pub set_cookie: Option<String>,
    /// `None` unless it is gRPC and its messages are counted.
    pub messages: Option<Rc<Messages>>,
    /// Of the cluster that it was forwarded to.
    pub counts: Option<Rc<ClusterCounts>>,
}

impl StreamInfo {
    /// Begins now.
    pub fn new(random: u64) -> Self {
        Self {
            start: Instant::now(),
            start_time: SystemTime::now(),
            protocol: None,
            remote: None,
            status: 0,
            grpc_status: None,
            state: StreamState::default(),
            details: Cow::Borrowed(""),
            termination: Cow::Borrowed(""),
            cause: None,
            received: Cell::new(0),
            sent: Cell::new(0),
            route: None,
            host: None,
            cluster: None,
            upstream: None,
            upstream_local: None,
            upstream_principal: None,
            transport_failure: String::new(),
            attempts: 0,
            request_end: Cell::new(None),
            response_start: None,
            random,
            workload: None,
            set_cookie: None,
            messages: None,
            counts: None,
        }
    }

    /// Notes what a local reply says.
    pub fn note(&mut self, reply: &LocalReply) {
        if let Some(flag) = reply.flag {
            self.state.flags.insert(flag);
        }
        self.details = reply.details.clone();
        self.cause = Some(reply.cause.clone());
    }

    /// Notes an end without reply.
    pub fn end(&mut self, flag: ResponseFlag, details: impl Into<Cow<'static, str>>, cause: Option<Cause>) {
        self.state.flags.insert(flag);
        self.details = details.into();
        if cause.is_some() {
            self.cause = cause;
        }
    }
}

/// Everything a log line can name.
#[derive(Clone, Copy)]
pub struct LogFacts<'a> {
    /// The record.
    pub info: &'a StreamInfo,
    /// `None` for TCP.
    pub request: Option<&'a RequestHead>,
    /// `None` before a response.
    pub response: Option<&'a ResponseHead>,
    /// Trailers of the response.
    pub trailers: Option<&'a http::HeaderMap>,
    /// The connection.
    pub conn: &'a Downstream,
    /// Its configuration.
    pub view: &'a ChainView,
}

impl<'a> LogFacts<'a> {
    /// Of a request or connection.
    pub fn new(info: &'a StreamInfo, conn: &'a Downstream, view: &'a ChainView) -> Self {
        Self { info, request: None, response: None, trailers: None, conn, view }
    }
}

impl std::fmt::Debug for LogFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogFacts").field("info", &self.info).finish_non_exhaustive()
    }
}

fn millis(duration: Duration, out: &mut Vec<u8>) -> bool {
    number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), out)
}

fn number(value: impl itoa::Integer, out: &mut Vec<u8>) -> bool {
    digits::integer(value, out);
    true
}

fn put(value: impl std::fmt::Display, out: &mut Vec<u8>) -> bool {
    // Writing to memory cannot fail.
    write!(out, "{value}").is_ok()
}

fn put_text(value: &str, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(value.as_bytes());
    !value.is_empty()
}

/// What this machine or container is called.
fn hostname() -> &'static str {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| {
        let own = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        std::env::var("HOSTNAME").unwrap_or_else(|_| own()).trim().to_owned()
    })
}

impl Facts for LogFacts<'_> {
    fn header(&self, head: Head, name: &str) -> Option<Cow<'_, [u8]>> {
        Some(match head {
            Head::Request => Cow::Borrowed(self.request?.get(name)?),
            Head::Response => self.response?.get(name)?,
            Head::Trailer => Cow::Borrowed(self.trailers?.get(name)?.as_bytes()),
        })
    }

    fn environment(&self, name: &str) -> Option<Cow<'_, str>> {
        std::env::var(name).ok().map(Cow::Owned)
    }

    fn fact(&self, fact: Fact, out: &mut Vec<u8>) -> bool {
        let info = self.info;
        let conn = &self.conn.info;
        let tls = conn.tls.as_deref();
        let remote = info.remote.unwrap_or(conn.remote);
        let address =
            |address: Option<SocketAddr>, out: &mut Vec<u8>| address.map(|a| digits::address(a, out)).is_some();
        let ip = |address: Option<SocketAddr>, out: &mut Vec<u8>| address.map(|a| digits::ip(a.ip(), out)).is_some();
        let port = |address: Option<SocketAddr>, out: &mut Vec<u8>| address.is_some_and(|a| number(a.port(), out));
        let joined =
            |names: Option<&Vec<String>>, out: &mut Vec<u8>| names.is_some_and(|n| put_text(&n.join(","), out));
        match fact {
            Fact::Protocol => info.protocol.is_some_and(|version| put_text(version.as_str(), out)),
            Fact::Hostname => put_text(hostname(), out),
            Fact::ResponseCode => number(info.status, out),
            Fact::ResponseCodeDetails => put_text(&info.details, out),
            Fact::ConnectionTerminationDetails => put_text(&info.termination, out),
            Fact::ResponseFlags => put(info.state.flags, out),
            Fact::ResponseFlagsLong => {
                let names: Vec<_> = info.state.flags.iter().map(ResponseFlag::long).collect();
                put_text(&names.join(","), out)
            }
            Fact::BytesReceived => number(info.received.get(), out),
            Fact::BytesSent => number(info.sent.get(), out),
            Fact::Duration => millis(info.start.elapsed(), out),
            Fact::RequestDuration => {
                info.request_end.get().is_some_and(|end| millis(end.saturating_duration_since(info.start), out))
            }
            Fact::ResponseDuration => {
                info.response_start.is_some_and(|at| millis(at.saturating_duration_since(info.start), out))
            }
            Fact::ResponseTxDuration => info.response_start.is_some_and(|at| millis(at.elapsed(), out)),
            Fact::UpstreamHost | Fact::UpstreamRemoteAddress => address(info.upstream, out),
            Fact::UpstreamRemoteAddressWithoutPort => ip(info.upstream, out),
            Fact::UpstreamRemotePort => port(info.upstream, out),
            Fact::UpstreamCluster | Fact::UpstreamClusterRaw => {
                info.cluster.as_ref().is_some_and(|cluster| put_text(cluster, out))
            }
            Fact::UpstreamLocalAddress => address(info.upstream_local, out),
            Fact::UpstreamLocalAddressWithoutPort => ip(info.upstream_local, out),
            Fact::UpstreamLocalPort => port(info.upstream_local, out),
            Fact::UpstreamTransportFailureReason => put_text(&info.transport_failure, out),
            Fact::UpstreamRequestAttemptCount => number(info.attempts, out),
            Fact::UpstreamPeerUriSan => {
                info.upstream_principal.as_ref().is_some_and(|principal| put(format_args!("spiffe://{principal}"), out))
            }
            Fact::DownstreamRemoteAddress => address(Some(remote), out),
            Fact::DownstreamRemoteAddressWithoutPort => ip(Some(remote), out),
            Fact::DownstreamRemotePort => port(Some(remote), out),
            Fact::DownstreamDirectRemoteAddress => address(Some(conn.direct_remote), out),
            Fact::DownstreamDirectRemoteAddressWithoutPort => ip(Some(conn.direct_remote), out),
            Fact::DownstreamDirectRemotePort => port(Some(conn.direct_remote), out),
            Fact::DownstreamLocalAddress => address(Some(conn.local), out),
            Fact::DownstreamLocalAddressWithoutPort => ip(Some(conn.local), out),
            Fact::DownstreamLocalPort => port(Some(conn.local), out),
            Fact::DownstreamTransportFailureReason => match &info.cause {
                Some(Cause::Tls(why)) => put_text(why, out),
                _ => false,
            },
            Fact::DownstreamTlsCipher => tls.is_some_and(|tls| put_text(&tls.cipher, out)),
            Fact::DownstreamTlsVersion => tls.is_some_and(|tls| put_text(tls.version, out)),
            Fact::DownstreamPeerSubject => tls.is_some_and(|tls| put_text(&tls.subject, out)),
            Fact::DownstreamPeerIssuer => tls.is_some_and(|tls| put_text(&tls.issuer, out)),
            Fact::DownstreamPeerUriSan => joined(tls.map(|tls| &tls.uri_sans), out),
            Fact::DownstreamPeerDnsSan => joined(tls.map(|tls| &tls.dns_sans), out),
            Fact::DownstreamPeerFingerprint256 => tls.is_some_and(|tls| put_text(&tls.fingerprint, out)),
            Fact::DownstreamLocalUriSan => joined(tls.map(|tls| &tls.local_uri_sans), out),
            Fact::RequestedServerName => conn.server_name.as_ref().is_some_and(|name| put_text(name, out)),
            Fact::ConnectionId => number(self.conn.id, out),
            Fact::RouteName => info.route.as_ref().is_some_and(|name| put_text(name, out)),
            Fact::FilterChainName => put_text(&self.conn.chain, out),
            Fact::GrpcStatusNumber => info.grpc_status.is_some_and(|status| number(status, out)),
            Fact::GrpcStatus => info.grpc_status.is_some_and(|status| put_text(grpc_name(status), out)),
            Fact::Cause => info.cause.as_ref().is_some_and(|cause| put(cause, out)),
            _ => false,
        }
    }

    fn time(&self, moment: Moment, format: &str, out: &mut Vec<u8>) -> bool {
        let at = match moment {
            Moment::Start => self.info.start_time,
            Moment::EmitLog => SystemTime::now(),
            _ => return false,
        };
        write_time(at, format, out);
        true
    }

    fn filter_state(&self, key: &str, field: Option<&str>) -> Option<Cow<'_, str>> {
        let info = self.info;
        // A peer that told nothing of itself may be known from its endpoint.
        let told = info.state.named(key, field);
        let known = || match key {
            "upstream_peer" => info.workload.as_deref()?.field(field?),
            _ => None,
        };
        told.or_else(known).map(Cow::Borrowed)
    }

    fn metadata(&self, of: MetadataOf, filter: &str, path: &[Box<str>]) -> Option<&Value> {
        match of {
            MetadataOf::Dynamic => self.info.state.metadata.at(filter, path),
            MetadataOf::Listener => self.view.listener.metadata.at(filter, path),
            MetadataOf::ListenerFilterChain => self.view.chain.metadata.at(filter, path),
            _ => None,
        }
    }
}

/// The name of a gRPC status.
pub fn grpc_name(status: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(status as usize).copied().unwrap_or("InvalidCode")
}

/// Writes UTC by a strftime pattern: the conversions that log formats use. Empty is Envoy's own,
/// `%Y-%m-%dT%H:%M:%S.%3fZ`.
pub fn write_time(at: SystemTime, format: &str, out: &mut Vec<u8>) {
    if format.is_empty() {
        return digits::timestamp(at, out);
    }
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = digits::civil(since.as_secs() / 86_400);
    let (second, nanos) = ((since.as_secs() % 86_400) as u32, since.subsec_nanos());
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let Some(first) = rest.chars().next() else { break };
        let mut used = first.len_utf8();
        match first {
            'Y' => digits::padded(year, 4, out),
            'm' => digits::padded(month, 2, out),
            'd' => digits::padded(day, 2, out),
            'H' => digits::padded(second / 3600, 2, out),
            'M' => digits::padded(second / 60 % 60, 2, out),
            'S' => digits::padded(second % 60, 2, out),
            'F' => digits::date(since, out),
            'T' => digits::clock(since, out),
            'b' => out.extend_from_slice(MONTHS[(month as usize + 11) % 12].as_bytes()),
            'z' => out.extend_from_slice(b"+0000"),
            'Z' => out.extend_from_slice(b"UTC"),
            's' => digits::integer(since.as_secs(), out),
            'f' => digits::padded(nanos, 9, out),
            '%' => out.push(b'%'),
            digit if digit.is_ascii_digit() && rest[used..].starts_with('f') => {
                used += 1;
                let wanted = digit.to_digit(10).unwrap_or(9).clamp(1, 9);
                digits::padded(nanos / 10_u32.pow(9 - wanted), wanted as usize, out);
            }
            other => {
                out.push(b'%');
                out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        rest = &rest[used..];
    }
    out.extend_from_slice(rest.as_bytes());
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// RFC 9110 §5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn write_http_date(seconds: u64, out: &mut Vec<u8>) {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = digits::civil(days);
    let (weekday, month) = (DAYS[(days % 7) as usize], MONTHS[(month as usize + 11) % 12]);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    // Writing to memory cannot fail.
    let _ = write!(out, "{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_210_096_007);
        let show = |format| {
            let mut out = Vec::new();
            write_time(at, format, &mut out);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(show(""), "2024-02-29T12:34:56.007Z");
        assert_eq!(show("%s.%6f 100%%"), "1709210096.007000 100%");
        assert_eq!(show("%Y/%m/%d %H:%M:%S.%3f"), "2024/02/29 12:34:56.007");
        assert_eq!(show("%d %b %F %T %z %Z %q %"), "29 Feb 2024-02-29 12:34:56 +0000 UTC %q ");
    }

    #[test]
    fn dates_are_as_http_writes_them() {
        let mut out = Vec::new();
        write_http_date(784_111_777, &mut out);
        assert_eq!(out, b"Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
