//! Opens one connection to an endpoint: TCP, then what the transport says.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meltemi_net::ConnectOptions;
use meltemi_proxy_config::cluster::Cluster;
use meltemi_proxy_config::tls::UpstreamTransport;
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;

use crate::io::Stream;
use crate::tls::{TlsConfigs, TlsUnready, check_pins};

/// What to connect to.
#[derive(Debug)]
pub struct Dial<'a> {
    /// The endpoint.
    pub address: SocketAddr,
    /// How to speak to it.
    pub transport: &'a UpstreamTransport,
    /// Replaces the transport's ALPN list.
    pub alpn: Option<&'a [Box<str>]>,
    /// Replaces the transport's SNI.
    pub server_name: Option<&'a str>,
    /// Whether the certificate must be for that name.
    pub check_name: bool,
    /// The endpoint's own name, for transports that send it as SNI.
    pub hostname: Option<&'a str>,
    /// For the PROXY protocol: source and destination of the downstream; `None` for connections of
    /// the proxy's own.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// Socket options.
    pub options: &'a ConnectOptions,
    /// Bound of TCP and TLS together.
    pub timeout: Duration,
}

/// A connection that stands.
#[derive(Debug)]
pub struct Dialled {
    pub stream: Stream,
    /// What ALPN agreed on.
    pub alpn: Option<Vec<u8>>,
    /// Who the peer proved to be: a SPIFFE identity without its scheme.
    pub principal: Option<Arc<str>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// TCP failed.
    #[error("delayed connect error: {}", words(.0))]
    Connect(io::Error),
    /// It took too long.
    #[error("connection timeout")]
    Timeout,
    /// The handshake failed.
    #[error("TLS error: {0}")]
    Tls(String),
    /// There is no configuration for TLS yet.
    #[error("TLS is not ready: {0}")]
    Unready(#[from] TlsUnready),
}

impl DialError {
    /// Why the transport failed, for logs. Envoy: a timeout is no failure of the transport.
    pub fn transport(&self) -> String {
        match self {
            Self::Timeout => String::new(),
            Self::Connect(_) | Self::Tls(_) | Self::Unready(_) => self.to_string(),
        }
    }
}

/// What the system says, without its number: as Envoy has it.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error")
        .map_or(&*text, |(words, _)| words)
        .to_owned()
}

/// Socket options of a connection to an endpoint; `mark` is the SO_MARK that lets it pass the
/// capture rules.
pub fn connect_options(
    cluster: &Cluster,
    mark: Option<u32>,
    address: SocketAddr,
) -> ConnectOptions {
    let source = cluster
        .bind
        .as_ref()
        .and_then(|bind| bind.source_for(address))
        .map(|source| source.ip());

    ConnectOptions {
        mark,
        source: source.filter(|source| !source.is_unspecified()),
        keepalive: cluster.keepalive,
    }
}

/// Connects; cancellation closes what was opened.
pub async fn dial(dial: Dial<'_>, tls: &TlsConfigs) -> Result<Dialled, DialError> {
    match tokio::time::timeout(dial.timeout, dial_unbounded(&dial, tls)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout),
    }
}

async fn dial_unbounded(dial: &Dial<'_>, tls: &TlsConfigs) -> Result<Dialled, DialError> {
    let mut transport = dial.transport;
    let mut prelude = None;
    let terms = loop {
        match transport {
            UpstreamTransport::Plaintext => break None,
            UpstreamTransport::Tls(terms) => break Some(terms),
            UpstreamTransport::Internal(inner) => transport = inner,
            UpstreamTransport::ProxyProtocol(version, inner) => {
                prelude = Some(match dial.ends {
                    Some((source, destination)) => proxy_header(*version, source, destination),
                    None => own_proxy_header(*version).to_vec(),
                });
                transport = inner;
            }
        }
    };

    // Before the connection: a missing certificate must not cost the upstream one.
    let (name, config) = match terms {
        None => ("", None),
        Some(terms) => {
            let replaced = dial
                .server_name
                .or(dial.hostname.filter(|_| terms.auto_host_sni));
            let is_checked = dial.check_name || terms.auto_sni_san_validation;
            (
                replaced.unwrap_or(&terms.sni),
                Some(tls.client(terms, dial.alpn, replaced.map(|name| (name, is_checked)))?),
            )
        }
    };

    let mut stream = meltemi_net::connect(dial.address, dial.options)
        .await
        .map_err(DialError::Connect)?;
    if let Some(prelude) = prelude {
        stream
            .write_all(&prelude)
            .await
            .map_err(DialError::Connect)?;
    }

    let (Some(terms), Some(config)) = (terms, config) else {
        return Ok(Dialled {
            stream: Stream::Plain(stream),
            alpn: None,
            principal: None,
        });
    };

    let name = match name {
        "" => ServerName::IpAddress(dial.address.ip().into()),
        name => ServerName::try_from(name.to_owned())
            .map_err(|_| DialError::Tls(format!("{name:?} is not a name")))?,
    };

    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| DialError::Tls(meltemi_tls::cause_of_io(&error)))?;

    let (_, session) = stream.get_ref();
    check_pins(&terms.common.validation, session.peer_certificates()).map_err(DialError::Tls)?;
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let principal = session
        .peer_certificates()
        .and_then(|chain| meltemi_tls::peer_spiffe(chain).ok())
        .map(|id| Arc::from(id.principal()));

    Ok(Dialled {
        stream: Stream::Tls(Box::new(stream.into())),
        alpn,
        principal,
    })
}

/// PROXY protocol, either version.
fn proxy_header(version: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    if version == 1 {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let line = format!(
            "PROXY {family} {} {} {} {}\r\n",
            source.ip(),
            destination.ip(),
            source.port(),
            destination.port()
        );
        return line.into_bytes();
    }

    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            header.extend_from_slice(&[0x11, 0, 12]);
            header.extend_from_slice(&source.ip().octets());
            header.extend_from_slice(&destination.ip().octets());
        }
        (source, destination) => {
            let six = |address: SocketAddr| match address.ip() {
                std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                std::net::IpAddr::V6(ip) => ip.octets(),
            };
            header.extend_from_slice(&[0x21, 0, 36]);
            header.extend_from_slice(&six(source));
            header.extend_from_slice(&six(destination));
        }
    }

    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());

    header
}

/// The header of a connection that is made for no client: `UNKNOWN` in version 1, `LOCAL` in
/// version 2.
fn own_proxy_header(version: u8) -> &'static [u8] {
    match version {
        1 => b"PROXY UNKNOWN\r\n",
        _ => b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_headers_are_as_the_specification_has_them() {
        let (a, b) = (
            "10.0.0.1:1000".parse().expect("a"),
            "10.0.0.2:80".parse().expect("b"),
        );

        assert_eq!(
            proxy_header(1, a, b),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\n"
        );

        let two = proxy_header(2, a, b);
        assert_eq!(&two[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c");
        assert_eq!(two.len(), 28);

        let local = own_proxy_header(2);
        assert_eq!(
            (&local[..12], &local[12..]),
            (&two[..12], &[0x20, 0, 0, 0][..])
        );
    }
}
