//! Istio's own analyzer fixtures, where they lie beside the repository: the same objects get the
//! same codes.

use std::collections::BTreeSet;
use std::fs;

use meltemi_api::parse_documents;
use meltemi_model::{BuildOptions, Snapshot, Tables};
use serde_json::Value;

/// What the fixtures' harness holds besides each case.
const HARNESS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: istio-ingressgateway, namespace: istio-system, labels: {istio: ingressgateway}}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  ports: [{name: http2, port: 80}, {name: https, port: 443}, {name: tls, port: 15443}]
";

/// The analyzers that the model covers, with the codes that it has of them.
const COVERED: &[(&str, &[&str])] = &[
    (
        "virtualservice.DestinationHostAnalyzer",
        &["IST0101", "IST0112"],
    ),
    ("virtualservice.DestinationRuleAnalyzer", &["IST0101"]),
    ("virtualservice.GatewayAnalyzer", &["IST0132"]),
    ("authz.AuthorizationPoliciesAnalyzer", &["IST0127"]),
    ("gateway.SecretAnalyzer", &["IST0101"]),
];

#[test]
fn the_same_objects_get_the_same_codes() {
    let Some(folder) = meltemi_testkit::shared_or_skip("golden/analyze") else {
        return;
    };
    let cases = fs::read_to_string(folder.join("cases.jsonl")).expect("part of the fixtures");
    let mut wrong = Vec::new();
    let mut seen = 0;

    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).expect("JSON");
        let analyzer = case["analyzer"].as_str().unwrap_or_default();
        let Some((_, codes)) = COVERED.iter().find(|(name, _)| *name == analyzer) else {
            continue;
        };

        // Gateways of the Gateway API are not lowered yet.
        if case["inputs"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|input| input == "virtualservice_kubernetes_gateways.yaml")
        {
            continue;
        }

        seen += 1;
        let mut tables = Tables::default();
        let inputs = case["inputs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);

        let texts = inputs
            .map(|input| fs::read_to_string(folder.join(input)).expect("part of the fixtures"));
        for text in texts.chain([HARNESS.to_owned()]) {
            for object in parse_documents("case.yaml", &text).0 {
                tables.apply(object.into());
            }
        }

        let known: BTreeSet<String> = tables
            .iter()
            .map(|object| {
                format!(
                    "{} {}/{}",
                    object.kind.word(),
                    object.meta.namespace,
                    object.meta.name
                )
            })
            .collect();

        let build = Snapshot::build(None, &tables, &BuildOptions::default());
        let kind = if analyzer.starts_with("virtualservice.") {
            "VirtualService"
        } else if analyzer.starts_with("authz.") {
            "AuthorizationPolicy"
        } else {
            "Gateway"
        };

        let found: BTreeSet<_> = build
            .diagnostics
            .iter()
            .filter(|found| {
                codes.contains(&found.code.as_str())
                    && found.object.kind == kind
                    && is_of(analyzer, &found.field)
            })
            .map(|found| {
                (
                    found.code.clone(),
                    format!(
                        "{} {}/{}",
                        found.object.kind, found.object.namespace, found.object.name
                    ),
                )
            })
            .collect();

        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let expected: BTreeSet<_> = case["expected"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|expected| {
                (
                    text(&expected["code"]),
                    qualified(&text(&expected["resource"])),
                )
            })
            // What cannot be read at all is refused before the model sees it.
            .filter(|(code, resource)| codes.contains(&code.as_str()) && known.contains(resource))
            .collect();

        if found != expected {
            wrong.push(format!(
                "{}:\n  found {found:?}\n  expected {expected:?}",
                text(&case["name"])
            ));
        }
    }

    assert!(seen > 0, "the fixtures name no analyzer that is covered");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Analyzers share codes; the field tells which one would have spoken.
fn is_of(analyzer: &str, field: &str) -> bool {
    match analyzer {
        "virtualservice.DestinationHostAnalyzer" => {
            !field.ends_with(".subset") && (field.contains(".route[") || field.contains(".mirror"))
        }
        "virtualservice.DestinationRuleAnalyzer" => field.ends_with(".subset"),
        "gateway.SecretAnalyzer" => field.ends_with(".credentialName"),
        _ => true,
    }
}

/// `Kind name` is in namespace default.
fn qualified(resource: &str) -> String {
    match resource.split_once(' ') {
        Some((kind, name)) if !name.contains('/') => format!("{kind} default/{name}"),
        _ => resource.to_owned(),
    }
}

/// What is read and does nothing is told: nobody may think that a policy holds which does not.
#[test]
fn what_has_no_effect_yet_is_told() {
    let build = super::build(
        r"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt}
spec: {jwtRules: [{issuer: x, jwks: '{}'}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: patch}
spec: {}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out}
spec: {hosts: [x.org], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: out}
spec:
  host: x.org
  trafficPolicy:
    tls: {mode: SIMPLE, caCrl: /crl.pem}
    outlierDetection: {outlierDetectionHttpErrorCodes: [418]}
  subsets: [{name: a, trafficPolicy: {tunnel: {targetHost: y.org, targetPort: 443}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: secret}
spec:
  host: z.org
  workloadSelector: {matchLabels: {app: a}}
  trafficPolicy: {tls: {mode: SIMPLE, credentialName: client}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: far}
spec: {address: 10.0.0.1, network: other}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: bound}
spec:
  workloadSelector: {labels: {app: a}}
  ingress: [{port: {number: 80, protocol: HTTP, name: http}, bind: 10.0.0.1, defaultEndpoint: '127.0.0.1:8080'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: attached}
spec: {targetRefs: [{kind: Service, group: '', name: x}], action: DENY, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tokens}
spec:
  rules:
  - from: [{source: {principals: [a]}}, {source: {notRequestPrincipals: ['*']}}]
    when: [{key: 'request.auth.claims[iss]', values: [x]}, {key: source.ip, values: [10.0.0.1]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
    extensionProviders: [{name: short, envoyFileAccessLog: {path: /dev/stdout, omitEmptyValues: true}}]
    ingressService: mine
    meshMTLS: {minProtocolVersion: TLSV1_3}
",
    );

    let told: Vec<_> = super::codes(&build)
        .into_iter()
        .filter(|line| line.starts_with("MEL0307"))
        .collect();

    assert_eq!(
        told,
        [
            "MEL0307 AuthorizationPolicy/attached.default spec.targetRefs",
            "MEL0307 AuthorizationPolicy/tokens.default spec.rules[0].from[1].source",
            "MEL0307 AuthorizationPolicy/tokens.default spec.rules[0].when[0].key",
            "MEL0307 ConfigMap/istio.istio-system data.mesh: extensionProviders[].envoyFileAccessLog.omitEmptyValues",
            "MEL0307 ConfigMap/istio.istio-system data.mesh: ingressService",
            "MEL0307 ConfigMap/istio.istio-system data.mesh: meshMTLS",
            "MEL0307 DestinationRule/out.default spec.subsets[0].trafficPolicy.tunnel",
            "MEL0307 DestinationRule/out.default spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes",
            "MEL0307 DestinationRule/out.default spec.trafficPolicy.tls.caCrl",
            "MEL0307 DestinationRule/secret.default spec.trafficPolicy.tls.credentialName",
            "MEL0307 EnvoyFilter/patch.default spec",
            "MEL0307 RequestAuthentication/jwt.default spec.jwtRules",
            "MEL0307 Sidecar/bound.default spec.ingress[0].bind",
            "MEL0307 WorkloadEntry/far.default spec.network",
        ]
    );
}

#[test]
fn grpc_web_is_told_wherever_a_port_declares_it() {
    let build = super::build(
        r"
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{name: grpc, port: 80}, {name: grpc-web, port: 81}, {name: x, appProtocol: grpc-web, port: 82}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out}
spec: {hosts: [x.org], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 80, name: web, protocol: GRPC-Web}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: web, protocol: GRPC-Web}, hosts: ['*']}]}
",
    );

    let told: Vec<_> = super::codes(&build)
        .into_iter()
        .filter(|line| line.starts_with("MEL0307"))
        .collect();

    assert_eq!(
        told,
        [
            "MEL0307 Gateway/door.default spec.servers[0].port.protocol",
            "MEL0307 Service/shop.default spec.ports[1]",
            "MEL0307 Service/shop.default spec.ports[2]",
            "MEL0307 ServiceEntry/out.default spec.ports[0]",
        ]
    );
}
