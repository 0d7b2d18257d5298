//! Connections of agents: plaintext, or TLS with the control plane's own, rotated certificate.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use meltemi_ca::CertificateAuthority;
use meltemi_tls::{ClientAuth, PeerRule, ServerTerms};
use meltemi_web::Places;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::auth::{Peer, PeerCertificate, WithPeer};

/// A handshake that takes longer ends.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections at a time whose clients have shown no certificate, handshakes among them. A further
/// one takes the place of another, see [`Places`]: silent strangers keep nobody out.
const STRANGERS: usize = 2048;
/// The least time between two attempts to issue the server certificate.
const RETRY: Duration = Duration::from_secs(1);
/// How long a certificate that ended while the machine slept stays in use after it woke up.
const SLICE: Duration = Duration::from_secs(5);

/// The names under which Istio's agents know the control plane.
const SERVER_NAMES: &[&str] = &[
    "istiod.istio-system.svc",
    "istiod.istio-system",
    "istiod.istio-system.svc.cluster.local",
    "istiod",
    "istio-pilot.istio-system.svc",
    "localhost",
];

/// The control plane's own certificate: issued by its own CA, renewed at half of its life.
pub(crate) struct ServerCertificate {
    authority: Arc<CertificateAuthority>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    lifetime: Duration,
    /// When the first one ends.
    expires: SystemTime,
    config: ArcSwap<rustls::ServerConfig>,
}

impl ServerCertificate {
    pub(crate) fn new(
        authority: Arc<CertificateAuthority>,
        extra_names: &[String],
        mut addresses: Vec<IpAddr>,
        lifetime: Duration,
    ) -> anyhow::Result<Self> {
        let names = SERVER_NAMES
            .iter()
            .map(|&name| name.to_owned())
            .chain(extra_names.iter().cloned());

        let mut names: Vec<String> = names.collect();
        names.dedup();
        addresses.retain(|address| !address.is_unspecified());
        addresses.extend([
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ]);

        addresses.sort();
        addresses.dedup();
        let (config, expires) = issue(&authority, &names, &addresses, lifetime)?;

        Ok(Self {
            authority,
            names,
            addresses,
            lifetime,
            expires,
            config: ArcSwap::from(config),
        })
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Renews until cancelled.
    pub(crate) async fn rotate(self: Arc<Self>, stop: CancellationToken) {
        self.rotate_by(SystemTime::now, stop).await;
    }

    async fn rotate_by(&self, clock: impl Fn() -> SystemTime, stop: CancellationToken) {
        let half = |expires: SystemTime| expires.duration_since(clock()).unwrap_or_default() / 2;
        let mut wait = half(self.expires);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = wait_until(clock() + wait.max(RETRY), &clock) => {}
            }

            match issue(&self.authority, &self.names, &self.addresses, self.lifetime) {
                Ok((config, expires)) => {
                    self.config.store(config);
                    wait = half(expires);
                    tracing::info!(lifetime = ?(wait * 2), "control plane certificate renewed");
                }
                Err(error) => {
                    tracing::error!(%error, "control plane certificate not renewed; trying again");
                    wait = RETRY;
                }
            }
        }
    }
}

/// In slices: the monotonic clock stands still while a laptop sleeps, the certificate's time does
/// not.
async fn wait_until(due: SystemTime, clock: impl Fn() -> SystemTime) {
    while let Ok(left) = due.duration_since(clock())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(SLICE)).await;
    }
}

fn issue(
    authority: &CertificateAuthority,
    names: &[String],
    addresses: &[IpAddr],
    lifetime: Duration,
) -> anyhow::Result<(Arc<rustls::ServerConfig>, SystemTime)> {
    let identity = authority.server_identity(names, addresses, lifetime)?;
    let terms = ServerTerms {
        alpn: vec!["h2".to_owned()],
        // A client without a certificate may still have a token; a wrong certificate is never
        // welcome.
        client_auth: ClientAuth::Optional,
        rule: PeerRule::Spiffe,
        ..ServerTerms::default()
    };

    let config = meltemi_tls::server_config(&terms, &identity, Some(&authority.trust()?))?;

    Ok((config, identity.not_after()))
}

/// Accepted connections as tonic takes them.
pub(crate) type Incoming<S> = ReceiverStream<io::Result<WithPeer<S>>>;

/// Accepts TLS connections until cancelled. Handshakes run beside each other, so a slow one holds
/// nobody up.
pub(crate) fn accept_tls(
    listener: TcpListener,
    certificate: Arc<ServerCertificate>,
    stop: CancellationToken,
) -> Incoming<TlsStream<TcpStream>> {
    accept_tls_within(Places::new(STRANGERS), listener, certificate, stop)
}

fn accept_tls_within(
    places: Places,
    listener: TcpListener,
    certificate: Arc<ServerCertificate>,
    stop: CancellationToken,
) -> Incoming<TlsStream<TcpStream>> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let Some((stream, address)) = accept(&listener, &stop).await else {
                return;
            };
            let mut place = places.admit(Some(address.ip()));
            let (acceptor, sender) = (certificate.acceptor(), sender.clone());
            tokio::spawn(async move {
                let shaken = tokio::select! {
                    shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
                    () = place.lost() => {
                        tracing::debug!(%address, "TLS handshake given up for another connection");
                        return;
                    }
                };
                match shaken {
                    Ok(Ok(stream)) => {
                        let chain = stream.get_ref().1.peer_certificates();
                        let certificate = chain.and_then(|chain| shown(chain.first()?));
                        let peer = Peer {
                            address,
                            certificate,
                            is_secure: true,
                        };
                        // Who has shown a certificate is no stranger any more.
                        let place = peer.certificate.is_none().then_some(place);
                        let admitted = WithPeer {
                            stream,
                            peer,
                            place,
                        };
                        _ = sender.send(Ok(admitted)).await;
                    }
                    Ok(Err(error)) => tracing::warn!(%address, %error, "TLS handshake refused"),
                    // As many as a stranger likes: not in the log.
                    Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
                }
            });
        }
    });

    ReceiverStream::new(receiver)
}

/// What a client's certificate says; the handshake has verified it.
fn shown(leaf: &CertificateDer<'_>) -> Option<PeerCertificate> {
    let info = meltemi_tls::info_of(leaf).ok()?;
    Some(PeerCertificate {
        identity: info.spiffe().ok()?,
        info: Arc::new(info),
    })
}

/// Accepts plaintext connections until cancelled.
pub(crate) fn accept_plaintext(
    listener: TcpListener,
    stop: CancellationToken,
) -> Incoming<TcpStream> {
    let (sender, receiver) = mpsc::channel(16);
    let places = Places::new(STRANGERS);
    tokio::spawn(async move {
        while let Some((stream, address)) = accept(&listener, &stop).await {
            let peer = Peer {
                address,
                certificate: None,
                is_secure: false,
            };
            let admitted = WithPeer {
                stream,
                peer,
                place: Some(places.admit(Some(address.ip()))),
            };
            if sender.send(Ok(admitted)).await.is_err() {
                return;
            }
        }
    });

    ReceiverStream::new(receiver)
}

/// The next connection; `None` when cancelled. Running out of file descriptors passes.
async fn accept(
    listener: &TcpListener,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    _ = stream.set_nodelay(true);
                    return Some((stream, address));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

mod io_impls {
    //! Reading and writing pass through.

    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use crate::auth::WithPeer;

    impl<S: AsyncRead + Unpin> AsyncRead for WithPeer<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(place) = &mut self.place
                && place.poll_lost(cx).is_ready()
            {
                self.place = None;
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }

            let before = buf.filled().len();
            let read = Pin::new(&mut self.stream).poll_read(cx, buf);
            // In plaintext nobody can show who they are: whoever speaks may stay.
            if !self.peer.is_secure && buf.filled().len() > before {
                self.place = None;
            }
            read
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for WithPeer<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
        }
        fn is_write_vectored(&self) -> bool {
            self.stream.is_write_vectored()
        }
    }
}

#[cfg(test)]
mod tests {
    use meltemi_types::TrustDomain;

    use super::*;

    /// Connects from an address of the loopback network.
    async fn connect_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[tokio::test]
    async fn silent_strangers_keep_nobody_out() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        use tokio_stream::StreamExt as _;

        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(
            CertificateAuthority::self_signed(dir.path(), TrustDomain::default()).unwrap(),
        );
        let day = Duration::from_secs(24 * 3600);
        let certificate = ServerCertificate::new(authority.clone(), &[], Vec::new(), day).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let places = Places::new(4);
        let mut incoming = accept_tls_within(places, listener, Arc::new(certificate), stop);

        let terms = meltemi_tls::ClientTerms {
            rule: meltemi_tls::ServerRule::Host("localhost".into()),
            ..Default::default()
        };
        let config = meltemi_tls::client_config(&terms, None, &authority.trust().unwrap()).unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let name = || rustls::pki_types::ServerName::try_from("localhost").unwrap();

        // An agent that has no certificate yet, and a workload that takes all places again and
        // again, in silence or with a handshake.
        let agent = connect_from([127, 0, 0, 1], address).await;
        let mut agent = connector.connect(name(), agent).await.unwrap();
        let mut served = incoming.next().await.unwrap().unwrap();
        let mut strangers = Vec::new();
        for _ in 0..12 {
            strangers.push(connect_from([127, 0, 0, 2], address).await);
        }
        let loud = connect_from([127, 0, 0, 2], address).await;
        let _loud = connector.connect(name(), loud).await.unwrap();
        let mut loud = incoming.next().await.unwrap().unwrap();
        for _ in 0..12 {
            strangers.push(connect_from([127, 0, 0, 2], address).await);
        }

        let another = connect_from([127, 0, 0, 3], address).await;
        connector.connect(name(), another).await.unwrap();
        incoming.next().await.unwrap().unwrap();
        assert_eq!(
            strangers[0].read(&mut [0]).await.unwrap_or_default(),
            0,
            "the eldest silent one is closed"
        );
        assert!(
            loud.read(&mut [0]).await.is_err(),
            "a stranger after TLS, too"
        );

        agent.write_all(b"x").await.unwrap();
        agent.flush().await.unwrap();
        assert_eq!(served.read(&mut [0]).await.unwrap(), 1, "the agent stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_slept_has_a_valid_certificate_soon_after() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(
            CertificateAuthority::self_signed(dir.path(), TrustDomain::default()).unwrap(),
        );
        let lifetime = Duration::from_secs(24 * 3600);
        let certificate =
            Arc::new(ServerCertificate::new(authority, &[], Vec::new(), lifetime).unwrap());

        // The wall clock goes on while the machine sleeps; the runtime's does not.
        let (slept, started) = (
            Arc::new(std::sync::Mutex::new(Duration::ZERO)),
            tokio::time::Instant::now(),
        );

        let wall = SystemTime::now();
        let clock = {
            let slept = Arc::clone(&slept);
            move || wall + started.elapsed() + *slept.lock().unwrap()
        };

        let (stop, first) = (CancellationToken::new(), certificate.config.load_full());
        let is_first = || Arc::ptr_eq(&first, &certificate.config.load_full());
        let rotating = {
            let (certificate, stop) = (Arc::clone(&certificate), stop.clone());
            tokio::spawn(async move { certificate.rotate_by(clock, stop).await })
        };

        tokio::time::sleep(lifetime / 4).await;
        assert!(is_first(), "a quarter of its life is no time to renew it");
        *slept.lock().unwrap() = lifetime;
        tokio::time::sleep(SLICE * 2).await;
        assert!(!is_first(), "it ended while the machine slept");
        stop.cancel();
        rotating.await.unwrap();
    }
}
