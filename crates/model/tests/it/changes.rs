//! What a change is said to concern, and what is shared when nothing changed.

use std::sync::Arc;

use meltemi_model::{
    Build, BuildOptions, ChangeSet, Hostname, Kind, NamespacedName, Object, ServiceKey, Snapshot,
    Tables,
};

use super::{data, objects, tables};

fn rebuild(prev: &Snapshot, tables: &Tables) -> Build {
    Snapshot::build(Some(prev), tables, &BuildOptions::default())
}

fn first() -> (Snapshot, Tables) {
    let tables = tables(&data("shop.yaml"));
    let build = Snapshot::build(None, &tables, &BuildOptions::default());
    assert!(build.changes.is_first);
    (build.snapshot, tables)
}

/// The object of the shop with this kind and name, changed in its text.
fn changed(name: &str, kind: &str, from: &str, to: &str) -> Arc<Object> {
    let text = data("shop.yaml");
    let document = text
        .split("\n---\n")
        .find(|doc| {
            doc.contains(&format!("kind: {kind}\n")) && doc.contains(&format!("name: {name}"))
        })
        .expect("in the shop");
    assert!(document.contains(from), "{document}");
    objects(&document.replace(from, to)).remove(0)
}

fn catalogue() -> ServiceKey {
    ServiceKey {
        host: Hostname::new("catalogue.shop.svc.cluster.local"),
        namespace: "shop".to_owned(),
    }
}

#[test]
fn nothing_is_nothing() {
    let (snapshot, tables) = first();
    assert!(rebuild(&snapshot, &tables).changes.is_empty());
    // The same text read again makes other objects, with the same meaning.
    let again = rebuild(&snapshot, &super::tables(&data("shop.yaml"))).changes;
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn a_pod_that_becomes_ready_changes_endpoints_only() {
    let (snapshot, mut tables) = first();
    tables.apply(changed(
        "catalogue-v2-a",
        "Pod",
        "status: \"False\"",
        "status: \"True\"",
    ));

    let build = rebuild(&snapshot, &tables);
    assert!(build.changes.is_endpoints_only(), "{:?}", build.changes);
    assert!(build.changes.endpoints.keys().eq([&catalogue()]));
    assert_eq!(build.changes.workloads.len(), 1);

    // What did not change is the same allocation.
    let db = ServiceKey {
        host: Hostname::new("db.shop.svc.cluster.local"),
        namespace: "shop".to_owned(),
    };

    assert!(Arc::ptr_eq(
        &snapshot.endpoints(&db, 3306),
        &build.snapshot.endpoints(&db, 3306)
    ));

    let service = |snapshot: &Snapshot| snapshot.service(&catalogue()).cloned().expect("declared");
    assert!(Arc::ptr_eq(&service(&snapshot), &service(&build.snapshot)));
}

#[test]
fn another_identity_behind_a_service_is_more_than_endpoints() {
    let (snapshot, mut tables) = first();
    tables.apply(changed(
        "catalogue-v1-a",
        "Pod",
        "serviceAccountName: catalogue",
        "serviceAccountName: thief",
    ));

    let build = rebuild(&snapshot, &tables);
    assert!(!build.changes.is_endpoints_only());
    assert!(build.changes.services.keys().eq([&catalogue()]));
}

#[test]
fn a_headless_services_endpoints_are_its_names() {
    let (snapshot, mut tables) = first();
    tables.apply(changed("db-0", "Pod", "10.44.0.5", "10.44.0.55"));
    let build = rebuild(&snapshot, &tables);
    assert!(!build.changes.is_endpoints_only());
    assert_eq!(
        build
            .changes
            .services
            .keys()
            .map(|key| key.host.as_str())
            .collect::<Vec<_>>(),
        ["db.shop.svc.cluster.local"]
    );
}

#[test]
fn a_route_changes_itself_alone() {
    let (snapshot, mut tables) = first();
    tables.apply(changed(
        "catalogue",
        "VirtualService",
        "weight: 80",
        "weight: 70",
    ));

    let build = rebuild(&snapshot, &tables);
    let name = NamespacedName::new("shop", "catalogue");
    let only = ChangeSet {
        virtual_services: [(name.clone(), build.changes.virtual_services[&name].clone())].into(),
        ..ChangeSet::default()
    };
    assert_eq!(build.changes, only);
    assert!(build.changes.services.is_empty() && build.changes.endpoints.is_empty());
    assert!(!build.changes.is_endpoints_only());
    let routes = |snapshot: &Snapshot| snapshot.virtual_services().cloned().collect::<Vec<_>>();
    let (old, new) = (routes(&snapshot), routes(&build.snapshot));
    assert_eq!(
        old.iter()
            .filter(|vs| new.iter().any(|other| Arc::ptr_eq(vs, other)))
            .count(),
        1
    );
}

#[test]
fn a_service_that_goes_is_told_and_its_endpoints_with_it() {
    let (snapshot, mut tables) = first();
    assert!(tables.remove(&meltemi_model::ObjectKey::new(
        Kind::Service,
        "shop",
        "catalogue"
    )));

    let build = rebuild(&snapshot, &tables);
    assert!(build.changes.services.keys().eq([&catalogue()]));
    assert!(build.changes.endpoints.is_empty());
    assert!(build.snapshot.endpoints(&catalogue(), 9080).is_empty());
    assert!(
        build
            .diagnostics
            .iter()
            .any(|found| found.code == "IST0101")
    );
}

#[test]
fn another_mesh_config_is_another_mesh() {
    let (snapshot, mut tables) = first();
    tables.apply(changed(
        "istio",
        "ConfigMap",
        "shop.example",
        "mall.example",
    ));

    let build = rebuild(&snapshot, &tables);
    assert!(build.changes.mesh);
    assert_eq!(build.snapshot.mesh.trust_domain.as_str(), "mall.example");
    let identity = build
        .snapshot
        .workloads()
        .find_map(|workload| workload.identity.clone())
        .expect("one has an identity");

    assert_eq!(identity.trust_domain().as_str(), "mall.example");

    // Allocated addresses stay: clients hold them.
    let addresses = |snapshot: &Snapshot| {
        snapshot
            .services()
            .map(|service| service.addresses.clone())
            .collect::<Vec<_>>()
    };

    assert_eq!(addresses(&snapshot), addresses(&build.snapshot));
}

/// The ConfigMap says what holds without it, and the Job's Pod has ended.
fn is_without_effect(object: &Object) -> bool {
    object.kind == Kind::ConfigMap || object.meta.name == "migrate-1"
}

/// The law of incremental builds: whatever goes or comes back, the result is that of a build from
/// nothing.
#[test]
fn a_step_is_the_same_as_a_fresh_start() {
    let (full, all) = first();
    let fresh = |tables: &Tables| Snapshot::build(None, tables, &BuildOptions::default());
    let facts = |build: &Build| {
        (
            super::render::snapshot(&build.snapshot),
            build.diagnostics.clone(),
            scope_facts(&build.snapshot),
        )
    };

    let before = facts(&fresh(&all));

    for object in all.iter() {
        // Asked before the step, so that a cache that is kept wrongly shows.
        scope_facts(&full);
        let mut without = all.clone();
        assert!(without.remove(&object.key()));
        let step = rebuild(&full, &without);
        assert_eq!(
            facts(&step),
            facts(&fresh(&without)),
            "without {}",
            object.key()
        );

        assert!(
            !step.changes.is_empty() || is_without_effect(object),
            "without {}",
            object.key()
        );

        let mut again = without.clone();
        again.apply(object.clone());
        assert_eq!(
            facts(&rebuild(&step.snapshot, &again)),
            before,
            "with {} again",
            object.key()
        );
    }
}

fn scope_facts(snapshot: &Snapshot) -> Vec<String> {
    let scope = snapshot.sidecar_scope("shop", &super::labels(&[]));
    let routes = scope
        .egress
        .iter()
        .flat_map(|listener| &listener.virtual_services)
        .map(|vs| vs.origin.name().to_string());

    let names = snapshot
        .name_table("shop", &super::labels(&[]))
        .into_iter()
        .map(|entry| format!("{} {:?}", entry.host, entry.ips));

    scope
        .services
        .iter()
        .map(|service| service.key.to_string())
        .chain(routes)
        .chain(names)
        .collect()
}

/// Every sort of diagnostic with a line: of reading a field, of merging tables, of references.
const FAULTY: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: routes, namespace: shop}
spec:
  hosts: [front]
  http:
  - delegate: {name: nobody}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: first, namespace: shop}
spec:
  host: front
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: second, namespace: shop}
spec:
  host: front
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec:
  selector: {app: front}
  ports: [{port: 80, name: http}, {port: 81, name: grpc, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: twice, namespace: shop}
spec:
  hosts: [front.shop.svc.cluster.local]
  addresses: [nowhere]
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    enableTracing: true
";

#[test]
fn lines_that_move_change_diagnostics_and_nothing_else() {
    let first = Snapshot::build(None, &tables(FAULTY), &BuildOptions::default());
    let shifted = format!("# One line more,\n# and another.{FAULTY}");
    let second = rebuild(&first.snapshot, &tables(&shifted));

    assert!(second.changes.is_empty(), "{:?}", second.changes);
    let fresh = Snapshot::build(None, &tables(&shifted), &BuildOptions::default());
    assert_eq!(second.diagnostics, fresh.diagnostics);

    // The second file begins with one line more than the first: the empty one was its line 1.
    let lines = |build: &Build| -> Vec<u32> {
        let found = build.diagnostics.iter();
        found.map(|found| found.position.line).collect()
    };
    let moved: Vec<u32> = lines(&first).iter().map(|line| line + 1).collect();
    assert_eq!(lines(&second), moved);
    assert!(moved.len() >= 4, "{:#?}", first.diagnostics);
}

#[test]
fn a_scope_survives_text_that_means_the_same() {
    let (snapshot, _) = first();
    let scope = snapshot.sidecar_scope("shop", &super::labels(&[]));
    let again = rebuild(&snapshot, &tables(&data("shop.yaml"))).snapshot;

    assert!(Arc::ptr_eq(
        &scope,
        &again.sidecar_scope("shop", &super::labels(&[]))
    ));
}
