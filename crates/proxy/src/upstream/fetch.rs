//! Requests of the proxy's own: one request to a cluster, one whole response.
//!
//! They use the cluster's pools, circuit breakers, balancer and outlier detection as forwarded
//! requests do. They have no retries but one: a safe request is sent again if its pooled connection
//! turns out to be closed.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use meltemi_filters::head::{HttpVersion, RequestHead, ResponseHead};

use super::acquire::{ConnectRequest, NO_NAME, NotAcquired};
use super::carrier::{Carrier, NotOpened, may_resend};
use super::cluster::{PickRequest, WorkerCluster, WorkerHost};
use super::live::{Resource, epoch_ms};
use super::outlier::HostResult;
use super::response::NoResponse;
use crate::body::{BodyIn, BodyOut, Data};
use crate::downstream::Downstream;
use crate::grpc::effective_status;
use crate::http1::body::{BodyError, BodyReader};
use crate::http1::client::ReadError;
use crate::http1::codec::Limits;
use crate::worker::Worker;

/// A request to a cluster.
#[derive(Debug)]
pub struct FetchRequest<'a> {
    /// Method, authority, path and fields. `content-length` is set here, from the body. A version
    /// of HTTP/2 asks for HTTP/2 from clusters that take the downstream's protocol; gRPC also needs
    /// `te: trailers`.
    pub head: RequestHead,
    /// The whole body.
    pub body: Bytes,
    /// The trailers after it; those of HTTP/1.1 are dropped.
    pub trailers: Option<HeaderMap>,
    /// The limit for all of it, from waiting for a connection to the last byte of the response.
    pub timeout: Duration,
    /// What happens to the response's body.
    pub response_body: ResponseBody,
    /// The connection that the request is made for, if there is one: transports that tell the
    /// client's address need it.
    pub downstream: Option<&'a Downstream>,
}

/// What happens to the body of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseBody {
    /// It is read, so that the connection can be used again, and dropped.
    Discard,
    /// It is kept up to so many bytes; a longer one is [`Failed::BodyTooLong`].
    UpTo(usize),
}

/// A whole response, whatever its status.
#[derive(Debug)]
pub struct FetchResponse {
    /// Status and fields.
    pub head: ResponseHead,
    /// The body; empty where it was discarded.
    pub body: Bytes,
    /// Trailers of HTTP/2; those of HTTP/1.1 are dropped.
    pub trailers: Option<HeaderMap>,
}

/// Why there is no response. Its text names cluster, endpoint and reason.
#[derive(Debug, thiserror::Error)]
#[error("cluster {cluster}{}: {failed}", endpoint.map(|at| format!(", endpoint {at}")).unwrap_or_default())]
pub struct FetchError {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The endpoint, once one was chosen.
    pub endpoint: Option<SocketAddr>,
    /// What failed.
    pub failed: Failed,
}

/// See [`FetchError`].
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The configuration has no such cluster.
    #[error("no such cluster")]
    NoCluster,
    /// The cluster's `drop_overloads` dropped the request.
    #[error("dropped by drop_overloads")]
    Dropped,
    /// The cluster has no endpoint that may be used.
    #[error("no healthy endpoint")]
    NoEndpoint,
    /// A circuit breaker has no place; Envoy's name of the threshold.
    #[error("circuit breaker: {0} is reached")]
    Overflow(&'static str),
    /// There is no connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The head cannot be written as HTTP/2, or its host is no name for a certificate.
    #[error("the request cannot be sent: {0}")]
    BadRequest(&'static str),
    /// The connection or stream ended before a response.
    #[error("no response: {0}")]
    NoResponse(NoResponse),
    /// The body broke off.
    #[error("response body: {0}")]
    Body(BodyError),
    /// The body is longer than the request allows.
    #[error("the response body is longer than {0} bytes")]
    BodyTooLong(usize),
    /// The time is up.
    #[error("timeout of {limit:?} while {phase}")]
    Timeout {
        /// The request's limit.
        limit: Duration,
        /// The phase that took too long.
        phase: &'static str,
    },
}

/// The future of a fetch. It is boxed, so that a caller that rarely fetches does not reserve its
/// memory all the time.
pub type Fetching<'a> = Pin<Box<dyn Future<Output = Result<FetchResponse, FetchError>> + 'a>>;

/// Sends a request to a cluster and reads the whole response. Dropping the future gives the request
/// up.
pub fn fetch<'a>(
    worker: &'a Rc<Worker>,
    cluster: &'a str,
    request: FetchRequest<'a>,
) -> Fetching<'a> {
    Box::pin(async move {
        let error = |endpoint, failed| FetchError {
            cluster: cluster.into(),
            endpoint,
            failed,
        };
        let found = worker.cluster(cluster);
        let cluster = found.ok_or_else(|| error(None, Failed::NoCluster))?;
        if cluster.entry.endpoints.drops(worker.random()).is_some() {
            return Err(error(None, Failed::Dropped));
        }

        let place = cluster.entry.live.admit(false, Resource::Requests);
        let Some(_place) = place else {
            let threshold = Resource::Requests.threshold();
            return Err(error(None, Failed::Overflow(threshold)));
        };
        let Some(host) = pick(worker, &cluster, request.downstream) else {
            return Err(error(None, Failed::NoEndpoint));
        };

        let limit = request.timeout;
        let fetch = Fetch::new(worker, &cluster, &host, request);
        let result = match tokio::time::timeout(limit, fetch.send()).await {
            Ok(result) => result,
            Err(_) => {
                let phase = fetch.phase.get().name();
                Err(Failed::Timeout { limit, phase })
            }
        };

        note(&cluster, &host, &result);
        result.map_err(|failed| error(Some(host.address), failed))
    })
}

/// What a fetch waits for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Connect,
    Head,
    Body,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connecting",
            Self::Head => "waiting for the response head",
            Self::Body => "reading the response body",
        }
    }
}

fn pick(
    worker: &Worker,
    cluster: &WorkerCluster,
    downstream: Option<&Downstream>,
) -> Option<Rc<WorkerHost>> {
    let request = PickRequest {
        random: worker.random(),
        hash: None,
        subset: None,
        tried: &[],
        omitted: &[],
        attempts: 1,
        failed_priorities: &[],
        original: downstream.and_then(|conn| conn.info.original_destination()),
        now: epoch_ms(Instant::now()),
    };

    cluster.pick(&request).map(|(host, _)| host)
}

/// A request on its way to an endpoint.
struct Fetch<'a> {
    worker: &'a Rc<Worker>,
    cluster: &'a WorkerCluster,
    host: &'a Rc<WorkerHost>,
    head: RequestHead,
    body: Bytes,
    trailers: Option<HeaderMap>,
    response_body: ResponseBody,
    downstream: Option<&'a Downstream>,
    phase: Cell<Phase>,
}

impl<'a> Fetch<'a> {
    fn new(
        worker: &'a Rc<Worker>,
        cluster: &'a WorkerCluster,
        host: &'a Rc<WorkerHost>,
        request: FetchRequest<'a>,
    ) -> Self {
        let FetchRequest {
            mut head,
            body,
            trailers,
            timeout: _,
            response_body,
            downstream,
        } = request;

        // The body's length is known: whatever the fields say otherwise would break the framing.
        head.remove("content-length");
        head.remove("transfer-encoding");
        if !body.is_empty() {
            head.set("content-length", body.len().to_string().as_bytes());
        }

        Self {
            worker,
            cluster,
            host,
            head,
            body,
            trailers,
            response_body,
            downstream,
            phase: Cell::new(Phase::Connect),
        }
    }

    /// Sends the request, once more if a pooled connection was closed before it answered.
    async fn send(&self) -> Result<FetchResponse, Failed> {
        let connect = ConnectRequest {
            cluster: self.cluster,
            host: self.host,
            alpn: None,
            server_name: None,
            http2_downstream: self.head.version == HttpVersion::Http2,
            authority: self.head.authority(),
            http1_only: false,
            high: false,
            downstream: self.downstream,
        };

        let mut is_again = false;
        loop {
            self.phase.set(Phase::Connect);
            let bodyless = self.is_bodyless();
            let carrier = Carrier::open(self.worker, &connect, &self.head, bodyless).await;
            let carrier = carrier.map_err(|error| not_opened(&error))?;
            let reused = carrier.is_reused();

            // Sent at once: the small bodies of such requests take no time to upload.
            let sent_at = Instant::now();
            match self.exchange(carrier).await {
                // RFC 9112 §9.3.1: a client may send an idempotent request again by itself.
                Err(Failed::NoResponse(NoResponse::H1(ReadError::Closed | ReadError::Io(_))))
                    if reused && !is_again && may_resend(self.head.method(), sent_at.elapsed()) =>
                {
                    is_again = true;
                }
                result => return result,
            }
        }
    }

    fn is_bodyless(&self) -> bool {
        self.body.is_empty() && self.trailers.is_none()
    }

    /// One request and its response on one connection or stream.
    async fn exchange(&self, mut carrier: Carrier) -> Result<FetchResponse, Failed> {
        self.phase.set(Phase::Head);
        self.cluster
            .entry
            .live
            .totals
            .requests
            .fetch_add(1, Relaxed);
        let _active = self.host.live.begin();
        let limits = Limits::of_answers(self.cluster.entry.cluster.http.max_head_fields);

        let buffers = &self.worker.buffers;
        let mut response = ResponseHead::default();
        let (mut source, mut up) = carrier.split(&self.head, self.is_bodyless(), false, buffers);
        let (start, whole_upload) = {
            let mut upload = pin!(upload(&mut up, &self.body, &self.trailers));
            let mut uploaded = None;
            let mut reading = pin!(source.head(self.head.method(), &limits, &mut response));

            // Both at once: a server may answer before it has read the body. If it closes instead,
            // the reader finds out.
            let start = poll_fn(|cx| {
                if uploaded.is_none()
                    && let Poll::Ready(sent) = upload.as_mut().poll(cx)
                {
                    uploaded = Some(sent.is_ok());
                }
                reading.as_mut().poll(cx)
            });

            let start = start.await.map_err(Failed::NoResponse)?;
            (start, uploaded == Some(true))
        };

        self.phase.set(Phase::Body);
        let keep_alive = start.terms.keep_alive;
        let reader = BodyReader::new(start.terms.framing);
        let no_continue = Cell::new(false);
        let mut from = source.body(start, &reader, &no_continue);
        let body = read_body(&mut from, self.response_body).await?;
        let trailers = from.trailers().await.map_err(Failed::Body)?;

        from.settle();
        drop(from);
        if let BodyOut::H1 { head, .. } = up {
            buffers.give(head);
        }
        if whole_upload && keep_alive && reader.is_done() {
            carrier.give_back(self.host);
        }

        Ok(FetchResponse {
            head: response,
            body,
            trailers,
        })
    }
}

async fn upload(
    up: &mut BodyOut<'_>,
    body: &Bytes,
    trailers: &Option<HeaderMap>,
) -> std::io::Result<()> {
    if trailers.is_none() && !body.is_empty() {
        return up.last(Data::Owned(body.clone())).await;
    }

    up.data(Data::Owned(body.clone())).await?;
    up.finish(trailers.clone()).await
}

async fn read_body(from: &mut BodyIn<'_>, keep: ResponseBody) -> Result<Bytes, Failed> {
    let mut body = Vec::new();
    while let Some(piece) = from.next().await.map_err(Failed::Body)? {
        if let ResponseBody::UpTo(most) = keep {
            if body.len() + piece.as_slice().len() > most {
                return Err(Failed::BodyTooLong(most));
            }
            body.extend_from_slice(piece.as_slice());
        }
    }

    Ok(body.into())
}

fn not_opened(error: &NotOpened) -> Failed {
    match error {
        NotOpened::Acquire(NotAcquired::Overflow(resource)) => {
            Failed::Overflow(resource.threshold())
        }
        NotOpened::Acquire(NotAcquired::Name) => Failed::BadRequest(NO_NAME),
        NotOpened::Acquire(NotAcquired::Dial(error)) => Failed::Connect(error.to_string()),
        NotOpened::Head(details) => Failed::BadRequest(details),
        NotOpened::Stream(error) => Failed::Connect(error.to_string()),
    }
}

/// Tells outlier detection and the cluster's counts how a fetch ended.
fn note(cluster: &WorkerCluster, host: &WorkerHost, result: &Result<FetchResponse, Failed>) {
    let (code, judged) = match result {
        Ok(response) => {
            let status = effective_status(response.head.is_grpc(), &response.head);
            (response.head.status, Some(HostResult::Status(status)))
        }
        Err(Failed::Timeout { .. }) => {
            cluster.counts.timeout.inc();
            (504, Some(HostResult::LocalFailure))
        }
        Err(Failed::Connect(_) | Failed::NoResponse(_) | Failed::Body(_)) => {
            (503, Some(HostResult::LocalFailure))
        }
        // The endpoint is not to blame.
        Err(
            Failed::NoCluster
            | Failed::Dropped
            | Failed::NoEndpoint
            | Failed::Overflow(_)
            | Failed::BadRequest(_)
            | Failed::BodyTooLong(_),
        ) => (503, None),
    };

    cluster.counts.codes.note(code);
    if let Some(judged) = judged {
        let now = epoch_ms(Instant::now());
        cluster.entry.live.report(&host.live, judged, now);
    }
}
