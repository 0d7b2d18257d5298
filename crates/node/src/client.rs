//! The client that commands use to talk to a running node over `RUN/node.sock`.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::{
    Destination, FollowUp, NodeReply, NodeRequest, ProgramName, Run, Target, WorkloadStatus,
};
use crate::fd_socket::FdSocket;
use crate::spec::{ProxyKind, WorkloadKey};

/// Why a request to the node failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No node wait_until_listening on the socket.
    #[error(
        "no mesh is running at {path} ({error}); start one with `meltemi demo` or `meltemi up -f DIR`"
    )]
    NotRunning {
        /// The node's socket.
        path: PathBuf,
        /// The error of `connect(2)`.
        error: io::Error,
    },
    /// No workload has the requested name; the text is the node's.
    #[error("{0}")]
    NotFound(String),
    /// The node refused the request; the text is the node's.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("talking to the node: {0}")]
    Io(#[from] io::Error),
    /// The node closed the connection before it answered.
    #[error(
        "the node ended before it answered; `meltemi up` says why, and whether it is started again"
    )]
    Ended,
    /// The answer does not belong to the request: client and node differ in version.
    #[error("the node's answer is not understood; are both of the same version?")]
    Unexpected,
}

/// A client of one node. Each call opens a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

/// The output that the node sends until it closes the connection.
#[derive(Debug)]
pub struct Stream {
    socket: FdSocket,
}

impl Stream {
    /// The next piece of output; `None` at the end. Cancellation safe.
    pub async fn output(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        match receive(&self.socket).await? {
            None => Ok(None),
            Some(NodeReply::Output(bytes)) => Ok(Some(bytes)),
            Some(_) => Err(ClientError::Unexpected),
        }
    }
}

impl Client {
    /// Creates a client for the mesh whose sockets are in `run_dir` (see
    /// [`crate::config::run_dir`]). Does not connect yet.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            path: run_dir.join("node.sock"),
        }
    }

    /// Connects and sends the request.
    async fn send(
        &self,
        request: &NodeRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<FdSocket, ClientError> {
        let connected = FdSocket::connect(&self.path);
        let socket = connected.map_err(|error| ClientError::NotRunning {
            path: self.path.clone(),
            error,
        })?;
        socket.send(request, fds).await?;
        Ok(socket)
    }

    /// Sends a request whose answer is a text for the user.
    async fn send_and_confirm(&self, request: NodeRequest) -> Result<String, ClientError> {
        match receive(&self.send(&request, &[]).await?).await? {
            Some(NodeReply::Done(text)) => Ok(text),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Lists every replica of every workload, sorted by namespace and name.
    pub async fn list(&self) -> Result<Vec<WorkloadStatus>, ClientError> {
        match receive(&self.send(&NodeRequest::List, &[]).await?).await? {
            Some(NodeReply::Workloads(workloads)) => Ok(workloads),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Lists the Deployments that run differently from what their YAML says, one message each.
    pub async fn problems(&self) -> Result<Vec<String>, ClientError> {
        match receive(&self.send(&NodeRequest::Problems, &[]).await?).await? {
            Some(NodeReply::Problems(problems)) => Ok(problems),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Reads the output of an application, of its proxy, or of a gateway.
    pub async fn logs(
        &self,
        target: Target,
        proxy: bool,
        tail: Option<usize>,
        follow: bool,
    ) -> Result<Stream, ClientError> {
        let socket = self
            .send(
                &NodeRequest::Logs {
                    target,
                    proxy,
                    tail,
                    follow,
                },
                &[],
            )
            .await?;

        Ok(Stream { socket })
    }

    /// Runs a program in an application's namespaces, with this process's standard input, output
    /// and error, and forwards signals to it. Returns its exit code.
    pub async fn exec(
        &self,
        target: Target,
        argv: Vec<String>,
        env: Vec<(String, String)>,
    ) -> Result<i32, ClientError> {
        let (input, output, errors) = (
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        );

        // Catch signals before the program exists: one that arrives now must not end this process.
        let mut signals = ForwardedSignals::new()?;
        let fds = [input.as_fd(), output.as_fd(), errors.as_fd()];
        let socket = self
            .send(&NodeRequest::Exec { target, argv, env }, &fds)
            .await?;

        loop {
            tokio::select! {
                reply = receive(&socket) => return match reply? {
                    Some(NodeReply::Exited(code)) => Ok(code),
                    None => Err(ClientError::Ended),
                    Some(_) => Err(ClientError::Unexpected),
                },
                signal = signals.next() => socket.send(&FollowUp::Signal(signal), &[]).await?,
            }
        }
    }

    /// Names the replica and port behind a destination's port, for the user.
    pub async fn resolve(
        &self,
        destination: Destination,
        port: u16,
    ) -> Result<String, ClientError> {
        self.send_and_confirm(NodeRequest::Resolve { destination, port })
            .await
    }

    /// Opens a connection to a workload's program, beside its sidecar.
    pub async fn forward(
        &self,
        destination: Destination,
        port: u16,
    ) -> Result<std::net::TcpStream, ClientError> {
        let request = NodeRequest::Forward { destination, port };
        let socket = self.send(&request, &[]).await?;
        let Some((reply, mut fds)) = socket.receive::<NodeReply>().await? else {
            return Err(ClientError::Ended);
        };
        match (accepted(reply)?, fds.pop()) {
            (NodeReply::Connected, Some(fd)) => Ok(fd.into()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Adds a program as a workload. Unless `run.detach` is set, the workload ends when the
    /// returned stream is dropped.
    pub async fn run(&self, run: Run) -> Result<(Vec<WorkloadKey>, Stream), ClientError> {
        let socket = self.send(&NodeRequest::Run(Box::new(run)), &[]).await?;
        match receive(&socket).await? {
            Some(NodeReply::Started(keys)) => Ok((keys, Stream { socket })),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Ends a workload that [`Client::run`] added. Returns a text for the user.
    pub async fn stop(&self, target: Target) -> Result<String, ClientError> {
        self.send_and_confirm(NodeRequest::Stop(target)).await
    }

    /// Restarts both programs of a workload, or one. Returns a text for the user.
    pub async fn restart(
        &self,
        target: Target,
        part: Option<ProgramName>,
    ) -> Result<String, ClientError> {
        self.send_and_confirm(NodeRequest::Restart { target, part })
            .await
    }

    /// Replaces the proxy of a workload. Returns a text for the user.
    pub async fn set_proxy(&self, target: Target, kind: ProxyKind) -> Result<String, ClientError> {
        self.send_and_confirm(NodeRequest::Proxy { target, kind })
            .await
    }
}

/// Receives the next reply and turns a refusal into an error; `None` when the node closed the
/// connection.
async fn receive(socket: &FdSocket) -> Result<Option<NodeReply>, ClientError> {
    match socket.receive::<NodeReply>().await? {
        Some((reply, _)) => accepted(reply).map(Some),
        None => Ok(None),
    }
}

/// Turns a refusal into an error.
fn accepted(reply: NodeReply) -> Result<NodeReply, ClientError> {
    match reply {
        NodeReply::Refused {
            not_found: true,
            message,
        } => Err(ClientError::NotFound(message)),
        NodeReply::Refused {
            not_found: false,
            message,
        } => Err(ClientError::Refused(message)),
        other => Ok(other),
    }
}

/// The signals that `exec` forwards to the program instead of obeying them itself.
struct ForwardedSignals(Vec<(i32, Signal)>);

impl ForwardedSignals {
    fn new() -> io::Result<Self> {
        let numbers = [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGWINCH,
            libc::SIGUSR1,
            libc::SIGUSR2,
        ];

        numbers
            .into_iter()
            .map(|n| Ok((n, signal(SignalKind::from_raw(n))?)))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Waits for a signal and returns its number. Cancellation safe.
    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, signal) in &mut self.0 {
                if let std::task::Poll::Ready(Some(())) = signal.poll_recv(cx) {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
