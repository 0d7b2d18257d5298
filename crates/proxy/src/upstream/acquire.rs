//! A connection for one request: from the pool, or new, within what the breakers allow.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use meltemi_filters::{Cause, ResponseFlag};
use meltemi_proxy_config::cluster::UpstreamProtocol;
use meltemi_proxy_config::tls::UpstreamTransport;
use rustls_pki_types::ServerName;
use tokio::sync::oneshot;

use super::cluster::{WorkerCluster, WorkerHost};
use super::connect::{DialError, connect_options};
use super::connecting::Connecting;
use super::live::Resource;
use super::pool::{Acquired, HostPool, LaneKey};
use crate::downstream::Downstream;
use crate::worker::Worker;

/// Why there is none.
#[derive(Debug)]
pub enum NotAcquired {
    /// A breaker refused.
    Overflow(Resource),
    /// Connecting failed. Several requests may have waited for the same connection.
    Dial(Rc<DialError>),
    /// The certificate must be for the request's host, and that is no name.
    Name,
}

/// Why [`NotAcquired::Name`] fails.
pub const NO_NAME: &str = "the host is no name that a certificate could be for";

impl NotAcquired {
    /// Envoy's flag for it.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Overflow(_) => ResponseFlag::UpstreamOverflow,
            Self::Dial(_) | Self::Name => ResponseFlag::UpstreamConnectionFailure,
        }
    }

    /// Whether it counts against the endpoint.
    pub fn blames_host(&self) -> bool {
        matches!(self, Self::Dial(_))
    }

    /// Why the transport failed, for logs.
    pub fn transport(&self) -> String {
        match self {
            Self::Dial(error) => error.transport(),
            Self::Overflow(_) => String::new(),
            Self::Name => NO_NAME.to_owned(),
        }
    }

    /// Envoy's words for a reset before any response.
    pub fn reset_reason(&self) -> &'static str {
        match self {
            Self::Overflow(_) => "overflow",
            Self::Dial(error) if matches!(**error, DialError::Timeout) => "connection timeout",
            Self::Dial(_) | Self::Name => "remote connection failure",
        }
    }

    /// What caused it.
    pub fn cause(&self, cluster: &Arc<str>, host: &WorkerHost) -> Cause {
        match self {
            Self::Overflow(resource) => Cause::Breaker(cluster.clone(), resource.threshold()),
            Self::Dial(error) => {
                Cause::Endpoint(cluster.clone(), host.address, error.to_string().into())
            }
            Self::Name => Cause::Endpoint(cluster.clone(), host.address, NO_NAME.into()),
        }
    }
}

/// What the request asks of the connection.
#[derive(Debug)]
pub struct ConnectRequest<'a> {
    pub cluster: &'a WorkerCluster,
    /// The endpoint.
    pub host: &'a Rc<WorkerHost>,
    /// Replaces the transport's ALPN list.
    pub alpn: Option<&'a [Box<str>]>,
    /// Replaces the transport's SNI.
    pub server_name: Option<&'a str>,
    /// The downstream speaks HTTP/2.
    pub http2_downstream: bool,
    /// The request's host, or the header that the cluster takes in its place for automatic SNI.
    pub authority: &'a str,
    /// The request must have HTTP/1.1 (an upgrade).
    pub http1_only: bool,
    /// High priority.
    pub high: bool,
    /// The downstream connection; `None` for requests of the proxy's own.
    pub downstream: Option<&'a Downstream>,
}

fn lane(request: &ConnectRequest<'_>) -> LaneKey {
    let terms = request
        .host
        .transport
        .tls()
        .map_or(0, |terms| Arc::as_ptr(terms) as usize);

    let own = request.cluster.entry.cluster.pool_per_downstream
        || carries_addresses(&request.host.transport);
    let mut words = hash_of(request.alpn.into_iter().flatten().map(|name| &**name));
    if let Some((name, _)) = server_name(request) {
        words ^= keyed(name);
    }
    if own {
        // A connection that says who the downstream is belongs to that downstream.
        let id = request.downstream.map_or(0, |conn| conn.id);
        words = words ^ (id as usize) << 1 | 1;
    }

    let protocol = match request.cluster.entry.cluster.protocol {
        _ if request.http1_only => UpstreamProtocol::Http1,
        UpstreamProtocol::Downstream if request.http2_downstream => UpstreamProtocol::Http2,
        UpstreamProtocol::Downstream => UpstreamProtocol::Http1,
        protocol => protocol,
    };

    LaneKey {
        terms,
        words,
        protocol,
    }
}

/// The SNI in place of the transport's, and whether the certificate must be for it. Envoy:
/// `auto_sni` takes the request's host unless that is an address, `auto_san_validation` has the
/// certificate checked against it, addresses too.
fn server_name<'a>(request: &ConnectRequest<'a>) -> Option<(&'a str, bool)> {
    let http = &request.cluster.entry.cluster.http;
    let own = request.server_name.map(|name| (name, false));
    if !http.auto_sni {
        return own;
    }
    let host = host_of(request.authority);

    match ServerName::try_from(host) {
        Ok(ServerName::DnsName(_)) => Some((host, http.auto_san_validation)),
        // An address is checked and never sent.
        _ if http.auto_san_validation => Some((host, true)),
        _ => own,
    }
}

/// The authority without its port and brackets.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
        None => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
    }
}

/// A hash that nobody outside can aim: names come from requests, and two names must not share a
/// connection.
fn keyed(name: &str) -> usize {
    use std::hash::{BuildHasher, RandomState};
    thread_local! {
        static KEY: RandomState = RandomState::new();
    }
    KEY.with(|key| key.hash_one(name)) as usize
}

/// FNV-1a over a list of words; 0 for none.
fn hash_of<'a>(list: impl Iterator<Item = &'a str>) -> usize {
    list.flat_map(|word| word.bytes().chain([0]))
        .fold(0, |hash: usize, byte| {
            (hash ^ usize::from(byte))
                .wrapping_add(1)
                .wrapping_mul(0x0100_0000_01b3)
        })
}

fn carries_addresses(transport: &UpstreamTransport) -> bool {
    match transport {
        UpstreamTransport::ProxyProtocol(..) => true,
        UpstreamTransport::Internal(inner) => carries_addresses(inner),
        _ => false,
    }
}

/// Gets a connection. Cancellation-safe.
pub async fn acquire(
    worker: &Rc<Worker>,
    request: &ConnectRequest<'_>,
) -> Result<Acquired, NotAcquired> {
    let key = lane(request);
    let pool = &request.host.pool;
    if let Some(acquired) = pooled(pool, key) {
        return Ok(acquired);
    }
    let live = &request.cluster.entry.live;
    let _pending = live
        .admit(request.high, Resource::Pending)
        .ok_or(NotAcquired::Overflow(Resource::Pending))?;
    request.cluster.counts.pending.inc();
    let places = pool.places(key);
    let permit = loop {
        if let Some(permit) = places.admit(live, request.high) {
            break permit;
        }
        let changed = places.changed().await;
        if let Some(acquired) = pooled(pool, key) {
            return Ok(acquired);
        }
        changed.map_err(NotAcquired::Dial)?;
    };

    let name = server_name(request);
    if name.is_some_and(|(name, _)| ServerName::try_from(name).is_err()) {
        return Err(NotAcquired::Name);
    }
    let (mut promised, open) = places.connect(promise(request, key));
    let connecting = Connecting {
        worker: worker.clone(),
        entry: request.cluster.entry.clone(),
        host: request.host.clone(),
        key,
        alpn: request.alpn.map(Into::into),
        server_name: name.map(|(name, is_checked)| (name.into(), is_checked)),
        ends: request
            .downstream
            .map(|conn| (conn.info.remote, conn.info.local)),
        options: connect_options(
            &request.cluster.entry.cluster,
            worker.common.mark,
            request.host.address,
        ),
        permit,
        open,
        freed: places.freed(),
    };

    let (mut tell, made) = oneshot::channel();
    let host = request.host.clone();

    // A task of its own, which the connect timeout ends: as with Envoy, a request that gives up
    // leaves the connection to others. A connection that takes longer than a request would wait
    // would otherwise never be.
    tokio::task::spawn_local(async move {
        let mut connecting = pin!(connecting.make());
        let made = tokio::select! {
            biased;
            made = &mut connecting => made,
            () = tell.closed() => {
                promised.abandon();
                connecting.await
            }
        };

        let made = match made {
            Ok(made) => Ok((made, promised)),
            Err(error) => {
                promised.fail(error.clone());
                Err(error)
            }
        };

        match tell.send(made) {
            Err(Ok((Acquired::H1(pooled, key, _), _))) => host.pool.keep_h1(key, *pooled),
            Err(Ok((Acquired::H2(pooled), _))) => host.pool.give_h2(key, pooled),
            Ok(()) | Err(Err(_)) => {}
        }
    });

    // An error: the worker ends.
    let made = made
        .await
        .unwrap_or_else(|_| Err(Rc::new(DialError::Timeout)));
    let (acquired, promised) = made.map_err(NotAcquired::Dial)?;
    if let Acquired::H2(pooled) = &acquired {
        // Now, and not before: the stream that is opened at once is the first.
        pooled.count_request();
        pool.give_h2(key, pooled.clone());
    }

    drop(promised);

    Ok(acquired)
}

/// A connection of the lane that stands and has room.
fn pooled(pool: &HostPool, key: LaneKey) -> Option<Acquired> {
    if key.protocol != UpstreamProtocol::Http1
        && let Some(pooled) = pool.take_h2(key)
    {
        return Some(Acquired::H2(pooled));
    }

    if key.protocol != UpstreamProtocol::Http2
        && let Some(pooled) = pool.take_h1(key)
    {
        return Some(Acquired::H1(Box::new(pooled), key, true));
    }

    None
}

/// How many requests a new connection will carry at a time, for all that can be known before it
/// stands.
fn promise(request: &ConnectRequest<'_>, key: LaneKey) -> u32 {
    let http = &request.cluster.entry.cluster.http;
    match (key.protocol, http.max_requests_per_connection) {
        (UpstreamProtocol::Http2, 0) => http.max_streams(),
        (UpstreamProtocol::Http2, most) => http.max_streams().min(most),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_neither_port_nor_brackets() {
        for (authority, host) in [
            ("www.googleapis.com", "www.googleapis.com"),
            ("www.googleapis.com:443", "www.googleapis.com"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("", ""),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }

    #[test]
    fn names_have_hashes_of_their_own() {
        assert_ne!(keyed("a"), keyed("b"));
        assert_eq!(keyed("a"), keyed("a"));
    }
}
