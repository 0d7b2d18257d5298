//! The commands of the control thread to a worker.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::counts::Copied;
use crate::published::Published;

/// What the control thread tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve from this from now on.
    Publish(Arc<Published>),
    /// Accept on this socket for the listener of this name.
    Listen(Arc<str>, SocketAddr, std::net::TcpListener),
    /// Stop accepting for this listener; its connections go on unless configuration says otherwise.
    Unlisten(Arc<str>, SocketAddr),
    /// Answer with a copy of all counters.
    Counts(tokio::sync::oneshot::Sender<Copied>),
    /// Describe the upstream pools: cluster, address, open connections.
    Pools(tokio::sync::oneshot::Sender<Vec<(Arc<str>, SocketAddr, usize)>>),
    /// End every connection and the thread.
    Stop,
}
