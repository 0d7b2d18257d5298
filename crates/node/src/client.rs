//! A client of a running node, for commands.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::{Further, PartName, Reply, Request, Run, Target, WorkloadStatus};
use crate::fd_socket::FdSocket;
use crate::spec::{ProxyKind, WorkloadKey};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no mesh is running at {path} ({error}); start one with `meltemi demo` or `meltemi up -f DIR`"
    )]
    NotRunning {
        /// The node's socket.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Nothing of that name exists.
    #[error("{0}")]
    NotFound(String),
    /// The node says no.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("talking to the node: {0}")]
    Io(#[from] io::Error),
    /// The node went away before it answered.
    #[error(
        "the node ended before it answered; `meltemi up` says why, and whether it is started again"
    )]
    Ended,
    /// An answer that does not belong to the request.
    #[error("the node's answer is not understood; are both of the same version?")]
    Unexpected,
}

/// Calls a node: one connection a call.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

/// Packets that follow a request, until the node closes.
#[derive(Debug)]
pub struct Stream {
    socket: FdSocket,
}

impl Stream {
    /// The next piece of output; `None` at the end. Cancellation safe.
    pub async fn output(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        match receive(&self.socket).await? {
            None => Ok(None),
            Some(Reply::Output(bytes)) => Ok(Some(bytes)),
            Some(_) => Err(ClientError::Unexpected),
        }
    }
}

impl Client {
    /// For the mesh whose sockets are in `run_dir` (see [`crate::config::run_dir`]).
    pub fn new(run_dir: &Path) -> Self {
        Self {
            path: run_dir.join("node.sock"),
        }
    }

    async fn ask(
        &self,
        request: &Request,
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

    async fn ask_done(&self, request: Request) -> Result<String, ClientError> {
        match receive(&self.ask(&request, &[]).await?).await? {
            Some(Reply::Done(text)) => Ok(text),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Every replica of every workload, by namespace and name.
    pub async fn list(&self) -> Result<Vec<WorkloadStatus>, ClientError> {
        match receive(&self.ask(&Request::List, &[]).await?).await? {
            Some(Reply::Workloads(workloads)) => Ok(workloads),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Deployments of which something does not run as it is written, and why.
    pub async fn problems(&self) -> Result<Vec<String>, ClientError> {
        match receive(&self.ask(&Request::Problems, &[]).await?).await? {
            Some(Reply::Problems(problems)) => Ok(problems),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Output of an application (or its proxy, or a gateway).
    pub async fn logs(
        &self,
        target: Target,
        proxy: bool,
        tail: Option<usize>,
        follow: bool,
    ) -> Result<Stream, ClientError> {
        let socket = self
            .ask(
                &Request::Logs {
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

    /// Runs a program where an application runs, with this process's own input and output; passes
    /// signals on. Answers its exit code.
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

        let fds = [input.as_fd(), output.as_fd(), errors.as_fd()];
        let mut signals = Signals::new()?;
        let socket = self.ask(&Request::Exec { target, argv, env }, &fds).await?;

        loop {
            tokio::select! {
                reply = receive(&socket) => return match reply? {
                    Some(Reply::Exited(code)) => Ok(code),
                    None => Err(ClientError::Ended),
                    Some(_) => Err(ClientError::Unexpected),
                },
                signal = signals.next() => socket.send(&Further::Signal(signal), &[]).await?,
            }
        }
    }

    /// Adds a program as a workload. Unless it is detached it ends when the returned stream is
    /// dropped.
    pub async fn run(&self, run: Run) -> Result<(Vec<WorkloadKey>, Stream), ClientError> {
        let socket = self.ask(&Request::Run(Box::new(run)), &[]).await?;
        match receive(&socket).await? {
            Some(Reply::Started(keys)) => Ok((keys, Stream { socket })),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Ends a workload that was added with [`Client::run`].
    pub async fn stop(&self, target: Target) -> Result<String, ClientError> {
        self.ask_done(Request::Stop(target)).await
    }

    /// Starts a workload's programs, or one of them, anew.
    pub async fn restart(
        &self,
        target: Target,
        part: Option<PartName>,
    ) -> Result<String, ClientError> {
        self.ask_done(Request::Restart { target, part }).await
    }

    /// Puts another proxy beside a workload.
    pub async fn set_proxy(&self, target: Target, kind: ProxyKind) -> Result<String, ClientError> {
        self.ask_done(Request::Proxy { target, kind }).await
    }
}

/// The next reply; refusals are errors.
async fn receive(socket: &FdSocket) -> Result<Option<Reply>, ClientError> {
    match socket.receive::<Reply>().await?.map(|(reply, _)| reply) {
        Some(Reply::Refused {
            not_found: true,
            message,
        }) => Err(ClientError::NotFound(message)),
        Some(Reply::Refused {
            not_found: false,
            message,
        }) => Err(ClientError::Refused(message)),
        other => Ok(other),
    }
}

/// Signals that a terminal or a user sends and that are meant for the program.
struct Signals(Vec<(i32, Signal)>);

impl Signals {
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

    /// Cancellation safe.
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
