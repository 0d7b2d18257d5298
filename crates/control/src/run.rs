//! Putting it together: what starts, in which order, and how it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use meltemi_api::mesh::FixedField;
use meltemi_proto::ca::CertificateServiceServer;
use meltemi_store::{AppliedStore, Directory, FileSource, FileSourceOptions, Store, World};
use meltemi_translate::Memo;
use meltemi_xds::{AdsServer, ServerTerms};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::audit::Audit;
use crate::auth::Authenticator;
use crate::clock::now_ms;
use crate::csr::{Csr, Issued};
use crate::http::{Api, bind_socket, serve_socket, serve_tcp};
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::options::ControlOptions;
use crate::push::{Connections, Pusher, account};
use crate::transport::{Incoming, ServerCertificate, accept_plaintext, accept_tls};

/// A dead client is noticed after this and half as much again.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where a running control plane listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// xDS and CSR API over TLS.
    pub secure: SocketAddr,
    /// In plaintext, if asked for.
    pub plaintext: Option<SocketAddr>,
    /// Health, metrics, debugging.
    pub http: Option<SocketAddr>,
}

/// A running control plane. Dropping it ends it at once; [`ControlPlane::shutdown`] waits for its
/// tasks.
pub struct ControlPlane {
    addresses: Addresses,
    worlds: watch::Receiver<Arc<World>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _sources: Sources,
}

/// Runs a control plane until cancelled, or until one of its parts ends, which it never should.
pub async fn run(options: ControlOptions, stop: CancellationToken) -> anyhow::Result<()> {
    let mut control = ControlPlane::start(options).await?;
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        part = control.tasks.join_next() => Err(anyhow::anyhow!("a part of the control plane ended: {part:?}")),
    };
    control.shutdown().await;
    ended
}

impl ControlPlane {
    /// Binds everything, then starts to read the sources and to serve. Errors name what is in the
    /// way.
    pub async fn start(mut options: ControlOptions) -> anyhow::Result<Self> {
        // The authority signs for one trust domain, whatever MeshConfig says.
        Arc::make_mut(&mut options.build.mesh_defaults).trust_domain =
            options.authority.trust_domain().to_string();
        options.build.mesh_fixed.push(FixedField::TrustDomain);
        let secure = bind(options.secure, "xDS (15012)").await?;
        let plaintext = match options.plaintext {
            Some(address) => Some(bind(address, "plaintext xDS (15010)").await?),
            None => None,
        };

        let http = match options.http {
            Some(address) => Some(bind(address, "HTTP (15014)").await?),
            None => None,
        };

        let socket = match &options.socket {
            Some(path) => Some(
                bind_socket(path)
                    .with_context(|| format!("cannot open the socket {}", path.display()))?,
            ),
            None => None,
        };

        let addresses = Addresses {
            secure: secure.local_addr()?,
            plaintext: plaintext
                .as_ref()
                .map(TcpListener::local_addr)
                .transpose()?,
            http: http.as_ref().map(TcpListener::local_addr).transpose()?,
        };

        let (sources, applied) = start_store(&options)?;
        let worlds = sources.store.worlds();

        let authority = options.authority.clone();
        let trust_domain = authority.trust_domain().clone();
        let authenticator = Arc::new(Authenticator::new(options.tokens.clone(), trust_domain));
        let mut names = options.server_addresses.clone();

        names.push(addresses.secure.ip());
        let certificate = ServerCertificate::new(
            authority.clone(),
            &options.server_names,
            names,
            options.server_lifetime,
        )
        .context("cannot issue the control plane's own certificate")?;

        let certificate = Arc::new(certificate);

        let (metrics, memo) = (Arc::new(Metrics::new()), Arc::new(Memo::new()));
        let (connections, issued) = (
            Arc::new(Connections::default()),
            Arc::new(Issued::default()),
        );

        let audit = Arc::new(Audit::new(options.state.join("audit.log")));

        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let pusher = Arc::new(Pusher {
            worlds: worlds.clone(),
            memo: memo.clone(),
            authenticator: authenticator.clone(),
            connections: connections.clone(),
            issued: issued.clone(),
            audit: audit.clone(),
            metrics: metrics.clone(),
            turns: Arc::new(Semaphore::new(cores)),
        });

        let terms = ServerTerms {
            max_age: options.stream_age,
            ..ServerTerms::default()
        };

        let limit = Arc::new(Csr::limit());
        let csr = || Csr {
            authority: authority.clone(),
            authenticator: authenticator.clone(),
            issued: issued.clone(),
            limit: limit.clone(),
            audit: audit.clone(),
            metrics: metrics.clone(),
        };

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let incoming = accept_tls(secure, certificate.clone(), stop.clone());

        tasks.spawn(serve(incoming, pusher.clone(), terms, csr(), stop.clone()));
        if let Some(listener) = plaintext {
            tracing::warn!(address = ?addresses.plaintext, "xDS is served in plaintext, without authentication");
            tasks.spawn(serve(
                accept_plaintext(listener, stop.clone()),
                pusher,
                terms,
                csr(),
                stop.clone(),
            ));
        }

        tasks.spawn(certificate.rotate(stop.clone()));
        tasks.spawn(until(
            stop.clone(),
            account(worlds.clone(), memo.clone(), metrics.clone()),
        ));

        let api = Arc::new(Api {
            worlds: worlds.clone(),
            connections,
            issued,
            metrics: metrics.clone(),
            memo,
            authority,
            authenticator,
            objects: Objects {
                applied: Arc::new(applied),
                applied_folder: options.state.join("applied"),
                runtime: options.runtime.clone(),
                worlds: worlds.clone(),
                options: Arc::new(options.build),
                metrics,
            },
            started_at_ms: now_ms(),
        });

        if let Some(listener) = http {
            tasks.spawn(serve_tcp(listener, api.clone(), stop.clone()));
        }
        if let Some(listener) = socket {
            tasks.spawn(serve_socket(listener, api, stop.clone()));
        }
        tracing::info!(secure = %addresses.secure, http = ?addresses.http, "control plane serves");

        Ok(Self {
            addresses,
            worlds,
            stop,
            tasks,
            _sources: sources,
        })
    }

    /// Where it listens; ports that were 0 are filled in.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The newest world of the store.
    pub fn worlds(&self) -> watch::Receiver<Arc<World>> {
        self.worlds.clone()
    }

    /// Ends everything. Streams end with UNAVAILABLE; their clients keep what they have.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        _ = tokio::time::timeout(Duration::from_secs(2), all).await;
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The user's directories count before what was applied, and that before what the mesh brings.
fn start_store(options: &ControlOptions) -> anyhow::Result<(Sources, AppliedStore)> {
    let applied = options.state.join("applied");
    let applied = AppliedStore::open(&applied, options.config.clone())
        .with_context(|| format!("cannot keep applied objects in {}", applied.display()))?;
    let mut directories: Vec<Directory> = options.config.iter().map(Directory::of_users).collect();
    directories.push(applied.source());
    directories.extend(options.runtime.iter().map(Directory::of_programs));
    let mut builder = Store::builder(options.build.clone());
    let sender = builder.source("files");
    let source = FileSourceOptions {
        turn: applied.turn(),
        ..FileSourceOptions::new(directories, Some(options.state.join("last-good")))
    };
    let files =
        FileSource::start(source, sender).context("cannot start reading the configuration")?;
    let store = builder.start().context("cannot start the store")?;

    Ok((
        Sources {
            store,
            _files: files,
        },
        applied,
    ))
}

/// What feeds the worlds; ends in this order.
struct Sources {
    store: Store,
    _files: FileSource,
}

async fn bind(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for {what}; is another control plane running?")
    })
}

async fn serve<S>(
    incoming: Incoming<S>,
    pusher: Arc<Pusher>,
    terms: ServerTerms,
    csr: Csr,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    crate::auth::WithPeer<S>: Connected,
{
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE / 2))
        .max_concurrent_streams(64)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(2 << 20)
        .add_service(AdsServer::service(pusher, terms))
        .add_service(CertificateServiceServer::new(csr));

    // Streams live for ever, so a graceful end would never come: the transport is cut and clients
    // connect again.
    until(stop, async {
        if let Err(error) = server.serve_with_incoming(incoming).await {
            tracing::error!(%error, "xDS server ended");
        }
    })
    .await;
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}
