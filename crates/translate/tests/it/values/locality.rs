//! Near endpoints first: priorities and shares as the caller in `eu/a/1` on node `n1` sees them.

use std::collections::BTreeMap;

use meltemi_proto::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use meltemi_proto::envoy::config::core::v3::address::Address;
use meltemi_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, lb_endpoint::HostIdentifier,
};
use meltemi_proto::{type_url, unpack};
use meltemi_translate::Translated;

use super::{WEB, caller, cluster, destination_rule, mesh_config, translated};

/// Of each pod of `web`: its priority, and the weight of its locality.
fn places(translated: &Translated) -> BTreeMap<String, (u32, u32)> {
    let found = translated
        .of(type_url::ENDPOINT)
        .iter()
        .find(|one| one.name == WEB)
        .expect("an assignment");

    let assignment: ClusterLoadAssignment = unpack(&found.any).expect("an assignment");
    let mut places = BTreeMap::new();
    for group in &assignment.endpoints {
        for endpoint in &group.lb_endpoints {
            let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
                panic!("no endpoint")
            };
            let Some(Address::SocketAddress(at)) =
                endpoint.address.as_ref().and_then(|at| at.address.as_ref())
            else {
                panic!("no address")
            };

            let weight = group
                .load_balancing_weight
                .as_ref()
                .map_or(0, |weight| weight.value);

            places.insert(
                at.address.replace("10.44.1.", "web-"),
                (group.priority, weight),
            );
        }
    }

    places
}

/// The priorities of web-1 (eu/a/1, n1), web-2 (eu/a/2), web-3 (eu/b/1), web-4 (us/c/1, other
/// cluster and network).
fn priorities(objects: &str) -> [u32; 4] {
    let places = places(&translated(&caller(), objects));
    ["web-1", "web-2", "web-3", "web-4"].map(|name| places[name].0)
}

fn under(setting: &str) -> String {
    destination_rule(&format!(
        "{{loadBalancer: {{localityLbSetting: {{{setting}}}}}, outlierDetection: {{interval: 10s}}}}"
    ))
}

fn is_weighted(objects: &str) -> bool {
    let common = cluster(&translated(&caller(), objects), WEB).common_lb_config;
    let specifier = common.and_then(|common| common.locality_config_specifier);
    matches!(
        specifier,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
    )
}

#[test]
fn failover_needs_outlier_detection_and_can_be_switched_off() {
    assert_eq!(priorities(&under("")), [0, 1, 2, 3]);
    assert_eq!(priorities(&under("enabled: false")), [0; 4]);
    assert_eq!(
        priorities(&destination_rule("{outlierDetection: {interval: 10s}}")),
        [0, 1, 2, 3],
        "the mesh's default"
    );

    assert_eq!(
        priorities(&destination_rule(
            "{loadBalancer: {localityLbSetting: {enabled: true}}}"
        )),
        [0; 4]
    );

    assert!(!is_weighted(&under("")));
    let elsewhere = under("failover: [{from: eu, to: ap}]");
    assert_eq!(priorities(&elsewhere), [0, 1, 2, 3]);
    assert!(is_weighted(&elsewhere));
}

#[test]
fn topology_is_labels() {
    const REGION: &str = "topology.kubernetes.io/region";
    const ZONE: &str = "topology.kubernetes.io/zone";

    for (keys, wanted) in [
        (
            format!("{REGION}, {ZONE}, kubernetes.io/hostname"),
            [0, 1, 2, 3],
        ),
        (format!("{REGION}, {ZONE}"), [0, 0, 1, 2]),
        ("topology.istio.io/subzone".to_owned(), [0, 1, 0, 0]),
        ("topology.istio.io/cluster".to_owned(), [0, 0, 0, 1]),
        ("topology.istio.io/network".to_owned(), [0, 0, 0, 1]),
        // Behind all of the own network, whatever else agrees.
        (
            "topology.istio.io/network, topology.istio.io/subzone".to_owned(),
            [0, 1, 0, 2],
        ),
        ("kubernetes.io/hostname".to_owned(), [0, 1, 1, 1]),
        // Labels of their own: the caller is of version v2.
        ("version".to_owned(), [1, 0, 0, 1]),
        ("version=v3".to_owned(), [1, 1, 1, 0]),
        (format!("'{REGION}=us'"), [1, 1, 1, 0]),
    ] {
        assert_eq!(
            priorities(&under(&format!("failoverPriority: [{keys}]"))),
            wanted,
            "{keys}"
        );
    }

    // Within one rank of the labels by locality.
    let both = under("failoverPriority: [version], failover: [{from: eu, to: us}]");
    assert_eq!(priorities(&both), [2, 0, 1, 3]);
    assert!(is_weighted(&both));
}

#[test]
fn a_services_own_preference_counts_without_outlier_detection() {
    let service = |field: &str, annotation: &str| {
        super::WORLD.replacen(
            "metadata: {name: web, namespace: shop}\nspec:\n",
            &format!("metadata: {{name: web, namespace: shop, annotations: {{{annotation}}}}}\nspec:\n  {field}\n"),
            1,
        )
    };

    let of = |field: &str, annotation: &str| {
        let snapshot = crate::snapshot_of(&service(field, annotation));
        let translated =
            meltemi_translate::translate(&snapshot, &caller(), &meltemi_translate::Memo::new());
        let places = places(&translated);
        ["web-1", "web-2", "web-3", "web-4"].map(|name| places[name].0)
    };

    const ANNOTATION: &str = "networking.istio.io/traffic-distribution";

    assert_eq!(of("type: ClusterIP", ""), [0; 4]);
    assert_eq!(of("trafficDistribution: PreferClose", ""), [0, 0, 1, 2]);
    assert_eq!(of("trafficDistribution: PreferSameZone", ""), [0, 0, 1, 2]);
    assert_eq!(of("trafficDistribution: PreferSameNode", ""), [0, 1, 2, 3]);
    assert_eq!(
        of("type: ClusterIP", &format!("{ANNOTATION}: preferclose")),
        [0, 0, 1, 2]
    );

    assert_eq!(
        of(
            "trafficDistribution: PreferSameNode",
            &format!("{ANNOTATION}: PreferClose")
        ),
        [0, 1, 2, 3]
    );
}

#[test]
fn shares_by_locality() {
    let rule = under("distribute: [{from: eu/a/*, to: {eu/a/*: 70, us/c/*: 30}}]");
    let shares = places(&translated(&caller(), &rule));

    // The pattern's share is split among the localities that it names; a locality without share
    // gets nothing.
    let wanted = [
        ("web-1", (0, 35_000)),
        ("web-2", (0, 35_000)),
        ("web-4", (0, 30_000)),
    ];

    assert_eq!(
        shares,
        wanted.map(|(name, place)| (name.to_owned(), place)).into()
    );

    assert!(is_weighted(&rule));

    // Of the mesh, unless the rule says otherwise.
    let of_mesh = mesh_config("localityLbSetting: {distribute: [{from: eu/*, to: {us/*: 100}}]}");
    let far: Vec<_> = places(&translated(&caller(), &of_mesh))
        .into_keys()
        .collect();
    assert_eq!(far, ["web-4"]);
}
