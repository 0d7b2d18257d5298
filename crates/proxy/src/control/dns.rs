//! Keeps the names of a cluster resolved.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use meltemi_proxy_config::Address;
use meltemi_proxy_config::cluster::{Cluster, Discovery, DnsFamily};
use meltemi_proxy_config::endpoint::{Endpoint, EndpointSet};
use tokio::sync::mpsc;

/// Resolves for as long as the task lives. The first answer is sent even if it is empty, so that
/// nobody waits for a name that does not exist; a name that fails later keeps what it had.
pub async fn keep(cluster: Arc<Cluster>, answers: mpsc::Sender<(Arc<Cluster>, EndpointSet)>) {
    let (set, dns, logical) = match &cluster.discovery {
        Discovery::StrictDns(set, dns) => (set, dns, false),
        Discovery::LogicalDns(set, dns) => (set, dns, true),
        _ => return,
    };

    let mut known = Known::default();
    let mut pause = dns.failure_refresh.0;

    loop {
        let lookups = set
            .endpoints
            .iter()
            .filter_map(|endpoint| name(endpoint))
            .map(async |(name, port)| {
                let found = tokio::net::lookup_host((name, port)).await;
                (
                    name.to_owned(),
                    found
                        .map(|found| found.map(|address| address.ip()).collect())
                        .ok(),
                )
            });

        let failed = known.take_in(join_all(lookups).await);
        if answers
            .send((cluster.clone(), known.endpoints(set, dns.family, logical)))
            .await
            .is_err()
        {
            return;
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

/// The last good answer for each name.
#[derive(Debug, Default)]
struct Known(BTreeMap<String, Vec<IpAddr>>);

impl Known {
    /// Takes in the answers; says whether a name failed.
    fn take_in(&mut self, found: Vec<(String, Option<Vec<IpAddr>>)>) -> bool {
        let failed = found.iter().any(|(_, addresses)| addresses.is_none());
        for (name, addresses) in found {
            if let Some(mut addresses) = addresses {
                addresses.sort();
                addresses.dedup();
                self.0.insert(name, addresses);
            }
        }
        failed
    }

    /// Endpoints with addresses for names.
    fn endpoints(&self, set: &EndpointSet, family: DnsFamily, logical: bool) -> EndpointSet {
        let mut endpoints = Vec::new();
        for endpoint in &set.endpoints {
            let Some((name, _)) = name(endpoint) else {
                endpoints.push(endpoint.clone());
                continue;
            };

            let addresses = of_family(self.0.get(name).cloned().unwrap_or_default(), family);
            let count = if logical { 1 } else { addresses.len() };
            endpoints.extend(
                addresses
                    .into_iter()
                    .take(count)
                    .map(|ip| Arc::new(endpoint.resolved(ip))),
            );
        }

        EndpointSet {
            name: set.name.clone(),
            endpoints,
            localities: set.localities.clone(),
            overprovisioning_factor: set.overprovisioning_factor,
            drops: set.drops.clone(),
        }
    }
}

/// The name and port that must be resolved.
fn name(endpoint: &Endpoint) -> Option<(&str, u16)> {
    match &endpoint.address {
        Address::Name(name, port) => Some((name, *port)),
        _ => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_fails_keeps_what_it_had_and_the_others_go_on() {
        let endpoint = |name: &str| {
            use meltemi_proto::envoy::config::core::v3 as core;
            use meltemi_proto::envoy::config::endpoint::v3::{
                Endpoint, LbEndpoint, lb_endpoint::HostIdentifier,
            };

            let socket = core::SocketAddress {
                address: name.to_owned(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(80)),
                ..Default::default()
            };

            let address = core::Address {
                address: Some(core::address::Address::SocketAddress(socket)),
            };
            let endpoint = Endpoint {
                address: Some(address),
                ..Default::default()
            };

            LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                ..Default::default()
            }
        };

        let assignment = meltemi_proto::envoy::config::endpoint::v3::ClusterLoadAssignment {
            cluster_name: "c".to_owned(),
            endpoints: vec![
                meltemi_proto::envoy::config::endpoint::v3::LocalityLbEndpoints {
                    lb_endpoints: vec![
                        endpoint("one.test"),
                        endpoint("two.test"),
                        endpoint("10.0.0.9"),
                    ],
                    ..Default::default()
                },
            ],
            ..Default::default()
        };

        let compiled = meltemi_proxy_config::Compiler::default()
            .endpoints_from(&meltemi_proto::pack(&assignment));
        let (set, _) = compiled.expect("it compiles");
        let mut known = Known::default();
        let mut look = |one: Option<&[u8]>, two: Option<&[u8]>| {
            let ips = |last: &[u8]| {
                last.iter()
                    .map(|last| IpAddr::from([10, 0, 0, *last]))
                    .collect()
            };

            let failed = known.take_in(vec![
                ("one.test".into(), one.map(ips)),
                ("two.test".into(), two.map(ips)),
            ]);

            let endpoints = known.endpoints(&set, DnsFamily::Auto, false).endpoints;
            let last = |endpoint: &Arc<Endpoint>| match endpoint
                .address
                .socket()
                .map(|socket| socket.ip())
            {
                Some(IpAddr::V4(ip)) => ip.octets()[3],
                _ => 0,
            };

            (failed, endpoints.iter().map(last).collect::<Vec<_>>())
        };

        assert_eq!(look(None, Some(&[2])), (true, vec![2, 9]));
        assert_eq!(
            look(Some(&[3, 1, 3]), Some(&[2])),
            (false, vec![1, 3, 2, 9])
        );

        assert_eq!(look(None, Some(&[4])), (true, vec![1, 3, 4, 9]));
        assert_eq!(look(Some(&[]), None), (true, vec![4, 9]));
    }
}
