//! Mistakes that are valid objects: each is told with its place.

use super::{build, codes};

const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: web}, {name: db, port: 6379, appProtocol: redis}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: reviews-1
  namespace: shop
  labels: {app: reviews, version: v1, security.istio.io/tlsMode: istio}
spec: {serviceAccountName: reviews, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.0.0.1, phase: Running}
";

fn told(text: &str) -> Vec<String> {
    codes(&build(&format!("{WORLD}---\n{text}")))
}

#[test]
fn a_world_without_mistakes_has_no_findings() {
    assert_eq!(codes(&build(WORLD)), [""; 0]);
}

#[test]
fn a_service_that_leads_nowhere_and_slips_in_port_names_are_told() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {selector: {app: nobody}, ports: [{name: Web_UI, port: 80, targetPort: none}, {name: htpp-web, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: misnamed, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: none}, {name: web, port: 81}, {name: gprc, port: 82, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
";
    assert_eq!(
        told(text),
        [
            "MEL0522 Service/misnamed.shop spec.ports[0].targetPort",
            "MEL0523 Service/nobody.shop spec.ports[0].name",
            "IST0118 Service/nobody.shop spec.ports[1].name",
            "MEL0521 Service/nobody.shop spec.selector",
        ]
    );

    // Before anything runs, nothing is missing.
    let alone = build(text);
    assert!(!codes(&alone).iter().any(|code| code.starts_with("MEL0521")));
}

#[test]
fn what_no_traffic_reaches_is_told() {
    assert_eq!(
        told("
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain, namespace: shop}
spec:
  host: reviews
  trafficPolicy: {tls: {mode: DISABLE}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v9, labels: {version: v9}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: twice, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - {name: a, match: [{uri: {prefix: /a}}, {uri: {prefix: /b}}], route: [{destination: {host: reviews, port: {number: 80}}}]}
  - {match: [{name: again, uri: {prefix: /b}}], route: [{destination: {host: reviews, port: {number: 80}}}]}
  - {match: [{uri: {prefix: /a}}, {uri: {prefix: /c}}], route: [{destination: {host: reviews, port: {number: 80}}}]}
  - {route: [{destination: {host: reviews, port: {number: 80}}}]}
  - {match: [{uri: {prefix: /d}}], route: [{destination: {host: reviews, port: {number: 80}}}]}
"),
        [
            "MEL0524 DestinationRule/plain.shop spec.subsets[1].labels",
            "IST0113 DestinationRule/plain.shop spec.trafficPolicy.tls.mode",
            "IST0130 VirtualService/twice.shop spec.http[1]",
            "IST0130 VirtualService/twice.shop spec.http[4]",
        ]
    );
}

#[test]
fn rules_that_cannot_hold_are_told() {
    let policy = |action: &str, rule: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{action: {action}, selector: {{matchLabels: {{app: reviews}}}}, rules: [{rule}]}}\n"
        )
    };

    let to_get = "to: [{operation: {methods: [GET]}}]";
    let from = |who: &str| format!("from: [{{source: {{principals: [{who}]}}}}]");
    let nobody = from("cluster.local/ns/shop/sa/not-there");
    for action in ["ALLOW", "DENY"] {
        assert_eq!(
            told(&policy(action, &format!("{{{to_get}, {nobody}}}"))),
            [
                "MEL0526 AuthorizationPolicy/p.shop spec.rules[0]",
                "MEL0525 AuthorizationPolicy/p.shop spec.rules[0].from[0].source.principals[0]",
            ]
        );
    }

    for fine in [
        "{to: [{operation: {methods: [GET], ports: ['8080']}}]}".to_owned(),
        "{to: [{operation: {ports: ['6379']}}]}".to_owned(),
        format!("{{{}}}", from("cluster.local/ns/shop/sa/reviews")),
        format!("{{{}}}", from("cluster.local/ns/other/*")),
        format!("{{{}}}", from("other.example/ns/shop/sa/a")),
    ] {
        assert_eq!(told(&policy("ALLOW", &fine)), [""; 0], "{fine}");
    }
}
