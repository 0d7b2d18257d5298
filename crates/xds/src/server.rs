//! Drives server sessions over tonic: one task per stream. The sessions implement the protocol; the
//! [`Source`] decides which client sees which resources.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meltemi_proto::discovery::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer, DeltaDiscoveryRequest,
    DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use meltemi_proto::envoy::config::core::v3::Node;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status, Streaming};

use crate::backoff::jitter;
use crate::session::delta::DeltaSession;
use crate::session::sotw::SotwSession;
use crate::session::status::{TypeStatus, Verdict};
use crate::session::{ProtocolError, ServerSession};
use crate::{MAX_MESSAGE_BYTES, ResourceSet, Variant};

/// A new stream whose first request has arrived.
pub struct Opening {
    /// The node of the first request.
    pub node: Node,
    /// The variant of the protocol.
    pub variant: Variant,
    /// Data of the transport (addresses, certificates) and of [`Source::admit`].
    pub extensions: Extensions,
    /// A view of the session's state.
    pub session: Arc<dyn SessionView>,
}

/// A read-only view of a session.
pub trait SessionView: Send + Sync {
    /// The state of each type, in push order.
    fn status(&self) -> Vec<TypeStatus>;
    /// The resources that the client should have.
    fn resources(&self) -> Option<Arc<ResourceSet>>;
}

/// What a source provides to an accepted stream.
pub struct Feed {
    /// The newest resources. The stream waits while the value is `None`, skips values if it is
    /// slow, and ends when the sender is dropped.
    pub resources: watch::Receiver<Option<Arc<ResourceSet>>>,
    /// Receives the events of the stream; dropped when the stream ends.
    pub observer: Box<dyn Observer>,
}

/// Receives the events of one stream. Called from the stream's task, so it must not block.
pub trait Observer: Send + 'static {
    /// A response was sent.
    fn sent(&mut self, type_url: &str, resources: usize, removed: usize, bytes: usize);
    /// The client acknowledged or rejected the response in flight.
    fn verdict(&mut self, verdict: &Verdict);
}

/// Decides who may open a stream and which resources it gets.
#[tonic::async_trait]
pub trait Source: Send + Sync + 'static {
    /// Authenticates a client before any of its messages is read, and may store results in the
    /// extensions. An error is sent to the client as its status.
    async fn admit(
        &self,
        _metadata: &MetadataMap,
        _extensions: &mut Extensions,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// Accepts a stream, or refuses it with the status to send.
    async fn open(&self, opening: Opening) -> Result<Feed, Status>;
}

/// Time limits of streams.
#[derive(Debug, Clone, Copy)]
pub struct ServerTerms {
    /// Limit for the arrival of the first request.
    pub first_request: Duration,
    /// Maximum age of a stream, varied by up to a tenth. The client then reconnects and
    /// authenticates again. `None` means no limit.
    pub max_age: Option<Duration>,
}

impl Default for ServerTerms {
    /// Ten seconds for the first request; a maximum age of 30 minutes, as in Istio.
    fn default() -> Self {
        Self {
            first_request: Duration::from_secs(10),
            max_age: Some(Duration::from_secs(30 * 60)),
        }
    }
}

/// The aggregated discovery service.
pub struct AdsServer {
    source: Arc<dyn Source>,
    terms: ServerTerms,
}

impl AdsServer {
    /// Creates the gRPC service, with messages of up to [`MAX_MESSAGE_BYTES`].
    pub fn service(
        source: Arc<dyn Source>,
        terms: ServerTerms,
    ) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(Self { source, terms })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn start<S: ServerSession>(
        &self,
        request: Request<Streaming<S::Request>>,
    ) -> Response<Outbound<S::Response>> {
        let (metadata, extensions, inbound) = request.into_parts();

        // At most one response waits for the transport. The session merges later changes into the
        // next response.
        let (outbound, receiver) = mpsc::channel(1);
        let stream = Stream::<S> {
            source: self.source.clone(),
            terms: self.terms,
            inbound,
            outbound: outbound.clone(),
        };

        tokio::spawn(async move {
            if let Err(status) = stream.run(metadata, extensions).await {
                // Do not wait for ever for a client that does not read.
                _ = tokio::time::timeout(Duration::from_secs(5), outbound.send(Err(status))).await;
            }
        });

        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }
}

type Outbound<M> = Pin<Box<dyn futures_util::Stream<Item = Result<M, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsServer {
    type StreamAggregatedResourcesStream = Outbound<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outbound<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(self.start::<SotwSession>(request))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(self.start::<DeltaSession>(request))
    }
}

struct Stream<S: ServerSession> {
    source: Arc<dyn Source>,
    terms: ServerTerms,
    inbound: Streaming<S::Request>,
    outbound: mpsc::Sender<Result<S::Response, Status>>,
}

impl<S: ServerSession> Stream<S> {
    async fn run(
        mut self,
        metadata: MetadataMap,
        mut extensions: Extensions,
    ) -> Result<(), Status> {
        self.source.admit(&metadata, &mut extensions).await?;
        let first = tokio::time::timeout(self.terms.first_request, self.inbound.message());
        let first = match first.await {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None)) | Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(Status::deadline_exceeded("no request came on this stream")),
        };

        let Some(node) = S::node(&first).cloned() else {
            return Err(Status::invalid_argument(
                "the first request of a stream must carry its node",
            ));
        };

        let session = Arc::new(Mutex::new(S::new()));
        let opening = Opening {
            node,
            variant: S::VARIANT,
            extensions,
            session: Arc::new(LiveView(session.clone())),
        };

        let mut feed = self.source.open(opening).await?;
        handle_request::<S>(&session, &mut feed, first)?;
        let current = feed.resources.borrow_and_update().clone();
        if let Some(set) = current {
            lock(&session).set_resources(set);
        }
        let end = tokio::time::sleep(age(self.terms.max_age));
        tokio::pin!(end);

        loop {
            tokio::select! {
                // Requests first: if a client subscribes to several types at once, the session must
                // know all of them to answer in push order.
                biased;
                message = self.inbound.message() => match message {
                    Ok(Some(request)) => handle_request::<S>(&session, &mut feed, request)?,
                    // The client closed the stream or the connection failed.
                    Ok(None) | Err(_) => return Ok(()),
                },
                changed = feed.resources.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the control plane is shutting down"));
                    }
                    let set = feed.resources.borrow_and_update().clone();
                    if let Some(set) = set {
                        lock(&session).set_resources(set);
                    }
                }
                () = &mut end => return Err(Status::unavailable("the stream reached its age; connect again")),
                sent = send_next::<S>(&session, &self.outbound) => match sent {
                    Some((type_url, resources, removed, bytes)) => feed.observer.sent(&type_url, resources, removed, bytes),
                    None => return Ok(()),
                },
            }
        }
    }
}

/// Passes a request to the session and its verdict to the observer.
fn handle_request<S: ServerSession>(
    session: &Mutex<S>,
    feed: &mut Feed,
    request: S::Request,
) -> Result<(), Status> {
    let verdict = lock(session)
        .on_request(request)
        .map_err(|error| match error {
            ProtocolError::NoType => Status::invalid_argument(error.to_string()),
            ProtocolError::Limit(_) => Status::resource_exhausted(error.to_string()),
        })?;

    if let Some(verdict) = verdict {
        feed.observer.verdict(&verdict);
    }
    Ok(())
}

/// Sends the next response as soon as the transport has room. If there is no response, waits until
/// the client leaves; returns `None` then. Cancellation safe: a response is taken from the session
/// only after its place in the channel is reserved.
async fn send_next<S: ServerSession>(
    session: &Mutex<S>,
    outbound: &mpsc::Sender<Result<S::Response, Status>>,
) -> Option<(String, usize, usize, usize)> {
    let place = outbound.reserve().await.ok()?;
    let next = lock(session).next_response();
    match next {
        Some(response) => {
            let (url, resources, removed) = S::describe(&response);
            let sent = (url.to_owned(), resources, removed, response.encoded_len());
            place.send(Ok(response));
            Some(sent)
        }
        None => {
            drop(place);
            outbound.closed().await;
            None
        }
    }
}

fn age(max: Option<Duration>) -> Duration {
    // A tokio timer cannot wait for ever: use a year.
    max.map_or(Duration::from_secs(365 * 86400), |max| {
        max.mul_f64(0.9 + 0.2 * (jitter() % 1000) as f64 / 1000.0)
    })
}

fn lock<S>(session: &Mutex<S>) -> std::sync::MutexGuard<'_, S> {
    session.lock().expect("sessions do not panic")
}

struct LiveView<S>(Arc<Mutex<S>>);

impl<S: ServerSession> SessionView for LiveView<S> {
    fn status(&self) -> Vec<TypeStatus> {
        lock(&self.0).status()
    }

    fn resources(&self) -> Option<Arc<ResourceSet>> {
        lock(&self.0).resources()
    }
}
