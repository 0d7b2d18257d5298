//! What was decided for a forwarded request, what is left of its retries, and how an attempt ends.

use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_proxy_config::route::{Forward, RetryPolicy, RouteDecision};

use super::attempt::failure::Failure;
use crate::exchange::state::Ended;
use crate::upstream::cluster::WorkerCluster;
use crate::upstream::live::{Permit, Resource};

/// What was decided for a request.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The route.
    pub decision: &'a RouteDecision<'a>,
    /// What it does.
    pub forward: Forward<'a>,
    /// The cluster.
    pub cluster_name: Arc<str>,
    /// The client asks for an upgrade.
    pub upgrade: bool,
}

impl Plan<'_> {
    /// The name of the route, as causes show it.
    pub fn label(&self) -> &Arc<str> {
        self.decision.label()
    }
}

/// Retries that are left, and what they cost.
pub(crate) struct Retries<'a> {
    pub policy: Option<&'a RetryPolicy>,
    pub left: u32,
    pub done: u32,
    pub permit: Option<Permit>,
    pub tried: Vec<SocketAddr>,
    pub failed_priorities: Vec<u32>,
    /// Another attempt was wanted and there was none left.
    pub exhausted: bool,
    /// A pooled connection turned out to be dead once already.
    pub stale: bool,
    /// The request came with a body, whether or not that has been read since.
    pub has_body: bool,
}

/// How an attempt ended.
pub enum AttemptEnd {
    /// The exchange is over: a response went out, or nobody wants one any more.
    Ended(Ended),
    /// The response was thrown away; another attempt has been allowed.
    Again,
    /// There was no response.
    Failed(Failure),
}

/// Whether another attempt may be made; takes it from what is left.
pub(crate) fn may_retry(
    retries: &mut Retries<'_>,
    cluster: &WorkerCluster,
    high: bool,
    wants: impl FnOnce(&RetryPolicy) -> bool,
) -> bool {
    let Some(policy) = retries.policy else {
        return false;
    };
    if !wants(policy) {
        return false;
    }
    if retries.left == 0 {
        retries.exhausted = true;
        cluster.counts.retry_limit_exceeded.inc();
        return false;
    }

    // The place of the retry before is given back first.
    retries.permit = None;
    let live = &cluster.entry.live;
    let budget = cluster.entry.cluster.breakers[usize::from(high)].retry_budget;
    let permit = match budget {
        Some(budget) => {
            let active =
                u64::from(live.in_use(Resource::Requests) + live.in_use(Resource::Pending));
            let free = u64::from(live.in_use(Resource::Retries)) < budget.allowed(active);
            if free {
                Some(live.admit_over(high, Resource::Retries))
            } else {
                live.refuse(Resource::Retries)
            }
        }
        None => live.admit(high, Resource::Retries),
    };

    let Some(permit) = permit else { return false };
    retries.permit = Some(permit);
    retries.left -= 1;
    cluster.counts.retries.inc();

    true
}
