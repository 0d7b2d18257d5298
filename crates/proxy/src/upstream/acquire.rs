//! A connection for one request: from the pool, or new, within what the breakers allow.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use meltemi_filters::{Cause, ResponseFlag};
use meltemi_proxy_config::cluster::UpstreamProtocol;
use meltemi_proxy_config::tls::UpstreamTransport;
use rustls_pki_types::ServerName;

use super::cluster::{WorkerCluster, WorkerHost};
use super::connect::{Dial, DialError, Dialled, dial};
use super::live::Resource;
use super::pool::{H2Lookup, LaneKey, PooledH1, PooledH2, UpstreamFacts};
use crate::downstream::Downstream;
use crate::http1::client::H1Connection;
use crate::http2::client::{H2Connection, H2Settings};
use crate::worker::Worker;

/// A connection to use.
#[derive(Debug)]
pub enum Acquired {
    /// Ours alone until the exchange ends; give it back to the lane if it stays usable.
    H1(Box<PooledH1>, LaneKey, bool),
    /// Shared.
    H2(Rc<PooledH2>),
}

/// Why there is none.
#[derive(Debug)]
pub enum NotAcquired {
    /// A breaker refused.
    Overflow(Resource),
    /// Connecting failed.
    Dial(DialError),
    /// The certificate must be for the request's host, and that is no name.
    Name,
}

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
            Self::Dial(error) => error.to_string(),
            Self::Overflow(_) => String::new(),
            Self::Name => "the host is no name that a certificate could be for".to_owned(),
        }
    }

    /// Envoy's words for a reset before any response.
    pub fn reset_reason(&self) -> &'static str {
        match self {
            Self::Overflow(_) => "overflow",
            Self::Dial(DialError::Timeout) => "connection timeout",
            Self::Dial(_) | Self::Name => "remote connection failure",
        }
    }

    /// What caused it.
    pub fn cause(&self, cluster: &Arc<str>, host: &WorkerHost) -> Cause {
        match self {
            Self::Overflow(resource) => Cause::Breaker(cluster.clone(), resource.threshold()),
            Self::Dial(_) | Self::Name => Cause::Endpoint(cluster.clone(), host.address, self.transport().into()),
        }
    }
}

/// What the request asks of the connection.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The cluster.
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
    /// The downstream connection.
    pub conn: &'a Downstream,
}

fn lane(ask: &Ask<'_>) -> LaneKey {
    let mut transport = &ask.host.transport;
    let terms = loop {
        match transport {
            UpstreamTransport::Plaintext => break 0,
            UpstreamTransport::Tls(terms) => break Arc::as_ptr(terms) as usize,
            UpstreamTransport::ProxyProtocol(_, inner) | UpstreamTransport::Internal(inner) => transport = inner,
        }
    };
    let own = ask.cluster.entry.cluster.pool_per_downstream || carries_addresses(&ask.host.transport);
    let mut alpn = words(ask.alpn.into_iter().flatten().map(|name| &**name));
    if let Some((name, _)) = server_name(ask) {
        alpn ^= keyed(name);
    }
    // A connection that says who the downstream is belongs to that downstream.
    (terms, if own { alpn ^ (ask.conn.id as usize) << 1 | 1 } else { alpn })
}

/// The SNI in place of the transport's, and whether the certificate must be for it. Envoy: `auto_sni` takes the request's
/// host unless that is an address, `auto_san_validation` has the certificate checked against it, addresses too.
fn server_name<'a>(ask: &Ask<'a>) -> Option<(&'a str, bool)> {
    let http = &ask.cluster.entry.cluster.http;
    let own = ask.server_name.map(|name| (name, false));
    if !http.auto_sni {
        return own;
    }
    let host = host_of(ask.authority);
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
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

/// A hash that nobody outside can aim: names come from requests, and two names must not share a connection.
fn keyed(name: &str) -> usize {
    use std::hash::{BuildHasher, RandomState};
    thread_local! {
        static KEY: RandomState = RandomState::new();
    }
    KEY.with(|key| key.hash_one(name)) as usize
}

/// FNV-1a over a list of words; 0 for none.
fn words<'a>(list: impl Iterator<Item = &'a str>) -> usize {
    list.flat_map(|word| word.bytes().chain([0]))
        .fold(0, |hash: usize, byte| (hash ^ usize::from(byte)).wrapping_add(1).wrapping_mul(0x0100_0000_01b3))
}

fn carries_addresses(transport: &UpstreamTransport) -> bool {
    match transport {
        UpstreamTransport::ProxyProtocol(..) => true,
        UpstreamTransport::Internal(inner) => carries_addresses(inner),
        _ => false,
    }
}

/// Gets a connection. Cancellation-safe.
pub async fn acquire(worker: &Worker, ask: &Ask<'_>) -> Result<Acquired, NotAcquired> {
    let key = lane(ask);
    let http2 = match ask.cluster.entry.cluster.protocol {
        _ if ask.http1_only => false,
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Downstream => ask.http2_downstream,
        UpstreamProtocol::Auto => return acquire_auto(worker, ask, key).await,
    };
    if http2 { acquire_h2(worker, ask, key).await } else { acquire_h1(worker, ask, key).await }
}

async fn acquire_h1(worker: &Worker, ask: &Ask<'_>, key: LaneKey) -> Result<Acquired, NotAcquired> {
    let pool = &ask.host.pool;
    if let Some(pooled) = pool.take_h1(key) {
        return Ok(Acquired::H1(Box::new(pooled), key, true));
    }
    let live = &ask.cluster.entry.live;
    let _pending = live.admit(ask.high, Resource::Pending).ok_or(NotAcquired::Overflow(Resource::Pending))?;
    let permit = loop {
        if let Some(permit) = live.admit(ask.high, Resource::Connections) {
            break permit;
        }
        // An endpoint without any connection may always have one: nobody else could serve those who wait for it.
        if pool.opened() == 0 {
            break live.admit_over(ask.high, Resource::Connections);
        }
        pool.freed().await;
        if let Some(pooled) = pool.take_h1(key) {
            return Ok(Acquired::H1(Box::new(pooled), key, true));
        }
    };
    let open = pool.open_one();
    let dialled = connect(worker, ask).await?;
    Ok(h1(worker, ask, dialled, permit, open, key))
}

/// When a connection that is made now must no longer be used.
fn expiry(ask: &Ask<'_>) -> Option<Instant> {
    ask.cluster.entry.cluster.http.max_connection_duration.map(|longest| Instant::now() + longest)
}

fn h1(
    worker: &Worker,
    ask: &Ask<'_>,
    dialled: Dialled,
    permit: super::live::Permit,
    open: super::pool::OpenHere,
    key: LaneKey,
) -> Acquired {
    let local = dialled.stream.socket().local_addr().ok();
    let facts = UpstreamFacts { principal: dialled.principal, local, expires: expiry(ask) };
    let connection = H1Connection::new(dialled.stream, worker.buffers.clone());
    Acquired::H1(Box::new(PooledH1 { connection, facts, permit, open }), key, false)
}

async fn acquire_h2(worker: &Worker, ask: &Ask<'_>, key: LaneKey) -> Result<Acquired, NotAcquired> {
    let pool = &ask.host.pool;
    let live = &ask.cluster.entry.live;
    let mut pending = None;
    loop {
        match pool.find_h2(key) {
            H2Lookup::Open(pooled) => return Ok(Acquired::H2(pooled)),
            H2Lookup::Wait(notify) => {
                if pending.is_none() {
                    let permit = live.admit(ask.high, Resource::Pending);
                    pending = Some(permit.ok_or(NotAcquired::Overflow(Resource::Pending))?);
                }
                notify.notified().await;
            }
            H2Lookup::Connect(connecting) => {
                let permit = match live.admit(ask.high, Resource::Connections) {
                    Some(permit) => permit,
                    None if pool.opened() == 0 => live.admit_over(ask.high, Resource::Connections),
                    None => return Err(NotAcquired::Overflow(Resource::Connections)),
                };
                let open = pool.open_one();
                let dialled = connect(worker, ask).await?;
                let pooled = h2(ask, dialled, (permit, open)).await?;
                pool.give_h2(key, pooled.clone());
                drop(connecting);
                return Ok(Acquired::H2(pooled));
            }
        }
    }
}

async fn h2<G: std::fmt::Debug + 'static>(
    ask: &Ask<'_>,
    dialled: Dialled,
    guard: G,
) -> Result<Rc<PooledH2>, NotAcquired> {
    let options = &ask.cluster.entry.cluster.http.http2;
    let defaults = H2Settings::default();
    let settings = H2Settings {
        stream_window: options.initial_stream_window.unwrap_or(defaults.stream_window),
        connection_window: options.initial_connection_window.unwrap_or(defaults.connection_window),
        keepalive_interval: options.keepalive_interval,
        keepalive_timeout: options.keepalive_timeout.unwrap_or(defaults.keepalive_timeout),
        ..defaults
    };
    let local = dialled.stream.socket().local_addr().ok();
    let facts = UpstreamFacts { principal: dialled.principal, local, expires: expiry(ask) };
    let connection = H2Connection::start(dialled.stream, &settings, guard).await;
    let connection = connection.map_err(|error| NotAcquired::Dial(DialError::Connect(error)))?;
    Ok(Rc::new(PooledH2 { connection, facts }))
}

/// What ALPN says; plaintext is HTTP/1.1.
async fn acquire_auto(worker: &Worker, ask: &Ask<'_>, key: LaneKey) -> Result<Acquired, NotAcquired> {
    let pool = &ask.host.pool;
    if let Some(pooled) = pool.open_h2(key) {
        return Ok(Acquired::H2(pooled));
    }
    if let Some(pooled) = pool.take_h1(key) {
        return Ok(Acquired::H1(Box::new(pooled), key, true));
    }
    let live = &ask.cluster.entry.live;
    let _pending = live.admit(ask.high, Resource::Pending).ok_or(NotAcquired::Overflow(Resource::Pending))?;
    let permit = match live.admit(ask.high, Resource::Connections) {
        Some(permit) => permit,
        None if pool.opened() == 0 => live.admit_over(ask.high, Resource::Connections),
        None => return Err(NotAcquired::Overflow(Resource::Connections)),
    };
    let open = pool.open_one();
    let dialled = connect(worker, ask).await?;
    if dialled.alpn.as_deref() == Some(b"h2") {
        let pooled = h2(ask, dialled, (permit, open)).await?;
        pool.give_h2(key, pooled.clone());
        return Ok(Acquired::H2(pooled));
    }
    Ok(h1(worker, ask, dialled, permit, open, key))
}

async fn connect(worker: &Worker, ask: &Ask<'_>) -> Result<Dialled, NotAcquired> {
    let options = crate::tcp::connect_options(worker, ask.cluster, ask.host.address);
    let name = server_name(ask);
    if name.is_some_and(|(name, _)| ServerName::try_from(name).is_err()) {
        return Err(NotAcquired::Name);
    }
    let dialling = Dial {
        address: ask.host.address,
        transport: &ask.host.transport,
        alpn: ask.alpn,
        server_name: name.map(|(name, _)| name),
        check_name: name.is_some_and(|(_, is_checked)| is_checked),
        hostname: ask.host.hostname(),
        ends: Some((ask.conn.info.remote, ask.conn.info.local)),
        options: &options,
        timeout: ask.cluster.entry.cluster.connect_timeout,
    };
    let dialled = dial(dialling, &worker.tls).await;
    dialled.map_err(|error| {
        ask.cluster.entry.live.connect_fail.fetch_add(1, Relaxed);
        NotAcquired::Dial(error)
    })
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
