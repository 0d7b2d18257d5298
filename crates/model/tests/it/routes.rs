//! Virtual services, delegates, gateways, conflicts and references.

use std::time::Duration;

use meltemi_model::{GatewayRef, HttpAction, NamespacedName, Retries, RouteContext, StringMatch};

use super::{build, clean, codes, data, labels};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports: [{name: http, port: 80}]
";

fn virtual_service(name: &str, namespace: &str, spec: &str) -> String {
    let spec = spec
        .trim_matches('\n')
        .lines()
        .map(|line| format!("  {line}\n"))
        .collect::<String>();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

#[test]
fn conditions_on_the_client_are_decided_for_each_proxy() {
    let snapshot = clean(&data("shop.yaml"));
    let routes = snapshot.virtual_services_for(&GatewayRef::Mesh, "shop");
    let catalogue = routes
        .iter()
        .find(|vs| vs.origin.object.name == "catalogue")
        .expect("for sidecars");

    let (front, other) = (labels(&[("app", "front")]), labels(&[("app", "other")]));
    let count = |labels| {
        let context = RouteContext {
            namespace: "shop",
            labels,
            gateway: &GatewayRef::Mesh,
            port: 9080,
        };

        catalogue
            .http
            .iter()
            .filter(|route| route.matches_for(&context, catalogue).is_some())
            .count()
    };

    assert_eq!(count(&front), 2);
    assert_eq!(count(&other), 1);
    let Retries::Explicit(retries) = &catalogue.http[1].retries else {
        panic!("written")
    };
    assert_eq!(
        (retries.retry_on.as_str(), retries.status_codes.as_slice()),
        ("5xx,connect-failure", &[409][..])
    );

    assert_eq!(catalogue.http[1].timeout, Some(Duration::from_millis(1500)));
    assert_eq!(catalogue.http[0].retries, Retries::Default);
}

#[test]
fn a_gateway_serves_the_narrower_host_to_the_right_namespace() {
    let snapshot = clean(&data("shop.yaml"));
    let gateway = snapshot
        .gateways_for(&labels(&[("istio", "ingressgateway")]))
        .remove(0);
    let served = snapshot.virtual_services_of_server(&gateway, &gateway.servers[0], "istio-system");
    assert_eq!(served.len(), 1);
    assert_eq!(served[0].1, ["www.shop.example"]);
    let hosts = |ns: &str, host: &str| {
        gateway.servers[0]
            .intersect(ns, &[host.into()])
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };

    assert_eq!(hosts("shop", "*"), ["*.shop.example"]);
    assert_eq!(hosts("shop", "admin.example"), Vec::<String>::new());
    assert_eq!(hosts("other", "admin.example"), ["admin.example"]);
}

#[test]
fn a_delegate_adds_rules_within_the_roots_conditions() {
    let root = virtual_service(
        "root",
        "shop",
        "
hosts: [web]
http:
- name: api
  match: [{uri: {prefix: /api}}]
  timeout: 3s
  delegate: {name: api, namespace: team}
- route: [{destination: {host: web}}]",
    );

    let delegate = virtual_service(
        "api",
        "team",
        "
http:
- name: v2
  match: [{uri: {exact: /api/v2}}]
  route: [{destination: {host: web.shop.svc.cluster.local}}]
- match: [{uri: {prefix: /other}}]
  route: [{destination: {host: web.shop.svc.cluster.local}}]
- timeout: 1s
  route: [{destination: {host: web.shop.svc.cluster.local}}]",
    );

    let build = build(&format!("{SERVICE}{root}{delegate}"));
    assert_eq!(
        codes(&build),
        ["MEL0306 VirtualService/root.shop spec.http[0].delegate"]
    );

    let routes: Vec<_> = build.snapshot.virtual_services().collect();
    let [root] = routes.as_slice() else {
        panic!("the delegate is not one of its own")
    };
    let facts: Vec<_> = root
        .http
        .iter()
        .map(|route| {
            (
                route.name.as_str(),
                route.matches.first().and_then(|m| m.uri.clone()),
                route.timeout.map(|t| t.as_secs()),
            )
        })
        .collect();

    assert_eq!(
        facts,
        [
            (
                "api-v2",
                Some(StringMatch::Exact("/api/v2".to_owned())),
                Some(3)
            ),
            ("api", Some(StringMatch::Prefix("/api".to_owned())), Some(1)),
            ("", None, None),
        ]
    );

    assert_eq!(root.http[0].source, NamespacedName::new("team", "api"));
}

#[test]
fn of_two_for_the_same_host_the_older_is_first_and_it_is_told() {
    let rule = "hosts: [web]\nhttp: [{route: [{destination: {host: web}}]}]";
    let older = virtual_service("z", "shop", rule).replace(
        "namespace: shop}",
        "namespace: shop, creationTimestamp: \"2024-01-01T00:00:00Z\"}",
    );

    let younger = virtual_service("a", "shop", rule).replace(
        "namespace: shop}",
        "namespace: shop, creationTimestamp: \"2025-01-01T00:00:00Z\"}",
    );

    let build = build(&format!("{SERVICE}{younger}{older}"));
    assert_eq!(codes(&build), ["IST0109 VirtualService/a.shop spec.hosts"]);
    let order: Vec<_> = build
        .snapshot
        .virtual_services_for(&GatewayRef::Mesh, "shop")
        .iter()
        .map(|vs| vs.origin.object.name.clone())
        .collect();

    assert_eq!(order, ["z", "a"]);
}

#[test]
fn what_is_private_to_a_namespace_wins_there_and_is_unseen_elsewhere() {
    let rule = "hosts: [web.shop.svc.cluster.local]\nhttp: [{route: [{destination: {host: web.shop.svc.cluster.local}}]}]";
    let public = virtual_service("a", "shop", rule);
    let private = virtual_service("b", "team", &format!("{rule}\nexportTo: [\".\"]"));
    let named = virtual_service("c", "other", &format!("{rule}\nexportTo: [team]"));
    let build = build(&format!("{SERVICE}{public}{private}{named}"));
    let order = |ns: &str| {
        build
            .snapshot
            .virtual_services_for(&GatewayRef::Mesh, ns)
            .iter()
            .map(|vs| vs.origin.object.name.clone())
            .collect::<Vec<_>>()
    };

    assert_eq!(order("team"), ["b", "c", "a"]);
    assert_eq!(order("shop"), ["a"]);
}

#[test]
fn references_to_nothing_are_told_with_line_and_remedy() {
    let broken = virtual_service(
        "broken",
        "shop",
        "
hosts: [web]
gateways: [nowhere, mesh]
http:
- route:
  - {destination: {host: webb}, weight: 50}
  - {destination: {host: web, subset: v9}, weight: 50}
  mirror: {host: web, port: {number: 81}}",
    );

    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: lost, namespace: shop}\nspec: {host: gone}\n";
    let build = build(&format!("{SERVICE}{broken}{rule}"));
    assert_eq!(
        codes(&build),
        [
            "IST0101 DestinationRule/lost.shop spec.host",
            "IST0101 VirtualService/broken.shop spec.gateways[0]",
            "IST0101 VirtualService/broken.shop spec.http[0].mirror.port",
            "IST0101 VirtualService/broken.shop spec.http[0].route[0].destination.host",
            "IST0101 VirtualService/broken.shop spec.http[0].route[1].destination.subset",
        ]
    );

    assert!(
        build
            .diagnostics
            .iter()
            .all(|found| found.position.line > 0 && !found.remedy.is_empty()),
        "{:#?}",
        build.diagnostics
    );

    assert_eq!(
        build.diagnostics[3].message,
        "Referenced host not found: \"webb\""
    );

    // It is kept nevertheless: the host may come later.
    let HttpAction::Forward(destinations) =
        &build.snapshot.virtual_services().next().expect("kept").http[0].action
    else {
        panic!("forwards")
    };

    assert_eq!(destinations.len(), 2);
}

#[test]
fn a_single_destination_takes_all_and_zero_attempts_switch_retries_off() {
    let vs = virtual_service(
        "w",
        "shop",
        "hosts: [web]\nhttp:\n- retries: {attempts: 0}\n  route: [{destination: {host: web}}]",
    );

    let snapshot = clean(&format!("{SERVICE}{vs}"));
    let route = &snapshot.virtual_services().next().expect("one").http[0];
    let HttpAction::Forward(destinations) = &route.action else {
        panic!("forwards")
    };
    assert_eq!(destinations[0].weight, 100);
    assert_eq!(
        destinations[0].destination.host.as_str(),
        "web.shop.svc.cluster.local"
    );

    assert_eq!(route.retries, Retries::Off);
}

#[test]
fn a_delegate_takes_from_its_root_what_it_does_not_write() {
    let leaf = |name: &str, fields: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{http: [{{{fields}, route: [{{destination: {{host: solo}}}}]}}]}}\n"
        )
    };
    let root = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: shop}
spec:
  hosts: [dl.test]
  http:
  - {match: [{uri: {prefix: /zero}}], mirror: {host: copy}, mirrorPercentage: {value: 100}, delegate: {name: zero}}
  - {match: [{uri: {prefix: /own}}], mirror: {host: other}, mirrorPercentage: {value: 0}, delegate: {name: own}}
  - {match: [{uri: {prefix: /pct}}], mirror: {host: copy}, delegate: {name: pct}}
  - {match: [{uri: {prefix: /list}}], mirrors: [{destination: {host: copy}}], delegate: {name: list}}
  - {match: [{uri: {prefix: /hdr}}], headers: {request: {set: {x-root: '1'}}}, timeout: 5s, delegate: {name: hdr}}
";
    let snapshot = build(&format!(
        "{root}{}{}{}{}{}",
        leaf("zero", "mirrorPercentage: {value: 0}"),
        leaf("own", "mirror: {host: copy}"),
        leaf("pct", "mirrorPercentage: {value: 50}"),
        leaf("list", "mirrorPercentage: {value: 0}"),
        leaf("hdr", "headers: {}, timeout: 0s"),
    ))
    .snapshot;

    let merged = snapshot.virtual_services().next().expect("the root");
    let mirrors: Vec<Vec<(String, f64)>> = merged
        .http
        .iter()
        .map(|route| {
            let of = |mirror: &meltemi_model::Mirror| {
                (
                    mirror.destination.host.to_string(),
                    mirror.percent.percent(),
                )
            };
            route.mirrors.iter().map(of).collect()
        })
        .collect();

    let copy = |percent| vec![("copy.shop.svc.cluster.local".to_owned(), percent)];
    assert_eq!(
        mirrors,
        [vec![], vec![], copy(50.0), copy(100.0), vec![]],
        "absent and zero are not the same"
    );

    let last = &merged.http[4];
    assert!(
        last.headers.is_empty() && last.timeout.is_none(),
        "{last:?}"
    );
}

#[test]
fn a_rule_that_proxies_refuse_is_left_out_alone() {
    // Not validated, as from an API server without admission.
    let text = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: promo, namespace: shop}
spec:
  hosts: [promo.test]
  http:
  - {name: value, match: [{uri: {prefix: /a}}], headers: {response: {set: {x-discount: '5% off'}}}, route: [{destination: {host: solo}}]}
  - {name: regex, match: [{uri: {regex: '/a{1001}'}}], route: [{destination: {host: solo}}]}
  - {name: rewrite, match: [{uri: {prefix: /b}}], rewrite: {authority: \"a\\r\\nx: y\"}, route: [{destination: {host: solo}}]}
  - {name: fine, route: [{destination: {host: solo}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: innocent, namespace: shop}
spec: {hosts: [innocent.test], http: [{directResponse: {status: 222}}]}
";
    let built = build(text);
    let names: Vec<Vec<String>> = built
        .snapshot
        .virtual_services()
        .map(|vs| vs.http.iter().map(|route| route.name.clone()).collect())
        .collect();
    assert!(
        names.contains(&vec!["fine".to_owned()]) && names.contains(&vec![String::new()]),
        "{names:?}"
    );

    let told: Vec<&str> = built
        .diagnostics
        .iter()
        .filter(|one| one.code == "MEL0314" && one.object.name == "promo")
        .map(|one| one.field.as_str())
        .collect();
    assert_eq!(
        told,
        [
            "spec.http[0].headers",
            "spec.http[1].match",
            "spec.http[2].rewrite"
        ]
    );
}
