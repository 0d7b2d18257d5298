//! A request that became a tunnel.

use meltemi_filters::ResponseFlag;
use meltemi_net::{CopyOptions, Meter, copy_both_ways};

use super::{AttemptEnd, gone};
use crate::body::BodyIn;
use crate::exchange::{Ended, Run};
use crate::http1::input::Input;
use crate::io::{Io, IoRef};
use crate::respond::Responder;

/// After a 101: bytes both ways, until either side ends or authorization is withdrawn.
pub(super) async fn tunnel(
    run: &mut Run<'_>,
    body: &mut BodyIn<'_>,
    responder: &mut Responder<'_>,
    upstream: &Io,
    upstream_input: &mut Input,
) -> AttemptEnd {
    body.settle();
    if responder.switch(&run.response).await.is_err() {
        return gone(run);
    }
    let BodyIn::H1(downstream) = body else { return gone(run) };
    let first = (downstream.input.take(), upstream_input.take());
    let meter = Meter::default();
    let options = CopyOptions { idle: run.http.stream_idle_timeout };
    let (mut down, mut up) = (IoRef(downstream.io), IoRef(upstream));
    {
        let copy = copy_both_ways(&mut down, &mut up, first, options, &run.worker.buffers, &meter);
        tokio::select! {
            _ = copy => {}
            () = async {
                run.conn.draining().await;
                tokio::time::sleep(run.http.drain_timeout).await;
            } => {}
        }
    }
    if let Some(reason) = run.conn.drain_reason() {
        run.info.end(ResponseFlag::LocalReset, "connection_drained", Some(reason.cause(&run.conn.chain)));
    }
    run.info.received.set(meter.received.get());
    run.info.sent.set(meter.sent.get());
    AttemptEnd::Ended(Ended::Switched)
}
