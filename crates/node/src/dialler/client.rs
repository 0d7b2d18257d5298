//! The node's end of the channel to the supervisor: many requests in flight over one socket,
//! matched to their replies by id.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Answer, DiallerReply, DiallerRequest, Failure, ToSupervisor};
use crate::events::Event;
use crate::fd_socket::FdSocket;
use crate::publication::ServicePublication;

/// Limit for one request. It exceeds the supervisor's own limits, 10 s in the queue and 10 s to
/// connect, so that normally the supervisor's error arrives first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sockets of the machine that listen for the node.
#[derive(Debug)]
pub(crate) struct Listening {
    /// The machine's address.
    pub(crate) address: SocketAddr,
    /// The port that was wanted, if another program has it and a free one was taken instead.
    pub(crate) taken: Option<u16>,
    pub(crate) sockets: Vec<OwnedFd>,
}

type Waiting = HashMap<u64, oneshot::Sender<(Result<Answer, Failure>, Vec<OwnedFd>)>>;

/// Requests sockets and DNS answers of the machine's network from the supervisor.
#[derive(Debug)]
pub(crate) struct Dialler {
    socket: FdSocket,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
}

impl Dialler {
    /// Starts the task that reads replies. The returned handle completes when the supervisor closes
    /// its end.
    pub(crate) fn start(socket: OwnedFd) -> io::Result<(Arc<Self>, tokio::task::JoinHandle<()>)> {
        let dialler = Arc::new(Self {
            socket: FdSocket::new(socket)?,
            waiting: Mutex::default(),
            next: AtomicU64::new(1),
        });
        let reading = tokio::spawn(Arc::clone(&dialler).read());
        Ok((dialler, reading))
    }

    async fn read(self: Arc<Self>) {
        loop {
            match self.socket.receive::<DiallerReply>().await {
                Ok(Some((reply, fds))) => {
                    let waiting = self
                        .waiting
                        .lock()
                        .expect("nothing panics while it holds the table")
                        .remove(&reply.id);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send((reply.answer, fds));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the supervisor's channel failed");
                    break;
                }
            }
        }

        // Dropping the senders makes every request in flight fail.
        self.waiting
            .lock()
            .expect("nothing panics while it holds the table")
            .clear();
    }

    /// Sends a request and waits for its reply, at most [`ANSWER_TIMEOUT`].
    async fn request(&self, request: DiallerRequest) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting
            .lock()
            .expect("nothing panics while it holds the table")
            .insert(id, answer);

        let exchange = async {
            self.socket
                .send(&ToSupervisor::Request(id, request), &[])
                .await?;
            answered
                .await
                .map_err(|_| io::Error::other("the supervisor is gone"))
        };

        let outcome = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await;
        let outcome = outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        self.waiting
            .lock()
            .expect("nothing panics while it holds the table")
            .remove(&id);

        let (answer, fds) = outcome?;

        answer
            .map(|answer| (answer, fds))
            .map_err(|failure| match failure.os_error {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::other(failure),
            })
    }

    /// Opens a TCP connection from the machine's network.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<std::net::TcpStream> {
        let (_, fds) = self.request(DiallerRequest::Connect(to)).await?;
        let fd = fds
            .into_iter()
            .next()
            .ok_or_else(|| io::Error::other("no socket came with the answer"))?;
        Ok(fd.into())
    }

    /// Opens `count` listening sockets on the machine for the gateway port `port`; `others` are all
    /// ports of the gateway.
    pub(crate) async fn listen(
        &self,
        port: u16,
        count: u16,
        others: Vec<u16>,
    ) -> io::Result<Listening> {
        let request = DiallerRequest::Listen {
            port,
            count,
            others,
        };
        self.listening(request).await
    }

    /// Opens a listening socket on the machine for a Service's port.
    pub(crate) async fn publish(&self, port: ServicePublication) -> io::Result<Listening> {
        self.listening(DiallerRequest::Publish(port)).await
    }

    async fn listening(&self, request: DiallerRequest) -> io::Result<Listening> {
        match self.request(request).await? {
            (Answer::Listening { address, taken }, sockets) => Ok(Listening {
                address,
                taken,
                sockets,
            }),
            _ => Err(io::Error::other("the supervisor answered something else")),
        }
    }

    /// Forwards a raw DNS query to the machine's resolver.
    pub(crate) async fn dns(&self, query: Vec<u8>, tcp: bool) -> io::Result<Vec<u8>> {
        match self.request(DiallerRequest::Dns { query, tcp }).await? {
            (Answer::Dns(bytes), _) => Ok(bytes),
            _ => Err(io::Error::other("the supervisor answered something else")),
        }
    }

    /// Shows an event to the user; lost when the supervisor has ended.
    pub(crate) async fn show(&self, event: Event) {
        let _ = self.socket.send(&ToSupervisor::Event(event), &[]).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd_socket;

    #[tokio::test(start_paused = true)]
    async fn a_request_without_a_reply_times_out() {
        let (silent, socket) = fd_socket::pair().unwrap();
        let (dialler, _) = Dialler::start(socket).unwrap();
        let error = dialler.dns(vec![0], false).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(dialler.waiting.lock().unwrap().is_empty());
        drop(silent);
    }
}
