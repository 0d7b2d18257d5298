//! Authorization of connections: `envoy.filters.network.rbac`.

use std::sync::Arc;

use meltemi_filters::ConnInfo;
use meltemi_filters::metadata::Metadata;
use meltemi_filters::rbac::{self, Rbac};
use meltemi_proxy_config::listener::{FilterChain, NetworkFilter};

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
