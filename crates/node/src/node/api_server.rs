//! Serves [`crate::api`] at `RUN/node.sock`, one request per connection.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use meltemi_net::fdpass::ChannelListener;

use super::requests::{self, Refusal, refused};
use super::state::Node;
use super::{exec, forward};
use crate::api::{Destination, FollowUp, NodeReply, NodeRequest, Run, Target};
use crate::child;
use crate::fd_socket::FdSocket;
use crate::log::Log;
use crate::spec::WorkloadKey;

/// Time between SIGTERM and SIGKILL for an `exec` program whose client has left.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of output in one packet.
const CHUNK: usize = 32 * 1024;

/// Binds the socket and serves it in the background.
pub(super) fn start(node: Arc<Node>) -> anyhow::Result<()> {
    let listener = ChannelListener::bind(&node.context.config.run_dir.join("node.sock"))?;
    tokio::spawn(async move {
        loop {
            let Ok(channel) = listener.accept().await else {
                // Out of descriptors: others will close theirs.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let node = Arc::clone(&node);
            tokio::spawn(async move {
                let client = ClientConnection {
                    socket: channel.into(),
                };
                if let Err(error) = client.serve(&node).await {
                    tracing::debug!(%error, "the connection to a client failed");
                }
            });
        }
    });

    Ok(())
}

struct ClientConnection {
    socket: FdSocket,
}

impl ClientConnection {
    async fn send(&self, reply: NodeReply) -> io::Result<()> {
        self.socket.send(&reply, &[]).await
    }

    /// Waits until the client closes the connection; other packets are ignored.
    async fn wait_until_closed(&self) {
        while let Ok(Some(_)) = self.socket.receive::<FollowUp>().await {}
    }

    /// Reads the request, serves it, and sends its reply.
    async fn serve(self, node: &Arc<Node>) -> io::Result<()> {
        let Some((request, fds)) = self.socket.receive::<NodeRequest>().await? else {
            return Ok(());
        };
        let outcome = match request {
            NodeRequest::List => Ok(NodeReply::Workloads(requests::list(node))),
            NodeRequest::Problems => Ok(NodeReply::Problems(node.state().problems.clone())),
            NodeRequest::Logs {
                target,
                proxy,
                tail,
                follow,
            } => {
                return self.logs(node, &target, proxy, tail, follow).await;
            }
            NodeRequest::Exec { target, argv, env } => {
                return self.exec(node, &target, argv, env, fds).await;
            }
            NodeRequest::Resolve { destination, port } => {
                let found = forward::resolve(node, &destination, port);
                found.map(|(key, port)| NodeReply::Done(format!("{} port {port}", key.pod)))
            }
            NodeRequest::Forward { destination, port } => {
                return self.forward(node, &destination, port).await;
            }
            NodeRequest::Run(run) => return self.run(node, *run).await,
            NodeRequest::Stop(target) => requests::stop(node, &target),
            NodeRequest::Restart { target, part } => requests::restart(node, &target, part),
            NodeRequest::Proxy { target, kind } => requests::set_proxy(node, &target, kind),
        };

        match outcome {
            Ok(reply) => self.send(reply).await,
            Err(refusal) => self.refuse(refusal).await,
        }
    }

    async fn refuse(&self, refusal: Refusal) -> io::Result<()> {
        self.send(NodeReply::Refused {
            not_found: refusal.not_found,
            message: refusal.message,
        })
        .await
    }

    async fn forward(&self, node: &Node, destination: &Destination, port: u16) -> io::Result<()> {
        let connected = match forward::resolve(node, destination, port) {
            Ok((key, port)) => forward::connect(node, &key, port).await,
            Err(refusal) => Err(refusal),
        };
        match connected {
            Ok(socket) => {
                self.socket
                    .send(&NodeReply::Connected, &[socket.as_fd()])
                    .await
            }
            Err(refusal) => self.refuse(refusal).await,
        }
    }

    async fn logs(
        &self,
        node: &Node,
        target: &Target,
        proxy: bool,
        tail: Option<usize>,
        follow: bool,
    ) -> io::Result<()> {
        let log = match requests::log(node, target, proxy) {
            Ok(log) => log,
            Err(refusal) => return self.refuse(refusal).await,
        };
        let offset = tail.map_or(0, |lines| log.tail(lines));
        tokio::select! {
        outcome = self.copy_log(&log, offset, follow) => outcome,
        () = self.wait_until_closed() => Ok(()),
        }
    }

    /// Sends the log from `offset` on; with `follow`, goes on for ever.
    async fn copy_log(&self, log: &Log, mut offset: u64, follow: bool) -> io::Result<()> {
        loop {
            let (bytes, end) = log.read(offset);
            offset = end;
            for chunk in bytes.chunks(CHUNK) {
                self.send(NodeReply::Output(chunk.to_vec())).await?;
            }
            if !follow {
                return Ok(());
            }
            log.wait(offset).await;
        }
    }

    /// Runs a program with the client's descriptors, forwards its signals, and sends the exit code.
    /// Stops the program if the client leaves.
    async fn exec(
        &self,
        node: &Node,
        target: &Target,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let spawned = <[OwnedFd; 3]>::try_from(fds)
            .or_else(|_| refused("exec needs the client's input, output and errors"))
            .and_then(|fds| exec::spawn(node, target, argv, env, fds));
        let mut child = match spawned {
            Ok(child) => child,
            Err(refusal) => return self.refuse(refusal).await,
        };

        loop {
            tokio::select! {
                status = child.wait() => {
                    let code = status.map_or(1, |s| s.code().unwrap_or(1));
                    return self.send(NodeReply::Exited(code)).await;
                }
                follow_up = self.socket.receive::<FollowUp>() => match follow_up {
                    Ok(Some((FollowUp::Signal(signal), _))) => child::signal(&child, signal),
                    _ => {
                        child::stop(child, GRACE).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Adds a program. Unless it is detached, sends its output and removes it when the client
    /// leaves.
    async fn run(&self, node: &Arc<Node>, run: Run) -> io::Result<()> {
        let detach = run.detach;
        let keys = match requests::add(node, run) {
            Ok(keys) => keys,
            Err(refusal) => return self.refuse(refusal).await,
        };

        self.send(NodeReply::Started(keys.clone())).await?;
        if detach {
            return Ok(());
        }
        let outcome = tokio::select! {
        outcome = self.follow(node, &keys) => outcome,
        () = self.wait_until_closed() => Ok(()),
        };

        node.remove_runs(&keys);

        outcome
    }

    /// Sends the output of the first replica until the workload is stopped.
    async fn follow(&self, node: &Node, keys: &[WorkloadKey]) -> io::Result<()> {
        let Some(first) = keys.first() else {
            return Ok(());
        };
        let started = || {
            node.state()
                .handles
                .get(first)
                .map(|handle| Arc::clone(&handle.app_log))
        };

        let log = loop {
            if let Some(log) = started() {
                break log;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };

        let stopped = async {
            while node.state().runs.contains_key(first) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };

        tokio::select! {
            outcome = self.copy_log(&log, 0, true) => outcome,
            () = stopped => Ok(()),
        }
    }
}
