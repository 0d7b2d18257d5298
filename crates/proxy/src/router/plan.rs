//! The decisions for a forwarded request: route, cluster, upgrade.

use std::sync::Arc;

use meltemi_proxy_config::route::{Forward, RouteDecision};

/// The decisions of route and virtual host.
#[derive(Debug)]
pub struct Plan<'a> {
    pub decision: &'a RouteDecision<'a>,
    /// The route's action.
    pub forward: Forward<'a>,
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
