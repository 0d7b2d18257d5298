//! What a route does: redirects, rewrites, header changes, CORS, mirrors, faults, timeouts,
//! retries, shares.

use meltemi_proto::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, RuntimeFractionalPercent,
    header_value_option::HeaderAppendAction,
};
use meltemi_proto::envoy::config::route::v3::{
    RedirectAction, RetryPolicy, Route, RouteAction,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
    retry_policy,
    route::Action,
    route_action::{ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy},
};
use meltemi_proto::envoy::extensions::filters::common::fault::v3::{
    FaultDelay, fault_delay::FaultDelaySecifier,
};
use meltemi_proto::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use meltemi_proto::envoy::extensions::filters::http::fault::v3::{
    FaultAbort, HttpFault, fault_abort::ErrorType,
};
use meltemi_proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use meltemi_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use meltemi_proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use meltemi_proto::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use meltemi_proto::{pack, unpack};

use super::{
    boolv, caller, exact, host, matches, millis, prefix, regex, route, routes, translated, u32v,
    virtual_service,
};

const TO_WEB: &str = "route: [{destination: {host: web, port: {number: 80}}}]";

fn redirect_of(route: &Route) -> RedirectAction {
    match &route.action {
        Some(Action::Redirect(redirect)) => redirect.clone(),
        other => panic!("no redirect: {other:?}"),
    }
}

fn action_of(route: &Route) -> RouteAction {
    match &route.action {
        Some(Action::Route(action)) => action.clone(),
        other => panic!("no route: {other:?}"),
    }
}

/// What a rule does that has these fields beside its destination.
fn action(fields: &str) -> RouteAction {
    action_of(&route(&format!("{{{fields}, {TO_WEB}}}")))
}

#[test]
fn redirects() {
    let to = |fields: &str| redirect_of(&route(&format!("{{redirect: {{{fields}}}}}")));
    let path = |path: &str| Some(PathRewriteSpecifier::PathRedirect(path.to_owned()));
    let all = RedirectAction {
        host_redirect: "new.example".to_owned(),
        port_redirect: 8443,
        response_code: RedirectResponseCode::PermanentRedirect as i32,
        path_rewrite_specifier: path("/new"),
        scheme_rewrite_specifier: Some(SchemeRewriteSpecifier::SchemeRedirect("https".to_owned())),
        strip_query: false,
    };

    assert_eq!(
        to("uri: /new, authority: new.example, port: 8443, scheme: https, redirectCode: 308"),
        all
    );

    let code =
        |fields: &str| RedirectResponseCode::try_from(to(fields).response_code).expect("known");
    assert_eq!(code("uri: /new"), RedirectResponseCode::MovedPermanently);
    assert_eq!(
        code("uri: /new, redirectCode: 302"),
        RedirectResponseCode::Found
    );

    assert_eq!(
        code("uri: /new, redirectCode: 303"),
        RedirectResponseCode::SeeOther
    );

    assert_eq!(
        code("uri: /new, redirectCode: 307"),
        RedirectResponseCode::TemporaryRedirect
    );

    for (fields, port) in [
        ("uri: /new", 0),
        ("uri: /new, port: 8080", 8080),
        // A scheme's own port is not written.
        ("uri: /new, port: 80", 0),
        ("uri: /new, port: 443", 443),
        ("scheme: https, port: 443", 0),
        ("scheme: https, port: 80", 80),
        ("scheme: https, derivePort: FROM_PROTOCOL_DEFAULT", 0),
        ("uri: /new, derivePort: FROM_REQUEST_PORT", 0),
    ] {
        assert_eq!(to(fields).port_redirect, port, "{fields}");
    }

    let world = virtual_service("  - {redirect: {uri: /new, derivePort: FROM_REQUEST_PORT}}");
    let at_81 = host(
        &translated(&caller(), &world),
        "81",
        "web.shop.svc.cluster.local",
    )
    .routes;

    assert_eq!(redirect_of(&at_81[0]).port_redirect, 81);
}

#[test]
fn rewrites() {
    let literal = |host: &str| Some(HostRewriteSpecifier::HostRewriteLiteral(host.to_owned()));
    let both = action("match: [{uri: {prefix: /a}}], rewrite: {uri: /b, authority: b.example}");
    assert_eq!(
        (both.prefix_rewrite.as_str(), both.host_rewrite_specifier),
        ("/b", literal("b.example"))
    );

    assert_eq!(both.regex_rewrite, None);
    let by_regex = action("rewrite: {uriRegexRewrite: {match: '^/a/([^/]+)', rewrite: '/b/\\1'}}");
    let wanted = RegexMatchAndSubstitute {
        pattern: Some(regex("^/a/([^/]+)")),
        substitution: "/b/\\1".to_owned(),
    };

    assert_eq!(
        (by_regex.prefix_rewrite.as_str(), by_regex.regex_rewrite),
        ("", Some(wanted))
    );

    // The rewrite is said for the authority; a header is a header.
    let header = "headers: {request: {set: {host: header.example}}}";
    assert_eq!(
        action(header).host_rewrite_specifier,
        literal("header.example")
    );

    let written_twice = action(&format!(
        "rewrite: {{authority: rewrite.example}}, {header}"
    ));
    assert_eq!(
        written_twice.host_rewrite_specifier,
        literal("rewrite.example")
    );
}

fn set(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    }
}

fn add(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        append_action: HeaderAppendAction::AppendIfExistsOrAdd as i32,
        ..set(name, value)
    }
}

#[test]
fn header_changes_of_routes_and_destinations() {
    const CHANGES: &str = "headers: {request: {set: {x-a: '1', host: a.example}, add: {x-b: '2'}, remove: [x-c]}, response: {set: {x-d: '3'}, add: {x-e: '4'}, remove: [x-f]}}";

    let of_route = route(&format!("{{{CHANGES}, {TO_WEB}}}"));
    assert_eq!(
        of_route.request_headers_to_add,
        [set("x-a", "1"), add("x-b", "2")]
    );

    assert_eq!(of_route.request_headers_to_remove, ["x-c"]);
    assert_eq!(
        of_route.response_headers_to_add,
        [set("x-d", "3"), add("x-e", "4")]
    );

    assert_eq!(of_route.response_headers_to_remove, ["x-f"]);
    let destination = |weight, extra: &str| {
        format!("{{destination: {{host: web, port: {{number: 80}}}}, weight: {weight}{extra}}}")
    };
    let alone = route(&format!(
        "{{route: [{}]}}",
        destination(100, &format!(", {CHANGES}"))
    ));

    assert_eq!(
        alone.request_headers_to_add,
        of_route.request_headers_to_add
    );

    assert_eq!(alone.response_headers_to_remove, ["x-f"]);
    let shared = route(&format!(
        "{{route: [{}, {}]}}",
        destination(30, &format!(", {CHANGES}")),
        destination(70, "")
    ));

    assert!(shared.request_headers_to_add.is_empty());
    let Some(ClusterSpecifier::WeightedClusters(shares)) = action_of(&shared).cluster_specifier
    else {
        panic!("shares")
    };

    let first = &shares.clusters[0];
    assert_eq!(
        (&first.weight, &shares.clusters[1].weight),
        (&u32v(30), &u32v(70))
    );

    assert_eq!(
        first.request_headers_to_add,
        [set("x-a", "1"), add("x-b", "2")]
    );

    assert_eq!(first.request_headers_to_remove, ["x-c"]);
    assert_eq!(
        first.response_headers_to_add,
        [set("x-d", "3"), add("x-e", "4")]
    );

    assert_eq!(first.response_headers_to_remove, ["x-f"]);
    assert!(shares.clusters[1].request_headers_to_add.is_empty());
}

fn hundredths(numerator: u32) -> FractionalPercent {
    FractionalPercent {
        numerator,
        denominator: DenominatorType::Hundred as i32,
    }
}

fn millionths(numerator: u32) -> FractionalPercent {
    FractionalPercent {
        numerator,
        denominator: DenominatorType::Million as i32,
    }
}

fn always_of(share: FractionalPercent) -> Option<RuntimeFractionalPercent> {
    Some(RuntimeFractionalPercent {
        default_value: Some(share),
        runtime_key: String::new(),
    })
}

#[test]
fn cors() {
    let of = |fields: &str| -> CorsPolicy {
        let route = route(&format!("{{corsPolicy: {{{fields}}}, {TO_WEB}}}"));
        unpack(&route.typed_per_filter_config["envoy.filters.http.cors"]).expect("a policy")
    };

    let wanted = CorsPolicy {
        allow_origin_string_match: vec![
            exact("https://a.example"),
            prefix("https://b."),
            matches("https://c.+"),
        ],
        allow_methods: "GET,POST".to_owned(),
        allow_headers: "x-a,x-b".to_owned(),
        expose_headers: "x-c,x-d".to_owned(),
        max_age: "86400".to_owned(),
        allow_credentials: boolv(true),
        forward_not_matching_preflights: boolv(false),
        filter_enabled: always_of(hundredths(100)),
        ..Default::default()
    };

    let written = "allowOrigins: [{exact: 'https://a.example'}, {prefix: 'https://b.'}, {regex: 'https://c.+'}], allowMethods: [GET, POST], allowHeaders: [x-a, x-b], exposeHeaders: [x-c, x-d], maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE";
    assert_eq!(of(written), wanted);
    let little = of("allowOrigins: [{exact: '*'}]");
    assert_eq!(
        (little.allow_credentials, little.max_age.as_str()),
        (None, "")
    );

    assert_eq!(little.forward_not_matching_preflights, boolv(true));
    assert_eq!(
        little.allow_origin_string_match,
        [matches(".*")],
        "any origin"
    );
}

#[test]
fn mirrors() {
    let policy = |host: &str, share| RequestMirrorPolicy {
        cluster: format!("outbound|80||{host}.shop.svc.cluster.local"),
        runtime_fraction: always_of(share),
        trace_sampled: boolv(false),
        ..Default::default()
    };

    let one = |fields: &str| action(fields).request_mirror_policies;
    assert_eq!(
        one("mirror: {host: spare}"),
        [policy("spare", hundredths(100))]
    );

    assert_eq!(
        one("mirror: {host: spare}, mirrorPercentage: {value: 12.5}"),
        [policy("spare", millionths(125_000))]
    );

    assert_eq!(
        one("mirror: {host: spare}, mirrorPercentage: {value: 0}"),
        []
    );

    let two = "mirrors: [{destination: {host: spare}, percentage: {value: 5}}, {destination: {host: web, port: {number: 80}}}]";
    assert_eq!(
        one(two),
        [
            policy("spare", hundredths(5)),
            policy("web", hundredths(100))
        ]
    );
}

#[test]
fn faults() {
    let of = |fields: &str| -> HttpFault {
        let route = route(&format!("{{fault: {{{fields}}}, {TO_WEB}}}"));
        unpack(&route.typed_per_filter_config["envoy.filters.http.fault"]).expect("a fault")
    };

    let delay = FaultDelay {
        percentage: Some(hundredths(10)),
        fault_delay_secifier: millis(7500).map(FaultDelaySecifier::FixedDelay),
    };

    let abort = |percentage, error| FaultAbort {
        percentage: Some(percentage),
        error_type: Some(error),
        ..Default::default()
    };

    let both = of(
        "delay: {percentage: {value: 10}, fixedDelay: 7.5s}, abort: {percentage: {value: 0.5}, httpStatus: 503}",
    );
    let wanted = HttpFault {
        delay: Some(delay),
        abort: Some(abort(millionths(5_000), ErrorType::HttpStatus(503))),
        ..Default::default()
    };

    assert_eq!(both, wanted);
    let grpc = of("abort: {percentage: {value: 100}, grpcStatus: UNAVAILABLE}");
    assert_eq!(
        grpc.abort,
        Some(abort(hundredths(100), ErrorType::GrpcStatus(14)))
    );

    assert_eq!(grpc.delay, None);

    // Without a percentage, nobody is hit.
    assert_eq!(
        of("abort: {httpStatus: 400}")
            .abort
            .and_then(|abort| abort.percentage),
        Some(hundredths(0))
    );
}

// max_grpc_timeout: see the builder.
#[expect(deprecated, reason = "the older field is on the wire")]
#[test]
fn timeouts() {
    let timed = action("timeout: 1.5s");
    assert_eq!(
        (timed.timeout, timed.max_grpc_timeout),
        (millis(1500), millis(1500))
    );

    let plain = action_of(&route(&format!("{{{TO_WEB}}}")));
    assert_eq!(
        (plain.timeout, plain.max_grpc_timeout),
        (millis(0), millis(0)),
        "none, rather than Envoy's 15 s"
    );
}

fn previous_hosts() -> retry_policy::RetryHostPredicate {
    retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_policy::retry_host_predicate::ConfigType::TypedConfig(
            pack(&PreviousHostsPredicate {}),
        )),
    }
}

fn default_retries() -> RetryPolicy {
    RetryPolicy {
        retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
            .to_owned(),
        num_retries: u32v(2),
        retry_host_predicate: vec![previous_hosts()],
        host_selection_retry_max_attempts: 5,
        ..Default::default()
    }
}

#[test]
fn retries() {
    let of = |fields: &str| action(&format!("retries: {{{fields}}}")).retry_policy;
    assert_eq!(
        action_of(&route(&format!("{{{TO_WEB}}}"))).retry_policy,
        Some(default_retries())
    );

    assert_eq!(of("attempts: 0"), None);
    let priorities = retry_policy::RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(retry_policy::retry_priority::ConfigType::TypedConfig(pack(
            &PreviousPrioritiesConfig {
                update_frequency: 2,
            },
        ))),
    };

    let written = RetryPolicy {
        retry_on: "5xx,reset,retriable-status-codes".to_owned(),
        retriable_status_codes: vec![404, 409],
        num_retries: u32v(7),
        per_try_timeout: millis(250),
        retry_priority: Some(priorities),
        retry_back_off: Some(retry_policy::RetryBackOff {
            base_interval: millis(40),
            max_interval: None,
        }),
        ..default_retries()
    };

    let fields = "attempts: 7, perTryTimeout: 250ms, retryOn: '5xx, 404,reset,409', retryRemoteLocalities: true, backoff: 40ms";
    assert_eq!(of(fields), Some(written));
    let same_host = RetryPolicy {
        num_retries: u32v(1),
        retry_host_predicate: Vec::new(),
        ..default_retries()
    };

    assert_eq!(
        of("attempts: 1, retryIgnorePreviousHosts: false"),
        Some(same_host)
    );

    assert_eq!(
        of("attempts: 1, retryRemoteLocalities: false")
            .expect("retries")
            .retry_priority,
        None
    );
}

#[test]
fn a_zero_share_is_left_out() {
    let found = routes(
        "  - {route: [{destination: {host: web, port: {number: 80}}, weight: 0}, {destination: {host: spare}, weight: 100}]}",
    );
    let spare = "outbound|80||spare.shop.svc.cluster.local".to_owned();
    assert_eq!(
        action_of(&found[0]).cluster_specifier,
        Some(ClusterSpecifier::Cluster(spare))
    );
}

#[test]
fn an_external_name_leads_to_what_it_stands_for() {
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: old, namespace: shop}\nspec: {type: ExternalName, externalName: spare.shop.svc.cluster.local}\n";
    let world = format!(
        "{alias}---\n{}",
        virtual_service("  - {route: [{destination: {host: old}}], mirror: {host: old}}")
    );

    let translated = translated(&caller(), &world);
    let action = action_of(&host(&translated, "80", "web.shop.svc.cluster.local").routes[0]);
    let spare = "outbound|80||spare.shop.svc.cluster.local";

    assert_eq!(
        action.cluster_specifier,
        Some(ClusterSpecifier::Cluster(spare.to_owned()))
    );

    assert_eq!(action.request_mirror_policies[0].cluster, spare);
    super::cluster(&translated, spare);
}
