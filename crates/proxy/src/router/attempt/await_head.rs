//! Waiting for the response's head while the request is sent.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::failure::{Failure, read_failure};
use super::send::UploadEnd;
use super::{Attempt, Unanswered};
use crate::http1::body::BodyError;
use crate::http1::codec::Limits;
use crate::respond::Responder;
use crate::router::timeout::Limit;
use crate::upstream::response::{NoResponse, ResponseStart};

/// What happened first.
enum First {
    Head(Result<ResponseStart, NoResponse>),
    Upload(UploadEnd),
    Limit(Limit),
    Gone,
}

impl Attempt<'_, '_> {
    /// Sends the request and waits for the head of its response, which is then in
    /// [`Attempt::response`].
    pub async fn await_head(
        &mut self,
        responder: &mut Responder<'_>,
    ) -> Result<ResponseStart, Unanswered> {
        let before = self.source.sent();
        match self.first(responder).await {
            First::Head(Ok(start)) => Ok(start),
            First::Head(Err(error)) => {
                let nothing_sent = self.source.sent() == before;
                Err(Unanswered::Failed(self.no_response(error, nothing_sent)))
            }
            First::Upload(UploadEnd::Broken(BodyError::Malformed(how))) => {
                responder.close_after();
                Err(Unanswered::Failed(Failure::bad_request_body(how)))
            }
            First::Upload(UploadEnd::Broken(BodyError::Refused(reply))) => {
                Err(Unanswered::Refused(reply))
            }
            First::Upload(UploadEnd::Broken(_) | UploadEnd::Gone) | First::Gone => {
                Err(Unanswered::Gone)
            }
            First::Limit(limit) => {
                // The rest of the client's body must not be read as another request.
                if !self.progress.is_uploaded() {
                    responder.close_after();
                }
                let forwarding = self.forwarding;
                let label = forwarding.plan.label();
                let failure = Failure::limit(limit, label, forwarding.clocks);
                Err(Unanswered::Failed(failure))
            }
        }
    }

    async fn first(&mut self, responder: &mut Responder<'_>) -> First {
        let Self {
            forwarding,
            head,
            progress,
            upload,
            source,
            response,
            ..
        } = self;

        let limits = Limits::of_answers(forwarding.cluster.entry.cluster.http.max_head_fields);

        let mut read = pin!(source.head(head.method(), &limits, response));
        poll_fn(|cx| {
            // Upload first: the request must be on its way before a response can come.
            if let Poll::Ready(end) = upload.as_mut().poll(cx) {
                return Poll::Ready(First::Upload(end));
            }
            if let Poll::Ready(read) = read.as_mut().poll(cx) {
                return Poll::Ready(First::Head(read));
            }
            if responder.poll_gone(cx).is_ready() {
                return Poll::Ready(First::Gone);
            }
            let moved = progress.received.get();
            forwarding.clocks.poll(cx, moved).map(First::Limit)
        })
        .await
    }

    /// How long ago the request was sent to its end, or begun if it was not.
    fn since_last_byte(&self) -> Duration {
        let at = self.progress.uploaded_at.get();
        at.unwrap_or(self.started).elapsed()
    }

    fn no_response(&self, error: NoResponse, nothing_sent: bool) -> Failure {
        read_failure(
            &self.forwarding.plan.cluster_name,
            self.host,
            error,
            self.progress.write_error.take(),
            nothing_sent,
            self.reused.then(|| self.since_last_byte()),
        )
    }
}
