//! Everything that a log line or a header template can name, found when it is asked for.

use std::borrow::Cow;
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use meltemi_filters::format::{Fact, Facts, Head, MetadataOf, Moment, Point, connection_fact};
use meltemi_filters::grpc::status_of_http;
use meltemi_filters::head::{RequestHead, ResponseHead};
use meltemi_filters::http::Entropy;
use meltemi_filters::metadata::Value;
use meltemi_filters::{Cause, ResponseFlag, digits};
use meltemi_proxy_config::access_log::{AccessLog, LogRecord};
use meltemi_proxy_config::endpoint::Endpoint;
use meltemi_proxy_config::route::RouteDecision;
use meltemi_types::GrpcCode;

use crate::downstream::{ChainView, Downstream};
use crate::record::StreamInfo;
use crate::upstream::cluster::WorkerCluster;
use crate::uuid::uuid;
use crate::worker::Worker;

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
    pub conn: &'a Downstream,
    pub view: &'a ChainView,
    /// Where clusters and endpoints are looked up.
    pub worker: Option<&'a Worker>,
    /// `%ACCESS_LOG_TYPE%`; `None`: the end of a request or TCP connection.
    pub log_type: Option<&'static str>,
}

/// `%ACCESS_LOG_TYPE%` of entries that belong to no request and to no served connection.
pub const NO_LOG_TYPE: &str = "NotSet";

impl<'a> LogFacts<'a> {
    /// Of a request or connection.
    pub fn new(info: &'a StreamInfo, conn: &'a Downstream, view: &'a ChainView) -> Self {
        Self {
            info,
            request: None,
            response: None,
            trailers: None,
            conn,
            view,
            worker: None,
            log_type: None,
        }
    }

    /// Writes a line to each of the logs that wants this record.
    pub fn write(&self, worker: &Worker, logs: &[Arc<AccessLog>]) {
        if logs.is_empty() {
            return;
        }

        let info = self.info;
        let record = LogRecord {
            request: self.request,
            status: info.status,
            duration_ms: u64::try_from(info.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            flags: info.state.flags,
            grpc_status: info.grpc_status,
            metadata: &info.state.metadata,
            random: info.random,
        };

        for log in logs.iter().filter(|log| log.wants(&record)) {
            worker.logs.write(log, self);
        }
    }

    fn route(&self) -> Option<RouteDecision<'_>> {
        self.view.routes.as_ref()?.at(self.info.position?)
    }

    fn cluster(&self) -> Option<Rc<WorkerCluster>> {
        self.worker?.cluster(self.info.cluster.as_ref()?)
    }

    fn cluster_name(&self, out: &mut Vec<u8>) -> bool {
        let name = self.info.cluster.as_ref();
        name.is_some_and(|name| put_text(name, out))
    }

    fn endpoint(&self) -> Option<Arc<Endpoint>> {
        let (cluster, upstream) = (self.cluster()?, self.info.upstream?);
        let entry = &cluster.entry;
        let at = entry
            .hosts
            .iter()
            .position(|host| host.as_ref().is_some_and(|host| host.address == upstream))?;
        entry.endpoints.endpoints.get(at).cloned()
    }

    /// The endpoint's own name, else its address.
    fn upstream_name(&self) -> Option<String> {
        let name = self
            .endpoint()
            .map(|endpoint| endpoint.hostname.to_string())
            .filter(|name| !name.is_empty());
        name.or_else(|| Some(self.info.upstream?.to_string()))
    }

    /// Of gRPC requests alone; where nobody told one it follows from the HTTP status, as Envoy has
    /// it.
    fn grpc_status(&self) -> Option<u32> {
        self.request.filter(|request| request.is_grpc())?;
        let of_http = || (self.info.status != 0).then(|| status_of_http(self.info.status));
        self.info.grpc_status.or_else(of_http)
    }
}

impl std::fmt::Debug for LogFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogFacts")
            .field("info", &self.info)
            .finish_non_exhaustive()
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

/// Writes the version 4 UUID that a stream's random number stands for.
fn put_uuid(random: u64, out: &mut Vec<u8>) -> bool {
    let mut entropy = Entropy::new(random);
    out.extend_from_slice(&uuid(entropy.draw(), entropy.draw()));
    true
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
        std::env::var("HOSTNAME")
            .unwrap_or_else(|_| own())
            .trim()
            .to_owned()
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
        // In headers as well, as Envoy has it.
        Some(std::env::var(name).map_or(Cow::Borrowed("-"), Cow::Owned))
    }

    fn fact(&self, fact: Fact, out: &mut Vec<u8>) -> bool {
        let info = self.info;
        let conn = &self.conn.info;
        if let Some(is_known) = connection_fact(conn, info.remote.unwrap_or(conn.remote), fact, out)
        {
            return is_known;
        }

        let address = |address: Option<SocketAddr>, out: &mut Vec<u8>| {
            address.map(|a| digits::address(a, out)).is_some()
        };
        let ip = |address: Option<SocketAddr>, out: &mut Vec<u8>| {
            address.map(|a| digits::ip(a.ip(), out)).is_some()
        };
        let port = |address: Option<SocketAddr>, out: &mut Vec<u8>| {
            address.is_some_and(|a| number(a.port(), out))
        };
        // Envoy writes the number of a code that the protocol does not define.
        let grpc = |name: fn(GrpcCode) -> &'static str, out: &mut Vec<u8>| {
            self.grpc_status()
                .is_some_and(|status| match GrpcCode::from_number(status) {
                    Some(code) => put_text(name(code), out),
                    None => number(status, out),
                })
        };

        match fact {
            Fact::Protocol => info
                .protocol
                .is_some_and(|version| put_text(version.as_str(), out)),
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
            Fact::RequestDuration => info
                .request_end
                .get()
                .is_some_and(|end| millis(end.saturating_duration_since(info.start), out)),
            Fact::ResponseDuration => info
                .response_start
                .is_some_and(|at| millis(at.saturating_duration_since(info.start), out)),
            Fact::ResponseTxDuration => info
                .response_start
                .is_some_and(|at| millis(at.elapsed(), out)),
            Fact::UpstreamHost | Fact::UpstreamRemoteAddress => address(info.upstream, out),
            Fact::UpstreamRemoteAddressWithoutPort => ip(info.upstream, out),
            Fact::UpstreamRemotePort => port(info.upstream, out),
            Fact::UpstreamCluster => match self.cluster() {
                // Envoy: the name in statistics.
                Some(cluster) => put_text(&cluster.entry.cluster.stat_name, out),
                None => self.cluster_name(out),
            },
            Fact::UpstreamClusterRaw => self.cluster_name(out),
            Fact::UpstreamLocalAddress => address(info.upstream_local, out),
            Fact::UpstreamLocalAddressWithoutPort => ip(info.upstream_local, out),
            Fact::UpstreamLocalPort => port(info.upstream_local, out),
            Fact::UpstreamTransportFailureReason => {
                // As Envoy, so that a line can be cut at its blanks.
                put_text(&info.transport_failure.replace(' ', "_"), out)
            }
            Fact::UpstreamRequestAttemptCount => number(info.attempts, out),
            Fact::UpstreamPeerUriSan => info
                .upstream_principal
                .as_ref()
                .is_some_and(|principal| put(format_args!("spiffe://{principal}"), out)),
            Fact::DownstreamTransportFailureReason => match &info.cause {
                Some(Cause::Tls(why)) => put_text(why, out),
                _ => false,
            },
            Fact::ConnectionId => number(self.conn.id, out),
            Fact::RouteName => info.route.as_ref().is_some_and(|name| put_text(name, out)),
            Fact::FilterChainName => put_text(&self.conn.chain, out),
            Fact::GrpcStatusNumber => self.grpc_status().is_some_and(|status| number(status, out)),
            Fact::GrpcStatus => grpc(GrpcCode::camel_name, out),
            Fact::GrpcStatusSnake => grpc(GrpcCode::name, out),
            Fact::UpstreamProtocol => info
                .upstream_protocol
                .is_some_and(|version| put_text(version.as_str(), out)),
            Fact::UpstreamHostName => self
                .upstream_name()
                .is_some_and(|name| put_text(&name, out)),
            Fact::UpstreamHostNameWithoutPort => self.upstream_name().is_some_and(|name| {
                let bare = name
                    .rsplit_once(':')
                    .filter(|(_, port)| port.parse::<u16>().is_ok());
                put_text(bare.map_or(&*name, |(bare, _)| bare), out)
            }),
            Fact::StreamId => match self
                .request
                .and_then(|request| request.get_str("x-request-id"))
            {
                Some(id) => put_text(id, out),
                None => put_uuid(info.random, out),
            },
            Fact::UniqueId => put_uuid(!info.random, out),
            Fact::AccessLogType => {
                let of_stream = if self.request.is_some() {
                    "DownstreamEnd"
                } else {
                    "TcpConnectionEnd"
                };
                put_text(self.log_type.unwrap_or(of_stream), out)
            }
            Fact::Cause => info.cause.as_ref().is_some_and(|cause| put(cause, out)),
            _ => false,
        }
    }

    fn time(&self, moment: Moment) -> Option<SystemTime> {
        match moment {
            Moment::Start => Some(self.info.start_time),
            Moment::EmitLog => Some(SystemTime::now()),
            _ => None,
        }
    }

    fn point(&self, point: Point) -> Option<Instant> {
        match point {
            Point::RequestStart => Some(self.info.start),
            Point::RequestEnd => self.info.request_end.get(),
            Point::ResponseStart => self.info.response_start,
            Point::End => Some(Instant::now()),
            Point::Other => None,
        }
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

    fn metadata(&self, of: MetadataOf, filter: &str, path: &[Box<str>]) -> Option<Cow<'_, Value>> {
        match of {
            MetadataOf::Dynamic => self.info.state.metadata.at(filter, path).map(Cow::Borrowed),
            MetadataOf::Listener => self
                .view
                .listener
                .metadata
                .at(filter, path)
                .map(Cow::Borrowed),
            MetadataOf::ListenerFilterChain => {
                self.view.chain.metadata.at(filter, path).map(Cow::Borrowed)
            }
            MetadataOf::Route => self
                .route()?
                .route
                .metadata
                .at(filter, path)
                .cloned()
                .map(Cow::Owned),
            MetadataOf::VirtualHost => self
                .route()?
                .host
                .metadata
                .at(filter, path)
                .cloned()
                .map(Cow::Owned),
            MetadataOf::Cluster => self
                .cluster()?
                .entry
                .cluster
                .metadata
                .at(filter, path)
                .cloned()
                .map(Cow::Owned),
            MetadataOf::UpstreamHost => self
                .endpoint()?
                .metadata
                .at(filter, path)
                .cloned()
                .map(Cow::Owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_uuids_of_version_4() {
        let mut out = Vec::new();
        assert!(put_uuid(7, &mut out) && out.len() == 36);
        assert_eq!(
            (out[8], out[13], out[14], out[18], out[23]),
            (b'-', b'-', b'4', b'-', b'-')
        );

        assert!(b"89ab".contains(&out[19]));
        let mut other = Vec::new();
        put_uuid(8, &mut other);
        assert_ne!(out, other);
    }
}
