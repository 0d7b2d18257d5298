//! What users get wrong, and what they are told.

use meltemi_api::{Kind, ObjectKey, Spec, parse, validate};
use meltemi_types::{Diagnostic, Severity};

/// Everything there is to say about a text.
pub fn findings(text: &str) -> Vec<Diagnostic> {
    let parsed = parse("test.yaml", text);
    let mut all = parsed.diagnostics;
    all.extend(parsed.objects.iter().flat_map(validate));
    all
}

fn virtual_service(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: reviews\nspec:\n{spec}"
    )
}

#[test]
fn a_misspelt_field_is_named_with_its_place() {
    let all = findings(&virtual_service(
        "  hosts: [reviews]\n  http:\n  - rute:\n    - destination:\n        host: reviews\n",
    ));
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        all[0].to_string(),
        "test.yaml:8:5: error[MEL0103]: VirtualService/reviews.default: spec.http[0].rute: unknown field \"rute\" (did you mean route?)"
    );
}

#[test]
fn all_faults_are_told_at_once() {
    let all = findings(&virtual_service(
        "  hosts: reviews\n  http:\n  - timeout: soon\n    retries: {attempts: '3'}\n    fault: {abort: {percentage: {value: x}}}\n",
    ));
    let fields: Vec<&str> = all.iter().map(|d| d.field.as_str()).collect();
    let expected = [
        "spec.hosts",
        "spec.http[0].timeout",
        "spec.http[0].retries.attempts",
        "spec.http[0].fault.abort.percentage.value",
    ];

    assert_eq!(fields, expected);
}

#[test]
fn virtual_services_rules() {
    let route = "route: [{destination: {host: reviews}}]";
    for (spec, wanted) in [
        (format!("  hosts: [a]\n  http: [{{{route}, redirect: {{uri: /x}}}}]\n"), "HTTP route cannot contain both route and redirect"),
        (format!("  hosts: [a]\n  http: [{{{route}, directResponse: {{status: 200}}}}]\n"), "both route and direct_response"),
        ("  hosts: [a]\n  http: [{}]\n".to_owned(), "HTTP route, redirect or direct_response is required"),
        ("  hosts: [a]\n".to_owned(), "http, tcp or tls must be provided"),
        (format!("  hosts: ['*']\n  http: [{{{route}}}]\n"), "wildcard host * is not allowed"),
        (format!("  hosts: [a, a]\n  http: [{{{route}}}]\n"), "duplicate hosts"),
        (format!("  hosts: [a_b]\n  http: [{{{route}}}]\n"), "domain name \"a_b\" invalid"),
        (format!("  hosts: [a]\n  http: [{{{route}, timeout: 0.1ms}}]\n"), "must be a valid duration greater than 1ms"),
        (format!("  hosts: [a]\n  http: [{{{route}, match: [{{uri: {{exact: a, prefix: b}}}}]}}]\n"), "only one of exact, prefix or regex"),
        (format!("  hosts: [a]\n  http: [{{{route}, match: [{{uri: {{regex: '(?=x)'}}}}]}}]\n"), "RE2"),
        (format!("  hosts: [a]\n  http: [{{{route}, match: [{{port: 70000}}]}}]\n"), "port must be between 1-65535"),
        (format!("  hosts: [a]\n  http: [{{{route}, retries: {{attempts: 1, retryOn: '5xxx'}}}}]\n"), "not a valid retryOn policy"),
        (format!("  hosts: [a]\n  http: [{{{route}, fault: {{delay: {{fixedDelay: 1s, percentage: {{value: 101}}}}}}}}]\n"), "not in range 0..100"),
        (
            "  hosts: [a]\n  http: [{route: [{destination: {host: a}, weight: 0}, {destination: {host: b}, weight: 0}]}]\n".to_owned(),
            "total destination weight = 0",
        ),
        ("  hosts: [a]\n  http: [{route: [{destination: {host: a}, weight: -1}]}]\n".to_owned(), "weight -1 < 0"),
        (
            "  hosts: [a]\n  http: [{route: [{destination: {host: a}, weight: 2147483648}]}]\n".to_owned(),
            "should be between -2147483648 and 2147483647",
        ),
        ("  hosts: [a.com]\n  tls: [{match: [{sniHosts: [b.com]}], route: [{destination: {host: a}}]}]\n".to_owned(), "not a compatible subset"),
    ] {
        let all = findings(&virtual_service(&spec));
        let hit = all.iter().find(|d| d.severity == Severity::Error && d.message.contains(wanted));
        assert!(hit.is_some_and(|d| d.position.line > 4), "{spec}: wants {wanted:?}, has {all:?}");
    }

    let fine = findings(&virtual_service(&format!(
        "  hosts: [a]\n  http: [{{{route}}}, {{{route}}}]\n"
    )));
    assert_eq!(fine.len(), 1, "{fine:?}");
    assert!(fine[0].severity == Severity::Warning && fine[0].message.contains("never used"));
}

#[test]
fn other_kinds_rules() {
    let object = |kind: &str, group: &str, spec: &str| {
        format!(
            "apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n"
        )
    };

    for (text, wanted) in [
        (
            object(
                "DestinationRule",
                "networking",
                "{host: a, subsets: [{name: v1}, {name: v1}]}",
            ),
            "duplicate subset names",
        ),
        (
            object(
                "DestinationRule",
                "networking",
                "{host: a, trafficPolicy: {}}",
            ),
            "at least one field",
        ),
        (
            object(
                "DestinationRule",
                "networking",
                "{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}",
            ),
            "client certificate required",
        ),
        (
            object(
                "DestinationRule",
                "networking",
                "{host: a, trafficPolicy: {tls: {mode: MUTAL}}}",
            ),
            "Unsupported value: \"MUTAL\"",
        ),
        (
            object(
                "DestinationRule",
                "networking",
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {}}}}",
            ),
            "what is hashed",
        ),
        (
            object(
                "DestinationRule",
                "networking",
                "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}}",
            ),
            "only one of simple",
        ),
        (
            object(
                "Gateway",
                "networking",
                "{servers: [{port: {number: 80, name: http, protocol: HTPP}, hosts: ['*']}]}",
            ),
            "invalid protocol",
        ),
        (
            object(
                "Gateway",
                "networking",
                "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*']}]}",
            ),
            "must have TLS settings",
        ),
        (
            object(
                "Gateway",
                "networking",
                "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE}}]}",
            ),
            "requires a server certificate",
        ),
        (
            object(
                "ServiceEntry",
                "networking",
                "{hosts: ['*'], ports: [{number: 80, name: http}]}",
            ),
            "hostname cannot be wildcard",
        ),
        (
            object(
                "ServiceEntry",
                "networking",
                "{hosts: ['*.com'], resolution: DNS, ports: [{number: 80, name: http}]}",
            ),
            "hosts must be FQDN",
        ),
        (
            object(
                "ServiceEntry",
                "networking",
                "{hosts: [a.com], resolution: DNS, addresses: [10.0.0.0/8], ports: [{number: 80, name: http}]}",
            ),
            "CIDR addresses are allowed only",
        ),
        (
            object("Sidecar", "networking", "{egress: [{hosts: [reviews]}]}"),
            "namespace/dnsName",
        ),
        (object("Sidecar", "networking", "{}"), "empty configuration"),
        (
            object(
                "PeerAuthentication",
                "security",
                "{portLevelMtls: {80: {mode: STRICT}}}",
            ),
            "portLevelMtls requires selector",
        ),
        (
            object(
                "AuthorizationPolicy",
                "security",
                "{action: CUSTOM, rules: [{}]}",
            ),
            "provider.name",
        ),
        (
            object(
                "AuthorizationPolicy",
                "security",
                "{rules: [{from: [{source: {ipBlocks: [10.0.0.300]}}]}]}",
            ),
            "not a valid IP address",
        ),
        (
            object(
                "AuthorizationPolicy",
                "security",
                "{rules: [{to: [{operation: {ports: [80]}}]}]}",
            ),
            "must be of type string",
        ),
        (
            object(
                "AuthorizationPolicy",
                "security",
                "{rules: [{when: [{key: 'request.header[x]', values: [a]}]}]}",
            ),
            "unknown attribute",
        ),
        (
            object(
                "Telemetry",
                "telemetry",
                "{tracing: [{randomSamplingPercentage: 101}]}",
            ),
            "range [0..100]",
        ),
        (
            // Half written: the rest is still to come.
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  replicas: 2\n"
                .to_owned(),
            "Required value",
        ),
        (object("VirtualService", "security", "{}"), "API group"),
        (
            "apiVersion: networking.istio.io/v9\nkind: Gateway\nmetadata: {name: x}\n".to_owned(),
            "no version",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: ../x}\n".to_owned(),
            "lower case alphanumeric",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: ../x}\n".to_owned(),
            "not a namespace's name",
        ),
        ("kind: Pod\n".to_owned(), "apiVersion is missing"),
    ] {
        let all = findings(&text);
        assert!(
            all.iter()
                .any(|d| d.severity == Severity::Error && d.message.contains(wanted)),
            "{text}: wants {wanted:?}, has {all:?}"
        );
    }
}

#[test]
fn a_broken_document_leaves_the_others_alone() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: Gateway\nmetadata:\n  name: broken\nspec: [\n---\n\
                apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ServiceAccount\n  metadata: {name: b, namespace: c}\n\
                - apiVersion: networking.istio.io/v1\n  kind: Sidecar\n  metadata: {name: d}\n  spec: {egres: []}\n";
    let parsed = parse("x.yaml", text);
    let keys: Vec<ObjectKey> = parsed.objects.iter().map(|object| object.key()).collect();
    assert_eq!(
        keys,
        [
            ObjectKey::new(Kind::Namespace, "", "a"),
            ObjectKey::new(Kind::ServiceAccount, "c", "b")
        ]
    );

    assert_eq!(
        (parsed.unreadable, parsed.refused),
        (1, vec![ObjectKey::new(Kind::Sidecar, "default", "d")])
    );

    assert_eq!(parsed.diagnostics.len(), 2, "{:?}", parsed.diagnostics);
    assert_eq!(parsed.diagnostics[0].object.name, "broken");
    assert_eq!(
        (
            parsed.diagnostics[1].position.line,
            parsed.diagnostics[1].remedy.as_str()
        ),
        (19, "did you mean egress?")
    );
}

#[test]
fn foreign_fields_and_kinds_are_no_errors() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, managedFields: []}\nspec:\n  strategy: {type: Recreate}\n  template:\n    \
                spec: {containers: [{name: x, image: app, resources: {limits: {cpu: 1}}}]}\n---\napiVersion: batch/v1\nkind: Job\nmetadata: {name: b}\n";
    let all = findings(text);
    assert!(
        all.iter().all(|d| d.severity == Severity::Warning),
        "{all:?}"
    );
    assert_eq!(all.len(), 1);
}

#[test]
fn an_invalid_mesh_config_is_told_with_its_line() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |-\n    accessLogFile: /dev/stdout\n    outboundTrafficPolicy:\n      mode: NONE\n";
    let all = findings(text);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (all[0].position.line, all[0].field.as_str()),
        (8, "data.mesh: outboundTrafficPolicy.mode")
    );
}

/// Not a benchmark: what is quadratic takes minutes with these.
#[test]
fn hostile_sizes_end_soon() {
    let long = "a".repeat(1 << 20);
    let all = findings(&virtual_service(&format!(
        "  hosts: [a]\n  http:\n  - match: [{{uri: {{regex: '{long}'}}}}]\n    route: [{{destination: {{host: a}}}}]\n"
    )));
    assert!(all.len() == 1 && all[0].message.len() < 200, "{all:?}");

    let route = "  - match: [{uri: {exact: /a}, headers: {x: {exact: b}}}]\n    route:\n    - destination: {host: a, port: {number: 80}}\n";
    let parsed = parse(
        "x.yaml",
        &virtual_service(&format!("  hosts: [a]\n  http:\n{}", route.repeat(10_000))),
    );

    let Spec::VirtualService(spec) = &parsed.objects[0].spec else {
        panic!("a VirtualService")
    };
    assert_eq!(spec.http.len(), 10_000);
    assert_eq!(validate(&parsed.objects[0]), vec![]);

    let wrong = "  - rute: 1\n";
    let all = findings(&virtual_service(&format!(
        "  hosts: [a]\n  http:\n{}",
        wrong.repeat(10_000)
    )));

    assert_eq!(all.len(), 100);
}

#[test]
fn an_exact_match_may_be_empty() {
    let with = |matcher: &str| {
        findings(&virtual_service(&format!(
            "  hosts: [a]\n  http: [{{match: [{{{matcher}}}], route: [{{destination: {{host: reviews}}}}]}}]\n"
        )))
    };

    for valid in [
        "queryParams: {debug: {exact: ''}}",
        "headers: {x-a: {exact: ''}}",
        "withoutHeaders: {x-a: {exact: ''}}",
    ] {
        assert_eq!(with(valid), vec![], "{valid}");
    }

    for invalid in [
        "queryParams: {debug: {prefix: ''}}",
        "headers: {x-a: {regex: ''}}",
    ] {
        let all = with(invalid);
        assert!(
            all.len() == 1 && all[0].message.contains("should not be empty"),
            "{invalid}: {all:?}"
        );
    }
}

#[test]
fn extension_providers_are_checked_where_they_are_written() {
    let told = |fields: &str| {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    extensionProviders:\n    - name: fine\n      prometheus: {{}}\n    - name: mine\n      envoyExtAuthzHttp: {{service: a.b, port: 80, {fields}}}\n"
        );
        findings(&text)
            .iter()
            .map(|d| {
                let field = d
                    .field
                    .replace("data.mesh: extensionProviders[1].envoyExtAuthzHttp", "");
                assert_eq!(
                    (d.severity, d.position.line),
                    (Severity::Warning, 10),
                    "{d}"
                );
                format!("{} {field} {}", d.code, d.message)
            })
            .collect::<Vec<_>>()
    };

    assert_eq!(
        told(
            "statusOnError: '503', pathPrefix: /x, includeRequestBodyInCheck: {maxRequestBytes: 1}"
        ),
        [""; 0]
    );
    for (fields, wanted) in [
        ("service: ''", "MEL0201 .service service must not be empty"),
        (
            "service: a/b/c",
            "MEL0201 .service service value \"a/b/c\" not in format [<namespace>/]<service>",
        ),
        (
            "port: 65536",
            "MEL0201 .port port must be in the range [1, 65535], found: 65536",
        ),
        (
            "statusOnError: '0'",
            "MEL0201 .statusOnError unsupported statusOnError value \"0\"",
        ),
        (
            "statusOnError: Forbidden",
            "MEL0201 .statusOnError unsupported statusOnError value \"Forbidden\"",
        ),
        (
            "pathPrefix: check",
            "MEL0201 .pathPrefix pathPrefix should begin with `/` but found \"check\"",
        ),
        (
            "headersToUpstreamOnAllow: [x, '*']",
            "MEL0201 .headersToUpstreamOnAllow[1] a single wildcard (\"*\") is not supported, change it to either prefix or suffix match",
        ),
        (
            "includeAdditionalHeadersInCheck: {x-a: \"a\\nb\"}",
            "MEL0201 .includeAdditionalHeadersInCheck.x-a a header value must be one line",
        ),
        (
            "includeAdditionalHeadersInCheck: {'x a': b}",
            "MEL0201 .includeAdditionalHeadersInCheck[\"x a\"] \"x a\" is not a header name",
        ),
        (
            "includeRequestBodyInCheck: {allowPartialMessage: true}",
            "MEL0201 .includeRequestBodyInCheck.maxRequestBytes maxRequestBytes must be greater than 0",
        ),
        (
            "includeHeadersInCheck: [a], includeRequestHeadersInCheck: [b]",
            "MEL0206 .includeHeadersInCheck includeRequestHeadersInCheck is set, and replaces this field",
        ),
    ] {
        assert_eq!(told(fields), [wanted], "{fields}");
    }
}

#[test]
fn json_values_one_after_another_are_documents() {
    let object = |name: &str| {
        format!(
            "{{\"apiVersion\":\"networking.istio.io/v1\",\"kind\":\"VirtualService\",\"metadata\":{{\"name\":\"{name}\"}},\n\"spec\":{{\"hosts\":[\"a.example\"],\"http\":[{{\"directResponse\":{{\"status\":205}}}}]}}}}"
        )
    };

    for between in ["\n", " ", ""] {
        let text = format!("{}{between}{}\n", object("a"), object("b"));
        let parsed = parse("a.json", &text);
        assert_eq!(parsed.diagnostics, vec![], "{between:?}");
        let names: Vec<&str> = parsed
            .objects
            .iter()
            .map(|one| one.meta.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
    }

    // The second value is found at its own line.
    let text = format!("{}\n{}", object("a"), object("b").replace("hosts", "hostz"));
    let told = findings(&text);
    assert!(
        told.iter()
            .any(|one| one.position.line == 4 && one.message.contains("hostz")),
        "{told:?}"
    );
}

#[test]
fn an_address_may_end_in_colons() {
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hosts: [a.example]\n  addresses: [192.0.2.4, 2001:db8::]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  resolution: STATIC\n  endpoints: [{address: 192.0.2.5}]\n";
    assert_eq!(findings(text), vec![]);
    let parsed = parse("a.yaml", text);
    let Spec::ServiceEntry(entry) = &parsed.objects[0].spec else {
        panic!("a ServiceEntry")
    };
    assert_eq!(entry.addresses, ["192.0.2.4", "2001:db8::"]);
}

#[test]
fn documents_of_other_programs_are_left_alone_and_broken_objects_are_not() {
    for foreign in [
        "services: {web: {image: nginx}}\n",
        "version: '3'\nservices: {}\n",
        "images: [{image: a, command: [b]}]\n",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n",
        "apiVersion: v2\nname: chart\nversion: 1.0.0\n",
        "{\"name\": \"package\", \"version\": \"1.0.0\"}",
        "[1, 2]",
    ] {
        let parsed = parse("x.yaml", foreign);
        assert_eq!((parsed.foreign, parsed.unreadable), (1, 0), "{foreign}");
        assert_eq!(parsed.diagnostics.len(), 1, "{foreign}");
        assert_eq!(parsed.diagnostics[0].severity, Severity::Info, "{foreign}");
    }

    for fault in [
        "kind: VirtualService\nmetadata: {name: a}\nspec: {}\n",
        "Kind: virtualservice\nname: a\n",
        "apiVersion: v1\nmetadata: {name: a}\n",
        "apiversion: v1\nkind: Service\nmetadata: {name: a}\n",
        "spec: {}\n",
        "apiVersion: v1\nkind: List\nitems: [{services: {}}]\n",
    ] {
        let parsed = parse("x.yaml", fault);
        assert_eq!((parsed.foreign, parsed.unreadable), (0, 1), "{fault}");
        assert_eq!(parsed.diagnostics[0].severity, Severity::Error, "{fault}");
    }
}

#[test]
fn mesh_configuration_in_another_namespace_is_doubtful() {
    let text = |namespace: &str, key: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: {namespace}}}\ndata:\n  {key}: \"\"\n"
        )
    };
    let said = |text: &str| {
        let parsed = parse("a.yaml", text);
        validate(&parsed.objects[0])
    };

    let found = said(&text("default", "mesh"));
    assert_eq!(found.len(), 1, "{found:?}");
    let finding = &found[0];
    assert_eq!(
        (&*finding.code, finding.severity, &*finding.field),
        ("MEL0205", Severity::Warning, "data.mesh")
    );
    assert_eq!(finding.position.line, 5);
    assert!(finding.remedy.contains("istio-system"));

    assert_eq!(said(&text("istio-system", "mesh")), vec![]);
    assert_eq!(said(&text("default", "other")), vec![]);
}
