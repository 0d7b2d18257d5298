//! External authorization of connections: `envoy.filters.network.ext_authz`.

use std::rc::Rc;

use meltemi_filters::Metadata;
use meltemi_filters::ext_authz::ConnectionRefusal;
use meltemi_filters::http::Call;
use meltemi_proxy_config::listener::{FilterChain, NetworkFilter};

use crate::downstream::Downstream;
use crate::steps::call::perform;
use crate::worker::Worker;

/// Asks the services of the chain about a connection, in order, until one refuses it. The shadow
/// rules of RBAC filters decide about which connections services are asked.
pub async fn refused_by_service(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    chain: &FilterChain,
) -> Option<ConnectionRefusal> {
    let mut metadata = Metadata::default();

    for filter in &chain.filters {
        match filter {
            NetworkFilter::Rbac(rbac) => rbac.note_connection(&conn.info, &mut metadata),
            NetworkFilter::ExtAuthz(authz) if authz.asks(&metadata) => {
                let question = Call::Fetch(Box::new(authz.question(&conn.info)));
                // Boxed, so that connections without a check do not reserve the memory of a call.
                let answer = Box::pin(perform(worker, conn, question)).await;
                if let Some(refusal) = authz.refusal(answer) {
                    return Some(refusal);
                }
            }
            _ => {}
        }
    }

    None
}
