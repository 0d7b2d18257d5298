//! An HTTP/2 connection to an upstream, shared by the streams of one worker.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use h2::client::{ResponseFuture, SendRequest};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::meter::{Alarm, Metered};
use super::send::{BodySender, Piece, SendBudget, WorkerBudget};
use super::{PING_TIMEOUT, REMEMBERED_RESETS, keep_alive, small_frames};
use crate::http1::codec::MAX_ANSWER_HEAD;
use crate::io::Stream;

/// Window of an upstream connection where configuration says nothing. It is shared by the streams of
/// many clients, and those that read nothing must not stop the others: [`crate::stalls`] bounds what
/// waits. Source: Envoy's default.
const CONNECTION_WINDOW: u32 = 256 * 1024 * 1024;

/// Settings of upstream connections.
#[derive(Debug, Clone)]
pub struct H2Settings {
    /// Window of a stream.
    pub stream_window: u32,
    /// Window of the connection.
    pub connection_window: u32,
    /// Decoded size of a response head.
    pub head_bytes: u32,
    /// PING so often.
    pub keepalive_interval: Option<Duration>,
    /// A PING must be answered by then.
    pub keepalive_timeout: Duration,
}

impl Default for H2Settings {
    fn default() -> Self {
        Self {
            stream_window: 256 * 1024,
            connection_window: CONNECTION_WINDOW,
            head_bytes: MAX_ANSWER_HEAD,
            keepalive_interval: None,
            keepalive_timeout: PING_TIMEOUT,
        }
    }
}

/// A connection. Dropping the last handle ends it once its streams have ended.
#[derive(Debug)]
pub struct H2Connection {
    send: SendRequest<Piece>,
    budget: Rc<SendBudget>,
    state: Rc<State>,
    driver: JoinHandle<()>,
    /// Requests that it has carried.
    pub requests: Cell<u32>,
}

#[derive(Debug)]
struct State {
    closed: Cell<bool>,
    active: Cell<u32>,
    /// Notified whenever a stream ends.
    freed: Rc<Notify>,
}

/// Counts one stream for as long as it lives.
#[derive(Debug)]
pub struct ActiveStream(Rc<State>);

impl Drop for ActiveStream {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.freed.notify_one();
    }
}

impl H2Connection {
    /// Speaks the preface on a connected stream and starts the connection's task. `freed` is
    /// notified of each stream that ends; `guard` lives as long as the connection does.
    pub async fn start<G: std::fmt::Debug + 'static>(
        stream: Stream,
        settings: &H2Settings,
        budget: WorkerBudget,
        freed: Rc<Notify>,
        guard: G,
    ) -> io::Result<Rc<Self>> {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_header_list_size(settings.head_bytes)
            .enable_push(false)
            .data_frame_budget(small_frames(
                settings.stream_window,
                settings.connection_window,
            ))
            .max_concurrent_reset_streams(REMEMBERED_RESETS);

        let alarm = Rc::new(Alarm::default());
        let watched = Metered::upstream(stream, alarm.clone());
        let (send, mut connection) = builder
            .handshake::<_, Piece>(watched)
            .await
            .map_err(other)?;

        let state = Rc::new(State {
            closed: Cell::new(false),
            active: Cell::new(0),
            freed,
        });

        let ended = state.clone();
        let ping = settings
            .keepalive_interval
            .and_then(|interval| Some((interval, connection.ping_pong()?)));
        let alive = keep_alive(ping, settings.keepalive_timeout);
        let driver = tokio::task::spawn_local(async move {
            let _guard = guard;
            tokio::select! {
                biased;
                end = &mut connection => {
                    if let Err(error) = end {
                        tracing::debug!(%error, "upstream HTTP/2 connection ended");
                    }
                }
                () = std::future::poll_fn(|_| alarm.poll()) => tracing::debug!("upstream HTTP/2 connection floods"),
                () = alive => tracing::debug!("upstream HTTP/2 keepalive failed"),
            }

            ended.closed.set(true);
        });

        Ok(Rc::new(Self {
            send,
            budget: SendBudget::new(budget),
            state,
            driver,
            requests: Cell::new(0),
        }))
    }

    /// Whether it takes new streams at all.
    pub fn is_open(&self) -> bool {
        !self.state.closed.get() && !self.driver.is_finished()
    }

    /// Whether it served somebody and takes no new streams any more: it may have said goodbye
    /// since.
    pub fn is_spent(&self) -> bool {
        self.requests.get() > 0 && !self.is_open()
    }

    /// Streams that are open now.
    pub fn active(&self) -> u32 {
        self.state.active.get()
    }

    /// How many streams the peer allows at a time.
    pub fn allowed(&self) -> usize {
        self.send.current_max_send_streams()
    }

    /// Opens a stream. Fails if the connection is going away: then nothing was sent.
    pub async fn open(
        &self,
        request: http::Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, BodySender, ActiveStream), h2::Error> {
        self.state.active.set(self.state.active.get() + 1);
        let active = ActiveStream(self.state.clone());
        let mut send = match self.send.clone().ready().await {
            Ok(send) => send,
            Err(error) => {
                // GOAWAY or end of the connection: nobody else should try it.
                self.state.closed.set(true);
                return Err(error);
            }
        };

        let (response, body) = send.send_request(request, end)?;
        self.requests.set(self.requests.get() + 1);

        let body = BodySender::new(body, self.budget.clone());
        Ok((response, body, active))
    }

    /// Takes it out of service; its streams go on.
    pub fn retire(&self) {
        self.state.closed.set(true);
    }
}

fn other(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::Other.into());
    }
    io::Error::other(error)
}
