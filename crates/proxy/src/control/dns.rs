//! Keeps the names of a cluster resolved.

use std::net::IpAddr;
use std::sync::Arc;

use meltemi_proxy_config::Address;
use meltemi_proxy_config::cluster::{Cluster, Discovery, Dns, DnsFamily};
use meltemi_proxy_config::endpoint::EndpointSet;
use tokio::sync::mpsc;

/// Resolves for as long as the task lives. The first answer is sent even if it is empty, so that nobody waits for a
/// name that does not exist; later failures keep what was there.
pub async fn keep(cluster: Arc<Cluster>, answers: mpsc::Sender<(Arc<str>, EndpointSet)>) {
    let (set, dns, logical) = match &cluster.discovery {
        Discovery::StrictDns(set, dns) => (set, dns, false),
        Discovery::LogicalDns(set, dns) => (set, dns, true),
        _ => return,
    };
    let mut pause = dns.failure_refresh.0;
    let mut first = true;
    loop {
        let resolved = resolve(set, dns, logical).await;
        let failed = resolved.is_none();
        if let Some(endpoints) = resolved.or_else(|| first.then(|| EndpointSet { endpoints: Vec::new(), ..copy(set) }))
        {
            if answers.send((cluster.name.clone(), endpoints)).await.is_err() {
                return;
            }
            first = false;
        }
        if failed {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(dns.failure_refresh.1.max(dns.failure_refresh.0));
        } else {
            pause = dns.failure_refresh.0;
            tokio::time::sleep(dns.refresh).await;
        }
    }
}

fn copy(set: &EndpointSet) -> EndpointSet {
    EndpointSet {
        name: set.name.clone(),
        endpoints: set.endpoints.clone(),
        localities: set.localities.clone(),
        overprovisioning_factor: set.overprovisioning_factor,
        drops: set.drops.clone(),
    }
}

/// `None` if no name could be resolved.
async fn resolve(set: &EndpointSet, dns: &Dns, logical: bool) -> Option<EndpointSet> {
    let mut endpoints = Vec::new();
    let mut any = false;
    for endpoint in &set.endpoints {
        let Address::Name(name, port) = &endpoint.address else {
            endpoints.push(endpoint.clone());
            any = true;
            continue;
        };
        let Ok(found) = tokio::net::lookup_host((&**name, *port)).await else { continue };
        any = true;
        let mut ips: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        ips.sort();
        ips.dedup();
        let mut ips = of_family(ips, dns.family);
        if logical {
            ips.truncate(1);
        }
        endpoints.extend(ips.into_iter().map(|ip| Arc::new(endpoint.resolved(ip))));
    }
    (any || set.endpoints.is_empty()).then(|| EndpointSet { endpoints, ..copy(set) })
}

fn of_family(ips: Vec<IpAddr>, family: DnsFamily) -> Vec<IpAddr> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = ips.into_iter().partition(IpAddr::is_ipv4);
    match family {
        DnsFamily::V4 => v4,
        DnsFamily::V6 => v6,
        DnsFamily::V4Preferred => {
            if v4.is_empty() {
                v6
            } else {
                v4
            }
        }
        DnsFamily::Auto => {
            if v6.is_empty() {
                v4
            } else {
                v6
            }
        }
        DnsFamily::All => [v4, v6].concat(),
    }
}
