//! The request's body on its way to the upstream.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use meltemi_filters::grpc::MessageCount;

use crate::body::{BodyIn, BodyOut, Data, PumpError, Tee, pump};

/// Whether this attempt has nothing to send but a head.
pub fn is_bodyless(body: &BodyIn<'_>, tee: Option<&RefCell<Tee>>) -> bool {
    body.is_empty() && tee.is_none_or(|tee| tee.borrow().bytes.is_empty())
}

/// Sends what was kept of the body, then the rest of it.
pub async fn send_body(
    body: &mut BodyIn<'_>,
    to: &mut BodyOut<'_>,
    tee: Option<&RefCell<Tee>>,
    received: &Cell<u64>,
    messages: Option<&Cell<MessageCount>>,
) -> Result<(), PumpError> {
    let kept = tee
        .map(|tee| Bytes::copy_from_slice(&tee.borrow().bytes))
        .filter(|kept| !kept.is_empty());
    if let Some(kept) = kept {
        to.data(Data::Owned(kept)).await.map_err(PumpError::Write)?;
    }
    if tee.is_some_and(|tee| tee.borrow().whole) || matches!(body, BodyIn::Empty) {
        return to.finish(None).await.map_err(PumpError::Write);
    }

    pump(body, to, received, messages, tee, |_| {}).await
}
