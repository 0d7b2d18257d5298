//! The server's driver: aggregated discovery over tonic. All protocol is in the sessions; who may
//! see what is decided by the [`Source`].

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

/// A stream that has just said who it is.
pub struct Opening {
    /// From the first request.
    pub node: Node,
    /// Which protocol it speaks.
    pub variant: Variant,
    /// What the transport knows (addresses, certificates) and [`Source::admit`] has found out.
    pub extensions: Extensions,
    /// Looks into the session for as long as the stream lives.
    pub session: Arc<dyn SessionView>,
}

/// A look into a live session.
pub trait SessionView: Send + Sync {
    /// Per type, in push order.
    fn status(&self) -> Vec<TypeStatus>;
    /// What the client is to have.
    fn resources(&self) -> Option<Arc<ResourceSet>>;
}

/// What a source gives to a stream that it lets in.
pub struct Feed {
    /// The newest set; the stream waits while it is `None`, skips what it is too slow for, and ends
    /// with the sender.
    pub resources: watch::Receiver<Option<Arc<ResourceSet>>>,
    /// Hears what happens on the stream; dropped with it.
    pub observer: Box<dyn Observer>,
}

/// Hears what happens on one stream. Called from the stream's task: be quick.
pub trait Observer: Send + 'static {
    /// A response is on its way.
    fn sent(&mut self, type_url: &str, resources: usize, removed: usize, bytes: usize);
    /// The client answered the response in flight.
    fn verdict(&mut self, verdict: &Verdict);
}

/// Decides who may open a stream and what it then sees.
#[tonic::async_trait]
pub trait Source: Send + Sync + 'static {
    /// Looks at who comes, before anything that it sends is read; what is found out may be left in
    /// the extensions. A refusal is the status that the client gets.
    async fn admit(
        &self,
        _metadata: &MetadataMap,
        _extensions: &mut Extensions,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// Lets a stream in, or refuses it with the status that the client gets.
    async fn open(&self, opening: Opening) -> Result<Feed, Status>;
}

/// How streams are kept.
#[derive(Debug, Clone, Copy)]
pub struct ServerTerms {
    /// A stream that has not sent its first request by then ends.
    pub first_request: Duration,
    /// A stream ends after this, give or take a tenth, so that its client proves again who it is.
    /// `None`: never.
    pub max_age: Option<Duration>,
}

impl Default for ServerTerms {
    /// Ten seconds; 30 minutes, as Istio.
    fn default() -> Self {
        Self {
            first_request: Duration::from_secs(10),
            max_age: Some(Duration::from_secs(30 * 60)),
        }
    }
}

/// The gRPC service.
pub struct AdsServer {
    source: Arc<dyn Source>,
    terms: ServerTerms,
}

impl AdsServer {
    /// The service for a tonic router, with message limits raised.
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

        // One response waits for the transport; what changes meanwhile merges in the session.
        let (outbound, receiver) = mpsc::channel(1);
        let stream = Stream::<S> {
            source: self.source.clone(),
            terms: self.terms,
            inbound,
            outbound: outbound.clone(),
        };

        tokio::spawn(async move {
            if let Err(status) = stream.run(metadata, extensions).await {
                // A client that does not read learns nothing, as after a reset.
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
            session: Arc::new(Look(session.clone())),
        };

        let mut feed = self.source.open(opening).await?;
        take::<S>(&session, &mut feed, first)?;
        let current = feed.resources.borrow_and_update().clone();
        if let Some(set) = current {
            lock(&session).set_resources(set);
        }
        let end = tokio::time::sleep(age(self.terms.max_age));
        tokio::pin!(end);

        loop {
            tokio::select! {
                // Requests first: what a client asks for in one breath is answered in the right
                // order.
                biased;
                message = self.inbound.message() => match message {
                    Ok(Some(request)) => take::<S>(&session, &mut feed, request)?,
                    // However a client leaves, it is gone.
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

fn take<S: ServerSession>(
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

/// Sends the next response as soon as there is room; pending while there is none to send.
/// Cancel-safe: the response is taken from the session only when its place is reserved. `None`: the
/// client is gone.
async fn send_next<S: ServerSession>(
    session: &Mutex<S>,
    outbound: &mpsc::Sender<Result<S::Response, Status>>,
) -> Option<(String, usize, usize, usize)> {
    let place = outbound.reserve().await.ok()?;
    let next = lock(session).next_response();
    match next {
        Some(response) => {
            let (url, resources, removed) = S::describe(&response);
            let told = (url.to_owned(), resources, removed, response.encoded_len());
            place.send(Ok(response));
            Some(told)
        }
        None => {
            drop(place);
            outbound.closed().await;
            None
        }
    }
}

fn age(max: Option<Duration>) -> Duration {
    // tokio's clock has no "never"; a year is.
    max.map_or(Duration::from_secs(365 * 86400), |max| {
        max.mul_f64(0.9 + 0.2 * (jitter() % 1000) as f64 / 1000.0)
    })
}

fn lock<S>(session: &Mutex<S>) -> std::sync::MutexGuard<'_, S> {
    session.lock().expect("sessions do not panic")
}

struct Look<S>(Arc<Mutex<S>>);

impl<S: ServerSession> SessionView for Look<S> {
    fn status(&self) -> Vec<TypeStatus> {
        lock(&self.0).status()
    }

    fn resources(&self) -> Option<Arc<ResourceSet>> {
        lock(&self.0).resources()
    }
}
