//! Endpoints of one cluster: which, in which locality group, with which priority.

use std::collections::BTreeMap;

use meltemi_model::{
    Endpoint, EndpointAddress as ModelAddress, Health as ModelHealth, LocalityLb, PolicySettings,
    Service, ServicePort, TrafficDistribution,
};
use meltemi_types::{Labels, Locality, Selector};

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

/// Topology as labels, by which `failoverPriority` and traffic distribution name it. Source: Istio
/// `AugmentLabels`.
mod topology {
    pub const NETWORK: &str = "topology.istio.io/network";
    pub const CLUSTER: &str = "topology.istio.io/cluster";
    pub const REGION: &str = "topology.kubernetes.io/region";
    pub const ZONE: &str = "topology.kubernetes.io/zone";
    pub const SUBZONE: &str = "topology.istio.io/subzone";
    pub const NODE: &str = "kubernetes.io/hostname";
}

/// The locality setting in force, and whether it fails over without outlier detection, too.
struct Preference {
    setting: LocalityLb,
    fails_over: bool,
}

/// Where something runs, and its own labels.
struct Place<'a> {
    labels: &'a Labels,
    locality: &'a Locality,
    network: &'a str,
    cluster: &'a str,
    node: &'a str,
}

impl<'a> Place<'a> {
    /// A label, derived where the topology says it; empty if there is none.
    fn value(&self, key: &str) -> &'a str {
        let written = self.labels.value(key).unwrap_or_default();
        let derived = match key {
            topology::REGION => &self.locality.region,
            topology::ZONE => &self.locality.zone,
            topology::SUBZONE => &self.locality.subzone,
            topology::CLUSTER => self.cluster,
            topology::NODE => self.node,
            // Here alone the label wins.
            topology::NETWORK if written.is_empty() => self.network,
            _ => "",
        };

        if derived.is_empty() { written } else { derived }
    }
}

pub(super) fn groups(view: &View<'_>, selection: &Selection<'_>) -> Found {
    let Selection {
        service,
        port,
        settings,
        selector,
    } = selection;

    // Unhealthy endpoints are sent only to clients that count them. Source: Istio
    // `SupportsUnhealthyEndpoints`.
    let counts_unhealthy = settings
        .outlier
        .as_ref()
        .is_some_and(|outlier| outlier.min_health_percent > 0);

    let preference = preference(view, service, settings);
    let node = view.node();
    let own = Place {
        labels: view.labels(),
        locality: &view.proxy.locality,
        network: &view.proxy.network,
        cluster: &view.proxy.cluster_id,
        node: &node,
    };

    let mut grouped: BTreeMap<(u32, Locality), Vec<EndpointInput>> = BTreeMap::new();
    for endpoint in view.endpoints(service, port).iter() {
        let is_ready = endpoint.health == ModelHealth::Healthy || service.publish_not_ready;
        let is_counted = endpoint.health == ModelHealth::Unhealthy && counts_unhealthy;
        let fits = selector.is_none_or(|selector| selector.selects(&endpoint.labels));

        if !fits || !(is_ready || is_counted) {
            continue;
        }
        let priority = preference
            .as_ref()
            .map_or(0, |preference| priority(&own, preference, endpoint));
        grouped
            .entry((priority, endpoint.locality.clone()))
            .or_default()
            .push(input(view, endpoint, is_ready));
    }

    if grouped.is_empty()
        && selector.is_none()
        && service.resolution.is_dns()
        && !service.host().is_wildcard()
    {
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

    bound_weights(&mut grouped);
    let mut groups: Vec<LocalityGroup> = grouped
        .into_iter()
        .map(|((priority, locality), endpoints)| LocalityGroup {
            locality,
            priority,
            weight: endpoints.iter().map(|endpoint| endpoint.weight).sum(),
            endpoints,
        })
        .collect();

    if let Some(Preference { setting, .. }) = &preference {
        distribute(&mut groups, &view.proxy.locality, setting);
    }
    close_gaps(&mut groups);
    let locality_weighted = preference.is_some_and(
        |Preference {
             setting,
             fails_over,
         }| {
            !setting.distribute.is_empty()
                || (fails_over
                    && !(setting.failover.is_empty() && setting.failover_priority.is_empty()))
        },
    );

    Found {
        groups,
        locality_weighted,
    }
}

/// Scales weights down where they sum up to more than Envoy takes, which is `u32::MAX` for the
/// endpoints of a locality and for the localities of a priority. The ratios stay.
fn bound_weights(grouped: &mut BTreeMap<(u32, Locality), Vec<EndpointInput>>) {
    // Half of what Envoy takes: a weight that would be scaled to nothing becomes 1.
    const MOST: u64 = 1 << 31;

    let mut all: Vec<&mut EndpointInput> = grouped.values_mut().flatten().collect();
    let total: u64 = all.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    if total <= MOST {
        return;
    }

    for endpoint in &mut all {
        let scaled = u128::from(endpoint.weight) * u128::from(MOST) / u128::from(total);
        endpoint.weight = u32::try_from(scaled).unwrap_or(u32::MAX).max(1);
    }
}

/// What holds: the DestinationRule's setting, else the Service's traffic distribution, else the
/// mesh's setting. Source: Istio `GetEffectiveLbSetting`.
fn preference(view: &View<'_>, service: &Service, settings: &PolicySettings) -> Option<Preference> {
    let written = settings
        .load_balancer
        .as_ref()
        .and_then(|lb| lb.locality.clone());

    let of_service: &[&str] = match service.traffic_distribution {
        TrafficDistribution::Any => &[],
        TrafficDistribution::PreferSameZone => {
            &[topology::NETWORK, topology::REGION, topology::ZONE]
        }
        TrafficDistribution::PreferSameNode => &[
            topology::NETWORK,
            topology::REGION,
            topology::ZONE,
            topology::SUBZONE,
            topology::NODE,
        ],
    };

    if written.is_none() && !of_service.is_empty() {
        let failover_priority = of_service.iter().map(|key| (*key).to_owned()).collect();
        return Some(Preference {
            setting: LocalityLb {
                failover_priority,
                ..LocalityLb::default()
            },
            fails_over: true,
        });
    }

    let setting = written
        .or_else(|| view.mesh().locality.clone())
        .filter(|setting| setting.enabled != Some(false))?;

    // Without ejection a failing locality would never be left. Source: Istio
    // `ApplyLocalityLoadBalancer`.
    Some(Preference {
        setting,
        fails_over: settings.outlier.is_some(),
    })
}

fn priority(own: &Place<'_>, preference: &Preference, endpoint: &Endpoint) -> u32 {
    let LocalityLb {
        enabled: _,
        distribute,
        failover,
        failover_priority,
    } = &preference.setting;

    if !preference.fails_over || !distribute.is_empty() {
        return 0;
    }
    if failover_priority.is_empty() {
        return locality_priority(own.locality, &endpoint.locality, failover);
    }
    let by_labels = label_priority(own, endpoint, failover_priority);
    if failover.is_empty() {
        return by_labels;
    }

    // Both: within each rank of the labels, near ones first.
    by_labels * 5 + locality_priority(own.locality, &endpoint.locality, failover)
}

/// The nearest first, 0 to 4: the own subzone, zone, region; the region that `failover` names; all
/// others.
fn locality_priority(own: &Locality, theirs: &Locality, failover: &[(String, String)]) -> u32 {
    if own.region != theirs.region {
        let is_named = failover
            .iter()
            .any(|(from, to)| *from == own.region && *to == theirs.region);
        return if is_named { 3 } else { 4 };
    }

    match (own.zone == theirs.zone, own.subzone == theirs.subzone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// `failoverPriority`: labels in order, `KEY` or `KEY=VALUE`; the first that differs decides. A
/// network that comes first and differs puts an endpoint behind all of the own network, ordered by
/// the rest. Source: Istio `applyFailoverPriorityPerLocality`.
fn label_priority(own: &Place<'_>, endpoint: &Endpoint, labels: &[String]) -> u32 {
    let workload = endpoint.workload.as_deref();
    let theirs = Place {
        labels: &endpoint.labels,
        locality: &endpoint.locality,
        network: &endpoint.network,
        cluster: workload
            .map(|one| one.cluster.as_str())
            .filter(|name| !name.is_empty())
            .unwrap_or(own.cluster),
        node: workload.map(|one| one.node.as_str()).unwrap_or_default(),
    };

    let agrees = |label: &String| match label.split_once('=') {
        Some((key, value)) => theirs.value(key) == value,
        None => theirs.value(label) == own.value(label),
    };

    let other_network = labels
        .first()
        .is_some_and(|label| label == topology::NETWORK && !agrees(label));
    let from = usize::from(other_network);
    let agreeing = from
        + labels[from..]
            .iter()
            .take_while(|label| agrees(label))
            .count();

    let base = if other_network { labels.len() } else { 0 };

    u32::try_from(base + labels.len() - agreeing).unwrap_or(u32::MAX / 5)
}

/// `distribute`: shares of the first rule for this proxy's locality.
fn distribute(groups: &mut Vec<LocalityGroup>, own: &Locality, lb: &LocalityLb) {
    let Some((_, shares)) = lb
        .distribute
        .iter()
        .find(|(from, _)| locality_fits(own, from))
    else {
        return;
    };

    let mut kept = Vec::new();
    for (to, share) in shares {
        let members: Vec<usize> = (0..groups.len())
            .filter(|index| locality_fits(&groups[*index].locality, to) && !kept.contains(index))
            .collect();
        let total: u64 = members
            .iter()
            .map(|index| u64::from(groups[*index].weight.max(1)))
            .sum();

        for index in members {
            let part =
                u64::from(*share) * 1000 * u64::from(groups[index].weight.max(1)) / total.max(1);
            groups[index].weight = u32::try_from(part).unwrap_or(u32::MAX).max(1);
            kept.push(index);
        }
    }

    let mut index = 0;
    groups.retain(|_| {
        index += 1;
        kept.contains(&(index - 1))
    });
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
        health: if is_ready {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        mesh_tls: view.takes_mutual_tls(endpoint),
        workload: endpoint
            .workload
            .as_ref()
            .map(|workload| {
                let cluster = if workload.cluster.is_empty() {
                    &view.proxy.cluster_id
                } else {
                    &workload.cluster
                };

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

        let mut groups = vec![
            group("eu/a", 1),
            group("eu/b", 3),
            group("us/a", 1),
            group("ap/a", 1),
        ];

        let lb = LocalityLb {
            distribute: vec![(
                "eu/*".into(),
                BTreeMap::from([("eu/*".to_owned(), 80), ("us/*".to_owned(), 20)]),
            )],
            ..LocalityLb::default()
        };

        distribute(&mut groups, &Locality::parse("eu/a"), &lb);
        let weights: Vec<_> = groups.iter().map(|group| group.weight).collect();
        assert_eq!(weights, [20_000, 60_000, 20_000]);
    }
}
