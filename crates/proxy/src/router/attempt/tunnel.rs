//! A request that became a tunnel.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use meltemi_net::{CopyOptions, Meter, copy_both_ways};

use crate::body::BodyIn;
use crate::exchange::state::{Ended, Exchange};
use crate::http1::input::Input;
use crate::io::{Io, IoRef};
use crate::respond::Responder;
use crate::router::plan::{AttemptEnd, Plan};
use crate::router::timeout::Clocks;

/// After a 101: bytes both ways, until either side ends, a limit of the stream has passed, or the
/// connection has to end.
pub(super) async fn tunnel(
    exchange: &mut Exchange<'_>,
    plan: &Plan<'_>,
    body: &mut BodyIn<'_>,
    responder: &mut Responder<'_>,
    upstream: &Io,
    upstream_input: &mut Input,
    clocks: &Clocks,
) -> AttemptEnd {
    body.settle();
    if responder.switch(&exchange.response).await.is_err() {
        return AttemptEnd::Ended(exchange.gone());
    }
    let BodyIn::H1(downstream) = body else {
        return AttemptEnd::Ended(exchange.gone());
    };
    let first = (downstream.input.take(), upstream_input.take());
    let meter = Meter::default();
    let (mut down, mut up) = (IoRef(downstream.io), IoRef(upstream));

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

    if let Some(limit) = limit {
        exchange.info.end(
            limit.flag(),
            limit.details(),
            Some(clocks.cause(limit, plan.label())),
        );
    }

    exchange.info.received.set(meter.received.get());
    exchange.info.sent.set(meter.sent.get());

    AttemptEnd::Ended(Ended::Switched)
}
