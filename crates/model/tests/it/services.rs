//! Services, their addresses and their endpoints.

use meltemi_model::{BuildOptions, Hostname, Resolution, ServiceKey, Snapshot};

use super::{build, clean, codes, labels, tables};

fn key(host: &str, namespace: &str) -> ServiceKey {
    ServiceKey {
        host: Hostname::new(host),
        namespace: namespace.to_owned(),
    }
}

fn service(name: &str, extra: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{name: http, port: 80}}]\n{extra}"
    )
}

#[test]
fn an_allocated_address_survives_every_neighbour() {
    let options = BuildOptions::default();
    let one = Snapshot::build(None, &tables(&service("a", "")), &options).snapshot;
    let many: String = (0..300)
        .map(|i| service(&format!("s{i}"), ""))
        .chain([service("a", "")])
        .collect();

    let two = Snapshot::build(Some(&one), &tables(&many), &options).snapshot;
    let at = |snapshot: &Snapshot| {
        snapshot
            .service(&key("a.default.svc.cluster.local", "default"))
            .and_then(|service| service.address())
    };

    assert!(at(&one).is_some());
    assert_eq!(at(&one), at(&two));
    let all: std::collections::BTreeSet<_> = two
        .services()
        .filter_map(|service| service.address())
        .collect();

    assert_eq!(all.len(), 301);
    assert!(all.iter().all(|ip| options.service_cidr.contains(*ip)));
}

#[test]
fn an_external_name_is_another_name_of_a_known_service() {
    let alias = "---\napiVersion: v1\nkind: Service\nmetadata: {name: old}\nspec: {type: ExternalName, externalName: new.default.svc.cluster.local}\n";
    let snapshot = clean(&format!("{}{alias}", service("new", "")));
    let target = snapshot
        .service(&key("new.default.svc.cluster.local", "default"))
        .expect("declared");
    assert_eq!(
        target.aliases,
        [key("old.default.svc.cluster.local", "default")]
    );

    assert!(
        snapshot
            .service(&key("old.default.svc.cluster.local", "default"))
            .is_none()
    );

    let names: Vec<_> = snapshot
        .name_table("default", &labels(&[]))
        .into_iter()
        .map(|entry| entry.host.to_string())
        .collect();

    assert_eq!(
        names,
        [
            "new.default.svc.cluster.local",
            "old.default.svc.cluster.local"
        ]
    );
}

fn external_name(name: &str, target: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: ExternalName, externalName: {target}, ports: [{ports}]}}\n"
    )
}

#[test]
fn chains_of_external_names_are_followed_and_circles_lead_nowhere() {
    let full = |name: &str| format!("{name}.default.svc.cluster.local");
    let text = [
        service("new", ""),
        external_name("middle", &full("new"), ""),
        external_name("old", &full("middle"), "{name: http, port: 8080}"),
        external_name("ping", &full("pong"), ""),
        external_name("pong", &full("ping"), ""),
    ]
    .concat();

    let build = build(&text);
    assert_eq!(
        codes(&build),
        [
            "MEL0312 Service/ping.default spec.externalName",
            "MEL0312 Service/pong.default spec.externalName"
        ]
    );

    let snapshot = build.snapshot;
    let host = |name: &str| Hostname::new(&full(name));
    for name in ["new", "middle", "old"] {
        let service = snapshot
            .service_for("default", &host(name))
            .expect("it leads to new");
        assert_eq!(service.host().as_str(), full("new"));
    }

    assert!(snapshot.service_for("default", &host("ping")).is_none());
    assert_eq!(snapshot.concrete_host(&host("old")), &host("new"));
}

#[test]
fn an_alias_with_another_port_is_a_change() {
    let full = |name: &str| format!("{name}.default.svc.cluster.local");
    let world = |ports: &str| {
        format!(
            "{}{}",
            service("new", ""),
            external_name("old", &full("new"), ports)
        )
    };

    let options = BuildOptions::default();
    let first = Snapshot::build(None, &tables(&world("{port: 80}")), &options).snapshot;
    let second = Snapshot::build(Some(&first), &tables(&world("{port: 81}")), &options);

    assert!(second.changes.aliases, "{:?}", second.changes);
}

#[test]
fn entries_resolve_as_they_say() {
    let snapshot = clean(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [dns.example]
  resolution: DNS
  ports: [{number: 443, name: https, protocol: HTTPS, targetPort: 8443}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: b}
spec:
  hosts: [static.example]
  resolution: STATIC
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: tcp, protocol: TCP}]
  endpoints:
  - {address: 2.2.2.2, ports: {http: 8080}, labels: {version: v2}, serviceAccount: them}
  - {address: 1.1.1.1, weight: 7, locality: eu/a}
  - {address: unix:///run/app.sock}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: c}
spec:
  hosts: [none.example]
  addresses: [192.168.0.0/16]
  resolution: NONE
  ports: [{number: 9000, name: tcp, protocol: TCP}]
",
    );

    let render = |host: &str, port| {
        let endpoints = snapshot.endpoints(&key(host, "default"), port);
        endpoints
            .iter()
            .map(super::render::endpoint)
            .collect::<Vec<_>>()
    };

    assert_eq!(
        render("dns.example", 443),
        ["dns.example:8443  Disabled Healthy weight 1 "]
    );

    assert_eq!(
        render("static.example", 80),
        [
            "1.1.1.1:80  Disabled Healthy weight 7 eu/a",
            "2.2.2.2:8080  Istio Healthy weight 1 ",
            "unix:///run/app.sock:0  Disabled Healthy weight 1 ",
        ]
    );

    assert_eq!(render("none.example", 9000), Vec::<String>::new());
    let identities: Vec<_> = snapshot
        .identities(&key("static.example", "default"))
        .into_iter()
        .map(|id| id.to_string())
        .collect();

    assert_eq!(identities, ["spiffe://cluster.local/ns/default/sa/them"]);
    let of = |host| {
        snapshot
            .service(&key(host, "default"))
            .expect("declared")
            .clone()
    };

    assert_eq!(of("none.example").resolution, Resolution::Passthrough);
    assert!(!of("none.example").is_address_allocated);
    assert!(of("dns.example").is_address_allocated);
    assert!(
        of("dns.example")
            .address()
            .is_some_and(|ip| BuildOptions::default().service_entry_cidr.contains(ip))
    );
}

#[test]
fn a_client_means_its_own_namespaces_service_first() {
    let entry = |name: &str, ns: &str, extra: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {ns}}}\n\
             spec:\n  hosts: [x.example]\n  resolution: DNS\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n{extra}"
        )
    };

    let snapshot = clean(&format!(
        "{}{}{}",
        entry("m", "a", ""),
        entry("m", "b", ""),
        entry("m", "hidden", "  exportTo: [\".\"]\n")
    ));

    let of = |ns: &str| {
        snapshot
            .service_for(ns, &Hostname::new("x.example"))
            .map(|service| service.namespace().to_owned())
    };

    assert_eq!(of("a").as_deref(), Some("a"));
    assert_eq!(of("b").as_deref(), Some("b"));
    assert_eq!(of("c").as_deref(), Some("a"));
    assert_eq!(of("hidden").as_deref(), Some("hidden"));
    assert_eq!(snapshot.visible_services("c").len(), 1);
}

#[test]
fn a_workload_serves_what_selects_it_by_name_or_number() {
    let snapshot = clean(&super::data("shop.yaml"));
    let targets = snapshot.service_targets(
        "shop",
        &labels(&[("app", "front")]),
        &["10.44.0.2".parse().expect("an address")],
    );

    let targets: Vec<_> = targets
        .iter()
        .map(|target| {
            (
                target.service.name.as_str(),
                target.port.number,
                target.target_port,
            )
        })
        .collect();

    assert_eq!(targets, [("front", 80, 8080)]);
    let targets = snapshot.service_targets("shop", &labels(&[("app", "catalogue")]), &[]);
    let targets: Vec<_> = targets
        .iter()
        .map(|target| (target.port.number, target.target_port))
        .collect();

    assert_eq!(targets, [(9080, 9080), (9090, 9191)]);
}

#[test]
fn a_host_that_is_declared_twice_is_told() {
    let entry = |name: &str, port: u16| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\n\
             spec:\n  hosts: [x.example]\n  resolution: DNS\n  ports: [{{number: {port}, name: p{port}, protocol: HTTP}}]\n"
        )
    };

    let build = build(&format!("{}{}", entry("a", 80), entry("b", 81)));
    assert_eq!(codes(&build), ["MEL0310 ServiceEntry/b.default spec.hosts"]);
    let service = build
        .snapshot
        .service(&key("x.example", "default"))
        .expect("declared");

    assert_eq!(
        service
            .ports
            .iter()
            .map(|port| port.number)
            .collect::<Vec<_>>(),
        [80, 81]
    );
}

#[test]
fn ports_of_one_number_have_endpoints_of_their_own() {
    let snapshot = build(
        "
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: default}
spec:
  selector: {app: dns}
  ports: [{name: udp, port: 53, protocol: UDP, targetPort: 5353}, {name: tcp, port: 53, targetPort: 5354}]
---
apiVersion: v1
kind: Pod
metadata: {name: dns-1, namespace: default, labels: {app: dns}}
spec: {}
status: {podIP: 10.44.0.9, phase: Running}
",
    )
    .snapshot;

    let service = snapshot.services().next().expect("declared");
    let targets: Vec<u16> = service
        .ports
        .iter()
        .map(|port| snapshot.port_endpoints(&service.key, port)[0].port)
        .collect();
    assert_eq!(targets, [5353, 5354]);
    assert_eq!(snapshot.endpoints(&service.key, 53)[0].port, 5354);
}
