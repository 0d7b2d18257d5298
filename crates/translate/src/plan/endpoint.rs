//! Endpoints of one cluster: which, in which locality group, with which priority.

use std::collections::BTreeMap;

use meltemi_model::{
    Endpoint, EndpointAddress as ModelAddress, Health as ModelHealth, LocalityLb, PolicySettings, Service, ServicePort,
    TrafficDistribution,
};
use meltemi_types::{Locality, Selector};

use super::View;
use crate::endpoint::{EndpointAddress, EndpointInput, Health, LocalityGroup};

/// Which endpoints are asked for, under which settings.
pub(super) struct Selection<'a> {
    pub service: &'a Service,
    pub port: &'a ServicePort,
    pub settings: &'a PolicySettings,
    pub selector: Option<&'a Selector>,
}

/// The groups found.
pub(super) struct Found {
    pub groups: Vec<LocalityGroup>,
    /// The groups' weights are shares (`distribute`).
    pub locality_weighted: bool,
}

/// How localities are preferred.
enum Preference {
    None,
    /// Nearest first, the next only when that fails.
    Failover(LocalityLb),
    /// The parts that must agree to be of the first priority.
    Distribution(TrafficDistribution),
}

pub(super) fn groups(view: &View<'_>, selection: &Selection<'_>) -> Found {
    let Selection { service, port, settings, selector } = selection;
    // Unhealthy endpoints are sent only to clients that count them. Source: Istio `SupportsUnhealthyEndpoints`.
    let counts_unhealthy = settings.outlier.as_ref().is_some_and(|outlier| outlier.min_health_percent > 0);
    let locality_lb = settings.load_balancer.as_ref().and_then(|lb| lb.locality.clone()).or_else(|| view.locality_lb());
    let preference = preference(service, settings, locality_lb.as_ref());
    let mut grouped: BTreeMap<(u32, Locality), Vec<EndpointInput>> = BTreeMap::new();
    for endpoint in view.endpoints(service, port).iter() {
        let is_ready = endpoint.health == ModelHealth::Healthy || service.publish_not_ready;
        let is_counted = endpoint.health == ModelHealth::Unhealthy && counts_unhealthy;
        let fits = selector.is_none_or(|selector| selector.selects(&endpoint.labels));
        if !fits || !(is_ready || is_counted) {
            continue;
        }
        let priority = priority(view, &preference, endpoint);
        grouped.entry((priority, endpoint.locality.clone())).or_default().push(input(view, endpoint, is_ready));
    }
    if grouped.is_empty() && selector.is_none() && service.resolution.is_dns() && !service.host().is_wildcard() {
        // A DNS entry without endpoints is its own.
        let endpoint = EndpointInput {
            address: EndpointAddress::Socket(service.host().to_string(), port.number),
            weight: 1,
            health: Health::Healthy,
            mesh_tls: false,
            workload: String::new(),
        };
        grouped.insert((0, Locality::default()), vec![endpoint]);
    }
    let mut groups: Vec<LocalityGroup> = grouped
        .into_iter()
        .map(|((priority, locality), endpoints)| LocalityGroup {
            locality,
            priority,
            weight: endpoints.iter().map(|endpoint| endpoint.weight).sum(),
            endpoints,
        })
        .collect();
    let locality_weighted = match &locality_lb {
        Some(locality_lb) if locality_lb.enabled != Some(false) => {
            distribute(&mut groups, &view.proxy.locality, locality_lb)
        }
        _ => false,
    };
    close_gaps(&mut groups);
    Found { groups, locality_weighted }
}

fn preference(service: &Service, settings: &PolicySettings, locality_lb: Option<&LocalityLb>) -> Preference {
    let written = settings.load_balancer.as_ref().is_some_and(|lb| lb.locality.is_some());
    if !written && service.traffic_distribution != TrafficDistribution::Any {
        return Preference::Distribution(service.traffic_distribution);
    }
    match locality_lb {
        // Without ejection a failing locality would never be left. Source: Istio.
        Some(lb) if lb.enabled != Some(false) && lb.distribute.is_empty() && settings.outlier.is_some() => {
            Preference::Failover(lb.clone())
        }
        _ => Preference::None,
    }
}

fn priority(view: &View<'_>, preference: &Preference, endpoint: &Endpoint) -> u32 {
    let (own, theirs) = (&view.proxy.locality, &endpoint.locality);
    let same_region = own.region == theirs.region;
    let same_zone = same_region && own.zone == theirs.zone;
    let same_subzone = same_zone && own.subzone == theirs.subzone;
    match preference {
        Preference::None => 0,
        Preference::Failover(lb) if !lb.failover_priority.is_empty() => label_priority(view, lb, endpoint),
        Preference::Failover(lb) => match (same_region, same_zone, same_subzone) {
            (_, _, true) => 0,
            (_, true, _) => 1,
            (true, _, _) => 2,
            _ if lb.failover.iter().any(|(from, to)| *from == own.region && *to == theirs.region) => 3,
            _ => 4,
        },
        Preference::Distribution(distribution) => match distribution {
            TrafficDistribution::Any => 0,
            TrafficDistribution::PreferClose => {
                u32::from(!same_region) + u32::from(!same_zone) + u32::from(!same_subzone)
            }
            TrafficDistribution::PreferSameZone => u32::from(!same_zone),
            TrafficDistribution::PreferSameNode => {
                let node = view.node();
                u32::from(node.is_empty() || endpoint.workload.as_ref().is_none_or(|workload| workload.node != node))
            }
        },
    }
}

/// failoverPriority: labels in order; the first that differs decides.
fn label_priority(view: &View<'_>, lb: &LocalityLb, endpoint: &Endpoint) -> u32 {
    let labels = lb.failover_priority.len();
    let agreeing = lb
        .failover_priority
        .iter()
        .take_while(|entry| match entry.split_once('=') {
            Some((key, value)) => endpoint.labels.value(key) == Some(value),
            None => endpoint.labels.value(entry) == view.proxy.labels.value(entry),
        })
        .count();
    u32::try_from(labels - agreeing).unwrap_or(u32::MAX)
}

/// `distribute`: shares of the first rule for this proxy's locality; answers whether one applied.
fn distribute(groups: &mut Vec<LocalityGroup>, own: &Locality, lb: &LocalityLb) -> bool {
    let Some((_, shares)) = lb.distribute.iter().find(|(from, _)| locality_fits(own, from)) else { return false };
    let mut kept = Vec::new();
    for (to, share) in shares {
        let members: Vec<usize> = (0..groups.len())
            .filter(|index| locality_fits(&groups[*index].locality, to) && !kept.contains(index))
            .collect();
        let total: u64 = members.iter().map(|index| u64::from(groups[*index].weight.max(1))).sum();
        for index in members {
            let part = u64::from(*share) * 1000 * u64::from(groups[index].weight.max(1)) / total.max(1);
            groups[index].weight = u32::try_from(part).unwrap_or(u32::MAX).max(1);
            kept.push(index);
        }
    }
    let mut index = 0;
    groups.retain(|_| {
        index += 1;
        kept.contains(&(index - 1))
    });
    true
}

/// `region/zone/subzone` with `*` for "the rest".
fn locality_fits(locality: &Locality, pattern: &str) -> bool {
    let parts = [&locality.region, &locality.zone, &locality.subzone];
    for (index, wanted) in pattern.split('/').enumerate() {
        if wanted == "*" {
            return true;
        }
        if parts.get(index).is_none_or(|part| *part != wanted) {
            return false;
        }
    }
    true
}

/// Envoy wants priorities without gaps, from 0.
fn close_gaps(groups: &mut [LocalityGroup]) {
    let mut used: Vec<u32> = groups.iter().map(|group| group.priority).collect();
    used.sort_unstable();
    used.dedup();
    for group in groups {
        let at = used.binary_search(&group.priority).unwrap_or_default();
        group.priority = u32::try_from(at).unwrap_or(u32::MAX);
    }
}

fn input(view: &View<'_>, endpoint: &Endpoint, is_ready: bool) -> EndpointInput {
    EndpointInput {
        address: match &endpoint.address {
            ModelAddress::Ip(ip) => EndpointAddress::Socket(ip.to_string(), endpoint.port),
            ModelAddress::Dns(name) => EndpointAddress::Socket(name.to_string(), endpoint.port),
            ModelAddress::Unix(path) => EndpointAddress::Pipe(path.clone()),
        },
        weight: endpoint.weight,
        health: if is_ready { Health::Healthy } else { Health::Unhealthy },
        mesh_tls: view.takes_mutual_tls(endpoint),
        workload: endpoint
            .workload
            .as_ref()
            .map(|workload| {
                let cluster = if workload.cluster.is_empty() { &view.proxy.cluster_id } else { &workload.cluster };
                format!(
                    "{};{};{};{};{cluster}",
                    workload.workload_name,
                    workload.namespace,
                    workload.canonical_service(),
                    workload.canonical_revision(),
                )
            })
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_end_at_a_star() {
        let here = Locality::parse("eu/a/1");
        for fits in ["*", "eu/*", "eu", "eu/a/*", "eu/a", "eu/a/1"] {
            assert!(locality_fits(&here, fits), "{fits}");
        }
        for differs in ["us/*", "eu/b/*", "eu/a/2", "eu/a/1/x"] {
            assert!(!locality_fits(&here, differs), "{differs}");
        }
    }

    #[test]
    fn shares_are_split_within_a_pattern_and_others_left_out() {
        let group = |locality: &str, weight| LocalityGroup {
            locality: Locality::parse(locality),
            priority: 0,
            weight,
            endpoints: Vec::new(),
        };
        let mut groups = vec![group("eu/a", 1), group("eu/b", 3), group("us/a", 1), group("ap/a", 1)];
        let lb = LocalityLb {
            distribute: vec![("eu/*".into(), BTreeMap::from([("eu/*".to_owned(), 80), ("us/*".to_owned(), 20)]))],
            ..LocalityLb::default()
        };
        assert!(distribute(&mut groups, &Locality::parse("eu/a"), &lb));
        let weights: Vec<_> = groups.iter().map(|group| group.weight).collect();
        assert_eq!(weights, [20_000, 60_000, 20_000]);
    }
}
