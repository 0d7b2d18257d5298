//! The client's driver: connects, streams, reconnects. All protocol is in
//! [`session::ClientSession`].

pub(crate) mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::Stream;
use meltemi_proto::Any;
use meltemi_proto::discovery::AggregatedDiscoveryServiceClient;
use meltemi_proto::envoy::config::core::v3::Node;
use tokio::sync::{Notify, mpsc};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::backoff::{Backoff, jitter};
use crate::{MAX_MESSAGE_BYTES, Variant};
use session::{ClientRequest, ClientResponse, ClientSession, Received};

/// Why a connector gave up; any error will do.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a client wants of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Everything the server has for this client.
    pub wildcard: bool,
    /// Resources by name, beside the wildcard or instead of it.
    pub names: BTreeSet<String>,
}

impl Subscription {
    /// Everything.
    pub fn wildcard() -> Self {
        Self {
            wildcard: true,
            names: BTreeSet::new(),
        }
    }

    /// These names only; none at first is allowed, the type is then announced with its first name.
    pub fn names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self {
            wildcard: false,
            names: names.into_iter().map(Into::into).collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }
}

/// A resource as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedResource {
    /// Its name; in the state-of-the-world variant read from the message.
    pub name: String,
    /// Its version; in the state-of-the-world variant the version of the whole response.
    pub version: String,
    /// The packed message; its type URL is the update's.
    pub any: Any,
}

/// One response: what to set and what to remove. It must be answered with [`ClientHandle::ack`] or
/// [`ClientHandle::nack`]: the server sends nothing more of this type before.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The type of all its resources.
    pub type_url: String,
    /// New and changed resources. Names are unique.
    pub set: Vec<NamedResource>,
    /// Names that are gone, or that were asked for and do not exist.
    pub removed: Vec<String>,
    /// What to answer with.
    pub nonce: String,
    /// Whether `set` is everything there is of the type (clusters and listeners in state of the
    /// world). `removed` is filled all the same, so who applies set and removed need not look at
    /// this.
    pub full: bool,
    /// What the server calls this state; for people.
    pub version: String,
}

/// What the driver tells its owner.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientEvent {
    /// The stream stands; the subscriptions are on their way.
    Connected,
    /// A response; answer it.
    Update(Update),
    /// The stream is gone. What was received stays valid; the driver connects again by itself.
    Disconnected {
        /// In words, with the server's own message where it gave one.
        reason: String,
    },
}

/// A channel to the server and what each stream over it must carry (a bearer token, a cluster id).
#[derive(Debug, Clone)]
pub struct Connection {
    /// Connected or connecting; the driver makes one stream on it and drops it with the stream.
    pub channel: Channel,
    /// Sent with the stream's request headers.
    pub metadata: MetadataMap,
}

impl From<Channel> for Connection {
    fn from(channel: Channel) -> Self {
        Self {
            channel,
            metadata: MetadataMap::new(),
        }
    }
}

/// Makes one connection: where, how secured and with which token is its business. Called for each
/// attempt, so that rotated certificates and tokens count from the next one. Any `Fn() ->
/// Future<Result<Connection, BoxError>>` is one.
pub trait Connector: Send + Sync + 'static {
    /// Connects, or says why not.
    fn connect(&self) -> Pin<Box<dyn Future<Output = Result<Connection, BoxError>> + Send>>;
}

impl<F, R> Connector for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<Connection, BoxError>> + Send + 'static,
{
    fn connect(&self) -> Pin<Box<dyn Future<Output = Result<Connection, BoxError>> + Send>> {
        Box::pin(self())
    }
}

/// How a client is set up.
#[derive(Clone)]
pub struct ClientConfig {
    /// Makes connections.
    pub connect: Arc<dyn Connector>,
    /// Who asks. Sent with the first request of each stream.
    pub node: Node,
    /// Which protocol.
    pub variant: Variant,
    /// Announced in this order on every connection: clusters, endpoints, listeners, routes, ...
    pub initial: Vec<(String, Subscription)>,
    /// Between attempts to connect.
    pub backoff: Backoff,
    /// An attempt to connect ends after this.
    pub connect_timeout: Duration,
    /// How many events wait for their owner before the driver stops reading from the server.
    pub queue: usize,
}

impl ClientConfig {
    /// Delta, default backoff, ten seconds to connect, 16 events.
    pub fn new(connect: impl Connector, node: Node, initial: Vec<(String, Subscription)>) -> Self {
        Self {
            connect: Arc::new(connect),
            node,
            variant: Variant::Delta,
            initial,
            backoff: Backoff::default(),
            connect_timeout: Duration::from_secs(10),
            queue: 16,
        }
    }
}

/// Answers updates and changes subscriptions. Calls never block and never fail: they change the
/// session's state, which the driver sends as soon as the connection takes it; what is said while
/// disconnected counts on the next connection.
#[derive(Clone)]
pub struct ClientHandle {
    shared: Arc<Shared>,
}

impl ClientHandle {
    /// The update was applied. Its resources now count as held and survive reconnects. Subscribe to
    /// whatever the update refers to (endpoints of new clusters, say) before this: the server then
    /// waits with routes for them.
    pub fn ack(&self, type_url: &str, nonce: &str) {
        self.shared.session().ack(type_url, nonce);
        self.shared.wake.notify_one();
    }

    /// The update was refused; `message` should name the resources at fault. The state before it
    /// stays.
    pub fn nack(&self, type_url: &str, nonce: &str, message: impl Into<String>) {
        self.shared.session().nack(type_url, nonce, message.into());
        self.shared.wake.notify_one();
    }

    /// Asks for more names. A name that is already subscribed to is asked for again, and sent
    /// again.
    pub fn subscribe<S: Into<String>>(&self, type_url: &str, names: impl IntoIterator<Item = S>) {
        self.shared
            .session()
            .subscribe(type_url, names.into_iter().map(Into::into));
        self.shared.wake.notify_one();
    }

    /// Drops names; what was held under them is forgotten.
    pub fn unsubscribe<S: Into<String>>(&self, type_url: &str, names: impl IntoIterator<Item = S>) {
        self.shared
            .session()
            .unsubscribe(type_url, names.into_iter().map(Into::into));
        self.shared.wake.notify_one();
    }

    /// Asks for everything of a type.
    pub fn subscribe_all(&self, type_url: &str) {
        self.shared.session().subscribe_all(type_url);
        self.shared.wake.notify_one();
    }
}

/// The driver's entry.
pub struct Client;

impl Client {
    /// Starts the driver on the current runtime. It ends when the receiver is dropped.
    pub fn spawn(config: ClientConfig) -> (ClientHandle, mpsc::Receiver<ClientEvent>) {
        let (events, receiver) = mpsc::channel(config.queue.max(1));
        let session =
            ClientSession::new(config.variant, config.node.clone(), config.initial.clone());
        let shared = Arc::new(Shared {
            session: Mutex::new(session),
            wake: Notify::new(),
        });

        let handle = ClientHandle {
            shared: shared.clone(),
        };
        tokio::spawn(drive(config, shared, events));

        (handle, receiver)
    }
}

struct Shared {
    session: Mutex<ClientSession>,
    wake: Notify,
}

impl Shared {
    fn session(&self) -> MutexGuard<'_, ClientSession> {
        self.session
            .lock()
            .expect("no caller panics while it holds the session")
    }
}

/// Ends only when nobody listens any more.
struct Unheard;

async fn drive(config: ClientConfig, shared: Arc<Shared>, events: mpsc::Sender<ClientEvent>) {
    let mut failures = 0;
    loop {
        let mut answered = false;
        let reason = tokio::select! {
            ended = one_stream(&config, &shared, &events, &mut answered) => match ended {
                Ok(reason) => reason,
                Err(Unheard) => return,
            },
            () = events.closed() => return,
        };

        shared.session().disconnected();
        failures = if answered { 1 } else { failures + 1 };
        tracing::debug!(%reason, failures, "xds stream ended");
        if events
            .send(ClientEvent::Disconnected { reason })
            .await
            .is_err()
        {
            return;
        }

        tokio::select! {
            () = tokio::time::sleep(config.backoff.delay(failures, jitter())) => {}
            () = events.closed() => return,
        }
    }
}

/// One connection's life. `Ok` is the reason of its end.
async fn one_stream(
    config: &ClientConfig,
    shared: &Arc<Shared>,
    events: &mpsc::Sender<ClientEvent>,
    answered: &mut bool,
) -> Result<String, Unheard> {
    let connection =
        match tokio::time::timeout(config.connect_timeout, config.connect.connect()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Ok(format!("cannot connect: {}", chain(error.as_ref()))),
            Err(_) => return Ok(format!("no connection within {:?}", config.connect_timeout)),
        };

    let epoch = shared.session().connected();
    let mut client = AggregatedDiscoveryServiceClient::new(connection.channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);

    match config.variant {
        Variant::Delta => {
            let outbound = requests(shared.clone(), epoch, |request| match request {
                ClientRequest::Delta(request) => Some(request),
                ClientRequest::Sotw(_) => None,
            });

            let call = client.delta_aggregated_resources(with(connection.metadata, outbound));
            read(call.await, shared, events, answered, ClientResponse::Delta).await
        }
        Variant::Sotw => {
            let outbound = requests(shared.clone(), epoch, |request| match request {
                ClientRequest::Sotw(request) => Some(request),
                ClientRequest::Delta(_) => None,
            });

            let call = client.stream_aggregated_resources(with(connection.metadata, outbound));
            read(call.await, shared, events, answered, ClientResponse::Sotw).await
        }
    }
}

fn with<S>(metadata: MetadataMap, stream: S) -> tonic::Request<S> {
    let mut request = tonic::Request::new(stream);
    *request.metadata_mut() = metadata;
    request
}

/// The session's requests as a stream that the transport pulls: what it cannot take yet merges in
/// the session.
fn requests<R>(
    shared: Arc<Shared>,
    epoch: u64,
    pick: fn(ClientRequest) -> Option<R>,
) -> impl Stream<Item = R> {
    futures_util::stream::unfold(shared, move |shared| async move {
        loop {
            let next = {
                let mut session = shared.session();
                if session.epoch() != epoch {
                    // A later stream took over; it must get the wake-up that this one may have
                    // swallowed.
                    shared.wake.notify_one();
                    return None;
                }
                session.next_request()
            };

            match next {
                Some(request) => return pick(request).map(|request| (request, shared)),
                // A wake-up between the look and this wait is kept, so none is missed.
                None => shared.wake.notified().await,
            }
        }
    })
}

/// Reads responses until the stream ends; the result says why it ended.
async fn read<M>(
    called: Result<tonic::Response<tonic::Streaming<M>>, tonic::Status>,
    shared: &Arc<Shared>,
    events: &mpsc::Sender<ClientEvent>,
    answered: &mut bool,
    wrap: fn(M) -> ClientResponse,
) -> Result<String, Unheard> {
    let mut inbound = match called {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(said(&status)),
    };

    events
        .send(ClientEvent::Connected)
        .await
        .map_err(|_| Unheard)?;

    loop {
        match inbound.message().await {
            Ok(Some(message)) => {
                *answered = true;
                let received = shared.session().response(wrap(message));
                match received {
                    Received::Update(update) => events
                        .send(ClientEvent::Update(update))
                        .await
                        .map_err(|_| Unheard)?,
                    Received::Refused { type_url, reason } => {
                        tracing::warn!(%type_url, %reason, "xds response refused");
                        shared.wake.notify_one();
                    }
                }
            }
            Ok(None) => return Ok("the server ended the stream".to_owned()),
            Err(status) => return Ok(said(&status)),
        }
    }
}

fn said(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// An error with its causes; tonic's own text hides them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
