//! What Istio's admission takes is taken, and what it refuses is refused. Source: Istio
//! `pkg/config/validation`.

use meltemi_types::Severity;

use crate::findings::findings;

fn object(kind: &str, spec: &str) -> String {
    let group = match kind {
        "AuthorizationPolicy" | "RequestAuthentication" => "security",
        _ => "networking",
    };
    format!(
        "apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: a, namespace: ns5}}\nspec: {spec}\n"
    )
}

fn errors(text: &str) -> Vec<String> {
    findings(text)
        .into_iter()
        .filter(|one| one.severity == Severity::Error)
        .map(|one| {
            assert!(one.position.line > 0 && !one.remedy.is_empty(), "{one}");
            one.to_string()
        })
        .collect()
}

fn all(kind: &str, cases: &[&str], refused: bool) {
    for spec in cases {
        let errors = errors(&object(kind, spec));
        assert_eq!(!errors.is_empty(), refused, "{kind} {spec}: {errors:#?}");
    }
}

const TO: &str = "route: [{destination: {host: a}}]";

fn rules(kind: &str, fields: &[&str], refused: bool) {
    for fields in fields {
        let spec = format!("{{hosts: [a.example], http: [{{{fields}}}]}}");
        let errors = errors(&object(kind, &spec));
        assert_eq!(!errors.is_empty(), refused, "{fields}: {errors:#?}");
    }
}

#[test]
fn rules_of_virtual_services() {
    let to = |fields: &str| format!("{fields}, {TO}");
    let good: Vec<String> = [
        "match: [{uri: {prefix: ''}}]",
        "match: [{withoutHeaders: {x-debug: {regex: '*'}}}]",
        "match: [{headers: {':authority': {exact: a}, 'x!y': {exact: b}}}]",
        "headers: {request: {add: {Host: other.test}}}",
        "fault: {delay: {percentage: {value: 5}}}",
        "fault: {abort: {percentage: {value: 5}}}",
        "retries: {attempts: 2, retryOn: '5xx,reset,503'}",
        "retries: {attempts: 0, backoff: 1s}",
        "corsPolicy: {allowMethods: [GET, TRACE, '*'], maxAge: 1s}",
        "timeout: 1ms",
    ]
    .iter()
    .map(|fields| to(fields))
    .collect();
    rules(
        "VirtualService",
        &good.iter().map(String::as_str).collect::<Vec<_>>(),
        false,
    );

    let bad: Vec<String> = [
        "timeout: 2.000000005s",
        "corsPolicy: {allowMethods: [PUTT]}",
        "corsPolicy: {maxAge: 0s}",
        "corsPolicy: {allowOrigins: [{exact: ''}]}",
        "rewrite: {authority: a.test}, headers: {request: {set: {Host: b.test}}}",
        "headers: {request: {set: {Host: a}, add: {':authority': b}}}",
        "headers: {request: {remove: [Host]}}",
        "headers: {response: {set: {Host: a}}}",
        "retries: {attempts: 2, retryOn: '5xx, reset'}",
        "retries: {attempts: 2, retryOn: '299'}",
        "match: [{headers: {x: {regex: '*'}}}]",
        "match: [{headers: {':foo': {exact: a}}}]",
        "match: [{headers: {'@request.auth.claims.sub': {exact: a}}}]",
        "match: [{queryParams: {'': {exact: a}}}]",
        "match: [{sourceNamespace: 'a b'}]",
        "match: [{gateways: [a/b/c]}]",
        "directResponse: {status: 200}",
    ]
    .iter()
    .map(|fields| to(fields))
    .collect();
    rules(
        "VirtualService",
        &bad.iter().map(String::as_str).collect::<Vec<_>>(),
        true,
    );

    rules(
        "VirtualService",
        &[
            "directResponse: {status: 200}, fault: {delay: {fixedDelay: 1s}}",
            "redirect: {prefixRewrite: /b}, match: [{uri: {exact: /a}}]",
        ],
        true,
    );
    rules(
        "VirtualService",
        &[
            "directResponse: {status: 200}, delegate: {name: d}",
            "redirect: {prefixRewrite: /b}, match: [{uri: {prefix: /a}}]",
        ],
        false,
    );

    let hosts = |hosts: &str| format!("{{hosts: [{hosts}], http: [{{{TO}}}]}}");
    for (list, refused) in [
        ("'*.foo.example', '*.example'", true),
        ("a.example, '*.example'", true),
        ("'*.example', b.org", false),
        ("A.example, a.example", true),
        ("a.b.example, b.example", false),
        ("a.1", true),
        ("10.0.0.1", false),
    ] {
        all("VirtualService", &[&hosts(list)], refused);
    }

    let exported = |to: &str| format!("{{hosts: [a.example], exportTo: [{to}], http: [{{{TO}}}]}}");
    for (list, refused) in [
        ("'.', ns5", true),
        ("'~'", true),
        ("'*', other", true),
        ("ns5, other", false),
    ] {
        all("VirtualService", &[&exported(list)], refused);
    }
}

#[test]
fn rules_of_destination_rules() {
    let policy = |policy: &str| format!("{{host: a, trafficPolicy: {{{policy}}}}}");
    let lb = |lb: &str| policy(&format!("loadBalancer: {{{lb}}}"));
    let pool = |pool: &str| policy(&format!("connectionPool: {{{pool}}}"));
    for good in [
        pool("tcp: {idleTimeout: 0s}"),
        pool("http: {http2KeepAlive: {interval: 1s, timeout: 1s}}"),
        lb("consistentHash: {maglev: {tableSize: 65537}, useSourceIp: true}"),
        lb(
            "localityLbSetting: {distribute: [{from: a/*, to: {a/b: 60, c: 40}}], failoverPriority: [x]}",
        ),
        lb("localityLbSetting: {failover: [{from: a, to: b}], failoverPriority: [x]}"),
        lb("zoneAwareLbSetting: {failover: [{from: a, to: b}]}"),
    ] {
        all("DestinationRule", &[&good], false);
    }

    for bad in [
        pool("tcp: {connectTimeout: 2.000000005s}"),
        pool("tcp: {idleTimeout: 1us}"),
        pool("http: {http2KeepAlive: {interval: 1s}}"),
        lb("consistentHash: {maglev: {}, useSourceIp: true}"),
        lb("consistentHash: {maglev: {tableSize: 5000011}, useSourceIp: true}"),
        lb("consistentHash: {httpCookie: {name: a, attributes: [{name: b}, {name: b}]}}"),
        lb("consistentHash: {httpCookie: {name: \"a\\nb\"}}"),
        lb("localityLbSetting: {distribute: [{from: a/*, to: {a/b: 60}}]}"),
        lb("localityLbSetting: {distribute: [{from: a/*, to: {a/*: 60, a/b: 40}}]}"),
        lb("localityLbSetting: {distribute: [{from: a//b, to: {c: 100}}]}"),
        lb("localityLbSetting: {distribute: [{from: '*/a', to: {c: 100}}]}"),
        lb(
            "localityLbSetting: {failover: [{from: a, to: b}], failoverPriority: [topology.kubernetes.io/region]}",
        ),
        lb("zoneAwareLbSetting: {failoverPriority: [topology.kubernetes.io/zone]}"),
        lb("zoneAwareLbSetting: {failover: [{from: a, to: a}]}"),
        policy("portLevelSettings: [{port: {number: 80}}]"),
        policy("tunnel: {targetHost: a.example, targetPort: 80}, proxyProtocol: {version: V1}"),
        policy("tls: {mode: SIMPLE, insecureSkipVerify: true, credentialName: c}"),
        policy("tls: {mode: SIMPLE, credentialName: c, caCrl: /x}"),
        policy("tls: {mode: SIMPLE, sni: \"a\\0\"}"),
        "{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']}".to_owned(),
        "{host: 10.0.0.1}".to_owned(),
    ] {
        all("DestinationRule", &[&bad], true);
    }
}

#[test]
fn rules_of_gateways() {
    let server = |fields: &str| format!("{{servers: [{{{fields}}}]}}");
    let tls = |tls: &str| {
        server(&format!(
            "port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [a.example], tls: {{{tls}}}"
        ))
    };
    let host = |host: &str| {
        server(&format!(
            "port: {{number: 80, name: http, protocol: HTTP}}, hosts: [{host}]"
        ))
    };
    let port = |port: &str| server(&format!("port: {{{port}}}, hosts: ['*']"));

    for good in [
        tls("mode: SIMPLE, credentialName: a, serverCertificate: /tls/crt"),
        tls("mode: SIMPLE, serverCertificate: /c, privateKey: /k, cipherSuites: [NOPE]"),
        tls("mode: MUTUAL, credentialName: a, verifyCertificateHash: ['AA']")
            .replace("AA", &"a".repeat(64)),
        host("'*'"),
        host("'./*.example'"),
        host("10.0.0.1"),
        host("a.example, a.example"),
        port("number: 6379, name: redis, protocol: REDIS"),
    ] {
        all("Gateway", &[&good], false);
    }

    for bad in [
        tls("mode: SIMPLE, credentialName: a, serverCertificate: /c, privateKey: /k"),
        tls("mode: SIMPLE, serverCertificate: /c"),
        tls("mode: SIMPLE, tlsCertificates: [{serverCertificate: /c}]"),
        tls("mode: ISTIO_MUTUAL, tlsCertificates: [{serverCertificate: /c, privateKey: /k}]"),
        tls("mode: SIMPLE, serverCertificate: /c, privateKey: /k, caCrl: /x"),
        tls("mode: MUTUAL, credentialName: a, verifyCertificateSpki: [abc]"),
        host("foo"),
        host("'*foo.example'"),
        host("ns5/foo"),
        port("number: 80, name: http, protocol: HTTP, targetPort: 81"),
        server(
            "port: {number: 90, name: tcp, protocol: TCP}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: a}",
        ),
    ] {
        all("Gateway", &[&bad], true);
    }

    let dotted = object("Gateway", &host("'*'")).replace("name: a,", "name: a.b,");
    assert_eq!(errors(&dotted).len(), 1);
}

#[test]
fn rules_of_service_entries_and_sidecars() {
    let entry = |fields: &str| format!("{{{fields}}}");
    let http = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let tcp = "ports: [{number: 80, name: tcp, protocol: TCP}]";
    for (fields, refused) in [
        (format!("hosts: [c.example], exportTo: ['.', ns5], {http}, resolution: DNS"), true),
        (format!("hosts: [c.example], exportTo: ['~'], {http}, resolution: DNS"), false),
        (format!("hosts: [a.example, b.example], {tcp}, resolution: DNS"), true),
        (format!("hosts: [a.example, b.example], {tcp}, resolution: NONE"), false),
        (format!("hosts: ['*.example'], {http}, resolution: DYNAMIC_DNS, location: MESH_INTERNAL"), false),
        (format!("hosts: [a.example], {http}, resolution: DYNAMIC_DNS"), true),
        (format!("hosts: ['*.example'], {tcp}, resolution: DYNAMIC_DNS"), true),
        (format!("hosts: ['*.example'], addresses: [10.0.0.1], {http}, resolution: DYNAMIC_DNS"), true),
        (format!("hosts: ['*.example'], {http}, resolution: DNS, workloadSelector: {{labels: {{a: b}}}}"), true),
        (format!("hosts: ['*shop.example'], {http}, resolution: NONE"), false),
        ("hosts: [a.example], ports: [{number: 80, name: http}, {number: 81, name: h2}], resolution: STATIC, endpoints: [{address: 'unix:///x'}]".to_owned(), true),
    ] {
        all("ServiceEntry", &[&entry(&fields)], refused);
    }

    let egress = |hosts: &str| format!("{{egress: [{{hosts: [{hosts}]}}]}}");
    let ingress = |fields: &str| {
        format!("{{ingress: [{{port: {{number: 90, name: http, protocol: HTTP}}, {fields}}}]}}")
    };
    for (spec, refused) in [
        (egress("'./*', './*'"), false),
        (egress("'~other/*', '*/*'"), false),
        (egress("'./foo'"), true),
        (egress("'./*foo.example'"), true),
        (ingress("defaultEndpoint: ':8080'"), false),
        (ingress(&format!("defaultEndpoint: 'unix:///{}'", "a".repeat(200))), true),
        (ingress("defaultEndpoint: '127.0.0.1:80'").replace("name: http", "name: 'a b'"), true),
        ("{egress: [{port: {number: 80, name: a, protocol: HTTP}, bind: 127.0.0.1, hosts: ['./*']}, {port: {number: 80, name: b, protocol: HTTP}, bind: 127.0.0.2, hosts: ['./*']}]}".to_owned(), true),
    ] {
        all("Sidecar", &[&spec], refused);
    }
}

#[test]
fn rules_of_authorization_policies() {
    let source = |source: &str| format!("{{rules: [{{from: [{{source: {{{source}}}}}]}}]}}");
    let when = |key: &str, value: &str| {
        format!("{{rules: [{{when: [{{key: {key}, values: ['{value}']}}]}}]}}")
    };
    let many = vec!["a"; 17].join(", ");
    for (spec, refused) in [
        (source("trustDomains: ['*.example']"), false),
        (source("trustDomains: ['a*b']"), true),
        (source("trustDomains: ['*a*']"), true),
        (source("notTrustDomains: [a/b]"), true),
        (source(&format!("serviceAccounts: [{many}]")), true),
        (when("source.trustDomain", "a*b"), true),
        (when("source.trustDomain", "a*"), false),
        (when("source.serviceAccount", "a/*"), true),
        (when("source.serviceAccount", "a/b"), false),
    ] {
        all("AuthorizationPolicy", &[&spec], refused);
    }
}

#[test]
fn path_templates_are_those_that_envoy_takes() {
    let path = |path: &str| format!("{{rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]}}");
    all(
        "AuthorizationPolicy",
        &[&path("/a-b/{*}/{**}"), &path("/a b")],
        false,
    );
    all(
        "AuthorizationPolicy",
        &[&path("/a b/{*}"), &path("/{*}/{*}/{*}/{*}/{*}/{*}")],
        true,
    );
}

#[test]
fn a_mesh_config_that_proxies_refuse_is_refused() {
    let mesh = |settings: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {settings}\n"
        )
    };
    for good in [
        "accessLogFormat: '[%START_TIME(%s.%3f)%] %REQ(:METHOD)% %CAUSE%'",
        "defaultHttpRetryPolicy: {attempts: 2, retryOn: '503'}",
        "extensionProviders: [{name: a, envoyFileAccessLog: {path: /x, logFormat: {labels: {a: '%PROTOCOL%'}}}}]",
    ] {
        assert_eq!(errors(&mesh(good)), [""; 0], "{good}");
    }
    for bad in [
        "accessLogFormat: '%NOPE%'",
        "accessLogFormat: 'took 5%'",
        "defaultHttpRetryPolicy: {attempts: 2, retryOn: '5xxx'}",
        "defaultInboundHttpRetryPolicy: {attempts: 0, backoff: 1s}",
        "extensionProviders: [{name: a, envoyFileAccessLog: {path: /x, logFormat: {text: '%REQ(a'}}}]",
        "extensionProviders: [{name: a, envoyFileAccessLog: {path: /x, logFormat: {labels: {a: '%NOPE%'}}}}]",
    ] {
        assert_eq!(errors(&mesh(bad)).len(), 1, "{bad}");
    }
}
