//! Opens one connection for a lane. It outlives the request that started it: if that one gives up,
//! the connection serves the next.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use meltemi_net::ConnectOptions;
use meltemi_proxy_config::cluster::UpstreamProtocol;
use tokio::sync::Notify;

use super::cluster::WorkerHost;
use super::connect::{Dial, DialError, Dialled, dial};
use super::live::Permit;
use super::places::OpenHere;
use super::pool::{Acquired, LaneKey, PooledH1, PooledH2, UpstreamFacts};
use crate::http1::client::H1Connection;
use crate::http2::client::{H2Connection, H2Settings};
use crate::published::ClusterEntry;
use crate::tls::is_http2;
use crate::worker::Worker;

/// Everything needed to connect; owns its data, so that it outlives the request that started it.
#[derive(Debug)]
pub struct Connecting {
    pub worker: Rc<Worker>,
    pub entry: Arc<ClusterEntry>,
    /// The endpoint.
    pub host: Rc<WorkerHost>,
    pub key: LaneKey,
    /// Replaces the transport's ALPN list.
    pub alpn: Option<Box<[Box<str>]>>,
    /// Replaces the transport's SNI, and whether the certificate must be for it.
    pub server_name: Option<(Box<str>, bool)>,
    /// Source and destination of the downstream, for the PROXY protocol.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// Socket options.
    pub options: ConnectOptions,
    /// Its place in the breaker.
    pub permit: Permit,
    /// Its place in the lane.
    pub open: OpenHere,
    /// Notified whenever a stream of the new connection ends.
    pub freed: Rc<Notify>,
}

impl Connecting {
    /// Connects.
    pub async fn make(self) -> Result<Acquired, Rc<DialError>> {
        let dialled = self.dial().await;
        self.entry.live.connected(&dialled);
        let dialled = dialled.map_err(Rc::new)?;
        let agreed = dialled.alpn.as_deref().is_some_and(is_http2);
        let http2 = match self.key.protocol {
            UpstreamProtocol::Http2 => true,
            // What ALPN says; plaintext is HTTP/1.1.
            UpstreamProtocol::Auto => agreed,
            UpstreamProtocol::Http1 | UpstreamProtocol::Downstream if agreed => {
                let why = "HTTP/2 was agreed on where HTTP/1.1 is to be spoken";
                return Err(Rc::new(DialError::Tls(why.to_owned())));
            }
            UpstreamProtocol::Http1 | UpstreamProtocol::Downstream => false,
        };

        if http2 {
            self.http2(dialled).await
        } else {
            Ok(self.http1(dialled))
        }
    }

    async fn dial(&self) -> Result<Dialled, DialError> {
        let name = self.server_name.as_ref();
        let terms = Dial {
            address: self.host.address,
            transport: &self.host.transport,
            alpn: self.alpn.as_deref(),
            server_name: name.map(|(name, _)| &**name),
            check_name: name.is_some_and(|(_, is_checked)| *is_checked),
            hostname: self.host.hostname(),
            ends: self.ends,
            options: &self.options,
            timeout: self.entry.cluster.connect_timeout,
        };

        dial(terms, &self.worker.tls).await
    }

    fn facts(&self, dialled: &mut Dialled) -> UpstreamFacts {
        let http = &self.entry.cluster.http;
        UpstreamFacts {
            principal: dialled.principal.take(),
            local: dialled.stream.socket().local_addr().ok(),
            expires: http
                .max_connection_duration
                .map(|longest| Instant::now() + longest),
            max_requests: http.max_requests_per_connection,
        }
    }

    fn http1(self, mut dialled: Dialled) -> Acquired {
        let facts = self.facts(&mut dialled);
        let connection = H1Connection::new(dialled.stream, self.worker.buffers.clone());
        Acquired::H1(
            Box::new(PooledH1 {
                connection,
                facts,
                _places: (self.permit, self.open),
            }),
            self.key,
            false,
        )
    }

    async fn http2(self, mut dialled: Dialled) -> Result<Acquired, Rc<DialError>> {
        let http = &self.entry.cluster.http;
        let options = &http.http2;
        let defaults = H2Settings::default();
        let settings = H2Settings {
            stream_window: options
                .initial_stream_window
                .unwrap_or(defaults.stream_window),
            connection_window: options
                .initial_connection_window
                .unwrap_or(defaults.connection_window),
            keepalive_interval: options.keepalive_interval,
            keepalive_timeout: options
                .keepalive_timeout
                .unwrap_or(defaults.keepalive_timeout),
            ..defaults
        };

        let facts = self.facts(&mut dialled);
        let connection = H2Connection::start(
            dialled.stream,
            &settings,
            self.worker.send_budget.clone(),
            self.freed,
            (self.permit, self.open),
        )
        .await;

        let connection = connection.map_err(|error| Rc::new(DialError::Connect(error)))?;

        Ok(Acquired::H2(Rc::new(PooledH2::new(
            connection,
            facts,
            http.max_streams(),
        ))))
    }
}
