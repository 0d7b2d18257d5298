//! Planning: the whole snapshot and one proxy in, small hashable inputs out.
//!
//! Only planning reads the snapshot; its inputs are all that the builders see.

mod authz;
mod claims;
mod cluster;
mod endpoint;
mod gateway;
mod http_route;
mod inbound;
mod l4;
mod outbound;
mod server_name;
mod view;
mod virtual_host;

use std::sync::Arc;

use meltemi_model::Snapshot;
use meltemi_types::Diagnostic;

use crate::cluster::ClusterInput;
use crate::endpoint::EndpointsInput;
use crate::listener::ListenerInput;
use crate::name_table::NameTableInput;
use crate::proxy::{Proxy, ProxyKind};
use crate::route::RouteTableInput;
use crate::secret::SecretInput;

pub(crate) use view::View;

/// Everything that one proxy is to be sent, as inputs.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub clusters: Vec<ClusterInput>,
    pub endpoints: Vec<EndpointsInput>,
    pub listeners: Vec<ListenerInput>,
    pub routes: Vec<Arc<RouteTableInput>>,
    pub names: Option<NameTableInput>,
    pub secrets: Vec<SecretInput>,
    pub diagnostics: Vec<Diagnostic>,
}

/// Plans for one proxy.
pub(crate) fn plan(snapshot: &Snapshot, proxy: &Proxy) -> Plan {
    let view = View::new(snapshot, proxy);
    let mut plan = Plan::default();
    match proxy.kind {
        ProxyKind::Sidecar => {
            cluster::plan_outbound(&view, &mut plan);
            inbound::plan(&view, &mut plan);
            outbound::plan(&view, &mut plan);
        }
        ProxyKind::Router => {
            cluster::plan_outbound(&view, &mut plan);
            gateway::plan(&view, &mut plan);
        }
    }

    authz::report_custom(&view, &mut plan);
    let names = snapshot.name_table(&proxy.namespace, &proxy.labels);
    plan.names = Some(NameTableInput::new(names));

    plan
}
