//! Steps a chain's filters, phase by phase, and performs the calls that they ask for.

pub mod call;
pub mod data;
mod hold;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use meltemi_filters::http::{
    Activation, CallResult, DoneContext, Entropy, Event, FilterSettings, Hold, HttpChain,
    HttpFilterSlot, RequestContext, ResponseContext, Step, StreamFacts,
};
use meltemi_filters::{Cause, LocalReply, RequestHead, ResponseHead};
use meltemi_proxy_config::http::HttpConnectionManager;
use meltemi_proxy_config::route::{Chosen, RouteDecision};

use self::hold::{Gathered, Held};
use crate::body::BodyIn;
use crate::counts::HttpCounts;
use crate::downstream::{ChainView, Downstream};
use crate::grpc;
use crate::record::StreamInfo;
use crate::respond::Responder;
use crate::worker::Worker;

/// What filters see beside the heads.
#[derive(Debug, Clone, Copy)]
pub struct FilterInputs<'a> {
    pub worker: &'a Rc<Worker>,
    pub conn: &'a Rc<Downstream>,
    /// The configuration that the exchange runs under.
    pub view: &'a Rc<ChainView>,
    /// Its HTTP settings, with the chain of filters.
    pub http: &'a HttpConnectionManager,
    /// The client.
    pub remote: SocketAddr,
    pub decision: Option<&'a RouteDecision<'a>>,
    pub cluster: Option<&'a str>,
    /// The upstream is in the mesh.
    pub in_mesh: bool,
    /// Counters of the connection manager.
    pub counts: &'a HttpCounts,
}

impl<'a> FilterInputs<'a> {
    /// Whether a filter of the chain runs, and with what settings of the route.
    fn activation(&self, slot: &HttpFilterSlot) -> Activation<'a> {
        let settings = self.decision.map(|decision| decision.settings(&slot.name));
        slot.activation(settings.unwrap_or_default())
    }
}

/// Why an exchange goes no further.
#[derive(Debug)]
pub enum Stop {
    /// A filter answers it.
    Reply(Box<LocalReply>),
    /// The client left while a filter waited.
    Gone,
}

/// How far a request came.
#[derive(Debug)]
pub enum Progress {
    /// Through the whole chain.
    Through,
    /// The filter before this place in the chain asks for another route.
    Reroute(usize),
}

/// Lets filters see the request in order, from a place in the chain on; the first that answers ends
/// it. What a filter holds of the body goes first when the body is read later.
pub async fn request(
    inputs: FilterInputs<'_>,
    from: usize,
    head: &mut RequestHead,
    body: &mut BodyIn<'_>,
    responder: &mut Responder<'_>,
    info: &mut StreamInfo,
) -> Result<Progress, Stop> {
    let mut entropy = Entropy::new(info.random);
    let mut held = Held::default();
    let mut reroute = false;

    for (number, slot) in inputs.http.filters.slots().skip(from) {
        let Activation::On(route) = inputs.activation(slot) else {
            continue;
        };

        let mut next = Next::Head;
        loop {
            let step = {
                let mut peers = inputs.worker.peers.borrow_mut();
                let stream = StreamFacts {
                    start: info.start_time,
                    connection: inputs.conn.id,
                    route: info.route.as_deref(),
                    upstream: info.upstream,
                    details: &info.details,
                };
                let mut cx = RequestContext {
                    slot: number,
                    head,
                    has_body: held.is_begun() || !body.is_empty(),
                    conn: &inputs.conn.info,
                    remote: inputs.remote,
                    state: &mut info.state,
                    entropy: &mut entropy,
                    now: inputs.worker.uptime(),
                    route_metadata: inputs.decision.map(|decision| &decision.route.metadata),
                    cluster: inputs.cluster,
                    upstream_in_mesh: inputs.in_mesh,
                    local: &inputs.worker.common.local,
                    peers: &mut peers,
                    tally: &inputs.counts.filters,
                    reroute: &mut reroute,
                    stream,
                };

                slot.filter.on_request(route, next.event(&held), &mut cx)
            };

            match step {
                Step::Continue => break,
                Step::Reply(reply) => return Err(Stop::Reply(reply)),
                Step::Call(call) => {
                    let limits = limits(inputs, head, info);
                    let call = call::perform(inputs.worker, inputs.conn, call);
                    next = Next::Called(tokio::select! {
                        result = hold::within(limits, call) => match result {
                            Some(result) => result,
                            None => return Err(too_slow(inputs, &limits)),
                        },
                        () = responder.left(body) => return Err(Stop::Gone),
                    });
                }
                Step::Hold(hold) => {
                    responder.invite_body();
                    hold_request(inputs, slot, hold, &mut held, head, body, info).await?;
                    next = Next::Held;
                }
            }
        }

        if std::mem::take(&mut reroute) {
            held.give_back(body);
            return Ok(Progress::Reroute(usize::from(number) + 1));
        }
    }

    held.give_back(body);

    Ok(Progress::Through)
}

/// What a filter is stepped with next.
enum Next {
    Head,
    Held,
    Called(CallResult),
}

impl Next {
    /// The event; a result is handed over once.
    fn event<'h>(&mut self, held: &'h Held) -> Event<'h> {
        match std::mem::replace(self, Self::Head) {
            Self::Head => Event::Head,
            Self::Held => held.event(),
            Self::Called(result) => Event::Called(result),
        }
    }
}

/// Reads as much of a request's body as a filter asks for.
async fn hold_request(
    inputs: FilterInputs<'_>,
    slot: &HttpFilterSlot,
    hold: Hold,
    held: &mut Held,
    head: &RequestHead,
    body: &mut BodyIn<'_>,
    info: &mut StreamInfo,
) -> Result<(), Stop> {
    let limits = limits(inputs, head, info);
    let gathered = held.gather(hold, body, limits).await;
    if held.is_whole() {
        let ended = info.request_end.get().unwrap_or_else(Instant::now);
        info.request_end.set(Some(ended));
    }
    if matches!(gathered, Gathered::Enough) {
        return Ok(());
    }

    // The body goes nowhere, so it is counted here.
    info.received.set(info.received.get() + held.len() as u64);
    Err(match gathered {
        Gathered::TooLong => {
            let cause = Cause::BodyTooLarge(slot.name.clone());
            let details = "request_payload_too_large";
            let reply = LocalReply::new(413, "Payload Too Large", details, cause);
            Stop::Reply(Box::new(reply))
        }
        Gathered::Failed(error) => hold::failed(error),
        Gathered::Enough | Gathered::Slow => too_slow(inputs, &limits),
    })
}

/// How long a request may wait at a filter, for its body or for an answer.
fn limits(inputs: FilterInputs<'_>, head: &RequestHead, info: &StreamInfo) -> hold::Limits {
    let http = inputs.http;
    let is_arrived = info.request_end.get().is_some();
    let stream = match inputs.decision.map(|decision| decision.chosen) {
        Some(Chosen::Forward(forward)) => {
            let own = &forward.action.timeouts;
            own.stream(http.max_stream_duration, grpc::timeout_of(head))
        }
        _ => http.max_stream_duration,
    };

    hold::Limits {
        idle: http.stream_idle_timeout,
        // A request that has come whole is no longer under the request's own limit.
        request: http
            .request_timeout
            .filter(|_| !is_arrived)
            .map(|limit| info.start + limit),
        stream: stream.map(|limit| info.start + limit),
        is_arrived,
    }
}

fn too_slow(inputs: FilterInputs<'_>, limits: &hold::Limits) -> Stop {
    Stop::Reply(Box::new(hold::too_slow(limits, &inputs.conn.chain)))
}

/// Lets filters see the response, last first. `body` is the upstream's, if it comes from there.
pub async fn response(
    inputs: FilterInputs<'_>,
    request: &RequestHead,
    head: &mut ResponseHead,
    mut body: Option<&mut BodyIn<'_>>,
    info: &mut StreamInfo,
) -> Result<(), Box<LocalReply>> {
    let mut held = Held::default();
    for (number, slot) in inputs.http.filters.response_slots() {
        let Activation::On(route) = inputs.activation(slot) else {
            continue;
        };

        let mut next = Next::Head;
        loop {
            let event = next.event(&held);
            let step = on_response(inputs, number, slot, route, event, request, head, info);
            match step {
                Step::Continue => break,
                Step::Reply(reply) => return Err(reply),
                Step::Call(call) => {
                    next = Next::Called(call::perform(inputs.worker, inputs.conn, call).await);
                }
                Step::Hold(hold) => {
                    // A response of the proxy's own has a body that is there already.
                    let Some(body) = body.as_deref_mut() else {
                        break;
                    };
                    let limits = hold::Limits {
                        idle: inputs.http.stream_idle_timeout,
                        request: None,
                        stream: None,
                        is_arrived: true,
                    };
                    match held.gather(hold, body, limits).await {
                        Gathered::Enough => next = Next::Held,
                        other => return Err(hold::no_response(&other, &slot.name)),
                    }
                }
            }
        }
    }

    if let Some(body) = body {
        held.give_back(body);
    }

    Ok(())
}

#[expect(
    clippy::too_many_arguments,
    reason = "one line of the loop above, with its borrows"
)]
fn on_response(
    inputs: FilterInputs<'_>,
    number: u16,
    slot: &HttpFilterSlot,
    route: FilterSettings<'_>,
    event: Event<'_>,
    request: &RequestHead,
    head: &mut ResponseHead,
    info: &mut StreamInfo,
) -> Step {
    let mut peers = inputs.worker.peers.borrow_mut();
    let stream = StreamFacts {
        start: info.start_time,
        connection: inputs.conn.id,
        route: info.route.as_deref(),
        upstream: info.upstream,
        details: &info.details,
    };
    let mut cx = ResponseContext {
        slot: number,
        head,
        request,
        conn: &inputs.conn.info,
        remote: inputs.remote,
        state: &mut info.state,
        local: &inputs.worker.common.local,
        peers: &mut peers,
        tally: &inputs.counts.filters,
        route_metadata: inputs.decision.map(|decision| &decision.route.metadata),
        cluster: inputs.cluster,
        stream,
    };

    slot.filter.on_response(route, event, &mut cx)
}

/// Tells filters that the exchange is over.
pub fn done(
    chain: &HttpChain,
    counts: &HttpCounts,
    request: &RequestHead,
    response: &ResponseHead,
    info: &mut StreamInfo,
) {
    if !chain.needs().done {
        return;
    }
    for (slot, own) in chain.slots().filter(|(_, slot)| slot.filter.needs().done) {
        own.filter.on_done(&mut DoneContext {
            slot,
            request,
            response,
            state: &mut info.state,
            tally: &counts.filters,
        });
    }
}
