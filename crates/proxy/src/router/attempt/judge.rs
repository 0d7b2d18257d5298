//! Whether a response goes to the client, or another attempt is made in its place.

use std::time::{Instant, SystemTime};

use meltemi_filters::ResponseFlag;
use meltemi_filters::head::ResponseHead;
use meltemi_proxy_config::route::{AttemptFailure, RetryPolicy};

use super::failure::Failure;
use super::{Attempt, Forwarding};
use crate::body::tee::Lost;
use crate::grpc::effective_status;
use crate::http1::codec::Framing;
use crate::router::retry::{Retries, Verdict, place};
use crate::upstream::live::epoch_ms;
use crate::upstream::outlier::HostResult;
use crate::upstream::response::ResponseStart;

/// What becomes of a response.
#[derive(Debug)]
pub enum Judgement {
    /// The client gets it; the verdict says whether another attempt was wanted.
    Deliver(Verdict),
    /// It is dropped; another attempt has been granted.
    Retry,
    /// It cannot be passed on.
    Refuse(Failure),
}

/// Whether this response leaves HTTP. RFC 9110 §15.2.2.
pub fn switches(start: &ResponseStart, response: &ResponseHead) -> bool {
    start.terms.framing == Framing::Empty && response.status == 101
}

impl Attempt<'_, '_> {
    /// Tells outlier detection how the endpoint answered, and decides what becomes of the response.
    /// `random` lengthens the back-off that the response asks for.
    pub fn judge(
        &self,
        start: &ResponseStart,
        retries: &mut Retries<'_>,
        random: u64,
    ) -> Judgement {
        let forwarding = self.forwarding;
        let status = effective_status(self.head.is_grpc(), &self.response);
        let result = HostResult::Status(status);
        let now = epoch_ms(Instant::now());
        let live = &forwarding.cluster.entry.live;
        live.report(&self.host.live, result, now);

        if switches(start, &self.response) {
            return match forwarding.plan.upgrade {
                true => Judgement::Deliver(Verdict::NotWanted),
                false => Judgement::Refuse(Failure::of(
                    &forwarding.plan.cluster_name,
                    self.host,
                    AttemptFailure::Reset,
                    ResponseFlag::UpstreamProtocolError,
                    "protocol error",
                    "unexpected 101".to_owned(),
                )),
            };
        }

        match decide(forwarding, retries, |policy| {
            policy.retries_response(&self.response)
        }) {
            Verdict::Granted => {
                let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let now = since_1970.unwrap_or_default();
                retries.note_asked_pause(&self.response, now, random);
                Judgement::Retry
            }
            verdict => Judgement::Deliver(verdict),
        }
    }
}

/// Decides on another attempt, within the cluster's breaker or retry budget, and counts the
/// decision as Envoy does.
pub fn decide(
    forwarding: &Forwarding<'_>,
    retries: &mut Retries<'_>,
    wants: impl FnOnce(&RetryPolicy) -> bool,
) -> Verdict {
    let cluster = forwarding.cluster;
    if !forwarding.is_replayable() {
        if retries.policy().is_some_and(wants) {
            let lost = forwarding.tee.and_then(|tee| tee.borrow().lost());
            let reason = lost.and_then(Lost::reason);
            let cluster = &*forwarding.plan.cluster_name;
            tracing::debug!(cluster, reason, "no retry: the request body was not kept");
        }
        return Verdict::NotWanted;
    }

    let high = forwarding.high_priority();
    let budget = cluster.entry.cluster.breakers[usize::from(high)].retry_budget;
    let verdict = retries.decide(wants, || place(&cluster.entry.live, budget, high));

    match verdict {
        Verdict::Granted => cluster.counts.retries.inc(),
        Verdict::Exhausted => cluster.counts.retry_limit_exceeded.inc(),
        Verdict::NotWanted | Verdict::NoPlace => {}
    }

    verdict
}
