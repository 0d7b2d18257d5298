//! Accepts connections and brings them to what serves them: original destination, first bytes,
//! filter chain, TLS, network filters.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meltemi_filters::{Cause, ConnInfo, ResponseFlag, TlsPeer, TransportProtocol};
use meltemi_net::inspect::Hello;
use meltemi_net::{HttpSniff, TlsSniff, TlsSniffer, sniff_http};
use meltemi_proxy_config::http::Codec;
use meltemi_proxy_config::listener::{FilterChain, Listener, Terminal};
use meltemi_proxy_config::tls::DownstreamTls;
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::StartHandshake;

use crate::causes::TlsReason;
use crate::counts::{ListenerCounts, OpenConnection};
use crate::downstream::Downstream;
use crate::http1;
use crate::http2;
use crate::io::{Io, Prefixed, Stream};
use crate::log_facts::{LogFacts, NO_LOG_TYPE};
use crate::network_ext_authz::refused_by_service;
use crate::network_rbac::{Admission, counted_admission};
use crate::record::StreamInfo;
use crate::tcp;
use crate::timer::sleep;
use crate::tls::{check_pins, is_http2};
use crate::worker::Worker;

/// A TLS handshake takes no longer, unless configuration says otherwise.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// After `accept` failed (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How often an error of accepting is logged.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// Bytes that inspection may hold.
const MAX_INSPECTED: usize = 16 * 1024;

/// Accepts for a listener, for as long as the task lives.
pub async fn accept(worker: Rc<Worker>, name: Arc<str>, socket: std::net::TcpListener) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(listener = %name, %error, "socket cannot be used");
            return;
        }
    };

    // An error may last, as that of a process without free descriptors: it is not for the log each
    // time.
    let mut said: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Latency counts for more than packets.
                let _ = stream.set_nodelay(true);
                let worker = worker.clone();
                let name = name.clone();
                tokio::task::spawn_local(async move { serve(worker, &name, stream, peer).await });
            }
            Err(error) => {
                if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                    said = Some(Instant::now());
                    tracing::warn!(listener = %name, %error, "accept failed; it is tried again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What inspection has found.
#[derive(Default)]
struct Inspected {
    bytes: Vec<u8>,
    hello: Option<Box<Hello>>,
    http: Option<HttpSniff>,
    closed: bool,
}

/// Why a connection is refused, as Envoy logs it.
struct Refusal {
    flag: Option<ResponseFlag>,
    details: &'static str,
    cause: Cause,
}

/// Where the client of a captured connection wanted to go; `None` if it dialled the listener itself.
/// `own` is the address of the accepted socket.
fn original_destination(
    listener: &Listener,
    stream: &TcpStream,
    own: SocketAddr,
) -> Option<SocketAddr> {
    let restores = listener.filters.restores_original_dst() || listener.use_original_dst;
    let redirected = restores
        .then(|| meltemi_net::original_destination(stream))
        .flatten()
        // The kernel knows the destination of connections that it redirected nowhere as well.
        .filter(|original| *original != own);

    // TPROXY gives the accepted socket the address that the client dialled.
    redirected.or_else(|| (listener.transparent && !listener.listens_on(own)).then_some(own))
}

/// A connection that has shown what it is.
struct Known {
    listener: Arc<Listener>,
    chain: Arc<FilterChain>,
    counts: Rc<ListenerCounts>,
    info: ConnInfo,
    stream: Stream,
    inspected: Inspected,
}

async fn serve(worker: Rc<Worker>, name: &str, stream: TcpStream, peer: SocketAddr) {
    let mut place = worker.strangers.admit(Some(peer.ip()));
    let known = tokio::select! {
        known = identify(&worker, name, stream, peer) => known,
        // Another client needs the place.
        () = place.lost() => {
            let cause = Cause::Overload("half-open connections");
            let flag = ResponseFlag::OverloadManagerTerminated;
            worker.causes.refusal(&cause, Some(flag));
            return;
        }
    };
    drop(place);

    let Some(known) = known else {
        return;
    };
    let view = Rc::new(worker.view_for(&known.listener, &known.chain));
    let registered = worker.register(known.info, view);
    let Known {
        counts,
        stream,
        inspected,
        ..
    } = known;
    serve_chain(worker, &registered.conn, &counts, stream, inspected).await;
}

/// Reads a connection's first bytes, chooses its filter chain and takes its TLS off. `None`: it is
/// gone, or refused.
async fn identify(
    worker: &Rc<Worker>,
    name: &str,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Option<Known> {
    let published = worker.published();
    let arrived = published.snapshot.listener(name)?;
    let own = stream.local_addr().ok()?;
    let original = original_destination(arrived, &stream, own);
    if let Some(keepalive) = &arrived.keepalive {
        // A connection without probes is still a connection.
        let _ = meltemi_net::socket::set_keepalive((&stream).into(), keepalive);
    }

    let mut info = ConnInfo::plain(original.unwrap_or(own), peer);
    info.captured = original.is_some();
    let listener = published
        .snapshot
        .find_listener(arrived, info.local)
        .clone();

    // The connection may outlive this configuration by hours.
    drop(published);

    let counts = worker.counts.listener(&listener.name);
    counts.connections.inc();
    let mut inspected = Inspected::default();
    match inspect_in_time(&listener, &mut stream, &mut info, &mut inspected).await {
        Ok(()) => {}
        Err(Uninspected::Gone) => return None,
        Err(Uninspected::Refused(refusal)) => {
            refuse(worker, &listener, None, info, refusal);
            return None;
        }
    }

    let Some(chain) = listener.chains.select(&info).cloned() else {
        counts.no_chain.inc();
        let refusal = Refusal {
            flag: Some(ResponseFlag::NoRouteFound),
            details: "filter_chain_not_found",
            cause: Cause::NoFilterChain(listener.name.clone()),
        };
        refuse(worker, &listener, None, info, refusal);
        return None;
    };

    let stream = match chain.transport.tls().cloned() {
        None => Stream::Plain(stream),
        Some(terms) => {
            match terminate(worker, &chain, &terms, stream, &mut inspected, &mut info).await {
                Ok(stream) => {
                    counts.handshakes.inc();
                    stream
                }
                Err((reason, why)) => {
                    counts.failed_handshake(reason);
                    worker.causes.handshake(reason);
                    let refusal = Refusal {
                        flag: None,
                        details: "",
                        cause: Cause::Tls(why.into()),
                    };
                    refuse(worker, &listener, Some(&chain), info, refusal);
                    return None;
                }
            }
        }
    };

    Some(Known {
        listener,
        chain,
        counts,
        info,
        stream,
        inspected,
    })
}

/// Serves a connection under the newest version of its filter chain, if network filters allow it.
async fn serve_chain(
    worker: Rc<Worker>,
    conn: &Rc<Downstream>,
    counts: &Rc<ListenerCounts>,
    stream: Stream,
    inspected: Inspected,
) {
    // The handshake took its time: the newest version holds.
    let view = worker.view_of(conn);
    let _open = OpenConnection::of(counts, view.counts.as_ref());
    let tally = &worker.counts.connections;
    if let Admission::Refused(policy) = counted_admission(&view.chain, &conn.info, tally) {
        tcp::refuse(&worker, conn, &view, policy);
        return;
    }
    if let Some(refusal) = refused_by_service(&worker, conn, &view.chain).await {
        tcp::refuse_by_service(&worker, conn, &view, refusal);
        return;
    }

    let _places = match tcp::Limits::of(&worker, &view) {
        Ok(places) => places,
        Err(prefix) => {
            tcp::refuse_over_limit(&worker, conn, &view, prefix);
            return;
        }
    };

    let conn = conn.clone();
    let chain = view.chain.clone();
    match &chain.terminal {
        Terminal::Tcp(_) => tcp::serve(worker, conn, view, stream, inspected.bytes).await,
        Terminal::Http(http) => serve_http(worker, conn, http.codec, stream, inspected).await,
    }
}

/// Why inspection brought no answer.
enum Uninspected {
    /// The connection failed before it could be served.
    Gone,
    /// The first bytes are bad, or came too late.
    Refused(Refusal),
}

/// Inspects within the time that the listener allows.
async fn inspect_in_time(
    listener: &Listener,
    stream: &mut TcpStream,
    info: &mut ConnInfo,
    inspected: &mut Inspected,
) -> Result<(), Uninspected> {
    let inspection = inspect(listener, stream, info, inspected);
    let finished = match listener.filters.timeout {
        None => Some(inspection.await),
        Some(limit) => tokio::time::timeout(limit, inspection).await.ok(),
    };

    let (flag, details, cause) = match finished {
        Some(Ok(())) => return Ok(()),
        None if listener.filters.continue_on_timeout => return Ok(()),
        Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => (
            Some(ResponseFlag::DownstreamProtocolError),
            "listener_filter_error",
            Cause::Protocol(error.to_string().into()),
        ),
        Some(Err(_)) => return Err(Uninspected::Gone),
        None => (
            None,
            "listener_filter_timeout",
            Cause::Timeout("listener filters timeout", listener.name.clone()),
        ),
    };

    Err(Uninspected::Refused(Refusal {
        flag,
        details,
        cause,
    }))
}

/// Reads first bytes until every sniffer that is on knows enough. They stay in `inspected`.
async fn inspect(
    listener: &Listener,
    stream: &mut TcpStream,
    info: &mut ConnInfo,
    inspected: &mut Inspected,
) -> io::Result<()> {
    let port = info.local.port();
    let (tls, http) = (
        listener.filters.inspects_tls(port),
        listener.filters.inspects_http(port),
    );

    if !tls && !http {
        return Ok(());
    }
    let mut sniffer = TlsSniffer::default();
    let mut may_be_tls = tls;

    loop {
        let mut more = false;
        if may_be_tls {
            match sniffer.feed(&inspected.bytes) {
                TlsSniff::NeedMore => more = true,
                TlsSniff::NotTls => may_be_tls = false,
                TlsSniff::Hello(hello) => {
                    info.transport = TransportProtocol::Tls;
                    info.server_name = hello.server_name.as_deref().map(Into::into);
                    info.application_protocols =
                        hello.alpn.iter().map(|name| name.as_str().into()).collect();
                    inspected.hello = Some(hello);
                    return Ok(());
                }
                TlsSniff::Broken(reason) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                }
            }
        }

        if !more && http {
            match sniff_http(&inspected.bytes) {
                HttpSniff::NeedMore => more = true,
                found => {
                    inspected.http = Some(found);
                    info.application_protocols = found.alpn().map(Into::into).into_iter().collect();
                }
            }
        }

        if !more || inspected.closed || inspected.bytes.len() >= MAX_INSPECTED {
            return Ok(());
        }

        // A client that closes early is served with the bytes that it sent.
        if stream.read_buf(&mut inspected.bytes).await? == 0 {
            inspected.closed = true;
        }
    }
}

/// Ends TLS here. Fills in what the handshake proves.
async fn terminate(
    worker: &Worker,
    chain: &FilterChain,
    terms: &Arc<DownstreamTls>,
    mut stream: TcpStream,
    inspected: &mut Inspected,
    info: &mut ConnInfo,
) -> Result<Stream, (TlsReason, String)> {
    let limit = chain.handshake_timeout.unwrap_or(HANDSHAKE);
    let handshake = async {
        let hello = match inspected.hello.take() {
            Some(hello) => hello,
            None => hello(&mut stream, &mut inspected.bytes).await?,
        };

        inspected.bytes = Vec::new();
        if terms.require_sni && hello.server_name.is_none() {
            return Err((
                TlsReason::NoServerName,
                "the client sent no server name".to_owned(),
            ));
        }

        let config = worker
            .tls
            .server(terms, &hello.alpn)
            .map_err(|error| (TlsReason::Unready, error.to_string()))?;

        let start = StartHandshake::from_parts(hello.accepted, stream);
        let stream = start.into_stream(config).await;
        stream.map_err(|error| (TlsReason::of(&error), meltemi_tls::cause_of_io(&error)))
    };

    let late = |_| (TlsReason::Timeout, "handshake timeout".to_owned());
    let stream = tokio::time::timeout(limit, handshake)
        .await
        .map_err(late)??;
    let (_, session) = stream.get_ref();
    check_pins(&terms.common.validation, session.peer_certificates())
        .map_err(|why| (TlsReason::Certificate, why))?;
    let own = worker.tls.own_names(terms);
    info.tls = Some(Arc::new(peer(session, own)));
    info.transport = TransportProtocol::Tls;
    if info.server_name.is_none() {
        info.server_name = session
            .server_name()
            .map(|name| name.to_ascii_lowercase().into());
    }

    Ok(Stream::Tls(Box::new(stream.into())))
}

async fn hello(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
) -> Result<Box<Hello>, (TlsReason, String)> {
    let mut sniffer = TlsSniffer::default();
    loop {
        match sniffer.feed(bytes) {
            TlsSniff::Hello(hello) => return Ok(hello),
            TlsSniff::NotTls => {
                return Err((
                    TlsReason::Plaintext,
                    "plaintext where TLS is required".to_owned(),
                ));
            }
            TlsSniff::Broken(reason) => return Err((TlsReason::Malformed, reason.to_owned())),
            TlsSniff::NeedMore => {}
        }

        match stream.read_buf(bytes).await {
            Ok(0) => return Err((TlsReason::Closed, "closed before a ClientHello".to_owned())),
            Ok(_) => {}
            Err(error) => return Err((TlsReason::Closed, error.to_string())),
        }
    }
}

fn peer(session: &rustls::ServerConnection, local_uri_sans: Vec<String>) -> TlsPeer {
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };

    let base = TlsPeer {
        local_uri_sans,
        alpn: session
            .alpn_protocol()
            .map(|alpn| String::from_utf8_lossy(alpn).into_owned()),
        version,
        cipher: session
            .negotiated_cipher_suite()
            .map(|suite| format!("{:?}", suite.suite()))
            .unwrap_or_default(),
        ..TlsPeer::default()
    };

    let leaf: Option<&CertificateDer<'_>> = session.peer_certificates().and_then(<[_]>::first);

    match leaf.map(meltemi_tls::info_of) {
        Some(Ok(certificate)) => TlsPeer {
            presented: true,
            // A certificate that does not verify ends the handshake.
            validated: true,
            uri_sans: certificate.uri_sans,
            dns_sans: certificate.dns_sans,
            subject: certificate.subject,
            issuer: certificate.issuer,
            fingerprint: certificate.sha256,
            certificate: leaf
                .map(|der| bytes::Bytes::copy_from_slice(der))
                .unwrap_or_default(),
            ..base
        },
        _ => base,
    }
}

/// Closes a connection that no filter chain serves, counts it, and logs it as Envoy does.
fn refuse(
    worker: &Rc<Worker>,
    listener: &Arc<Listener>,
    chain: Option<&Arc<FilterChain>>,
    info: ConnInfo,
    refusal: Refusal,
) {
    let Refusal {
        flag,
        details,
        cause,
    } = refusal;
    tracing::debug!(listener = %listener.name, peer = %info.remote, destination = %info.local, %cause, "refused");
    worker.causes.refusal(&cause, flag);
    if listener.access_logs.is_empty() {
        return;
    }
    let Some(any) = chain.or_else(|| listener.chains.iter().next()) else {
        return;
    };
    let view = Rc::new(worker.view_for(listener, any));
    let conn = Rc::new(Downstream::new(0, info, view.clone()));
    let mut record = StreamInfo::new(worker.random());

    if let Some(flag) = flag {
        record.state.flags.insert(flag);
    }
    record.details = details.into();
    record.cause = Some(cause);
    let facts = LogFacts {
        log_type: Some(NO_LOG_TYPE),
        ..LogFacts::new(&record, &conn, &view)
    };

    facts.write(worker, &listener.access_logs);
}

async fn serve_http(
    worker: Rc<Worker>,
    conn: Rc<Downstream>,
    codec: Codec,
    stream: Stream,
    inspected: Inspected,
) {
    let mut first = inspected.bytes;
    let alpn = conn.info.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
    let mut stream = stream;
    let http2 = match (codec, alpn) {
        (Codec::Http1, _) => false,
        (Codec::Http2, _) => true,
        (Codec::Auto, Some(alpn)) => is_http2(alpn.as_bytes()),
        (Codec::Auto, None) => match inspected.http {
            Some(found) => found == HttpSniff::Http2,
            None => match prior_knowledge(&worker, &conn, &mut stream, &mut first).await {
                Some(http2) => http2,
                None => return,
            },
        },
    };

    if http2 {
        if first.is_empty() {
            http2::server::serve(worker, conn, stream).await;
        } else {
            http2::server::serve(worker, conn, Prefixed::new(first, stream)).await;
        }
    } else {
        http1::server::serve(worker, conn, Io::new(stream), first).await;
    }
}

/// Reads until it is clear whether the client begins with the HTTP/2 preface; `None`: the client
/// left, or is silent.
async fn prior_knowledge(
    worker: &Worker,
    conn: &Downstream,
    stream: &mut Stream,
    first: &mut Vec<u8>,
) -> Option<bool> {
    let idle = worker
        .view_of(conn)
        .http
        .as_ref()
        .and_then(|http| http.idle_timeout);

    loop {
        let preface = meltemi_net::inspect::H2_PREFACE;
        let common = first.len().min(preface.len());
        if first[..common] != preface[..common] {
            return Some(false);
        }
        if common == preface.len() {
            return Some(true);
        }
        let io_read = async {
            if first.capacity() == first.len() {
                first.reserve(4096);
            }
            stream.read_buf(first).await
        };

        let read = tokio::select! {
            read = io_read => read,
            () = conn.draining() => return None,
            () = sleep(idle) => return None,
        };

        if !matches!(read, Ok(n) if n > 0) {
            return None;
        }
    }
}
