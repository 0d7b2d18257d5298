//! The request on its way up.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use meltemi_net::Buffers;

use super::{Forwarding, Progress};
use crate::body::tee::Tee;
use crate::body::{BodyIn, BodyOut, Data, Flow, PumpError, pump};
use crate::http1::body::BodyError;
use crate::record::Messages;

/// Sends the request and then watches the client, until the client leaves or its body breaks off.
/// Boxed: it would make the future of every request larger.
pub type Upload<'u> = Pin<Box<dyn Future<Output = UploadEnd> + 'u>>;

/// How an upload ended before its response.
#[derive(Debug)]
pub enum UploadEnd {
    /// The request body broke off.
    Broken(BodyError),
    /// The client closed after its request.
    Gone,
}

/// Whether an attempt has nothing to send but a head.
pub fn is_bodyless(body: &BodyIn<'_>, tee: Option<&RefCell<Tee>>) -> bool {
    body.is_empty() && tee.is_none_or(|tee| tee.borrow().is_empty())
}

/// Sends the request up: the part of its body that was kept, then the rest from the client.
pub fn upload<'u>(
    forwarding: &'u Forwarding<'u>,
    body: &'u mut BodyIn<'_>,
    mut up: BodyOut<'u>,
    progress: &'u Progress,
    messages: Option<Rc<Messages>>,
    buffers: &'u Buffers,
) -> Upload<'u> {
    Box::pin(async move {
        let messages = messages.as_deref();
        match send_body(forwarding, body, &mut up, progress, messages).await {
            Ok(()) => {
                progress.uploaded_at.set(Some(Instant::now()));
                forwarding.clocks.uploaded();
                if let BodyOut::H1 { head, .. } = &mut up {
                    buffers.give(std::mem::take(head));
                }
            }
            Err(PumpError::Write(error)) => {
                // The upstream may have answered early: its response, or its end, will tell.
                progress.write_error.set(Some(error.to_string()));
                std::future::pending::<()>().await;
            }
            Err(PumpError::Read(error)) => {
                up.abort(h2::Reason::CANCEL);
                return UploadEnd::Broken(error);
            }
        }

        body.gone().await;
        UploadEnd::Gone
    })
}

async fn send_body(
    forwarding: &Forwarding<'_>,
    body: &mut BodyIn<'_>,
    up: &mut BodyOut<'_>,
    progress: &Progress,
    messages: Option<&Messages>,
) -> Result<(), PumpError> {
    let tee = forwarding.tee;
    let mut at = 0;
    while let Some(kept) = tee.and_then(|tee| tee.borrow().piece(at)) {
        at += kept.len();
        up.data(Data::Owned(kept)).await.map_err(PumpError::Write)?;
    }

    if tee.is_some_and(|tee| tee.borrow().is_whole()) || matches!(body, BodyIn::Empty) {
        let trailers = tee.and_then(|tee| tee.borrow().trailers());
        return up.finish(trailers).await.map_err(PumpError::Write);
    }

    let messages = messages.map(|messages| &messages.requests);
    let flow = Flow {
        moved: &progress.received,
        messages,
        tee,
        stalls: forwarding.stalls,
    };
    pump(body, up, flow, |_| {}).await
}
