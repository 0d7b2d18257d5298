//! `match`: what a route asks of a request, and whom it is for.

use meltemi_proto::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};
use meltemi_proto::envoy::r#type::matcher::v3::StringMatcher;

use super::{
    boolv, caller, exact, host, matches, prefix, regex, route, translated, virtual_service,
};

fn any_path() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        case_sensitive: boolv(true),
        ..Default::default()
    }
}

fn path(specifier: PathSpecifier) -> RouteMatch {
    RouteMatch {
        path_specifier: Some(specifier),
        ..any_path()
    }
}

fn header(name: &str, condition: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(condition)),
        ..Default::default()
    }
}

fn present(name: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    }
}

fn with(headers: Vec<HeaderMatcher>) -> RouteMatch {
    RouteMatch {
        headers,
        ..any_path()
    }
}

fn asking(name: &str, specifier: QueryParameterMatchSpecifier) -> RouteMatch {
    let query_parameters = vec![QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(specifier),
    }];
    RouteMatch {
        query_parameters,
        ..any_path()
    }
}

#[test]
fn every_kind_of_condition() {
    use QueryParameterMatchSpecifier as Query;

    let without = |matcher: HeaderMatcher, missing_is_empty| HeaderMatcher {
        invert_match: true,
        treat_missing_header_as_empty: missing_is_empty,
        ..matcher
    };

    for (condition, wanted) in [
        (
            "uri: {prefix: /a}",
            path(PathSpecifier::Prefix("/a".to_owned())),
        ),
        (
            "uri: {exact: /a}",
            path(PathSpecifier::Path("/a".to_owned())),
        ),
        (
            "uri: {regex: '/a/[0-9]+'}",
            path(PathSpecifier::SafeRegex(regex("/a/[0-9]+"))),
        ),
        (
            "{uri: {prefix: /a}, ignoreUriCase: true}",
            RouteMatch {
                case_sensitive: boolv(false),
                ..path(PathSpecifier::Prefix("/a".to_owned()))
            },
        ),
        (
            "method: {exact: GET}",
            with(vec![header(":method", exact("GET"))]),
        ),
        (
            "method: {regex: 'GET|HEAD'}",
            with(vec![header(":method", matches("GET|HEAD"))]),
        ),
        (
            "scheme: {exact: https}",
            with(vec![header(":scheme", exact("https"))]),
        ),
        (
            "authority: {prefix: web.}",
            with(vec![header(":authority", prefix("web."))]),
        ),
        (
            "headers: {End-User: {exact: anna}}",
            with(vec![header("end-user", exact("anna"))]),
        ),
        (
            "headers: {end-user: {prefix: an}}",
            with(vec![header("end-user", prefix("an"))]),
        ),
        (
            "headers: {end-user: {regex: 'a.+'}}",
            with(vec![header("end-user", matches("a.+"))]),
        ),
        ("headers: {end-user: {}}", with(vec![present("end-user")])),
        (
            "headers: {end-user: {exact: ''}}",
            with(vec![header("end-user", exact(""))]),
        ),
        // Who does not send the header does not send the value.
        (
            "withoutHeaders: {x-no: {exact: '1'}}",
            with(vec![without(header("x-no", exact("1")), true)]),
        ),
        (
            "withoutHeaders: {x-no: {}}",
            with(vec![without(present("x-no"), false)]),
        ),
        (
            "queryParams: {Page: {exact: '1'}}",
            asking("Page", Query::StringMatch(exact("1"))),
        ),
        (
            "queryParams: {page: {prefix: '1'}}",
            asking("page", Query::StringMatch(prefix("1"))),
        ),
        (
            "queryParams: {page: {regex: '[0-9]+'}}",
            asking("page", Query::StringMatch(matches("[0-9]+"))),
        ),
        (
            "queryParams: {page: {}}",
            asking("page", Query::PresentMatch(true)),
        ),
        (
            "queryParams: {debug: {exact: ''}}",
            asking("debug", Query::StringMatch(exact(""))),
        ),
    ] {
        let condition = if condition.starts_with('{') {
            condition.to_owned()
        } else {
            format!("{{{condition}}}")
        };
        let found = route(&format!(
            "{{match: [{condition}], route: [{{destination: {{host: web}}}}]}}"
        ));
        assert_eq!(found.r#match, Some(wanted), "{condition}");
    }
}

#[test]
fn conditions_of_one_match_hold_together_and_matches_are_alternatives() {
    let rule = "{name: both, match: [{name: first, uri: {prefix: /a}, method: {exact: GET}, headers: {x-a: {exact: '1'}}}, {uri: {exact: /b}, statPrefix: b}], route: [{destination: {host: web}}]}";
    let found = super::routes(&format!("  - {rule}"));
    let first = RouteMatch {
        headers: vec![header("x-a", exact("1")), header(":method", exact("GET"))],
        ..path(PathSpecifier::Prefix("/a".to_owned()))
    };

    assert_eq!(found[0].r#match, Some(first));
    assert_eq!(
        found[1].r#match,
        Some(path(PathSpecifier::Path("/b".to_owned())))
    );

    let names: Vec<_> = found
        .iter()
        .map(|route| (route.name.as_str(), route.stat_prefix.as_str()))
        .collect();

    assert_eq!(names, [("both.first", ""), ("both", "b")]);
}

/// Whether the rule is there for the caller at a port.
fn is_there(condition: &str, port: &str) -> bool {
    let http = format!(
        "  - {{name: asked, match: [{{{condition}}}], route: [{{destination: {{host: spare, port: {{number: 80}}}}}}]}}"
    );
    let translated = translated(&caller(), &virtual_service(&http));
    host(&translated, port, "web.shop.svc.cluster.local")
        .routes
        .iter()
        .any(|route| route.name == "asked")
}

#[test]
fn whom_a_match_is_for_is_decided_before() {
    for (condition, at_80, at_81) in [
        ("port: 80", true, false),
        ("port: 81", false, true),
        ("sourceLabels: {app: caller}", true, true),
        ("sourceLabels: {app: caller, version: v1}", false, false),
        ("sourceNamespace: shop", true, true),
        ("sourceNamespace: bank", false, false),
        ("gateways: [mesh]", true, true),
        ("gateways: [shop/entry]", false, false),
    ] {
        assert_eq!(
            (is_there(condition, "80"), is_there(condition, "81")),
            (at_80, at_81),
            "{condition}"
        );
    }
}

#[test]
fn a_match_for_a_gateway_is_served_there_alone() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: entry, namespace: shop}\nspec:\n  selector: {istio: ingressgateway}\n  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]\n";
    let service = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec:\n  hosts: [web.example]\n  gateways: [entry, mesh]\n  http:\n  - {name: outside, match: [{gateways: [entry]}], route: [{destination: {host: web, port: {number: 80}}}]}\n  - {name: inside, match: [{gateways: [mesh]}], route: [{destination: {host: web, port: {number: 81}}}]}\n";
    let world = format!("{gateway}---\n{service}");
    let router = crate::proxy(
        "router~10.44.0.9~entry-1.edge~edge.svc.cluster.local",
        "entry",
        &[("istio", "ingressgateway")],
    );

    let of = |proxy, table: &str| -> Vec<String> {
        let routes = host(&translated(&proxy, &world), table, "web.example").routes;
        routes.into_iter().map(|route| route.name).collect()
    };

    assert_eq!(of(router, "http.80"), ["outside"]);
    assert_eq!(of(caller(), "80"), ["inside"]);
}
