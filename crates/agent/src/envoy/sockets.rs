//! The two Unix sockets through which Envoy gets its configuration and its certificates.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use meltemi_tls::SecretStore;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::{AdsRelay, SdsServer};
use crate::{AgentMetrics, ControlPlane};

/// Binds both sockets and returns a future that serves them until it is dropped. Only the owner may
/// connect, since a client gets the workload's private key.
///
/// # Errors
/// When a socket cannot be bound.
pub fn serve_sockets(
    xds: &Path,
    sds: &Path,
    control_plane: ControlPlane,
    secrets: SecretStore,
    metrics: AgentMetrics,
    streams: watch::Sender<usize>,
) -> io::Result<impl Future<Output = anyhow::Result<()>> + Send + use<>> {
    let (xds, sds) = (bind(xds)?, bind(sds)?);
    let xds = Server::builder()
        .add_service(AdsRelay::service(control_plane, metrics, streams))
        .serve_with_incoming(UnixListenerStream::new(xds));
    let sds = Server::builder()
        .add_service(SdsServer::service(secrets))
        .serve_with_incoming(UnixListenerStream::new(sds));

    Ok(async move {
        tokio::try_join!(xds, sds)?;
        Ok(())
    })
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    // A socket file left by an earlier run would make the bind fail.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }

    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let listener = UnixListener::bind(path).map_err(named)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(named)?;

    Ok(listener)
}
