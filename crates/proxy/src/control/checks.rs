//! Certificates, roots and revocation lists that stand in a resource, or in files that it names,
//! must be usable. Secrets by name are judged when they arrive.

use meltemi_proxy_config::cluster::Cluster;
use meltemi_proxy_config::listener::Listener;
use meltemi_proxy_config::tls::CommonTls;

/// Whether the TLS terms of a cluster can be used.
pub fn cluster(cluster: &Cluster) -> Result<(), String> {
    let terms = cluster.transports().filter_map(|transport| transport.tls());
    terms.map(|terms| &terms.common).try_for_each(check)
}

/// Whether the TLS terms of a listener can be used.
pub fn listener(listener: &Listener) -> Result<(), String> {
    let chains = listener.chains.iter();
    let terms = chains.filter_map(|chain| chain.transport.tls());
    terms.map(|terms| &terms.common).try_for_each(check)
}

fn check(terms: &CommonTls) -> Result<(), String> {
    crate::tls::check(terms).map_err(|error| error.to_string())
}
