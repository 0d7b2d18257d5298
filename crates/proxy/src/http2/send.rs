//! Sends bodies on HTTP/2 streams, and bounds how much of them waits in this process.
//!
//! The codec takes what a stream's windows allow and keeps it until the connection's socket takes
//! it. A peer that opens its windows and reads nothing would fill memory with one body for each
//! stream, so every connection has a budget, and so has the worker.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use tokio::sync::Notify;

/// Bytes of bodies that may wait for one connection's socket. Source: Envoy's default of
/// `per_connection_buffer_limit_bytes`.
const CONNECTION: usize = 1024 * 1024;
/// Bytes of bodies that may wait for all sockets of a worker before connections get
/// [`CONNECTION_UNDER_PRESSURE`] instead of [`CONNECTION`].
const WORKER: usize = 32 * 1024 * 1024;
/// What a connection may keep waiting while the worker's budget is spent: every connection goes on,
/// so that peers that read nothing cannot stop the others.
const CONNECTION_UNDER_PRESSURE: usize = 64 * 1024;

/// Counts what waits for the sockets of one worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerBudget(Rc<Cell<usize>>);

impl WorkerBudget {
    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.0.get()
    }
}

/// Counts what waits for the socket of one connection.
#[derive(Debug)]
pub struct SendBudget {
    worker: WorkerBudget,
    waiting: Cell<usize>,
    /// Wakes the next stream that waits for room.
    freed: Notify,
}

impl SendBudget {
    /// The budget of a new connection.
    pub fn new(worker: WorkerBudget) -> Rc<Self> {
        Rc::new(Self {
            worker,
            waiting: Cell::new(0),
            freed: Notify::new(),
        })
    }

    /// How many bytes more may wait.
    fn room(&self) -> usize {
        let limit = match self.worker.waiting() < WORKER {
            true => CONNECTION,
            false => CONNECTION_UNDER_PRESSURE,
        };
        limit.saturating_sub(self.waiting.get())
    }

    /// Takes room for these bytes; they give it back when the codec drops them, sent or not.
    fn charge(self: &Rc<Self>, bytes: Bytes) -> Piece {
        let size = bytes.len();
        self.waiting.set(self.waiting.get() + size);
        self.worker.0.set(self.worker.0.get() + size);

        // One waiter is woken for each piece that goes, and there may be room for another.
        if self.room() > 0 {
            self.freed.notify_one();
        }

        Piece {
            bytes,
            charged: Some((self.clone(), size)),
        }
    }
}

/// A piece of a body in the codec's hands.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    /// The budget that it is charged to, and its size; `None` for an empty piece.
    charged: Option<(Rc<SendBudget>, usize)>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some((budget, size)) = &self.charged {
            budget.waiting.set(budget.waiting.get() - size);
            budget.worker.0.set(budget.worker.0.get() - size);
            budget.freed.notify_one();
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, n: usize) {
        self.bytes.advance(n);
    }
}

/// The way for the body of one stream.
#[derive(Debug)]
pub struct BodySender {
    stream: h2::SendStream<Piece>,
    budget: Rc<SendBudget>,
}

impl BodySender {
    /// For a stream of the connection that has this budget.
    pub fn new(stream: h2::SendStream<Piece>, budget: Rc<SendBudget>) -> Self {
        Self { stream, budget }
    }

    /// Sends within the peer's flow control and the budgets.
    pub async fn send(&mut self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.reserve_capacity(bytes.len());
            let capacity = match self.stream.capacity() {
                0 => match poll_fn(|cx| self.stream.poll_capacity(cx)).await {
                    Some(Ok(capacity)) => capacity,
                    Some(Err(error)) => return Err(gone(error)),
                    None => return Err(io::ErrorKind::BrokenPipe.into()),
                },
                capacity => capacity,
            };
            if capacity == 0 {
                continue;
            }

            // Room comes last: a stream that is woken for room can use it at once, so no wake-up is
            // lost on a stream that the peer's windows hold back.
            let room = self.room().await?;
            let piece = bytes.split_to(capacity.min(room).min(bytes.len()));
            let piece = self.budget.charge(piece);
            self.stream.send_data(piece, false).map_err(gone)?;
        }

        Ok(())
    }

    /// Resolves with the budget's room once there is some. Fails when the peer leaves meanwhile.
    async fn room(&mut self) -> io::Result<usize> {
        loop {
            match self.budget.room() {
                0 => {
                    let budget = self.budget.clone();
                    tokio::select! {
                        biased;
                        error = poll_fn(|cx| self.poll_gone(cx)) => return Err(error),
                        () = budget.freed.notified() => {}
                    }
                }
                room => return Ok(room),
            }
        }
    }

    /// Ends the body.
    pub fn finish(&mut self, trailers: Option<HeaderMap>) -> io::Result<()> {
        let empty = Piece {
            bytes: Bytes::new(),
            charged: None,
        };
        match trailers {
            Some(trailers) => self.stream.send_trailers(trailers),
            None => self.stream.send_data(empty, true),
        }
        .map_err(gone)
    }

    /// Ready once the peer has reset the stream, or its connection has ended.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.stream
            .poll_reset(cx)
            .map(|reset| gone(reset.map_or_else(|error| error, Into::into)))
    }

    /// Breaks the body off, so that the peer cannot take it for whole.
    pub fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }
}

fn gone(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(size: usize) -> Bytes {
        Bytes::from(vec![0; size])
    }

    #[test]
    fn a_dropped_piece_gives_its_room_back() {
        let worker = WorkerBudget::default();
        let budget = SendBudget::new(worker.clone());

        let mut sent = budget.charge(piece(1000));
        sent.advance(600);
        assert_eq!((budget.room(), worker.waiting()), (CONNECTION - 1000, 1000));

        drop(sent);
        assert_eq!((budget.room(), worker.waiting()), (CONNECTION, 0));
    }

    #[test]
    fn a_spent_worker_budget_leaves_every_connection_a_little() {
        let worker = WorkerBudget::default();
        let greedy: Vec<_> = (0..WORKER / CONNECTION)
            .map(|_| SendBudget::new(worker.clone()).charge(piece(CONNECTION)))
            .collect();

        let budget = SendBudget::new(worker.clone());
        assert_eq!(budget.room(), CONNECTION_UNDER_PRESSURE);
        let _waiting = budget.charge(piece(CONNECTION_UNDER_PRESSURE));
        assert_eq!(budget.room(), 0);

        drop(greedy);
        assert_eq!(budget.room(), CONNECTION - CONNECTION_UNDER_PRESSURE);
    }

    /// Streams that send 256 KiB each, on a connection whose peer opens every window and reads as
    /// much as `reads` says. Returns the most that has waited, and what waits in the end.
    async fn most_waiting(streams: usize, reads: bool) -> (usize, usize) {
        const BODY: usize = 256 * 1024;
        let (near, far) = tokio::io::duplex(4096);
        let worker = WorkerBudget::default();

        let server = h2::server::Builder::new()
            .max_send_buffer_size(BODY)
            .handshake::<_, Piece>(near);
        let client = h2::client::Builder::new()
            .initial_window_size(1 << 30)
            .initial_connection_window_size(1 << 30)
            .handshake::<_, Bytes>(far);
        let (server, client) = tokio::join!(server, client);
        let (mut server, (send, client)) = (server.expect("served"), client.expect("connected"));

        let mut client = Box::pin(async move { _ = client.await });
        let requests: Vec<_> = (0..streams)
            .map(|_| {
                let request = http::Request::get("http://a/").body(()).expect("good");
                send.clone().send_request(request, true).expect("sent")
            })
            .collect();

        let budget = SendBudget::new(worker.clone());
        let mut bodies = Vec::new();
        for _ in 0..streams {
            let accepted = tokio::select! {
                accepted = server.accept() => accepted,
                () = &mut client => panic!("the client has ended"),
            };
            let (_, mut respond) = accepted.expect("open").expect("a request");
            let head = respond.send_response(http::Response::new(()), false);
            let mut body = BodySender::new(head.expect("sent"), budget.clone());
            bodies.push(tokio::task::spawn_local(async move {
                if body.send(piece(BODY)).await.is_ok() {
                    body.finish(None).expect("sent");
                }
            }));
        }

        // A client that nobody polls reads nothing.
        let _silent = match reads {
            true => {
                tokio::task::spawn_local(client);
                None
            }
            false => Some(client),
        };
        let readers = requests.into_iter().map(|(response, _)| {
            tokio::task::spawn_local(async move {
                let mut body = response.await.expect("a response").into_body();
                while let Some(piece) = body.data().await {
                    let size = piece.expect("data").len();
                    body.flow_control().release_capacity(size).expect("held");
                }
            })
        });
        let readers: Vec<_> = readers.collect();

        let most = Cell::new(0);
        let watch = async {
            loop {
                most.set(most.get().max(worker.waiting()));
                match reads {
                    true if readers.iter().all(|reader| reader.is_finished()) => return,
                    false if most.get() == CONNECTION => return,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        tokio::select! {
            () = watch => {}
            _ = server.accept() => {}
        }

        drop(server);
        bodies.iter().for_each(|body| body.abort());
        for body in bodies {
            let _ = body.await;
        }

        (most.get(), worker.waiting())
    }

    #[tokio::test(flavor = "local")]
    async fn streams_of_a_connection_share_its_budget() {
        // All bodies get through, although they are many times the budget.
        let (most, left) = most_waiting(20, true).await;
        assert!(most <= CONNECTION, "{most}");
        assert_eq!(left, 0);

        // The peer takes nothing, and its connection ends.
        assert_eq!(most_waiting(20, false).await, (CONNECTION, 0));
    }
}
