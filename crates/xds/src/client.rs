//! The client's driver: connects, streams, reconnects. All protocol is in
//! [`session::ClientSession`].

pub(crate) mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::Stream;
use meltemi_proto::Any;
use meltemi_proto::discovery::{AggregatedDiscoveryServiceClient, SecretDiscoveryServiceClient};
use meltemi_proto::envoy::config::core::v3::Node;
use tokio::sync::{Notify, mpsc};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::backoff::{Backoff, jitter};
use crate::{MAX_MESSAGE_BYTES, Variant};
use session::{ClientRequest, ClientResponse, ClientSession, Received};

/// The error of a connector; any error type will do.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The resources of one type that a client subscribes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Subscribe to all resources that the server has for this client.
    pub wildcard: bool,
    /// Resources subscribed by name, beside the wildcard or instead of it.
    pub names: BTreeSet<String>,
}

impl Subscription {
    /// Subscribes to all resources of the type.
    pub fn wildcard() -> Self {
        Self {
            wildcard: true,
            names: BTreeSet::new(),
        }
    }

    /// Subscribes to these names only. The list may be empty; the type is then announced with its
    /// first name.
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

/// A received resource.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedResource {
    /// Name of the resource; in the state-of-the-world variant read from the message.
    pub name: String,
    /// Version of the resource; in the state-of-the-world variant the version of the whole
    /// response.
    pub version: String,
    /// The packed message; its type URL is the update's.
    pub any: Any,
}

/// One response. The owner must answer it with [`ClientHandle::ack`] or [`ClientHandle::nack`],
/// since the server sends nothing more of this type before.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Type URL of all resources of the update.
    pub type_url: String,
    /// New and changed resources. Names are unique.
    pub set: Vec<NamedResource>,
    /// Names that were removed, or that were requested and do not exist.
    pub removed: Vec<String>,
    /// The nonce to answer with.
    pub nonce: String,
    /// Whether `set` holds all resources of the type (clusters and listeners in state of the
    /// world). `removed` is filled in either case, so an owner that applies both lists need not
    /// check this.
    pub full: bool,
    /// The server's version of this state, for display.
    pub version: String,
}

/// An event for the owner of the client.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientEvent {
    /// The stream is open, and the subscriptions are being sent.
    Connected,
    /// A response, which the owner must answer.
    Update(Update),
    /// The stream ended. Received resources stay valid; the client reconnects by itself.
    Disconnected {
        /// The reason, with the server's message if there is one.
        reason: String,
    },
}

/// A channel to the server, and the metadata that each stream over it must carry (bearer token,
/// cluster id).
#[derive(Debug, Clone)]
pub struct Connection {
    /// The channel, connected or connecting. The client opens one stream on it and drops the
    /// channel when the stream ends.
    pub channel: Channel,
    /// Metadata of the stream's request.
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

/// Opens connections, and decides about address, TLS and token. It is called for each attempt, so
/// renewed certificates and tokens take effect at the next one. Any `Fn() ->
/// Future<Result<Connection, BoxError>>` is a connector.
pub trait Connector: Send + Sync + 'static {
    /// Opens one connection.
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

/// The discovery service that a client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// All types over one stream. Source: Envoy `AggregatedDiscoveryService`.
    Aggregated,
    /// Secrets alone. Source: Envoy `SecretDiscoveryService`.
    Secrets,
}

/// Options of a client.
#[derive(Clone)]
pub struct ClientConfig {
    /// Opens connections.
    pub connect: Arc<dyn Connector>,
    /// The node, sent with the first request of each stream.
    pub node: Node,
    /// The gRPC service to call.
    pub service: Service,
    /// The variant of the protocol.
    pub variant: Variant,
    /// Initial subscriptions by type, announced in this order on every connection: clusters,
    /// endpoints, listeners, routes, ...
    pub initial: Vec<(String, Subscription)>,
    /// Delays between attempts to connect.
    pub backoff: Backoff,
    /// Limit of one attempt to connect.
    pub connect_timeout: Duration,
    /// Number of events that may wait for the owner before the client stops reading from the
    /// server.
    pub queue: usize,
}

impl ClientConfig {
    /// Defaults: aggregated discovery, delta, the default back-off, ten seconds to connect, 16 events.
    pub fn new(connect: impl Connector, node: Node, initial: Vec<(String, Subscription)>) -> Self {
        Self {
            connect: Arc::new(connect),
            node,
            service: Service::Aggregated,
            variant: Variant::Delta,
            initial,
            backoff: Backoff::default(),
            connect_timeout: Duration::from_secs(10),
            queue: 16,
        }
    }
}

/// Answers updates and changes subscriptions. Calls never block or fail: they change the session,
/// and the client sends the change as soon as possible, if necessary on the next connection.
#[derive(Clone)]
pub struct ClientHandle {
    shared: Arc<Shared>,
}

impl ClientHandle {
    /// Acknowledges an update that was applied. Its resources count as held across reconnects.
    /// Subscribe to resources that the update refers to (such as endpoints of new clusters) before
    /// this call: the server then delays routes until they are acknowledged.
    pub fn ack(&self, type_url: &str, nonce: &str) {
        self.shared.session().ack(type_url, nonce);
        self.shared.wake.notify_one();
    }

    /// Rejects an update; the previous state stays. `message` should name the faulty resources.
    pub fn nack(&self, type_url: &str, nonce: &str, message: impl Into<String>) {
        self.shared.session().nack(type_url, nonce, message.into());
        self.shared.wake.notify_one();
    }

    /// Subscribes to more names. A name that is already subscribed is requested and sent again.
    pub fn subscribe<S: Into<String>>(&self, type_url: &str, names: impl IntoIterator<Item = S>) {
        self.shared
            .session()
            .subscribe(type_url, names.into_iter().map(Into::into));
        self.shared.wake.notify_one();
    }

    /// Unsubscribes from names and forgets their resources.
    pub fn unsubscribe<S: Into<String>>(&self, type_url: &str, names: impl IntoIterator<Item = S>) {
        self.shared
            .session()
            .unsubscribe(type_url, names.into_iter().map(Into::into));
        self.shared.wake.notify_one();
    }

    /// Subscribes to all resources of a type.
    pub fn subscribe_all(&self, type_url: &str) {
        self.shared.session().subscribe_all(type_url);
        self.shared.wake.notify_one();
    }
}

/// The client's task.
pub struct Client;

impl Client {
    /// Starts the client's task on the current runtime. The task ends when the receiver is dropped.
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

/// The owner has dropped the receiver.
struct Unheard;

/// Connects and reconnects until the owner drops the receiver.
async fn drive(config: ClientConfig, shared: Arc<Shared>, events: mpsc::Sender<ClientEvent>) {
    let mut failures = 0;
    loop {
        let mut answered = None;
        let reason = tokio::select! {
            ended = one_stream(&config, &shared, &events, &mut answered) => match ended {
                Ok(reason) => reason,
                Err(Unheard) => return,
            },
            () = events.closed() => return,
        };

        shared.session().disconnected();
        let healthy = answered.is_some_and(|since: Instant| since.elapsed() >= HEALTHY);
        failures = failures_after(failures, healthy);
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

/// Answers for so long make a stream a healthy one. A server that answers and then ends the stream, as
/// one over its limit or one that cannot make a resource, has not recovered.
const HEALTHY: Duration = Duration::from_secs(10);

/// The number of failures that the next delay is for.
fn failures_after(failures: u32, healthy: bool) -> u32 {
    match healthy {
        true => 1,
        false => failures.saturating_add(1),
    }
}

/// Runs one connection. `Ok` holds the reason of its end.
async fn one_stream(
    config: &ClientConfig,
    shared: &Arc<Shared>,
    events: &mpsc::Sender<ClientEvent>,
    answered: &mut Option<Instant>,
) -> Result<String, Unheard> {
    let connection =
        match tokio::time::timeout(config.connect_timeout, config.connect.connect()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Ok(format!("cannot connect: {}", chain(error.as_ref()))),
            Err(_) => return Ok(format!("no connection within {:?}", config.connect_timeout)),
        };

    let epoch = shared.session().connected();
    let Connection { channel, metadata } = connection;
    match config.variant {
        Variant::Delta => {
            let outbound = requests(shared.clone(), epoch, |request| match request {
                ClientRequest::Delta(request) => Some(request),
                ClientRequest::Sotw(_) => None,
            });

            let outbound = with(metadata, outbound);
            let call = match config.service {
                Service::Aggregated => {
                    aggregated(channel)
                        .delta_aggregated_resources(outbound)
                        .await
                }
                Service::Secrets => secrets(channel).delta_secrets(outbound).await,
            };
            read(call, shared, events, answered, ClientResponse::Delta).await
        }
        Variant::Sotw => {
            let outbound = requests(shared.clone(), epoch, |request| match request {
                ClientRequest::Sotw(request) => Some(request),
                ClientRequest::Delta(_) => None,
            });

            let outbound = with(metadata, outbound);
            let call = match config.service {
                Service::Aggregated => {
                    aggregated(channel)
                        .stream_aggregated_resources(outbound)
                        .await
                }
                Service::Secrets => secrets(channel).stream_secrets(outbound).await,
            };
            read(call, shared, events, answered, ClientResponse::Sotw).await
        }
    }
}

fn aggregated(channel: Channel) -> AggregatedDiscoveryServiceClient<Channel> {
    AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn secrets(channel: Channel) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn with<S>(metadata: MetadataMap, stream: S) -> tonic::Request<S> {
    let mut request = tonic::Request::new(stream);
    *request.metadata_mut() = metadata;
    request
}

/// The session's requests as a stream that the transport pulls. While the transport is busy,
/// changes are merged in the session.
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
                    // A newer stream has taken over. Pass on the wake-up that this stream may have
                    // consumed.
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
    answered: &mut Option<Instant>,
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
                answered.get_or_insert_with(Instant::now);
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

/// The text of an error with its causes, which tonic's own text leaves out.
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
