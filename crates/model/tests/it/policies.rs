//! Destination rules, security policies, access logs.

use meltemi_model::{Hostname, LbPolicy, LogFormat, MtlsMode, ServiceKey, Snapshot, WorkloadMode};

use super::{build, clean, codes, data, labels};

fn object(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    let group = match kind {
        "DestinationRule" => "networking.istio.io/v1",
        "Telemetry" => "telemetry.istio.io/v1",
        _ => "security.istio.io/v1",
    };
    format!(
        "---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports: [{name: http, port: 80}, {name: grpc, port: 90}]
";

fn web(snapshot: &Snapshot) -> std::sync::Arc<meltemi_model::Service> {
    let key = ServiceKey {
        host: Hostname::new("web.shop.svc.cluster.local"),
        namespace: "shop".to_owned(),
    };
    snapshot.service(&key).expect("declared").clone()
}

#[test]
fn the_clients_rule_beats_the_services_and_that_the_roots() {
    let host = "web.shop.svc.cluster.local";
    let rule = |name: &str, ns: &str, lb: &str, extra: &str| {
        object(
            "DestinationRule",
            name,
            ns,
            &format!("{{host: {host}, trafficPolicy: {{loadBalancer: {{simple: {lb}}}}}{extra}}}"),
        )
    };

    let text = format!(
        "{SERVICE}{}{}{}{}",
        rule("client", "client", "RANDOM", ""),
        rule("hidden", "shop", "ROUND_ROBIN", ", exportTo: [\".\"]"),
        rule("root", "istio-system", "LEAST_REQUEST", ""),
        object(
            "DestinationRule",
            "wide",
            "wide",
            "{host: \"*.shop.svc.cluster.local\", trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}"
        ),
    );

    let snapshot = clean(&text);
    let of = |ns: &str| {
        snapshot
            .destination_rule(ns, &labels(&[]), &web(&snapshot))
            .map(|rule| rule.origin.object.name.clone())
    };

    assert_eq!(of("client").as_deref(), Some("client"));
    assert_eq!(of("shop").as_deref(), Some("hidden"));
    assert_eq!(of("stranger").as_deref(), Some("root"));
    assert_eq!(of("wide").as_deref(), Some("wide"));
}

#[test]
fn a_mesh_wide_rule_does_not_hide_a_services_own_from_gateways() {
    let rule = |name: &str, ns: &str, spec: &str| object("DestinationRule", name, ns, spec);
    let wide = "host: \"*.local\", trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}";
    let own = rule(
        "own",
        "shop",
        "{host: web, subsets: [{name: v1, labels: {version: v1}}]}",
    );

    let of = |text: &str| {
        let snapshot = clean(&format!("{SERVICE}{text}"));
        let rule = snapshot.destination_rule("istio-system", &labels(&[]), &web(&snapshot));
        rule.map(|rule| rule.origin.object.name.clone())
    };

    let mesh_wide = rule("wide", "istio-system", &format!("{{{wide}}}"));
    assert_eq!(of(&format!("{mesh_wide}{own}")).as_deref(), Some("own"));
    assert_eq!(of(&mesh_wide).as_deref(), Some("wide"));

    // For the proxies of istio-system alone, it is meant to come first.
    let private = rule(
        "private",
        "istio-system",
        &format!("{{{wide}, exportTo: [\".\"]}}"),
    );

    assert_eq!(of(&format!("{private}{own}")).as_deref(), Some("private"));

    // So is a rule for some workloads, whoever else it is exported to.
    let selected = "host: \"*.local\", workloadSelector: {matchLabels: {istio: egressgateway}}";
    let selected = rule("selected", "istio-system", &format!("{{{selected}}}"));
    let snapshot = clean(&format!("{SERVICE}{selected}{own}"));
    let of = |ns: &str, client: &[(&str, &str)]| {
        snapshot
            .destination_rule(ns, &labels(client), &web(&snapshot))
            .map(|rule| rule.origin.object.name.clone())
    };

    assert_eq!(
        of("istio-system", &[("istio", "egressgateway")]).as_deref(),
        Some("selected")
    );

    assert_eq!(
        of("stranger", &[("istio", "egressgateway")]).as_deref(),
        Some("own")
    );
}

#[test]
fn rules_of_one_host_merge_and_selected_clients_have_their_own() {
    let text = format!(
        "{SERVICE}{}{}{}",
        object(
            "DestinationRule",
            "a",
            "shop",
            "{host: web, subsets: [{name: v1, labels: {version: v1}}]}"
        ),
        object(
            "DestinationRule",
            "b",
            "shop",
            "{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: x}}, {name: v2, labels: {version: v2}}]}"
        ),
        object(
            "DestinationRule",
            "c",
            "shop",
            "{host: web, workloadSelector: {matchLabels: {app: special}}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}"
        ),
    );

    let build = build(&text);
    assert_eq!(
        codes(&build),
        ["MEL0320 DestinationRule/b.shop spec.subsets"]
    );

    let snapshot = &build.snapshot;
    let rule = snapshot
        .destination_rule("shop", &labels(&[]), &web(snapshot))
        .expect("merged");
    assert_eq!(
        rule.subsets
            .iter()
            .map(|subset| subset.name.as_str())
            .collect::<Vec<_>>(),
        ["v1", "v2"]
    );

    assert_eq!(
        rule.subset("v1").expect("the older").labels.0["version"],
        "v1"
    );

    assert_eq!(
        rule.effective(None, 80)
            .load_balancer
            .expect("the younger's")
            .policy,
        LbPolicy::Random
    );

    assert_eq!(rule.sources.len(), 2);
    let special = snapshot
        .destination_rule("shop", &labels(&[("app", "special")]), &web(snapshot))
        .expect("selected");
    assert_eq!(special.origin.object.name, "c");
}

#[test]
fn port_level_settings_replace_and_subsets_override_by_block() {
    let snapshot = clean(&data("shop.yaml"));
    let key = ServiceKey {
        host: Hostname::new("catalogue.shop.svc.cluster.local"),
        namespace: "shop".to_owned(),
    };

    let service = snapshot.service(&key).expect("declared").clone();
    let rule = snapshot
        .destination_rule("shop", &labels(&[]), &service)
        .expect("there");
    let plain = rule.effective(None, 9080);
    assert_eq!(
        plain
            .connection_pool
            .as_ref()
            .and_then(|pool| pool.max_connections),
        Some(10)
    );

    assert!(plain.load_balancer.is_none());
    let of_port = rule.effective(None, 9090);
    assert_eq!(
        of_port.load_balancer.expect("written").policy,
        LbPolicy::Random
    );

    assert!(of_port.connection_pool.is_none() && of_port.outlier.is_none());
    let of_subset = rule.effective(Some("v2"), 9080);
    assert!(matches!(
        of_subset.load_balancer.expect("written").policy,
        LbPolicy::ConsistentHash(_)
    ));

    assert_eq!(of_subset.outlier, plain.outlier);
}

#[test]
fn mutual_tls_is_decided_by_the_narrowest_scope() {
    let text = format!(
        "{}{}{}",
        object(
            "PeerAuthentication",
            "default",
            "istio-system",
            "{mtls: {mode: STRICT}}"
        ),
        object(
            "PeerAuthentication",
            "default",
            "shop",
            "{mtls: {mode: DISABLE}}"
        ),
        object(
            "PeerAuthentication",
            "web",
            "shop",
            "{selector: {matchLabels: {app: web}}, mtls: {mode: UNSET}, portLevelMtls: {\"8080\": {mode: PERMISSIVE}, \"9090\": {mode: UNSET}}}"
        ),
    );

    let snapshot = clean(&text);
    assert_eq!(
        snapshot.peer_authentication("other", &labels(&[])).mode,
        MtlsMode::Strict
    );

    assert_eq!(
        snapshot.peer_authentication("shop", &labels(&[])).mode,
        MtlsMode::Disable
    );

    let web = snapshot.peer_authentication("shop", &labels(&[("app", "web")]));
    assert_eq!(
        (web.of_port(80), web.of_port(8080), web.of_port(9090)),
        (MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Disable)
    );

    assert_eq!(web.sources.len(), 3);
    assert_eq!(
        clean("").peer_authentication("x", &labels(&[])).mode,
        MtlsMode::Permissive
    );
}

#[test]
fn authorization_is_sorted_by_action_root_first() {
    let text = format!(
        "{}{}{}{}{}",
        object(
            "AuthorizationPolicy",
            "z-mesh",
            "istio-system",
            "{action: DENY, rules: [{to: [{operation: {methods: [TRACE]}}]}]}"
        ),
        object(
            "AuthorizationPolicy",
            "a",
            "shop",
            "{action: DENY, rules: [{from: [{source: {serviceAccounts: [thief, far/thief]}}], when: [{key: source.serviceAccount, values: [thief, far/thief], notValues: [friend]}]}]}"
        ),
        object("AuthorizationPolicy", "b", "shop", "{}"),
        object(
            "AuthorizationPolicy",
            "c",
            "shop",
            "{selector: {matchLabels: {app: web}}, action: AUDIT, rules: [{}]}"
        ),
        object("AuthorizationPolicy", "d", "other", "{}"),
    );

    let snapshot = clean(&text);
    let found = snapshot.authorization_policies("shop", &labels(&[("app", "web")]));
    let names = |list: &[std::sync::Arc<meltemi_model::AuthorizationPolicy>]| {
        list.iter()
            .map(|policy| policy.origin.object.name.clone())
            .collect::<Vec<_>>()
    };

    assert_eq!(names(&found.deny), ["z-mesh", "a"]);
    assert_eq!(names(&found.allow), ["b"]);
    assert_eq!(names(&found.audit), ["c"]);
    assert!(found.allow[0].rules.is_empty());
    assert_eq!(
        found.deny[1].rules[0].from[0].service_accounts.any,
        ["shop/thief", "far/thief"]
    );

    let condition = &found.deny[1].rules[0].when[0].values;
    assert_eq!(
        (&condition.any[..], &condition.none[..]),
        (
            &["shop/thief", "far/thief"].map(str::to_owned)[..],
            &["shop/friend".to_owned()][..]
        )
    );

    assert_eq!(
        names(&snapshot.authorization_policies("third", &labels(&[])).deny),
        ["z-mesh"]
    );
}

#[test]
fn access_logs_follow_mesh_namespace_and_workload() {
    let mesh = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: mine
      envoyFileAccessLog: {path: /dev/stderr, logFormat: {text: 'hi %PROTOCOL%'}}
";

    let text = format!(
        "{mesh}{}{}{}",
        object(
            "Telemetry",
            "mesh",
            "istio-system",
            "{accessLogging: [{providers: [{name: envoy}]}]}"
        ),
        object(
            "Telemetry",
            "shop",
            "shop",
            "{accessLogging: [{providers: [{name: mine}], filter: {expression: 'response.code >= 400'}}]}"
        ),
        object(
            "Telemetry",
            "quiet",
            "shop",
            "{selector: {matchLabels: {app: quiet}}, accessLogging: [{match: {mode: CLIENT}, disabled: true}]}"
        ),
    );

    let build = build(&text);

    // That the filter is for Envoy alone.
    assert_eq!(
        codes(&build),
        ["MEL0307 Telemetry/shop.shop spec.accessLogging[0].filter"]
    );

    let snapshot = build.snapshot;
    let of =
        |ns: &str, pairs: &[(&str, &str)], mode| snapshot.access_logs(ns, &labels(pairs), mode);
    let mesh = of("other", &[], WorkloadMode::Server);
    assert_eq!(
        (mesh[0].path.as_str(), &mesh[0].format, &mesh[0].filter),
        ("/dev/stdout", &LogFormat::DefaultText, &None)
    );

    let shop = of("shop", &[], WorkloadMode::Client);
    assert_eq!(shop.len(), 1);
    assert_eq!(
        (shop[0].path.as_str(), &shop[0].format),
        (
            "/dev/stderr",
            &LogFormat::Text("hi %PROTOCOL%\n".to_owned())
        )
    );

    assert_eq!(shop[0].filter.as_deref(), Some("response.code >= 400"));
    assert_eq!(
        of("shop", &[("app", "quiet")], WorkloadMode::Client),
        vec![]
    );

    assert_eq!(
        of("shop", &[("app", "quiet")], WorkloadMode::Server).len(),
        1
    );

    assert_eq!(
        clean("").access_logs("x", &labels(&[]), WorkloadMode::Client),
        vec![]
    );

    assert_eq!(
        clean(&data("shop.yaml"))
            .access_logs("shop", &labels(&[]), WorkloadMode::Client)
            .len(),
        1
    );
}

#[test]
fn a_telemetry_for_something_else_hides_none() {
    let target = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}], accessLogging: [{disabled: true}]";
    let text = format!(
        "{}{}{}",
        object(
            "Telemetry",
            "a-attached",
            "istio-system",
            &format!("{{{target}}}")
        ),
        object("Telemetry", "b-attached", "shop", &format!("{{{target}}}")),
        object(
            "Telemetry",
            "mesh",
            "istio-system",
            "{accessLogging: [{providers: [{name: envoy}]}]}"
        ),
    );

    let build = build(&text);
    let unserved = [
        "MEL0307 Telemetry/a-attached.istio-system spec.targetRefs",
        "MEL0307 Telemetry/b-attached.shop spec.targetRefs",
    ];

    assert_eq!(codes(&build), unserved);
    assert_eq!(
        build
            .snapshot
            .access_logs("shop", &labels(&[]), WorkloadMode::Client)
            .len(),
        1
    );
}

#[test]
fn selectors_that_select_nobody_are_told_once_somebody_is_there() {
    let policy = object(
        "AuthorizationPolicy",
        "typo",
        "shop",
        "{selector: {matchLabels: {app: catalog}}}",
    );

    assert_eq!(codes(&build(&policy)), Vec::<String>::new());
    assert_eq!(
        codes(&build(&format!("{}\n{policy}", data("shop.yaml")))),
        ["IST0127 AuthorizationPolicy/typo.shop spec.selector"]
    );
}
