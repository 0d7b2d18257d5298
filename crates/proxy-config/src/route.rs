//! Routes: which virtual host and route a request takes, and what the route does with it.
//!
//! [`RouteTable::select`] decides. It allocates only for a host of more than 128 bytes with capital
//! letters.

mod action;
mod compile;
mod hash;
mod redirect;
mod retry;
mod table;
mod vhost;

pub use action::{
    Chosen, ClusterChoice, ClusterRef, Forward, GrpcLimit, HashPolicies, HostRewrite, Mirror,
    PathRewrite, RouteAction, RouteLimit, Timeouts, WeightedCluster, WeightedClusters,
};
pub use hash::{CookieSpec, HashOutcome, HashPolicy};
pub use meltemi_filters::header_ops::{AppendAction, HeaderOps};
pub use redirect::{DirectResponse, Redirect};
pub use retry::{AttemptFailure, RateLimitedBackoff, RetryOn, RetryPolicy};
pub use table::{Position, RouteContext, RouteDecision, RouteSettings, RouteTable};
pub use vhost::{PathMatch, RequireTls, Route, RouteMatch, Target, VirtualHost};

#[cfg(test)]
mod tests;
