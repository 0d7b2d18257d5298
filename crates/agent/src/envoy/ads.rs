//! Forwards Envoy's discovery streams to the control plane with the agent's credentials.
//!
//! Messages are not interpreted. When either side of a stream ends, the other ends too; Envoy then
//! reconnects and names the versions that it holds, so nothing is lost or sent twice.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use meltemi_proto::discovery::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceClient, AggregatedDiscoveryServiceServer,
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use meltemi_xds::MAX_MESSAGE_BYTES;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::{AgentMetrics, ControlPlane};

/// The aggregated discovery service that Envoy connects to.
pub struct AdsRelay {
    control_plane: ControlPlane,
    metrics: AgentMetrics,
    /// Number of open streams.
    streams: watch::Sender<usize>,
}

type Outbound<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

impl AdsRelay {
    /// Creates the gRPC service. `streams` holds the number of open streams; the readiness probe
    /// reads it.
    pub fn service(
        control_plane: ControlPlane,
        metrics: AgentMetrics,
        streams: watch::Sender<usize>,
    ) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(Self {
            control_plane,
            metrics,
            streams,
        })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Opens a connection to the control plane for one stream.
    async fn upstream(
        &self,
    ) -> Result<(AggregatedDiscoveryServiceClient<Channel>, MetadataMap), Status> {
        self.metrics.xds_connections.add_shared(1);
        let connection = self.control_plane.connector()().await.map_err(|error| {
            self.metrics.control_plane_failures.add_shared(1);
            tracing::warn!(%error, "xds: no connection to the control plane, the proxy will try again");
            Status::unavailable(error.to_string())
        })?;

        let client = AggregatedDiscoveryServiceClient::new(connection.channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);

        Ok((client, connection.metadata))
    }

    /// Wraps the responses of a stream, which counts as open until they are dropped.
    fn counted<M: Send + 'static>(&self, stream: Streaming<M>) -> Response<Outbound<M>> {
        let guard = OpenStream::new(self.streams.clone());
        Response::new(Box::pin(stream.map(move |item| {
            let _alive = &guard;
            item
        })))
    }
}

/// Turns Envoy's requests into the requests of the upstream stream, which end without an error when
/// Envoy closes its side.
fn forwarded_requests<M: Send + 'static>(
    metadata: MetadataMap,
    mut inbound: Streaming<M>,
) -> Request<ReceiverStream<M>> {
    let (sender, receiver) = mpsc::channel(1);

    // Ends with either side: `message` when Envoy closes, `closed` when the upstream stream is
    // dropped.
    tokio::spawn(async move {
        loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => if sender.send(message).await.is_err() {
                        return;
                    }
                    Ok(None) | Err(_) => return,
                },
                () = sender.closed() => return,
            }
        }
    });

    let mut request = Request::new(ReceiverStream::new(receiver));
    *request.metadata_mut() = metadata;

    request
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsRelay {
    type StreamAggregatedResourcesStream = Outbound<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outbound<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (mut client, metadata) = self.upstream().await?;
        let response = client
            .stream_aggregated_resources(forwarded_requests(metadata, request.into_inner()))
            .await?;
        Ok(self.counted(response.into_inner()))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (mut client, metadata) = self.upstream().await?;
        let response = client
            .delta_aggregated_resources(forwarded_requests(metadata, request.into_inner()))
            .await?;
        Ok(self.counted(response.into_inner()))
    }
}

/// Counts as an open stream until dropped.
struct OpenStream(watch::Sender<usize>);

impl OpenStream {
    fn new(streams: watch::Sender<usize>) -> Self {
        streams.send_modify(|count| *count += 1);
        Self(streams)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
