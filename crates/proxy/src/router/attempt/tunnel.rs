//! A request that became a tunnel.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use meltemi_net::{CopyOptions, Meter, copy_both_ways};

use super::{Client, Forwarding};
use crate::body::BodyIn;
use crate::exchange::state::{Ended, Exchange};
use crate::io::IoRef;
use crate::upstream::response::ResponseSource;

/// After a 101: bytes both ways, until either side ends, a limit of the stream has passed, or the
/// connection has to end.
pub async fn tunnel(
    forwarding: &Forwarding<'_>,
    exchange: &mut Exchange<'_>,
    client: &mut Client<'_, '_, '_>,
    source: ResponseSource<'_>,
) -> Ended {
    let ResponseSource::H1 { io, input } = source else {
        return exchange.gone();
    };
    client.body.settle();
    if client.responder.switch(&exchange.response).await.is_err() {
        return exchange.gone();
    }
    let BodyIn::H1(downstream) = &mut *client.body else {
        return exchange.gone();
    };

    let clocks = forwarding.clocks;
    let first = (downstream.input.take(), input.take());
    let meter = Meter::default();
    let (mut down, mut up) = (IoRef(downstream.io), IoRef(io));

    clocks.tunnelled();
    let limit = {
        let options = CopyOptions::default();
        let mut copy = pin!(copy_both_ways(
            &mut down,
            &mut up,
            first,
            options,
            &exchange.worker.buffers,
            &meter
        ));

        poll_fn(|cx| match copy.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => clocks
                .poll(cx, meter.received.get() + meter.sent.get())
                .map(Some),
        })
        .await
    };

    let info = &mut exchange.info;
    if let Some(limit) = limit {
        let cause = clocks.cause(limit, forwarding.plan.label());
        info.end(limit.flag(), limit.details(), Some(cause));
    }
    info.received.set(meter.received.get());
    info.sent.set(meter.sent.get());

    Ended::Switched
}
