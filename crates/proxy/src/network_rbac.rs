//! Authorization of connections: `envoy.filters.network.rbac`.

use std::sync::Arc;

use meltemi_filters::ConnInfo;
use meltemi_filters::counter::Tally;
use meltemi_filters::metadata::Metadata;
use meltemi_filters::rbac::{self, Rbac, Verdict};
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
    decide(chain, conn, Rbac::enforce)
}

/// The same for a connection that begins: the filters count what they and their shadow rules say.
pub fn counted_admission(chain: &FilterChain, conn: &ConnInfo, tally: &Tally) -> Admission {
    decide(chain, conn, |rbac, facts| rbac.on_connection(facts, tally))
}

fn decide(
    chain: &FilterChain,
    conn: &ConnInfo,
    judge: impl Fn(&Rbac, &rbac::Facts<'_>) -> Verdict,
) -> Admission {
    let nothing = Metadata::default();
    let facts = rbac::Facts {
        conn,
        remote: conn.remote,
        head: None,
        metadata: &nothing,
        route_metadata: None,
    };

    for filter in &chain.filters {
        if let NetworkFilter::Rbac(rbac) = filter {
            let verdict = judge(rbac, &facts);
            if !verdict.allowed {
                return Admission::Refused(verdict.policy);
            }
        }
    }

    Admission::Allowed
}
