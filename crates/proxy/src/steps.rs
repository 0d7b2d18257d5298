//! Runs a chain's filters, phase by phase, and performs the calls that they ask for.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use meltemi_filters::http::{
    Entropy, HttpFilter, HttpFilterSlot, RequestContext, ResponseContext, Router, Stats,
    StreamFacts,
};
use meltemi_filters::metadata::Metadata;
use meltemi_filters::rbac::{self, Rbac};
use meltemi_filters::{Call, ConnInfo, LocalReply, RequestHead, ResponseHead, Step};
use meltemi_proxy_config::listener::{FilterChain, NetworkFilter};
use meltemi_proxy_config::route::RouteDecision;

use crate::counts::HttpCounts;
use crate::downstream::Downstream;
use crate::record::StreamInfo;
use crate::worker::Worker;

/// What filters see beside the heads.
#[derive(Debug, Clone, Copy)]
pub struct FilterInputs<'a> {
    /// The worker.
    pub worker: &'a Worker,
    /// The connection.
    pub conn: &'a Downstream,
    /// The client.
    pub remote: SocketAddr,
    /// The route.
    pub decision: Option<&'a RouteDecision<'a>>,
    /// The cluster.
    pub cluster: Option<&'a str>,
    /// The upstream is in the mesh.
    pub in_mesh: bool,
    /// What is counted of the connection manager.
    pub counts: Option<&'a HttpCounts>,
}

/// Why a request goes no further.
#[derive(Debug)]
pub enum Stop {
    /// A filter answers it.
    Reply(Box<LocalReply>),
    /// The client left while a filter waited.
    Gone,
}

/// Lets every filter see the request, in order; the first that answers ends it. `left` resolves
/// when the client leaves.
pub async fn request(
    slots: &[HttpFilterSlot],
    inputs: FilterInputs<'_>,
    head: &mut RequestHead,
    info: &mut StreamInfo,
    left: impl Future<Output = ()>,
) -> Result<(), Stop> {
    let mut left = pin!(left);
    let mut entropy = Entropy::new(info.random);
    for slot in slots {
        let setting = inputs
            .decision
            .and_then(|decision| decision.setting(&slot.name));
        let Some(setting) = slot.settings(setting) else {
            continue;
        };
        if matches!(slot.filter, HttpFilter::Router(_)) {
            break;
        }
        let mut resumed = false;
        loop {
            let step = {
                let mut peers = inputs.worker.peers.borrow_mut();
                let mut cx = RequestContext {
                    head,
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
                    stream: StreamFacts {
                        start: info.start_time,
                        connection: inputs.conn.id,
                        route: info.route.as_deref(),
                        upstream: info.upstream,
                        details: &info.details,
                    },
                };

                match resumed {
                    false => slot.filter.on_request(setting, &mut cx),
                    true => slot.filter.resume(setting, &mut cx),
                }
            };

            if let (HttpFilter::Rbac(rbac), Some(counts)) = (&slot.filter, inputs.counts)
                && (rbac.rules.is_some() || setting.is_some())
            {
                if matches!(step, Step::Reply(_)) {
                    counts.denied.inc()
                } else {
                    counts.allowed.inc()
                }
            }

            match step {
                Step::Continue => break,
                Step::Reply(reply) => return Err(Stop::Reply(reply)),
                Step::Call(Call::Sleep(time)) => tokio::select! {
                    () = tokio::time::sleep(time) => {}
                    () = &mut left => return Err(Stop::Gone),
                },
            }

            resumed = true;
        }
    }

    Ok(())
}

/// Lets every filter see the response, last first.
pub fn response(
    slots: &[HttpFilterSlot],
    inputs: FilterInputs<'_>,
    request: &RequestHead,
    head: &mut ResponseHead,
    info: &mut StreamInfo,
    is_local: bool,
) {
    for slot in slots.iter().rev() {
        if matches!(
            slot.filter,
            HttpFilter::Router(_) | HttpFilter::Stats(_) | HttpFilter::Rbac(_)
        ) {
            continue;
        }

        let setting = inputs
            .decision
            .and_then(|decision| decision.setting(&slot.name));
        let Some(setting) = slot.settings(setting) else {
            continue;
        };
        let mut peers = inputs.worker.peers.borrow_mut();
        let mut cx = ResponseContext {
            head,
            request,
            conn: &inputs.conn.info,
            remote: inputs.remote,
            state: &mut info.state,
            is_local,
            local: &inputs.worker.common.local,
            peers: &mut peers,
            route_metadata: inputs.decision.map(|decision| &decision.route.metadata),
            cluster: inputs.cluster,
            stream: StreamFacts {
                start: info.start_time,
                connection: inputs.conn.id,
                route: info.route.as_deref(),
                upstream: info.upstream,
                details: &info.details,
            },
        };

        slot.filter.on_response(setting, &mut cx);
    }
}

/// The router's settings.
pub fn router(slots: &[HttpFilterSlot]) -> Option<&Router> {
    slots.iter().rev().find_map(|slot| match &slot.filter {
        HttpFilter::Router(router) => Some(router),
        _ => None,
    })
}

/// Istio's metrics, if they are wanted.
pub fn stats(slots: &[HttpFilterSlot]) -> Option<Stats> {
    slots.iter().find_map(|slot| match &slot.filter {
        HttpFilter::Stats(stats) => Some(*stats),
        _ => None,
    })
}

/// Whether messages of gRPC are counted.
pub fn counts_messages(slots: &[HttpFilterSlot]) -> bool {
    slots
        .iter()
        .any(|slot| matches!(slot.filter, HttpFilter::GrpcStats))
}

/// What a chain's network authorization says of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may be served.
    Allowed,
    /// It is refused, by this policy; `None`: no policy allows it.
    Refused(Option<Arc<str>>),
}

/// Asks the chain's network authorization; the first filter that refuses decides.
pub fn admission(chain: &FilterChain, conn: &ConnInfo) -> Admission {
    let refused = chain.filters.iter().find_map(|filter| match filter {
        NetworkFilter::Rbac(rbac) => match judge(rbac, conn) {
            Admission::Allowed => None,
            refused => Some(refused),
        },
        _ => None,
    });

    refused.unwrap_or(Admission::Allowed)
}

fn judge(rbac: &Rbac, conn: &ConnInfo) -> Admission {
    let nothing = Metadata::default();
    let facts = rbac::Facts {
        conn,
        remote: conn.remote,
        head: None,
        metadata: &nothing,
        route_metadata: None,
    };

    let verdict = rbac.enforce(&facts);
    match verdict.allowed {
        true => Admission::Allowed,
        false => Admission::Refused(verdict.policy),
    }
}
