//! The Unix sockets that Envoy is fed through.

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

/// Serves discovery and secrets on two sockets until it is dropped. Both are readable by their
/// owner alone: whoever may connect gets the workload's key.
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
    // What an earlier run left behind is in the way.
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
