//! CUSTOM policies: the filters that ask an external authorizer, and those that deny instead.

use meltemi_proto::envoy::config::core::v3::{
    ApiVersion, GrpcService, HeaderValue, HttpUri, grpc_service, http_uri,
};
use meltemi_proto::envoy::extensions::filters::http::ext_authz::v3 as http;
use meltemi_proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use meltemi_proto::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz as NetworkExtAuthz;
use meltemi_proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use meltemi_proto::envoy::r#type::matcher::v3::{
    ListStringMatcher, MetadataMatcher, StringMatcher, ValueMatcher, metadata_matcher,
    string_matcher::MatchPattern, value_matcher,
};
use meltemi_proto::envoy::r#type::v3::HttpStatus;
use meltemi_proto::google::protobuf::Duration;
use meltemi_proto::json::Reflection;
use meltemi_proto::{Any, unpack};
use meltemi_translate::{Memo, Proxy, Translated, translate};
use serde_json::{Value, json};

use super::authz::{normal, parts};
use super::summary::inbound_filters;

const HTTP: [&str; 2] = ["envoy.filters.http.rbac", "envoy.filters.http.ext_authz"];
const TCP: [&str; 2] = [
    "envoy.filters.network.rbac",
    "envoy.filters.network.ext_authz",
];

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: my-custom-ext-authz, namespace: foo}
spec: {ports: [{name: http, port: 8000}, {name: grpc, port: 9000}]}
---
";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: foo}
spec: {action: CUSTOM, provider: {name: default}, rules: [{to: [{operation: {paths: [/admin]}}]}]}
";

/// The workload of Istio's cases, with stock Envoy.
fn httpbin() -> Proxy {
    super::stock(super::proxy(
        "sidecar~10.0.0.1~httpbin.foo~foo.svc.cluster.local",
        "httpbin",
        &[("app", "httpbin"), ("version", "v1")],
    ))
}

fn translated(provider: &str, policies: &str, proxy: &Proxy) -> Translated {
    let mesh = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    extensionProviders: [{provider}]\n---\n"
    );
    let snapshot = super::snapshot_of(&format!("{SERVICE}{mesh}{policies}"));
    translate(&snapshot, proxy, &Memo::new())
}

#[test]
fn istios_custom_cases_give_equivalent_filters() {
    let Some(folder) = meltemi_testkit::shared("golden/authz") else {
        super::skip(
            "istios_custom_cases_give_equivalent_filters",
            "Istio's cases are not here (MELTEMI_SHARED)",
        );
        return;
    };

    // The providers of Istio's own test of each case.
    let service =
        "service: foo/my-custom-ext-authz.foo.svc.cluster.local, port: 9000, failOpen: true";
    let over_http = format!("{{name: default, envoyExtAuthzHttp: {{{service}}}}}");
    let over_grpc = format!("{{name: default, envoyExtAuthzGrpc: {{{service}, timeout: 2ms}}}}");
    let reflection = Reflection::new().expect("descriptors");

    for (case, provider, outputs) in [
        ("http-custom-bad-multiple-providers", &over_http, 2),
        ("tcp-custom-both-http-tcp", &over_grpc, 2),
        ("tcp-custom-only-http", &over_http, 0),
    ] {
        let read = |ending: &str| {
            let file = folder.join(format!("{case}-{ending}.yaml"));
            std::fs::read_to_string(&file)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        };
        let expected: Vec<_> = (1..=outputs)
            .map(|number| serde_saphyr::from_str(&read(&format!("out{number}"))).expect("YAML"))
            .map(|filter: Value| expected_filter(&filter, &reflection))
            .collect();

        let names = if case.starts_with("tcp") { TCP } else { HTTP };
        let translated = translated(provider, &read("in"), &httpbin());
        let found: Vec<_> = inbound_filters(&translated, &names)
            .iter()
            .map(|(name, config)| found_filter(name, config))
            .collect();

        assert_eq!(json!(expected), json!(found), "{case}");
    }
}

/// One of Istio's filters as [`found_filter`] describes it.
fn expected_filter(filter: &Value, reflection: &Reflection) -> Value {
    let name = filter["name"].as_str().expect("a name");
    let mut config = filter["typedConfig"].clone();
    config
        .as_object_mut()
        .expect("a message")
        .shift_remove("@type");

    match name {
        "envoy.filters.network.ext_authz" => {
            let message: NetworkExtAuthz = reflection.from_json(&config).expect("a message");
            json!([name, format!("{message:?}")])
        }
        _ => json!([
            name,
            normal(config.clone()),
            config
                .get("shadowRulesStatPrefix")
                .cloned()
                .unwrap_or(json!(""))
        ]),
    }
}

fn found_filter(name: &str, config: &Any) -> Value {
    match name {
        "envoy.filters.network.ext_authz" => {
            let message: NetworkExtAuthz = unpack(config).expect("a message");
            json!([name, format!("{message:?}")])
        }
        "envoy.filters.network.rbac" => {
            let rbac: NetworkRbac = unpack(config).expect("a message");
            json!([
                name,
                parts(rbac.rules, rbac.shadow_rules),
                rbac.shadow_rules_stat_prefix
            ])
        }
        "envoy.filters.http.rbac" => {
            let rbac: HttpRbac = unpack(config).expect("a message");
            json!([
                name,
                parts(rbac.rules, rbac.shadow_rules),
                rbac.shadow_rules_stat_prefix
            ])
        }
        _ => panic!("{name} is in none of the cases"),
    }
}

fn names(filters: &[(String, Any)]) -> Vec<&str> {
    filters.iter().map(|(name, _)| name.as_str()).collect()
}

/// The rules that a filter enforces, or evaluates only; sorted.
fn rules(config: &Any, is_shadow: bool) -> Vec<String> {
    let HttpRbac {
        rules,
        shadow_rules,
        ..
    } = unpack(config).expect("an RBAC filter");

    let chosen = if is_shadow { shadow_rules } else { rules };
    let mut names: Vec<_> = chosen
        .map(|rules| rules.policies.into_keys().collect())
        .unwrap_or_default();
    names.sort();
    names
}

fn headers(patterns: &[MatchPattern]) -> Option<ListStringMatcher> {
    let patterns = patterns.iter().map(|pattern| StringMatcher {
        match_pattern: Some(pattern.clone()),
        ignore_case: true,
    });
    Some(ListStringMatcher {
        patterns: patterns.collect(),
    })
}

fn exact(name: &str) -> MatchPattern {
    MatchPattern::Exact(name.to_owned())
}

fn selected_for(provider: &str, filter: &str) -> Option<MetadataMatcher> {
    let prefix = MatchPattern::Prefix(format!("istio-ext-authz-{provider}"));
    Some(MetadataMatcher {
        filter: filter.to_owned(),
        path: vec![metadata_matcher::PathSegment {
            segment: Some(metadata_matcher::path_segment::Segment::Key(
                "istio_ext_authz_shadow_effective_policy_id".to_owned(),
            )),
        }],
        value: Some(ValueMatcher {
            match_pattern: Some(value_matcher::MatchPattern::StringMatch(StringMatcher {
                match_pattern: Some(prefix),
                ignore_case: false,
            })),
        }),
        invert: false,
    })
}

#[test]
fn every_field_of_an_http_provider_reaches_the_filter() {
    let provider = "{name: default, envoyExtAuthzHttp: {service: my-custom-ext-authz.foo.svc.cluster.local, port: 8000, \
        timeout: 1.5s, pathPrefix: /check, failOpen: true, statusOnError: '503', clearRouteCache: true, \
        includeHeadersInCheck: [ignored], includeRequestHeadersInCheck: [Cookie, x-user-*, '*-id'], \
        includeAdditionalHeadersInCheck: {x-mesh: yes-it-is, x-asks: httpbin}, \
        includeRequestBodyInCheck: {maxRequestBytes: 4096, allowPartialMessage: true, packAsBytes: true}, \
        headersToUpstreamOnAllow: [x-user], headersToDownstreamOnDeny: [www-authenticate], headersToDownstreamOnAllow: [x-checked]}}";
    let filters = inbound_filters(&translated(provider, POLICY, &httpbin()), &HTTP);
    assert_eq!(names(&filters), HTTP);

    let added = [("x-asks", "httpbin"), ("x-mesh", "yes-it-is")];
    let expected = http::ExtAuthz {
        services: Some(http::ext_authz::Services::HttpService(http::HttpService {
            server_uri: Some(HttpUri {
                uri: "http://my-custom-ext-authz.foo.svc.cluster.local".to_owned(),
                timeout: Some(Duration {
                    seconds: 1,
                    nanos: 500_000_000,
                }),
                http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(
                    "outbound|8000||my-custom-ext-authz.foo.svc.cluster.local".to_owned(),
                )),
            }),
            path_prefix: "/check".to_owned(),
            authorization_request: Some(http::AuthorizationRequest {
                headers_to_add: added
                    .map(|(key, value)| HeaderValue {
                        key: key.to_owned(),
                        value: value.to_owned(),
                        ..Default::default()
                    })
                    .to_vec(),
                ..Default::default()
            }),
            authorization_response: Some(http::AuthorizationResponse {
                allowed_upstream_headers: headers(&[exact("x-user")]),
                allowed_client_headers: headers(&[exact("www-authenticate")]),
                allowed_client_headers_on_success: headers(&[exact("x-checked")]),
                ..Default::default()
            }),
            ..Default::default()
        })),
        allowed_headers: headers(&[
            exact("Cookie"),
            MatchPattern::Prefix("x-user-".to_owned()),
            MatchPattern::Suffix("-id".to_owned()),
        ]),
        failure_mode_allow: true,
        status_on_error: Some(HttpStatus { code: 503 }),
        clear_route_cache: true,
        with_request_body: Some(http::BufferSettings {
            max_request_bytes: 4096,
            allow_partial_message: true,
            pack_as_bytes: true,
        }),
        filter_enabled_metadata: selected_for("default", "envoy.filters.http.rbac"),
        transport_api_version: ApiVersion::V3 as i32,
        ..Default::default()
    };
    assert_eq!(
        unpack::<http::ExtAuthz>(&filters[1].1).expect("a filter"),
        expected
    );
}

#[test]
fn a_grpc_provider_asks_about_requests_and_connections() {
    let provider = "{name: default, envoyExtAuthzGrpc: {service: my-custom-ext-authz.foo.svc.cluster.local, port: 9000, \
        statusOnError: '500', includeRequestBodyInCheck: {maxRequestBytes: 10}}}";
    let translated = translated(provider, POLICY, &httpbin());

    let grpc = GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(
            grpc_service::EnvoyGrpc {
                cluster_name: "outbound|9000||my-custom-ext-authz.foo.svc.cluster.local".to_owned(),
                authority: "my-custom-ext-authz.foo.svc.cluster.local".to_owned(),
                ..Default::default()
            },
        )),
        timeout: Some(Duration {
            seconds: 600,
            nanos: 0,
        }),
        ..Default::default()
    };

    let over_http = inbound_filters(&translated, &HTTP);
    let found: http::ExtAuthz = unpack(&over_http[1].1).expect("a filter");
    let expected = http::ExtAuthz {
        services: Some(http::ext_authz::Services::GrpcService(grpc.clone())),
        status_on_error: Some(HttpStatus { code: 500 }),
        with_request_body: Some(http::BufferSettings {
            max_request_bytes: 10,
            ..Default::default()
        }),
        filter_enabled_metadata: selected_for("default", "envoy.filters.http.rbac"),
        transport_api_version: ApiVersion::V3 as i32,
        ..Default::default()
    };
    assert_eq!(found, expected);

    let over_tcp = inbound_filters(&translated, &TCP);
    let found: NetworkExtAuthz = unpack(&over_tcp[1].1).expect("a filter");
    let expected = NetworkExtAuthz {
        stat_prefix: "tcp.".to_owned(),
        grpc_service: Some(grpc),
        filter_enabled_metadata: selected_for("default", "envoy.filters.network.rbac"),
        transport_api_version: ApiVersion::V3 as i32,
        ..Default::default()
    };
    assert_eq!(found, expected);
}

const PROVIDER: &str = "{name: default, envoyExtAuthzGrpc: {service: my-custom-ext-authz.foo.svc.cluster.local, port: 9000}}";

#[test]
fn the_deprecated_list_of_headers_counts_alone() {
    let provider = "{name: default, envoyExtAuthzHttp: {service: my-custom-ext-authz.foo.svc.cluster.local, port: 8000, includeHeadersInCheck: [cookie]}}";
    let filters = inbound_filters(&translated(provider, POLICY, &httpbin()), &HTTP);
    let found: http::ExtAuthz = unpack(&filters[1].1).expect("a filter");
    assert_eq!(found.allowed_headers, headers(&[exact("cookie")]));
}

#[test]
fn policies_of_one_provider_share_a_filter_before_deny_and_allow() {
    let policies = format!(
        "{POLICY}---{}---{}---{}",
        POLICY.replace("name: ask", "name: second").replace(
            "paths: [/admin]}}]}",
            "paths: [/x]}}]}, {from: [{source: {namespaces: [bar]}}]}"
        ),
        POLICY
            .replace("name: ask", "name: tried")
            .replace(
                "namespace: foo}",
                "namespace: foo, annotations: {istio.io/dry-run: 'true'}}"
            )
            .replace("name: default", "name: absent"),
        POLICY
            .replace("name: ask", "name: deny")
            .replace("action: CUSTOM, provider: {name: default}", "action: DENY"),
    );
    let filters = inbound_filters(&translated(PROVIDER, &policies, &httpbin()), &HTTP);
    assert_eq!(names(&filters), [HTTP[0], HTTP[1], HTTP[0]]);

    // The dry run asks nobody, and its provider does not count.
    let rule =
        |policy, rule| format!("istio-ext-authz-default-ns[foo]-policy[{policy}]-rule[{rule}]");
    assert_eq!(
        rules(&filters[0].1, true),
        [rule("ask", 0), rule("second", 0), rule("second", 1)]
    );
    assert_eq!(rules(&filters[0].1, false), [""; 0]);
    assert_eq!(
        rules(&filters[2].1, false),
        ["ns[foo]-policy[deny]-rule[0]"]
    );
}

#[test]
fn nobody_to_ask_denies_the_same_requests() {
    let service = "service: my-custom-ext-authz.foo.svc.cluster.local, port: 9000";
    for provider in [
        "{name: other, prometheus: {}}".to_owned(),
        "{name: default, prometheus: {}}".to_owned(),
        format!("{{name: default, envoyExtAuthzGrpc: {{{service}, statusOnError: '999'}}}}"),
        format!("{{name: default, envoyExtAuthzHttp: {{{service}, pathPrefix: check}}}}"),
        PROVIDER.replace("my-custom-ext-authz", "my-custom-ext-authz.bar"),
        PROVIDER.replace("service: ", "service: bar/"),
    ] {
        let translated = translated(&provider, POLICY, &httpbin());
        for names_here in [HTTP, TCP] {
            let filters = inbound_filters(&translated, &names_here);
            assert_eq!(names(&filters), [names_here[0]], "{provider}");
        }

        let filters = inbound_filters(&translated, &HTTP);
        let denied =
            "istio-ext-authz-default-ns[foo]-policy[ask]-rule[0]-deny-due-to-bad-CUSTOM-action";
        assert_eq!(rules(&filters[0].1, false), [denied], "{provider}");
    }
}

#[test]
fn a_client_without_the_filter_denies_and_is_reported() {
    let without = |extension: &str| {
        let mut proxy = httpbin();
        proxy.extensions.remove(extension);
        translated(PROVIDER, POLICY, &proxy)
    };

    let no_http = without(HTTP[1]);
    assert_eq!(names(&inbound_filters(&no_http, &HTTP)), [HTTP[0]]);
    assert_eq!(names(&inbound_filters(&no_http, &TCP)), TCP);
    let told: Vec<_> = no_http
        .diagnostics
        .iter()
        .map(|found| (found.code.as_str(), found.object.name.as_str()))
        .collect();
    assert_eq!(told, [("MEL0504", "ask")]);

    // The workload serves no TCP port, so nothing is amiss.
    let no_network = without(TCP[1]);
    assert_eq!(names(&inbound_filters(&no_network, &HTTP)), HTTP);
    assert_eq!(names(&inbound_filters(&no_network, &TCP)), [TCP[0]]);
    assert_eq!(no_network.diagnostics, []);
}

#[test]
fn a_service_out_of_reach_is_reported() {
    let sidecar = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: narrow, namespace: foo}\nspec: {egress: [{hosts: [bar/*]}]}\n";
    let translated = translated(PROVIDER, &format!("{POLICY}{sidecar}"), &httpbin());
    let told: Vec<_> = translated
        .diagnostics
        .iter()
        .map(|found| {
            (
                found.code.as_str(),
                found.object.name.as_str(),
                found.message.as_str(),
            )
        })
        .collect();

    let message = "httpbin may not call my-custom-ext-authz.foo.svc.cluster.local: every check of the provider fails";
    assert_eq!(told, [("MEL0505", "ask", message)]);
}
